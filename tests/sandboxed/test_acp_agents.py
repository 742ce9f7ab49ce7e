"""Agents that speak ACP, real and sealed, against the scripted model: events, usage, sessions and ends."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.real_agents.real_agents import NODE, binary, installed_directory

from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, run_git, wait_until

CANARY = "sk-canary-the-real-key-of-the-model"
CONFIG = """
[runner.kimi]
path = "{kimi}"
node = "{node}"
[runner.opencode]
path = "{opencode}"
[runner.claude-agent-acp]
path = "{claude}"
node = "{node}"
[providers.openai]
kind = "openai-compatible"
base_url = "{url}"
api_key_file = "{key}"
[providers.anthropic]
base_url = "{url}"
api_key_file = "{key}"
[prices."gpt-*"]
input = "1"
cache_read = "1"
output = "1"
"""
AGENTS = {"kimi": "openai", "opencode": "openai", "claude-agent-acp": "anthropic"}
MODELS = {"openai": "gpt-5.5", "anthropic": "claude-sonnet-5"}
STEPS = ("message", "thinking", "tool.started", "tool.finished")


def program(name: str) -> Path:
    return installed_directory(name) / ".bin" / name


def agents_text() -> str:
    """The agents of the service: each once with a budget of its own, and once with one that is spent by its call."""
    lines = []
    for name, provider in AGENTS.items():
        for agent, budget in ((name, "5"), (f"poor-{name}", "0.000001")):
            lines += [f"[agents.{agent}]", f'runner = "{name}"', f'provider = "{provider}"']
            lines += [f'model = "{MODELS[provider]}"', f'budget_usd = "{budget}"']
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class World:
    """A service with the agents, and the model that they ask; `name` is the agent of the test."""

    service: Service
    model: ScriptedModel
    name: str

    def submit(self, prompt: str, **fields: Any) -> str:
        job = self.service.submit(prompt, **{"agent": self.name, "workspace": "scratch", **fields})
        return str(job["id"])

    def run(self, prompt: str, **fields: Any) -> dict[str, Any]:
        return self.service.wait_until_ended(self.submit(prompt, **fields), 60)

    def steps(self, job: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [event for event in self.service.events(job["id"]) if event["type"] in STEPS]

    def counted(self) -> dict[str, int]:
        """The tokens that the model has told since it was cleared, by the names of a job's usage."""
        totals = self.model.all_totals
        return {name: totals.get(name, 0) for name in USAGE}

    def wait_for_tool(self, job_id: str) -> None:
        wait_until(lambda: any(event["type"] == "tool.started" for event in self.service.events(job_id)), 60)


USAGE = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def usage(job: Mapping[str, Any]) -> dict[str, int]:
    return {name: job["usage"][name] for name in USAGE}


@pytest.fixture(scope="module")
def service_and_model(make_service_in: MakeService) -> Iterator[tuple[Service, ScriptedModel]]:
    with ScriptedModel("ok") as model:
        made = make_service_in(
            env={"STEADYHAND_ISOLATION": "bwrap", "STEADYHAND_SERVICE__REATTACH_SECONDS": "30"}
        )
        key = made.root / "model.key"
        key.write_text(CANARY)
        config = CONFIG.format(
            kimi=program("kimi"),
            opencode=binary("opencode"),
            claude=program("claude-agent-acp"),
            node=NODE,
            url=model.url,
            key=key,
        )
        repository = hostile_repository(made.root / "hostile")
        workspaces = [
            f'[workspaces.hostile-{trust}]\nrepository = "{repository}"\ntrust = "{trust}"'
            for trust in ("none", "instructions")
        ]
        made.config_path.write_text("\n".join([config, agents_text(), *workspaces]))
        with made:
            yield made, model


@pytest.fixture(params=AGENTS)
def each(service_and_model: tuple[Service, ScriptedModel], request: pytest.FixtureRequest) -> World:
    """Each agent."""
    service, model = service_and_model
    model.clear()
    return World(service, model, request.param)


# The runner is one for all: in `make test`, Kimi shows what the others do in the same way.
@pytest.fixture(
    params=[name if name == "kimi" else pytest.param(name, marks=pytest.mark.long) for name in AGENTS]
)
def world(service_and_model: tuple[Service, ScriptedModel], request: pytest.FixtureRequest) -> World:
    service, model = service_and_model
    model.clear()
    return World(service, model, request.param)


def test_a_text_comes_with_the_usage_that_the_model_counts(each: World) -> None:
    world = each
    job = world.run("--version\n[[scenario:ok]]")
    assert (job["state"], job["outcome"]["type"]) == ("completed", "success"), (job, world.service.log)
    assert [event["type"] for event in world.steps(job)] == ["message"]
    assert job["answer"] == world.steps(job)[0]["data"]["text"]
    assert usage(job) == world.counted()
    assert job["cost"]["source"] == "ledger"
    assert "--version" in world.model.requests[-1].prompt
    assert world.model.requests[-1].model == MODELS[AGENTS[world.name]]


def test_a_tool_edits_a_file_and_the_change_is_the_diff_of_the_job(each: World) -> None:
    world, service = each, each.service
    job = world.run("[[scenario:edit]]", workspace=str(service.root / "workspace"))
    assert job["state"] == "completed", (job, service.log)
    steps = world.steps(job)
    assert [event["type"] for event in steps] == [
        "message",
        *["tool.started", "tool.finished"] * 3,
        "message",
    ]
    started = [event["data"] for event in steps if event["type"] == "tool.started"]
    assert all(data["input"] for data in started)
    assert not any(event["data"]["is_error"] for event in steps if event["type"] == "tool.finished")
    diff = service.client.get(f"/v1/jobs/{job['id']}/diff")
    assert diff.status_code == 200, diff.text
    assert "+colour: green" in diff.text
    assert usage(job) == world.counted()


def test_a_turn_goes_on_in_the_session_with_a_usage_of_its_own(world: World) -> None:
    first = world.run("Remember the word heron. [[scenario:ok]]")
    world.model.clear()
    answer = world.service.client.post(
        f"/v1/jobs/{first['id']}/turns", json={"prompt": "Again. [[scenario:ok]]"}
    )
    assert answer.status_code == 202, answer.text
    second = world.service.wait_until_ended(answer.json()["id"], 60)
    assert second["state"] == "completed", (second, world.service.log)
    assert second["session_id"] == first["session_id"]
    assert "heron" in json.dumps(world.model.requests[-1].body)
    assert [event["type"] for event in world.steps(second)] == ["message"]
    assert usage(second) == world.counted()


@pytest.mark.parametrize(
    ("scenario", "outcome"),
    [
        ("no-such-model", "model_error"),
        ("unauthorized", "unauthorized"),
        # The agents' own pauses take half a minute; `gateway/model/test_failed_calls.py` has the rule.
        pytest.param("server-error", "model_error", marks=pytest.mark.long),
        ("no-credit", "budget"),
    ],
)
def test_a_failure_is_judged_by_the_answer_of_the_model(world: World, scenario: str, outcome: str) -> None:
    job = world.service.wait_until_ended(world.submit(f"[[scenario:{scenario}]]"), 180)
    assert (job["state"], job["outcome"]["type"]) == ("failed", outcome), job


def test_a_spent_budget_ends_the_run_within_one_call(world: World) -> None:
    job = world.run("[[scenario:loop]]", agent=f"poor-{world.name}")
    assert job["outcome"]["type"] == "budget", job
    assert world.model.calls + len(world.model.side_requests) <= 2


def test_a_cancel_ends_the_agent_and_all_that_it_has_started(world: World) -> None:
    job_id = world.submit("[[scenario:deaf-tool]]")
    world.wait_for_tool(job_id)
    assert world.service.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
    ended = world.service.wait_until_ended(job_id, 30)
    assert ended["state"] == "cancelled"
    assert world.service.live_agent_pids() == []


def test_a_run_goes_on_over_a_kill_of_the_service(world: World) -> None:
    job_id = world.submit("[[scenario:silent-tool]]")
    world.wait_for_tool(job_id)
    world.service.kill()
    world.service.restart()
    job = world.service.wait_until_ended(job_id, 60)
    assert (job["state"], len(job["runs"])) == ("completed", 1), (job, world.service.log)
    kinds = [event["type"] for event in world.steps(job)]
    assert kinds == ["message", "tool.started", "tool.finished", "message"]
    assert "it is there" in job["answer"]
    assert usage(job) == world.counted()


def test_the_credential_is_on_the_wire_and_nowhere_else(world: World) -> None:
    job = world.run("[[scenario:ok]]")
    sent = {
        request.headers.get("x-api-key") or request.headers["authorization"]
        for request in world.model.requests
    }
    assert sent <= {CANARY, f"Bearer {CANARY}"}
    told = str(job) + str(world.service.events(job["id"])) + world.service.log
    assert CANARY not in told
    holding = [path for path, content in contents_below(world.service.root) if CANARY.encode() in content]
    assert [Path(path).name for path in holding] == ["model.key"]


def hostile_repository(folder: Path) -> Path:
    """A repository with instructions, and with settings and a plugin that leave a mark when they are carried out."""
    server = {"command": "/bin/sh", "args": ["-c", "touch /workspace/server-ran; cat > /dev/null"]}
    plugin = "import fs from 'fs'; fs.writeFileSync('/workspace/plugin-ran', ''); export const P = async () => ({})"
    local = {"type": "local", "command": [server["command"], *server["args"]], "enabled": True}
    files = {
        "AGENTS.md": "The word of these notes is quetzal.\n",
        ".mcp.json": json.dumps({"mcpServers": {"evil": server}}),
        ".kimi-code/mcp.json": json.dumps({"mcpServers": {"evil": server}}),
        ".opencode/plugin/evil.js": plugin,
        "opencode.json": json.dumps({"mcp": {"evil": local}}),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        run_git(folder, *command)
    return folder


@pytest.mark.parametrize("trust", ["none", "instructions"])
def test_below_full_trust_instructions_are_all_that_a_repository_can_give(world: World, trust: str) -> None:
    job = world.run("[[scenario:ok]]", workspace=f"hostile-{trust}")
    assert job["state"] == "completed", (job, world.service.log)
    sent = json.dumps([request.body for request in world.model.requests])
    assert ("quetzal" in sent) is (trust == "instructions")
    diff = world.service.client.get(f"/v1/jobs/{job['id']}/diff")
    assert diff.status_code != 200 or not diff.text, diff.text
