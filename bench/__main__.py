"""`python -m bench`: take the measurements and print them. It never asserts: a goal that was missed is shown so.

Exits 0 when every row was measured, 1 when one could not be, or what it stands on did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import (
    accepting,
    agents,
    aging,
    answering,
    comparison,
    following,
    git_jobs,
    half_open,
    harvesting,
    health,
    node_events,
    nodes_at_work,
    passing,
    redacting,
    sealing,
    sharing,
    starting,
    startup,
    two_nodes,
    warming,
    watching,
)
from bench.passing import OTHER_WIRES
from bench.rows import Row, Series, table
from bench.worlds import Broken, world
from steadyhand.testing.cli import SYSTEM_PATH, cli_path

BUSY_SHARE = 0.5
"""With more than this load for each core, what is measured is the other work of the machine as well."""

Measure = Callable[[Path, int], Row | Sequence[Row | Series]]
ROWS: Mapping[str, tuple[int, Measure]] = {
    "accept": (5, accepting.measure),
    "accept-postgres": (5, accepting.measure_postgres),
    "start-stream": (20, lambda where, pairs: starting.measure(where, pairs, "stream")),
    "start-plain": (20, lambda where, pairs: starting.measure(where, pairs, "plain")),
    "answer": (20, answering.measure),
    "answer-sealed": (20, lambda where, pairs: answering.measure(where, pairs, sealed=True)),
    "gateway-ttft": (10, passing.measure),
    "gateway-cpu": (6, passing.measure_cpu),
    **{f"gateway-{wire}": (6, partial(passing.measure_wire, wire=wire)) for wire in OTHER_WIRES},
    "followers": (3, following.measure_followers),
    "chats": (3, following.measure_chats),
    "node-events": (3, node_events.measure),
    "page": (2, watching.measure_page),
    "thousand": (3, watching.measure_thousand),
    "long": (2, watching.measure_long),
    **{f"{agent}-start": (20, partial(agents.measure_start, agent=agent)) for agent in agents.PROGRAMS},
    "health": (5, health.measure),
    "half-open": (1, half_open.measure),
    "redaction": (20, redacting.measure),
    "sandbox": (40, sealing.measure_sandbox),
    "checkout": (5, sealing.measure_checkout),
    "checkout-growth": (20, sealing.measure_growth),
    "startup": (5, startup.measure),
    "memory": (2, startup.measure_memory),
    "cold": (20, startup.measure_cold),
    "warm": (10, warming.measure),
    "live": (10, warming.measure_live),
    "live-git": (10, warming.measure_live_repository),
    "reuse": (3, warming.measure_reuse),
    "warm-whole": (10, warming.measure_repository),
    "warm-idle": (2, warming.measure_idle),
    "warm-pressure": (3, warming.measure_pressure),
    "answer-git": (20, git_jobs.measure_answer),
    "cpu-git": (20, git_jobs.measure_processor),
    "harvest-unchanged": (20, harvesting.measure_unchanged),
    "harvest-growth": (10, harvesting.measure_growth),
    "harvest-new": (5, harvesting.measure_new),
    "history": (5, aging.measure),
    "cluster": (3, two_nodes.measure),
    "cluster-rate": (2, nodes_at_work.measure_rate),
    "cluster-idle": (2, nodes_at_work.measure_idle),
    "budget-shares": (3, sharing.measure_budgets),
}
"""Each row's number of pairs, and what takes it."""
COMPARISON = "comparison"
"""The name of the table of all ways to ask an agent."""


def context() -> dict[str, Any]:
    """Give what the figures depend on."""
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    return {
        "cores": cores,
        "processor": _processor(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cli": _said(str(cli_path()), "--version").split(" ")[0],
        "commit": _said("git", "rev-parse", "--short", "HEAD"),
        "load": round(load, 2),
        "busy": load > BUSY_SHARE * cores,
    }


def _processor() -> str:
    """Return the processor's name, as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().split("\n"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _said(*argv: str) -> str:
    env = {"PATH": SYSTEM_PATH, "HOME": "/nonexistent", "DISABLE_AUTOUPDATER": "1"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=env)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def take(names: list[str], pairs: int | None) -> tuple[list[Row | Series], dict[str, str]]:
    """Take the rows; gives those that were measured, and why the others were not."""
    rows: list[Row | Series] = []
    broken: dict[str, str] = {}
    for name in names:
        count, measure = ROWS[name]
        count = pairs or count
        print(f"{name}: {count} pairs ..", file=sys.stderr, flush=True)
        try:
            with world() as where:
                found = measure(where, count)
                rows += [found] if isinstance(found, Row) else found
        except (Broken, RuntimeError, OSError, subprocess.SubprocessError, AssertionError) as error:
            broken[name] = f"{type(error).__name__}: {error}"
    return rows, broken


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Ours and a baseline, side by side.")
    parser.add_argument(
        "--only", action="append", choices=[*ROWS, COMPARISON], help="this row (may be repeated)"
    )
    parser.add_argument("--pairs", type=int, help="how many pairs of each row")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    if asked.pairs is not None and asked.pairs < 1:
        parser.error("--pairs: at least 1")
    about = context()
    names = asked.only or [*ROWS, COMPARISON]
    found, broken = take([name for name in names if name != COMPARISON], asked.pairs)
    rows = [each for each in found if isinstance(each, Row)]
    cells: list[comparison.Cell] = []
    if COMPARISON in names:
        print("comparison ..", file=sys.stderr, flush=True)
        with world() as where:
            cells = comparison.measure(where)
    if asked.json:
        results = {
            "context": about,
            "rows": [row.as_json() for row in rows],
            "series": [each.as_json() for each in found if isinstance(each, Series)],
            COMPARISON: [cell.as_json() for cell in cells],
            "broken": broken,
        }
        print(json.dumps(results))
    else:
        _print(about, rows, broken)
        print(comparison.table(cells) if cells else "")
    return 1 if broken else 0


def _print(about: Mapping[str, Any], rows: list[Row], broken: Mapping[str, str]) -> None:
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "busy"))
    if about["busy"]:
        print("This machine was busy when it began: the ratios stand, with more spread; the figures do not.")
    print()
    print(table(rows))
    for name, why in broken.items():
        print(f"{name}: NOT MEASURED: {why}")


if __name__ == "__main__":
    sys.exit(main())
