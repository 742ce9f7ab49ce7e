"""The simulation at the measured points, and at sizes that no machine here has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.scaling.costs import Costs
from bench.scaling.model import Layout, Load, Outcome, quantile, simulate

RUN_SECONDS = 600.0
EVENTS_PER_SECOND = 0.5
FOLLOWERS = 0.5
"""An agent at work, as it is assumed: the length of its run, its events, and the followers of its job."""
SLOTS = 25
"""The agents on a worker, by memory: each takes some hundred megabytes."""
NODES_PER_SERVE = 40
"""The workers for each node that serves."""
COMMIT_ELSEWHERE = 0.001
"""A flush to the replicated disk of a provider."""
SIZES = (10, 100, 300, 1_000, 3_000, 10_000)
_SPARE = 1.25
"""Slots for each agent at work."""


def check_points(costs: Costs, points: Sequence[Mapping[str, float]], slots: int, cores: int) -> list[Any]:
    """Simulate the measured points on one machine of so many cores."""
    return [
        {
            "workers": point["workers"],
            "measured": point["jobs_per_second"],
            "simulated": simulate(
                costs, Layout(int(point["workers"]), slots, shared_cores=cores), Load()
            ).jobs_per_second,
        }
        for point in points
    ]


def layout_of(agents: int) -> Layout:
    """Give the nodes for so many agents at work."""
    workers = max(1, round(agents * _SPARE / SLOTS))
    return Layout(workers, SLOTS, serves=max(1, round(workers / NODES_PER_SERVE)))


def load_of(agents: int) -> Load:
    """Give the load of so many agents at work."""
    return Load(agents / RUN_SECONDS, RUN_SECONDS, EVENTS_PER_SECOND, FOLLOWERS)


def project(costs: Costs, agents: int, *, seconds: float = 20) -> dict[str, Any]:
    """Simulate so many agents at work."""
    layout = layout_of(agents)
    outcome = simulate(costs, layout, load_of(agents), seconds=seconds, warm_up=3)
    return {
        "agents": agents,
        "workers": layout.workers,
        "serves": layout.serves,
        "events_per_second": agents * EVENTS_PER_SECOND,
        **_figures(outcome),
    }


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "event_p50_ms": 1000 * quantile(outcome.event_delays, 0.5),
        "event_p99_ms": 1000 * quantile(outcome.event_delays, 0.99),
        "start_p50_ms": 1000 * quantile(outcome.start_delays, 0.5),
        "start_p99_ms": 1000 * quantile(outcome.start_delays, 0.99),
        "busy": outcome.busy,
    }
