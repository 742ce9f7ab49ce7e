"""A message to a running turn in a whole service, whose processes wait for jobs and stay after them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.warm_services import cli, events_of, wait_for_slot, warm_service

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import ModelTurn, Scenario
from steadyhand.testing.service import Service, wait_until

__all__ = ["cli"]  # a fixture, taken in
REUSED = "[agents.chat]\nwarm = 1\n"


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    """A model that speaks slowly."""
    slow = ModelTurn(text="one two three four five six seven eight", pace_ms=200, chunk_chars=4)
    with ScriptedModel(Scenario("slow words", "", (slow,))) as made:
        yield made


@pytest.fixture(scope="module")
def service(reachable_tmp: Path, cli: Path, model: ScriptedModel) -> Iterator[Service]:
    with warm_service(reachable_tmp, cli, model, "bwrap", REUSED) as made:
        yield made


def steer(service: Service, job_id: str, text: str) -> Any:
    return service.client.post(
        f"/v1/jobs/{job_id}/steer", json={"text": text}, headers={"idempotency-key": text.replace(" ", "-")}
    )


# blackbox/test_reattach.py has a message to the real CLI, and test_kept_processes.py that nothing is left of a job.
@pytest.mark.long
def test_a_message_is_used_by_a_process_that_then_waits_for_the_next_job(
    service: Service, model: ScriptedModel
) -> None:
    wait_for_slot(service)
    job_id = service.client.post("/v1/jobs", json={"agent": "chat", "prompt": "begin"}).json()["id"]
    wait_until(lambda: len(model.requests) == 1)
    wait_until(lambda: steer(service, job_id, "mind the gap").status_code == 202)
    job = service.client.get(f"/v1/jobs/{job_id}", headers={"prefer": "wait=60"}).json()
    assert (job["state"], job["warnings"]) == ("completed", [])
    assert len(model.requests) == 2
    assert "mind the gap" in str(model.requests[1].body["messages"])
    events = service.client.get(f"/v1/jobs/{job_id}/events", headers={"accept": "application/json"}).json()[
        "data"
    ]
    assert [each["type"] for each in events if each["type"].startswith("steer.")] == [
        "steer.accepted",
        "steer.used",
    ]
    assert [each["job"] for each in events_of(service, "warm.taken")] == [job_id]
    late = steer(service, job_id, "too late")
    assert (late.status_code, late.json()["code"]) == (409, "not_running")
    # The process is as new for the next job.
    wait_for_slot(service)
    after = service.client.post("/v1/jobs", json={"agent": "chat", "prompt": "again"}).json()["id"]
    assert (
        service.client.get(f"/v1/jobs/{after}", headers={"prefer": "wait=60"}).json()["state"] == "completed"
    )
    assert "mind the gap" not in str(model.requests[-1].body)
    assert len(model.requests) == 3
