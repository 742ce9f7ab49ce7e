"""A data directory and a configuration that an earlier release wrote open and work; `make_sample.py` made them."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.compat.sample import (
    EXPECTED,
    FORMER_KEY,
    HELD,
    KEY,
    LATER,
    park_until,
    read,
    service_on,
    unpack,
)
from tests.service_fixtures import make_service_root

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.scenario import Failure, ModelTurn
from steadyhand.testing.service import Service

SECONDS = 150.0

ADDITIONS = tomllib.loads((Path(__file__).parent / "additions.toml").read_text("ascii"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(EXPECTED.read_text("ascii"))
    return found


def opened(root: Path, model: str, until_when: datetime, **env: str) -> Service:
    """Return a service on an unpacked sample, not started; its parked job waits until then."""
    first = service_on(root, "", model)
    config = unpack(root, first.uid_base)
    park_until(root / "data", until_when)
    service = service_on(root, config, model, **env)
    service.uid_base = first.uid_base
    return service


@pytest.fixture(scope="module")
def held(reachable_tmp: Path, model: ScriptedModel) -> Iterator[Service]:
    """The sample on a service that starts no job."""
    with opened(make_service_root(reachable_tmp), model.url, datetime.now(UTC) + LATER, **HELD) as service:
        yield service


def without_new_fields(answer: Any) -> Any:
    """Return an answer without the fields that jobs, keys, agents and usage have got since the sample was written."""
    if isinstance(answer, list):
        return [without_new_fields(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    kind, added = answer.get("object"), ADDITIONS["properties"]
    if kind == "list":
        return {**answer, "data": [without_new_fields(each) for each in answer["data"]]}
    if kind in ("api_key", "agent"):
        names = added["KeyLimits" if kind == "api_key" else "AgentLimits"]
        return {**answer, "limits": _without(answer["limits"], names)}
    if kind == "usage":
        return _without(answer, added["SpentRow"])
    if kind == "job" and answer["changes"] is not None:
        answer = {**answer, "changes": _without(answer["changes"], added["Changes"])}
    return _without(answer, added["Job"]) if kind == "job" else answer


def _without(answer: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


def test_everything_in_a_stored_data_directory_reads_as_it_did(
    held: Service, expected: dict[str, Any]
) -> None:
    found = {"made": expected["made"], **read(held, expected["made"])}
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert without_new_fields(found[name]) == value, name


def test_stored_keys_open_the_service_with_their_scopes_and_their_limits(
    held: Service, expected: dict[str, Any]
) -> None:
    (own,) = (job for name, job in expected.items() if name.startswith("job ") and job["title"] == "A change")
    with (
        held.new_client(KEY) as caller,
        held.new_client(FORMER_KEY) as former,
        held.new_client("unknown") as nobody,
    ):
        assert [job["id"] for job in caller.get("/v1/jobs").json()["data"]] == [own["id"]]
        assert caller.post(f"/v1/jobs/{own['id']}/cancel").json()["code"] == "scope_missing"
        assert (
            caller.post("/v1/jobs", json={"prompt": "p", "agent": "patient"}).json()["code"]
            == "agent_not_allowed"
        )
        again = {name: own[name] for name in ("prompt", "agent", "title", "priority", "metadata")}
        repeated = caller.post("/v1/jobs", json=again, headers={"idempotency-key": "sample-1"})
        assert (repeated.status_code, repeated.json()["id"]) == (202, own["id"])
        assert former.get("/v1/jobs").json()["data"] == []
        assert nobody.get("/v1/jobs").status_code == 401


def test_the_command_line_finds_the_stored_admin_key(held: Service, expected: dict[str, Any]) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(held.home),
        "STEADYHAND_DATA_DIR": str(held.data_dir),
        "STEADYHAND_URL": held.url,
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "steadyhand", "jobs", "--limit", "100", "--json"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in held.data_dir.glob("*.key")] == ["admin.key"]
    assert [job["id"] for job in json.loads(done.stdout)["data"]] == expected["list"]


# --- resuming --------------------------------------------------------------------------------------


class Recovered(ScriptedModel):
    """A model whose rate limit has passed: it refuses no request that it would refuse once."""

    def turn_for(self, request: ModelRequest) -> ModelTurn | Failure:
        turn = super().turn_for(request)
        return super().turn_for(request) if isinstance(turn, Failure) and turn.once else turn


class Opened:
    """The sample on a service that runs its jobs, with a model of its own."""

    def __init__(self, service: Service, model: ScriptedModel, expected: dict[str, Any]) -> None:
        self.service, self.model = service, model
        self._jobs = [job for name, job in expected.items() if name.startswith("job ")]

    def id_of(self, prompt: str) -> str:
        """Return the id of the stored job whose prompt ends so."""
        (found,) = (job["id"] for job in self._jobs if job["prompt"].endswith(prompt))
        return str(found)

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.service.client.post(path, json=body)
        assert answer.status_code in (200, 202), answer.text
        return dict(answer.json())

    def completed(self, job_id: str) -> dict[str, Any]:
        job = self.service.wait_until_ended(job_id, SECONDS)
        assert job["state"] == "completed", job
        return job

    def was_told(self, *texts: str) -> bool:
        """Tell whether one request of the model held all of these texts."""
        asked = (json.dumps(request.body["messages"]) for request in self.model.requests)
        return any(all(text in messages for text in texts) for messages in asked)


def with_a_file_of_the_parked(service: Service) -> Service:
    """Leave a file in the checkout of the parked job: it is in the job's diff if the run goes on in that checkout."""
    (mark,) = service.data_dir.glob("jobs/*/upper/marks.txt")
    left = mark.with_name("left-in-the-checkout.txt")
    left.write_text("left\n", "ascii")
    os.chown(left, mark.stat().st_uid, mark.stat().st_gid)
    return service


@pytest.fixture(scope="module")
def sample(reachable_tmp: Path, expected: dict[str, Any]) -> Iterator[Opened]:
    with (
        Recovered() as model,
        with_a_file_of_the_parked(
            opened(make_service_root(reachable_tmp), model.url, datetime.now(UTC))
        ) as service,
    ):
        yield Opened(service, model, expected)


def test_stored_jobs_and_sessions_go_on(sample: Opened) -> None:
    turn = sample.post(f"/v1/jobs/{sample.id_of('second turn')}/turns", prompt="[[scenario:echo]] third turn")
    failed = sample.id_of("fail")
    assert sample.post(f"/v1/jobs/{failed}/retry")["state"] == "queued"
    interrupted = sample.id_of("end with the service")
    sample.post(f"/v1/jobs/{interrupted}/resume")

    queued = sample.completed(sample.id_of("after all the others"))
    assert queued["answer"] == f"You said: {queued['prompt']}"

    taken_up = sample.completed(sample.id_of("go on later"))
    assert [run["state"] for run in taken_up["runs"]] == ["interrupted", "completed"]
    assert sample.was_told("go on later")

    parked = sample.completed(sample.id_of("leave a mark"))
    assert [run["state"] for run in parked["runs"]] == ["parked", "completed"]
    diff = sample.service.client.get(f"/v1/jobs/{parked['id']}/diff").text
    assert diff.count("\n+mark") == 1
    assert diff.count("\n+left") == 1

    sample.completed(turn["id"])
    assert sample.was_told("first turn", "second turn", "third turn")

    again = sample.completed(interrupted)
    assert len(again["runs"]) == 2
    retried = sample.service.wait_until_ended(failed, SECONDS)
    assert [run["outcome"]["type"] for run in retried["runs"]] == ["model_error", "model_error"]


def test_stored_conversations_of_the_openai_routes_go_on(sample: Opened) -> None:
    message = {"role": "user", "content": "[[scenario:echo]] once more"}
    headers = {"x-session-id": "sample-chat"}
    body = {"model": "claude", "messages": [message]}
    answer = sample.service.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert sample.was_told("in a chat", "once more")

    before = f"resp_{sample.id_of('second response')}"
    sample.post(
        "/v1/responses", model="claude", input="[[scenario:echo]] third response", previous_response_id=before
    )
    assert sample.was_told("first response", "second response", "third response")

    waiting = f"resp_{sample.id_of('weather?')}_1"
    (call,) = sample.service.client.get(f"/v1/responses/{waiting}").json()["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "snow"}
    tool = {"type": "function", "name": call["name"], "parameters": {"type": "object", "properties": {}}}
    sample.post("/v1/responses", model="claude", input=[output], tools=[tool], previous_response_id=waiting)
    assert sample.was_told("weather?", "snow")
    job = sample.completed(sample.id_of("weather?"))
    assert [run["state"] for run in job["runs"]] == ["interrupted", "completed"]
