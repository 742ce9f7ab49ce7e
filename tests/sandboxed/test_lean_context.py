"""The context of lean agents on the model's wire: its size, what is in it, and how much two jobs share.

What two jobs share is counted in the order in which the model's cache reads a request: tools, system prompt, messages.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from tests.service_fixtures import make_repository, make_service_root

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.service import Service

CONFIG = """
[service]
isolation = "{isolation}"
[workspaces.infra]
repository = "{repository}"
[agents.summary]
workspace = "infra"
lean = true
tools = []
append_system_prompt = "Summarise."
[agents.fixer]
workspace = "infra"
lean = true
"""
PROMPT = "Say that all is well."
MOST_BYTES = 4096


class Wire:
    """A service with the real CLI, and the model that its agents ask."""

    def __init__(self, service: Service, model: ScriptedModel, *, sealed: bool) -> None:
        self.service = service
        self.sealed = sealed
        self.last_id = ""
        self._model = model

    def ask(self, agent: str, prompt: str = PROMPT, path: str = "/v1/jobs", **fields: object) -> ModelRequest:
        """Let an agent answer and return the request that the model got."""
        body = {"prompt": prompt, **({"agent": agent} if path == "/v1/jobs" else {}), **fields}
        answer = self.service.client.post(path, json=body)
        assert answer.status_code == 202, answer.text
        job = self.service.wait_until_ended(answer.json()["id"], 90)
        assert job["state"] == "completed", (job, self.service.log)
        self.last_id = str(job["id"])
        return self._model.requests[-1]


@pytest.fixture(scope="module", params=["bwrap", pytest.param("none", marks=pytest.mark.long)])
def wire(request: pytest.FixtureRequest, reachable_tmp: Path, real_cli: Path) -> Iterator[Wire]:
    root = make_service_root(reachable_tmp)
    make_repository(root / "workspace", {"CLAUDE.md": "Be brief, says the repository.\n"})
    config = CONFIG.format(isolation=request.param, repository=root / "workspace")
    with ScriptedModel() as model, Service(root, real_cli, config=config, model=model.url) as service:
        yield Wire(service, model, sealed=request.param == "bwrap")
    shutil.rmtree(root, ignore_errors=True)


def size(request: ModelRequest) -> int:
    return len(json.dumps(request.body, separators=(",", ":"), ensure_ascii=False).encode())


def read(request: ModelRequest) -> str:
    """Return what the model reads, in its order."""
    return json.dumps([request.body.get(name) for name in ("tools", "system", "messages")])


def common(first: str, second: str) -> str:
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(each for each, _ in alike)


def shared(first: ModelRequest, second: ModelRequest) -> float:
    """Return the share of the shorter request that is common prefix."""
    texts = read(first), read(second)
    return len(common(*texts)) / min(map(len, texts))


def test_a_turn_without_tools_is_small_and_two_jobs_share_all_but_the_prompt(wire: Wire) -> None:
    first, again, other = wire.ask("chat"), wire.ask("chat"), wire.ask("chat", "What is new?")
    assert size(first) < MOST_BYTES // 2
    assert first.turns[0] == ("user", PROMPT)
    assert shared(first, again) >= 0.99
    before, _, after = read(first).partition(PROMPT)
    assert common(read(first), read(other)).startswith(before)
    assert read(other).endswith(after)  # nothing of the job, its machine or its time comes after the prompt
    day = wire.service.get_job(wire.last_id)["created_at"][:10]
    assert first.system.endswith(f"Today's date is {day}.")


def test_an_agent_of_a_repository_without_tools_keeps_its_instructions(wire: Wire) -> None:
    first, again = wire.ask("summary"), wire.ask("summary")
    assert size(first) < MOST_BYTES
    text = read(first)
    assert "Be brief, says the repository." in text
    assert "Summarise." in first.system
    assert "# Memory" not in text
    assert text.index("Be brief") < text.index(PROMPT)
    if wire.sealed:
        assert shared(first, again) >= 0.99
    else:  # the CLI names the path of the instructions, which is one of the job's own without a sandbox
        assert first.system == again.system


def test_a_lean_agent_with_tools_keeps_the_clis_prompt_and_has_no_memory(wire: Wire) -> None:
    first, again = wire.ask("fixer"), wire.ask("fixer")
    assert "Bash" in first.tools
    assert "# Harness" in first.system
    assert "Be brief, says the repository." in read(first)
    assert "# Memory" not in read(first)
    assert first.system == again.system
    if wire.sealed:
        assert shared(first, again) >= 0.99


def test_the_next_turn_holds_the_earlier_one_and_what_the_caller_added(wire: Wire) -> None:
    first = wire.ask("chat", append_system_prompt="Rhyme.")
    assert "Rhyme." in first.system
    path = f"/v1/jobs/{wire.last_id}/turns"
    second = wire.ask("chat", "And now?", path)
    texts = [text for role, text in second.turns if role in ("user", "assistant")]
    assert texts[0] == PROMPT
    assert texts[-1] == "And now?"
    assert len(texts) == 3
    assert shared(first, second) > 0.5


def test_a_schema_reaches_the_model(wire: Wire) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    first = wire.ask("chat", output_schema=schema)
    assert first.tools == ["StructuredOutput"]
    assert size(first) < MOST_BYTES
