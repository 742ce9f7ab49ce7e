"""What is told of a job that runs: its deadline stands still while its client's tools are called."""

from datetime import UTC, datetime, timedelta
from typing import Any

from steadyhand.cli.activity import describe_activity

START = datetime(2026, 11, 29, 12, tzinfo=UTC)
JOB = {"state": "running", "run": 2, "timeout_seconds": 60, "started_at": START.isoformat(), "runs": [{}, {}]}


def event(kind: str, second: float, run: int = 2) -> dict[str, Any]:
    return {"type": kind, "run": run, "at": (START + timedelta(seconds=second)).isoformat(), "data": {}}


def deadline_at(second: float, *events: dict[str, Any]) -> str:
    return dict(describe_activity(JOB, events, START + timedelta(seconds=second)).rows)["deadline"]


def test_the_deadline_is_told_without_the_time_in_which_the_run_waited_for_its_client() -> None:
    earlier = event("calls.waiting", -90, run=1)
    waiting, answered = event("calls.waiting", 10), event("calls.answered", 40)
    assert deadline_at(20, earlier) == "in 40.0s"
    assert deadline_at(30, earlier, waiting) == "stands still, waits for results of the client's tools"
    assert deadline_at(50, earlier, waiting, answered) == "in 40.0s"
    assert deadline_at(100, waiting, answered) == "now"
