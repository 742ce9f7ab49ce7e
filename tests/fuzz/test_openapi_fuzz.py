"""schemathesis on the service's own OpenAPI document: thousands of requests, and every answer as the document says.

What it tries and which checks it makes is in `schemathesis.toml`. It runs in an environment of its own and talks to a
service over a real socket, whose agents are those of `tests.api.api_service`. Requests are counted where they arrive.
"""

import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.api.api_service import ADMIN, RunningService, run_job, running_service
from tests.clients.client_programs import environment_dir

from steadyhand.api import ApiOptions
from steadyhand.testing.cli import SYSTEM_PATH

HERE = Path(__file__).parent
ALONE, WAYS = "alone.toml", "ways.toml"
FEW = 500
LEAST = 1_000
"""Requests of a run in the default profile: `make test` makes hundreds at random, `make test-long` also those with each
bound of each field, and five thousand and more."""


@dataclass
class Arrivals:
    """The requests that reached a service: how many, and by operation and status."""

    total: int = 0
    answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Count what goes into an app and comes out of it."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path_format", None)
                    self.answered[scope["method"], route or "", message["status"]] += 1
                await send(message)

            if scope["type"] == "http":
                self.total += 1
            await app(scope, receive, sent)

        return counted

    def forget(self) -> None:
        """Begin anew."""
        self.total = 0
        self.answered.clear()

    def of(self, method: str, path: str) -> Counter[int]:
        """Give how often an operation was answered, by status."""
        return Counter(
            {
                status: times
                for (verb, route, status), times in self.answered.items()
                if (verb, route) == (method.upper(), path)
            }
        )


STEER = ("post", "/v1/jobs/{job_id}/steer")
"""Only a running agent takes a message, and these jobs have ended; api/native/test_steer.py has running ones."""


@dataclass
class Much:
    """How many requests an operation is tried with by itself, and how many ways through several are tried.

    Ways end early by chance, some runs after a hundred requests in all: the others have to be enough.
    """

    requests: int
    ways: int
    phases: str = "examples,coverage,fuzzing"


@dataclass
class Tried:
    """What a service went through, and what schemathesis says of it."""

    document: dict[str, Any]
    arrivals: Arrivals
    faults: list[str] = field(default_factory=list)


def furnish(root: Path, service: RunningService, profile: str) -> None:
    """Write into `root` what schemathesis is to go by: the configuration, and ids of what there is."""
    shared = (HERE / "schemathesis.toml").read_text()
    (root / WAYS).write_text(shared)
    (root / ALONE).write_text(shared + (HERE / "ids.toml").read_text())
    with service.client() as client:
        jobs = [run_job(client, "tell x", workspace="infra")["id"] for _ in range(60)]
        responses = ["resp_0123456789ab"]  # of nobody
        if profile == "default":
            asked = {"model": "claude", "input": "tell x"}
            responses = [client.post("/v1/responses", json=asked).json()["id"] for _ in range(30)]
        keys = [client.post("/v1/keys", json={"name": "ci"}).json()["id"] for _ in range(30)]
        for _ in range(5):
            run_job(
                client, "tell x", callback_url="http://127.0.0.1:9/"
            )  # nobody listens, and nothing is sent
        schedules = [f"s-{number}" for number in range(30)]
        for name in schedules:
            made = client.post(
                "/v1/schedules", json={"name": name, "cron": "@yearly", "job": {"prompt": "tell x"}}
            )
            assert made.status_code == 201, made.text
        told = client.get("/v1/callbacks/deliveries").json()["data"]
        deliveries = [each["id"] for each in told]
        nodes = [each["name"] for each in client.get("/v1/nodes").json()["data"]]
    named = {"jobs": jobs, "responses": responses, "keys": keys}
    named |= {"deliveries": deliveries, "schedules": schedules, "nodes": nodes}
    for name, ids in named.items():
        (root / f"{name}.dict").write_text("".join(f'"{each}"\n' for each in ids))


def tried(root: Path, profile: Literal["default", "classic"], much: Much, *, seed: int) -> Tried:
    """Let schemathesis try a service of its own: each operation by itself, then ways through them by their links."""
    program = environment_dir("schemathesis") / "bin" / "schemathesis"
    arrivals = Arrivals()
    with running_service(root, options=ApiOptions(profile=profile), wrap_app=arrivals.around) as service:
        with service.client() as client:
            found = Tried(client.get("/openapi.json").json(), arrivals)
        furnish(root, service, profile)
        arrivals.forget()
        for config, phases, examples in (
            (ALONE, much.phases, much.requests),
            (WAYS, "stateful", much.ways),
        ):
            command = [
                *(str(program), "--config-file", str(root / config), "--no-color"),
                *("run", f"{service.url}/openapi.json", "--header", f"Authorization: Bearer {ADMIN}"),
                *("--seed", str(seed), "--phases", phases, "--max-examples", str(examples)),
            ]
            done = subprocess.run(
                command,
                cwd=root,
                env={"PATH": SYSTEM_PATH, "HOME": str(root)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                found.faults.append(done.stdout + done.stderr)
    return found


def holds(found: Tried, *, least: int) -> None:
    """Assert that nothing was found by so many requests, and that every operation was reached and did its work."""
    for said in found.faults:
        print(said)  # noqa: T201  # whole, with how to ask the same again
    print(found.arrivals.total, "requests")  # noqa: T201
    assert not found.faults
    assert found.arrivals.total >= least
    answers = {
        (method, path): found.arrivals.of(method, path)
        for path, methods in found.document["paths"].items()
        for method in methods
    }
    idle = {what for what, by in answers.items() if not any(status < 300 for status in by)}
    assert idle <= {STEER}


@pytest.mark.timeout(1_200)
def test_hundreds_of_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    holds(tried(tmp_path, "default", Much(12, 6, "examples,fuzzing"), seed=20_260), least=FEW)


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_a_thousand_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    holds(tried(tmp_path, "default", Much(3, 15), seed=20_260), least=LEAST)


@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_the_classic_profile_answers_as_its_own_document_says(tmp_path: Path) -> None:
    holds(tried(tmp_path, "classic", Much(2, 10), seed=20_261), least=LEAST // 4)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_five_thousand_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    holds(tried(tmp_path, "default", Much(136, 250), seed=20_260), least=5 * LEAST)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("profile", ["default", "classic"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_more_requests_are_answered_as_the_document_says(
    tmp_path: Path, profile: Literal["default", "classic"], seed: int
) -> None:
    holds(tried(tmp_path, profile, Much(400, 4_000), seed=seed), least=7 * LEAST + LEAST // 2)
