"""The tables of docs/scaling.md, from the results beside it. It simulates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.page_marks import between_marks

Figures = Mapping[str, Any]
_COSTS = {
    "accept_serve": "processor of the node that serves, for a job",
    "run_worker": "processor of the worker's own process, for a job",
    "run_agent": "processor of the agent's processes: the stand-in, its supervisor and its start",
    "run_postgres": "processor of Postgres, for a job",
    "turn": "a transaction over the places holds their lock, without its commit",
    "commit": "a commit that notifies",
    "event_worker": "processor of the worker, for an event",
    "event_postgres": "processor of Postgres, for an event",
    "event_follower": "processor of the node that serves, for an event that a follower receives",
}
_BUSY = {
    "postgres": "cores of Postgres",
    "turn": "lock of the places",
    "notify": "lock of notifications",
    "worker": "thread of a worker",
    "serve": "thread of a node that serves",
}


def results_of(page: Path) -> Path:
    """Return the file of the figures of a page."""
    return page.with_suffix("") / "results.json"


def with_figures(text: str, results: Figures) -> str:
    """Return the page with these figures."""
    for name, content in {
        "machine": _machine(results["context"]),
        "costs": _costs(results),
        "points": _points(results),
        "commits": _commits(results["commits"]),
        "projection": _projection(results["projection"]),
    }.items():
        text = between_marks(text, name, content)
    return text


def _machine(context: Figures) -> str:
    busy = " Other work went on beside it: its load was" if context["busy"] else " Its load was"
    return (
        f"Measured on {context['cores']} cores ({context['processor']}, {context['memory']}), Linux "
        f"{context['kernel']}, Python {context['python']}, PostgreSQL {context['postgres'].split()[0]}, commit "
        f"{context['commit']}.{busy} {context['load']:g} when it began."
    )


def milliseconds(seconds: float) -> str:
    """Return a time with two digits that count."""
    return f"{1000 * seconds:.2g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("| --- |", "|---|") for line in lines)


def _costs(results: Figures) -> str:
    costs = results["costs"]
    rows = [[text, milliseconds(costs[name])] for name, text in _COSTS.items()]
    idle = f"{100 * costs['node_postgres']:.2g} %"
    return _table(["what", "ms"], rows) + f"\n\nA node with nothing to do takes {idle} of a core of Postgres."


def _points(results: Figures) -> str:
    rows = [
        [f"{each['workers']:g}", f"{each['measured']:.1f}", f"{each['simulated']:.1f}"]
        for each in results["check"]
    ]
    return _table(["workers", "jobs/s measured", "jobs/s simulated"], rows)


def _commits(commits: Sequence[Figures]) -> str:
    rows = [
        [f"{each['connections']}", f"{each['plain']:.0f}", f"{each['notifying']:.0f}"] for each in commits
    ]
    return _table(["connections", "commits/s", "commits/s that notify"], rows)


def _projection(sizes: Sequence[Figures]) -> str:
    rows = [
        [
            f"{each['agents']:,}",
            f"{each['workers']:,} + {each['serves']:,}",
            f"{each['events_per_second']:,.0f}",
            _pair(each, "start"),
            _pair(each, "event"),
            *(f"{100 * each['busy'][name]:.0f} %" for name in _BUSY),
        ]
        for each in sizes
    ]
    head = ["agents at work", "workers + serving", "events/s", "a start, ms", "an event, ms", *_BUSY.values()]
    return _table(head, rows)


def _pair(figures: Figures, name: str) -> str:
    return f"{figures[f'{name}_p50_ms']:.0f} / {figures[f'{name}_p99_ms']:.0f}"
