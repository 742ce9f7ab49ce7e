"""A rate limit in the middle of a job: it is parked and goes on when it may; the clock is moved, not waited for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.sandboxed.codex_services import codex_agent, codex_config
from tests.sandboxed.conftest import FILES
from tests.service_fixtures import make_repository

from steadyhand.config.settings import Settings, load_settings
from steadyhand.serve import embedded
from steadyhand.testing.cli import DUMMY_API_KEY, SYSTEM_PATH, cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import ADMIN_KEY, wait_until

AGENTS = ("claude", "codex")
CONFIG = """\
[providers.other]
base_url = "{other}"
[agents.elsewhere]
provider = "other"
"""
SCRATCH = 'workspace = "scratch"\n'
MIDWAY = "[[scenario:rate-limited-midway]] leave a mark"


class Clock:
    """The time of day, which a test moves on."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Running:
    """A service in this process, with one slot."""

    def __init__(self, http: httpx2.Client, clock: Clock, model: ScriptedModel, workspace: str) -> None:
        self.http, self.clock, self.model, self.workspace = http, clock, model, workspace

    def submit(self, prompt: str, **fields: Any) -> str:
        answer = self.http.post("/v1/jobs", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/jobs/{job_id}").json())

    def until_state(self, job_id: str, state: str) -> dict[str, Any]:
        wait_until(lambda: self.job(job_id)["state"] == state, 60)
        return self.job(job_id)

    def events(self, job_id: str) -> list[dict[str, Any]]:
        headers = {"accept": "application/json"}
        answer = self.http.get(f"/v1/jobs/{job_id}/events", params={"limit": 500}, headers=headers)
        return list(answer.json()["data"])


@dataclass
class World:
    """A directory, a clock and a model that outlive the service."""

    settings: Settings
    clock: Clock
    model: ScriptedModel
    workspace: str

    @contextmanager
    def running(self) -> Iterator[Running]:
        with embedded(self.settings, clock=self.clock) as (url, key):
            headers = {"authorization": f"Bearer {key}"}
            with httpx2.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
                yield Running(http, self.clock, self.model, self.workspace)


@pytest.fixture
def world(request: pytest.FixtureRequest, reachable_tmp: Path) -> Iterator[World]:
    agent, level = request.param
    root = Path(tempfile.mkdtemp(prefix="parked-", dir=reachable_tmp))
    root.chmod(0o755)
    make_repository(root / "workspace", FILES)
    with ScriptedModel() as model, ScriptedModel() as other:
        config, key = root / "steadyhand.toml", root / "openai.key"
        key.write_text("sk-of-codex")
        text = CONFIG.format(other=other.url)
        if agent == "codex":
            text = codex_config(model.url, key) + codex_agent("elsewhere", "other", other.url, key)
        config.write_text(text + SCRATCH)
        settings = load_settings(
            config,
            {"server.port": 0, "service.data_dir": str(root / "data"), "service.concurrency": 1},
            {
                "PATH": SYSTEM_PATH,
                "HOME": str(root),
                "ANTHROPIC_API_KEY": DUMMY_API_KEY,
                "ANTHROPIC_BASE_URL": model.url,
                "STEADYHAND_API_KEY": ADMIN_KEY,
                "STEADYHAND_ISOLATION": level,
                "STEADYHAND_RUNNER__CLAUDE__PATH": str(cli_path()),
            },
        )
        yield World(settings, Clock(), model, str(root / "workspace"))


def worlds(*now: str) -> pytest.MarkDecorator:
    """Return the agents at the levels as parameters: these sealed, and the others in the long run."""
    # Each is parked in the same way at both levels.
    cases = [
        pytest.param((agent, level), marks=[] if agent in now and level == "bwrap" else [pytest.mark.long])
        for level in ("bwrap", "none")
        for agent in AGENTS
    ]
    return pytest.mark.parametrize("world", cases, ids="-".join, indirect=True)


@pytest.fixture
def running(world: World) -> Iterator[Running]:
    with world.running() as running:
        yield running


@worlds("claude", "codex")
def test_a_job_that_meets_a_long_rate_limit_is_parked_and_finishes_when_it_may(running: Running) -> None:
    began = running.clock()
    job_id = running.submit(MIDWAY, workspace=running.workspace)
    parked = running.until_state(job_id, "parked")
    reset = datetime.fromisoformat(parked["parked_until"])
    assert timedelta(seconds=100) < reset - began < timedelta(seconds=200)
    assert parked["error"] is None
    change = running.events(job_id)[-1]["data"]
    assert (change["to"], change["parked_until"]) == ("parked", parked["parked_until"])
    assert running.http.get(f"/jobs/{job_id}").json()["status"] == "running"
    # The slot is free: an agent with another credential runs, one with the same is not started into the wall.
    same = running.submit("hello", workspace="scratch")
    other = running.submit("hello", agent="elsewhere")
    assert running.until_state(other, "completed")["answer"]
    calls = running.model.calls
    assert running.job(same)["state"] == "queued"
    running.clock.ahead += timedelta(seconds=150)
    done = running.until_state(job_id, "completed")
    assert "mark" in done["answer"], done["answer"]
    assert [run["state"] for run in done["runs"]] == ["parked", "completed"]
    assert (done["session_id"], done["parked_until"]) == (parked["session_id"], None)
    tools = [event for event in running.events(job_id) if event["type"] == "tool.started"]
    assert len(tools) == 1
    diff = running.http.get(f"/v1/jobs/{job_id}/diff").text
    assert diff.count("\n+mark") == 1
    assert running.until_state(same, "completed")["answer"]
    assert running.model.calls > calls
    assert done["cost"]["source"] == "ledger"


@worlds("claude")
def test_a_parked_job_can_be_cancelled_and_leaves_nothing(running: Running) -> None:
    job_id = running.submit(MIDWAY, workspace=running.workspace)
    running.until_state(job_id, "parked")
    assert running.http.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    running.clock.ahead += timedelta(seconds=150)
    after = running.submit("hello", workspace="scratch")
    running.until_state(after, "completed")
    assert running.job(job_id)["state"] == "cancelled"
    assert running.http.post(f"/v1/jobs/{job_id}/resume", json={}).status_code == 202
    assert "mark" in running.until_state(job_id, "completed")["answer"]


# blackbox/test_reattach.py has one that is still parked after a kill, and worker/test_recovery.py the rest of its wait.
@worlds()
def test_a_parked_job_waits_on_over_a_restart_and_finishes_when_it_may(world: World) -> None:
    with world.running() as before:
        job_id = before.submit(MIDWAY, workspace=world.workspace)
        parked = before.until_state(job_id, "parked")
    with world.running() as after:
        assert after.job(job_id) == parked
        calls = world.model.calls
        world.clock.ahead += timedelta(seconds=150)
        done = after.until_state(job_id, "completed")
        assert "mark" in done["answer"], done["answer"]
        assert [run["state"] for run in done["runs"]] == ["parked", "completed"]
        assert len([event for event in after.events(job_id) if event["type"] == "tool.started"]) == 1
        assert after.http.get(f"/v1/jobs/{job_id}/diff").text.count("\n+mark") == 1
        assert world.model.calls > calls
