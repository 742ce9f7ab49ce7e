"""How lists, sums, starts and retention take a long history: services with no jobs, 100,000 and a million of them."""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from bench import history
from bench.rows import Row, Series, interleave, percentile
from bench.startup import processor_seconds
from bench.worlds import ask_client, made_in
from steadyhand.testing.service import ADMIN_KEY, Service

JOBS = 1_000_000
YOUNG, MIDDLE = 1_000, 100_000
SIZES = (0, YOUNG, MIDDLE, JOBS)
CALLERS = 8
_ROUNDS_ALONE, _ROUNDS_TOGETHER = 3, 1
_RETENTION_SECONDS = 20.0
_WAIT = 600
_PAUSED = {"STEADYHAND_SERVICE__PAUSED": "true", "STEADYHAND_RETENTION__JOBS": "never"}


def _time(days: float) -> str:
    return (history.BEGAN + timedelta(days=days)).isoformat()


_METADATA = {f"metadata.{history.FREQUENT_METADATA[0]}": history.FREQUENT_METADATA[1]}
FILTERS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "new key": {"api_key": history.NEW_KEY},
    "rare key": {"api_key": history.RARE_KEY},
    "frequent key": {"api_key": history.FIRST_KEY},
    "rare agent": {"agent": history.RARE_AGENT},
    "frequent agent": {"agent": history.FREQUENT_AGENT},
    "rare workspace": {"workspace": history.RARE_WORKSPACE},
    "frequent workspace": {"workspace": history.FREQUENT_WORKSPACE},
    "state": {"state": "failed"},
    "states": {"state": ["failed", "timeout", "queued"]},
    "state of no job": {"state": "running"},
    "rare metadata": {f"metadata.{history.RARE_METADATA[0]}": history.RARE_METADATA[1]},
    "frequent metadata": _METADATA,
    "metadata of no job": {"metadata.user": "nobody"},
    "old time": {"created_after": _time(30), "created_before": _time(31)},
    "new time": {"created_after": _time(364)},
    "id prefix": {"id_prefix": "abcde"},
    "rare word": {"q": history.RARE_WORD},
    "frequent word": {"q": history.FREQUENT_WORD},
    "phrase": {"q": f'"{history.FREQUENT_WORD} kakaka"'},
    "frequent key, rare agent": {"api_key": history.FIRST_KEY, "agent": history.RARE_AGENT},
    "frequent key, old": {"api_key": history.FIRST_KEY, "created_before": _time(20)},
    "frequent key, state": {"api_key": history.FIRST_KEY, "state": "failed"},
    "key and agent, never together": {"api_key": history.CHAT_KEY, "agent": history.FREQUENT_AGENT},
    "agent and workspace, never together": {"agent": "chat", "workspace": history.FREQUENT_WORKSPACE},
    "key and metadata, never together": {"api_key": history.CHAT_KEY, **_METADATA},
    "key and word, never together": {"api_key": history.CHAT_KEY, "q": history.FREQUENT_WORD},
    "metadata and state": {**_METADATA, "state": "failed"},
    "four": {
        "agent": history.RARE_AGENT,
        "api_key": history.FIRST_KEY,
        **_METADATA,
        "created_after": _time(30),
        "created_before": _time(250),
    },
}
USAGE: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    **{by: {"by": by} for by in ("api_key", "agent", "model", "provider", "day")},
    "agent and day": {"by": ["agent", "day"]},
    "all five": {"by": ["api_key", "agent", "model", "provider", "day"]},
    "cut days": {"by": "agent", "since": _time(40.2), "until": _time(300.3)},
    "a key": {"by": "model", "api_key": history.FIRST_KEY},
    "a month": {"by": "api_key", "since": _time(330)},
}


def measure(world: Path, pairs: int) -> list[Row | Series]:
    """Measure all rows on the same databases, which are made first."""
    with ExitStack() as stack:
        services = {size: _service(world, size) for size in SIZES}
        for service in services.values():
            stack.callback(service.close)
            service.start()
        rows: list[Row | Series] = [*_alone(services, pairs), *_together(services, pairs)]
        rows.append(_usage(services[JOBS], pairs))
        rows.append(_start(services, pairs))
        services[JOBS].terminate()
        rows.append(_retention(world, services[JOBS], pairs))
    return rows


def _service(world: Path, size: int) -> Service:
    root = made_in(world, f"history-{size}")
    # Nothing is run while the workers are paused, so any program will do for an agent.
    service = Service(root, Path("/bin/true"), env=_PAUSED)
    service.data_dir.mkdir()
    if size:
        history.write_history(service.data_dir / "steadyhand.db", size)
    return service


def _alone(services: Mapping[int, Service], pairs: int) -> Iterator[Row | Series]:
    """Measure one caller: the p50 and the p99 of each round of all filters."""
    paths = _paths("/v1/jobs", FILTERS)
    figures: dict[int, list[list[float]]] = {size: [] for size in services}
    by_path: dict[str, list[float]] = {path: [] for path in paths}
    for _ in range(pairs):
        for size, service in services.items():
            taken = _read(service, paths, callers=1, rounds=_ROUNDS_ALONE)["taken"]
            figures[size].append([each for path in paths for each in taken[path]])
            if size == JOBS:
                for path in paths:
                    by_path[path] += taken[path]
    notes = (_slowest(by_path, FILTERS), _by_size(figures))
    what = f"{len(FILTERS)} filters of `GET /v1/jobs` with {JOBS:,} jobs, one caller; beside nothing"
    for share, goal in ((0.5, 5.0), (0.99, 40.0)):
        ours = [percentile(each, share) for each in figures[JOBS]]
        name = f"jobs-p{share * 100:g}"
        yield Row(
            name, f"p{share * 100:g} of {what}", "ms", ours, [0.0] * pairs, "at most", goal, notes, by="added"
        )
    lines = {
        f"p{share * 100:g}": [
            (float(size), statistics.median(percentile(each, share) for each in figures[size]))
            for size in services
        ]
        for share in (0.5, 0.99)
    }
    yield Series("jobs", "`GET /v1/jobs`, all filters, one caller", "jobs", "ms", lines)


def _together(services: Mapping[int, Service], pairs: int) -> Iterator[Row]:
    """Measure eight callers at once, and one job's GET beside them."""
    paths = _paths("/v1/jobs", FILTERS)
    job = f"/v1/jobs/{services[JOBS].client.get('/v1/jobs', params={'limit': 1}).json()['data'][0]['id']}"

    def p50(size: int) -> float:
        taken = _read(services[size], paths, CALLERS, _ROUNDS_TOGETHER)["taken"]
        return float(statistics.median(each for path in paths for each in taken[path]))

    young = interleave(pairs, lambda: p50(JOBS), lambda: p50(YOUNG))
    empty = interleave(pairs, lambda: p50(JOBS), lambda: p50(0))
    middle = [p50(MIDDLE) for _ in range(pairs)]
    beside = [
        percentile(_read(services[JOBS], paths, CALLERS, _ROUNDS_TOGETHER, job)["beside"], 0.99)
        for _ in range(pairs)
    ]
    notes = (f"with {MIDDLE:,} jobs {statistics.median(middle):.1f} ms",)
    what = f"p50 of the same by {CALLERS} callers at once with {JOBS:,} jobs; beside the same with"
    yield Row("jobs-eight", f"{what} {YOUNG:,}", "ms", *young, "at most", 1.3, notes)
    notes = ("an empty store has no jobs to read and to write as JSON: its pages are empty",)
    yield Row("jobs-eight-empty", f"{what}out any", "ms", *empty, "at most", 1.3, notes)
    what = f"p99 of `GET /v1/jobs/ID` every 20 ms beside these {CALLERS} callers, with {JOBS:,} jobs; beside nothing"
    yield Row("jobs-beside", what, "ms", beside, [0.0] * pairs, "at most", 60.0, by="added")


def _usage(service: Service, pairs: int) -> Row:
    paths = _paths("/v1/usage", USAGE)
    ours, by_path = [], {path: list[float]() for path in paths}
    for _ in range(pairs):
        taken = _read(service, paths, callers=1, rounds=_ROUNDS_ALONE)["taken"]
        ours.append(max(statistics.median(taken[path]) for path in paths))
        for path in paths:
            by_path[path] += taken[path]
    what = f"the slowest of {len(USAGE)} groupings of `GET /v1/usage` with {JOBS:,} calls; beside nothing"
    notes = (_slowest(by_path, USAGE),)
    return Row("usage", what, "ms", ours, [0.0] * pairs, "at most", 20.0, notes, by="added")


def _start(services: Mapping[int, Service], pairs: int) -> Row:
    os.sync()  # what made the databases is written before: a start waits for the disk as well
    waited: dict[int, list[float]] = {JOBS: [], 0: []}

    def seconds(size: int) -> float:
        services[size].terminate()
        began = time.monotonic()
        services[size].start()
        waited[size].append(time.monotonic() - began)
        return processor_seconds(services[size].pid)

    figures = interleave(pairs, lambda: seconds(JOBS), lambda: seconds(0))
    ratio = statistics.median(one / other for one, other in zip(*waited.values(), strict=True))
    notes = (f"until it is ready {statistics.median(waited[JOBS]):.2f} s, {ratio:.2f} of that without any",)
    what = (
        f"processor time of the start of the service, with {JOBS:,} ended jobs; beside the same without any"
    )
    return Row("start-history", what, "s", *figures, "at most", 1.05, notes)


def _retention(world: Path, old: Service, pairs: int) -> Row:
    """Measure how many old jobs are deleted in a second, with their files, while the service is idle else."""
    env = {**_PAUSED, "STEADYHAND_RETENTION__JOBS": "1d"}
    service = Service(made_in(world, "retention"), Path("/bin/true"), env=env)
    old.data_dir.rename(service.data_dir)
    rates = []
    with service:
        for _ in range(pairs):
            before, began = _first_sequence(service), time.monotonic()
            time.sleep(_RETENTION_SECONDS)
            rates.append((_first_sequence(service) - before) / (time.monotonic() - began))
    what = "old jobs deleted in a second; beside 50 that come in a second"
    return Row("retention", what, "/s", rates, [50.0] * pairs, "at least", 1.0)


def _first_sequence(service: Service) -> int:
    with closing(sqlite3.connect(service.data_dir / "steadyhand.db")) as connection:
        return int(connection.execute("SELECT min(sequence) FROM jobs").fetchone()[0])


def _paths(route: str, queries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{route}?{urlencode(query, doseq=True)}" for query in queries.values()]


def _slowest(by_path: Mapping[str, list[float]], queries: Mapping[str, Any]) -> str:
    medians = {
        name: statistics.median(figures) for name, figures in zip(queries, by_path.values(), strict=True)
    }
    slowest = sorted(medians, key=lambda name: -medians[name])[:5]
    return "slowest: " + ", ".join(f"{name} {medians[name]:.1f} ms" for name in slowest)


def _by_size(figures: Mapping[int, list[list[float]]]) -> str:
    return "p50 and p99 " + "; ".join(
        f"with {size:,} jobs {percentile(all_rounds, 0.5):.1f} and {percentile(all_rounds, 0.99):.1f} ms"
        for size, rounds in figures.items()
        if (all_rounds := [each for each_round in rounds for each in each_round])
    )


def _read(
    service: Service, paths: list[str], callers: int, rounds: int, beside: str | None = None
) -> dict[str, Any]:
    """Read these paths from a client in a process of its own; gives what `bench.listing` printed."""
    where = urlsplit(service.url)
    asked = {
        "host": where.hostname,
        "port": where.port,
        "key": ADMIN_KEY,
        "paths": paths,
        "callers": callers,
        "rounds": rounds,
        "beside": beside,
    }
    return ask_client("bench.listing", asked, _WAIT)
