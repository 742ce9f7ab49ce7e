"""`python -m bench.queue_engines`: run the scenarios and print figures as JSON, or write them into the page.

`--scale 0.1` is a quick form: all times are a tenth, those of the engines' settings as well. `--publish PAGE` writes
the tables of the page and `results.json` in the folder beside it. `--render PAGE` writes the tables anew from there.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.__main__ import context
from bench.queue_engines import scenarios
from bench.queue_engines.engine import ENGINES, Settings, load_engine
from bench.queue_engines.field import Field, on_all
from bench.queue_engines.page import write_page
from steadyhand.testing.postgres import Postgres

PLAIN = "procrastinate, plain"
"""Procrastinate with its own time limit of 30 s for a connection, and a reaper that does not hold off."""


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.queue_engines")
    parser.add_argument(
        "--engine", action="append", choices=list(ENGINES), help="may be repeated; all by default"
    )
    parser.add_argument("--only", action="append", help="this scenario; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="all times are multiplied by it")
    parser.add_argument("--publish", type=Path, help="the page that gets the figures")
    parser.add_argument("--render", type=Path, help="the page whose tables are written anew from its results")
    asked = parser.parse_args()
    if asked.render:
        write_page(asked.render, json.loads(results_of(asked.render).read_text("utf-8")))
        return 0
    with Postgres(is_durable=True) as server:
        results = asyncio.run(take(asked.engine or list(ENGINES), asked.only, asked.scale, server))
    if asked.publish:
        path = results_of(asked.publish)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        write_page(asked.publish, results)
    else:
        print(json.dumps(results, indent=1))
    return 0


def results_of(page: Path) -> Path:
    """Return the file with a page's figures."""
    return page.with_suffix("") / "results.json"


async def take(
    names: Sequence[str], only: Sequence[str] | None, scale: float, server: Postgres
) -> dict[str, Any]:
    """Run scenarios on a server and return their figures, with what they depend on."""
    wanted = only or scenarios.SCENARIOS
    settings = Settings().scaled(scale)
    size = scenarios.Size(scale)
    if scale < 1:
        size = replace(
            size, starts=max(5, round(size.starts * scale)), kills=max(1, round(20 * scale)), cancels=2
        )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="queue-engines-") as folder:
        where = Path(folder)
        for scenario in wanted:
            print(f"{scenario} ..", file=sys.stderr, flush=True)
            variants = {name: (name, settings) for name in names}
            if scenario in scenarios.OUTAGES and "procrastinate" in names:
                plain = replace(settings, pool_timeout=30.0 * scale, hold_off=False)
                variants[PLAIN] = ("procrastinate", plain)
            async with _opened(variants, server, where) as fields:
                found[scenario] = await _take(scenario, fields, server, size)
    about = {key: value for key, value in context().items() if key != "cli"}
    packages = sorted({package for name in names for package in load_engine(name).packages})
    return {
        "context": {
            **about,
            "postgres": server.execute("SHOW server_version")[0][0],
            "versions": {each: importlib.metadata.version(each) for each in packages},
            "scale": scale,
        },
        "settings": asdict(settings),
        "scenarios": found,
    }


@asynccontextmanager
async def _opened(
    variants: dict[str, tuple[str, Settings]], server: Postgres, where: Path
) -> AsyncIterator[dict[str, Field]]:
    async with AsyncExitStack() as stack:
        yield {
            variant: await stack.enter_async_context(Field(name, settings, server, where).opened())
            for variant, (name, settings) in variants.items()
        }


async def _take(
    scenario: str, fields: dict[str, Field], server: Postgres, size: scenarios.Size
) -> dict[str, Any]:
    if scenario == "start":
        return dict(await scenarios.measure_starts(list(fields.values()), size))
    if scenario in scenarios.OUTAGES:
        return dict(await scenarios.measure_outage(fields, server, scenarios.OUTAGES[scenario], size))
    if scenario == "idle":
        return await on_all(list(fields.values()), lambda field: scenarios.measure_idle(field, server, size))
    measure = scenarios.ONE_BY_ONE[scenario]
    return await on_all(list(fields.values()), lambda field: measure(field, size))


if __name__ == "__main__":
    sys.exit(main())
