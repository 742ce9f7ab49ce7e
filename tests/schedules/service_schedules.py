"""Schedules of real services, and a check of many every-second ticks through kills."""

import itertools
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from steadyhand.events import format_rfc3339
from steadyhand.testing.service import Service, wait_until

PATH = "/v1/schedules"
SCHEDULES = 15
"""Each second is a tick of one of so many schedules, so that a job may take some seconds."""


def create(service: Service, name: str, cron: str, **fields: Any) -> dict[str, Any]:
    job = {"prompt": "Hello.", "workspace": "scratch", **fields.pop("job", {})}
    answer = service.client.post(PATH, json={"name": name, "cron": cron, "job": job, **fields})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"{PATH}/{name}"
    return dict(answer.json())


def history(service: Service, name: str) -> list[dict[str, Any]]:
    """Return the whole history of a schedule, newest first, read in small pages."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        params = {"limit": 50} | ({} if cursor is None else {"cursor": cursor})
        page = service.client.get(f"{PATH}/{name}/history", params=params).json()
        found += page["data"]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            return found


def run_through_kills(services: Sequence[Service], ends_at: datetime) -> None:
    """Kill one service after another and start it again, until a time of the wall clock."""
    for service in itertools.cycle(services):
        rest = (ends_at - datetime.now(UTC)).total_seconds()
        if rest <= 0:
            return
        time.sleep(min(5.0, rest))
        service.kill()
        service.restart()


def list_jobs(service: Service) -> list[str]:
    """Return the ids of all jobs."""
    found: list[str] = []
    cursor = None
    while True:
        params = {"limit": 200} | ({} if cursor is None else {"cursor": cursor})
        page = service.client.get("/v1/jobs", params=params).json()
        found += [each["id"] for each in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def check_every_second_through_kills(services: Sequence[Service], seconds: int) -> None:
    """Kill the services in turn for so long, and check that each second's tick has made one job."""
    service = services[0]
    for number in range(SCHEDULES):
        create(service, f"s{number}", f"{number}-59/{SCHEDULES} * * * * *", overlap="queue", missed="all")
    began = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    run_through_kills(services, began + timedelta(seconds=seconds))
    expected = {format_rfc3339(began + timedelta(seconds=number)) for number in range(seconds)}

    def fired() -> list[dict[str, Any]]:
        found = [tick for number in range(SCHEDULES) for tick in history(service, f"s{number}")]
        assert {each["reason"] for each in found} <= {None, "paused"}
        return [each for each in found if each["result"] == "fired"]

    wait_until(lambda: expected <= {each["scheduled_at"] for each in fired()}, 120)
    for number in range(SCHEDULES):
        service.client.post(f"{PATH}/s{number}/pause")
    found = fired()
    assert len(found) == len({each["scheduled_at"] for each in found})
    assert sorted(list_jobs(service)) == sorted(each["job_id"] for each in found)
