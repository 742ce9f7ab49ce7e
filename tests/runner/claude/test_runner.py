"""The stream mode: the contract and what it is launched with; the control requests are in test_control_client.py."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand.agents import Agent, AgentDefinition
from steadyhand.errors import SpawnError
from steadyhand.job import Turn
from steadyhand.ports import Runner, RunSpec
from steadyhand.redact import NO_REDACTION, Redactor
from steadyhand.redact.matcher import Spans
from steadyhand.runner.claude.launch import build_launch, encode_prompt, render_session, stream_argv
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.runner import RunnerContract, StreamContract
from steadyhand.testing.contracts.runner_harness import RunnerHarness

CLI = Path("/opt/claude")
SESSION = "7b8a2f0e-6f9b-4c58-9d5a-0d6c7a1b2c3d"
ALWAYS = (
    "/opt/claude -p --input-format stream-json --output-format stream-json --verbose --include-partial-messages"
    " --dangerously-skip-permissions --max-budget-usd 5.0 --setting-sources user --session-id " + SESSION
)


class _CountingRedactor(Redactor):
    """Notes all that it searches."""

    def __init__(self) -> None:
        super().__init__(["a-secret-of-no-agent"])
        self.searched = b""

    def spans(self, data: bytes, *, text_only: bool = False) -> Spans:
        self.searched += data
        return super().spans(data, text_only=text_only)

    def search(self, data: bytes, *, text_only: bool = False, early: bool = False) -> tuple[Spans, int]:
        self.searched += data
        return super().search(data, text_only=text_only, early=early)


def test_a_line_of_the_agent_is_searched_for_secrets_in_the_copy_on_disk_alone_and_its_result_for_the_output(
    standin: Path, world_dir: Path
) -> None:
    redactor = _CountingRedactor()
    asyncio.run(RunnerHarness.make(ClaudeRunner(standin, NoSandbox(), redactor), world_dir, "hello").run())
    assert (
        redactor.searched.count(b'"type": "assistant"') + redactor.searched.count(b'"type":"assistant"') == 1
    )
    assert redactor.searched.count(b'"type": "result"') + redactor.searched.count(b'"type":"result"') == 2


class TestClaudeRunner(RunnerContract, StreamContract):
    def runner(self, cli: Path) -> Runner:
        return ClaudeRunner(cli, NoSandbox(), NO_REDACTION)


def _spec(folder: Path, agent: Agent | None = None, **fields: object) -> RunSpec:
    spec = RunnerHarness.make(ClaudeRunner(CLI, NoSandbox(), NO_REDACTION), folder, "hello", **fields).spec
    return spec if agent is None else replace(spec, agent=agent)


def _words(spec: RunSpec) -> list[str]:
    return stream_argv(CLI, spec, SESSION, None)[len(ALWAYS.split()) :]


def test_the_default_agent_is_run_without_a_name(tmp_path: Path) -> None:
    assert " ".join(stream_argv(CLI, _spec(tmp_path), SESSION, None)) == ALWAYS


def test_full_trust_lets_the_repositorys_settings_in(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    trusted = replace(spec, checkout=replace(spec.checkout, full_trust=True))
    words = stream_argv(CLI, trusted, SESSION, None)
    assert words[words.index("--setting-sources") + 1] == "user,project,local"


def test_an_agents_profile_becomes_options_and_the_jobs_own_words_win(tmp_path: Path) -> None:
    agent = Agent(
        "triage",
        definition="triage",
        model="sonnet",
        tools=("Read", "Bash"),
        max_turns=9,
        effort="low",
        lean=True,
    )
    assert _words(_spec(tmp_path, agent, model="haiku", max_turns=3)) == [
        *("--agent", "triage", "--model", "haiku", "--tools", "Read,Bash", "--max-turns", "3"),
        *("--effort", "low", "--exclude-dynamic-system-prompt-sections"),
    ]


def test_no_tools_at_all_is_said_as_an_empty_list(tmp_path: Path) -> None:
    assert _words(_spec(tmp_path, Agent("chat", tools=()))) == ["--tools", ""]


def test_a_value_with_a_dash_cannot_become_an_option(tmp_path: Path) -> None:
    assert _words(_spec(tmp_path, model="--dangerous")) == ["--model=--dangerous"]


def test_a_schema_goes_as_one_argument_and_one_too_large_is_refused(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"ä": {"type": "string"}}}
    words = _words(_spec(tmp_path, output_schema=schema))
    assert words[0] == "--json-schema"
    assert json.loads(words[1]) == schema
    huge = {"type": "object", "description": "x" * 100 * 1024}
    with pytest.raises(SpawnError, match="larger than 102400 bytes") as refused:
        _words(_spec(tmp_path, output_schema=huge))
    assert not refused.value.retryable


def test_an_appended_prompt_goes_by_file_the_agents_first(tmp_path: Path) -> None:
    agent = Agent("claude", append_system_prompt="be brief")
    spec = _spec(tmp_path, agent, append_system_prompt="x" * 200_000)
    launch = build_launch(CLI, spec, SESSION, NoSandbox())
    (path, content) = launch.files[0]
    assert content == b"be brief\n\n" + b"x" * 200_000
    words = list(launch.command.argv)
    assert words[words.index("--append-system-prompt-file") + 1] == str(path)
    assert max(len(word) for word in words) < 1000


def test_a_history_is_resumed_from_a_record_of_linked_turns(tmp_path: Path) -> None:
    history = (Turn("user", "U1"), Turn("assistant", "A1"))
    spec = _spec(tmp_path, history=history)
    launch = build_launch(CLI, spec, SESSION, NoSandbox())
    words = list(launch.command.argv)
    assert words[words.index("--resume") + 1] == SESSION
    assert "--session-id" not in words
    path, content = launch.files[0]
    assert path.name == f"{SESSION}.jsonl"
    assert path.parent.parent == spec.checkout.paths.config_dir / "projects"
    first, second = (json.loads(line) for line in content.splitlines())
    assert (first["parentUuid"], second["parentUuid"]) == (None, first["uuid"])
    assert first["message"] == {"role": "user", "content": "U1"}
    assert second["message"]["content"] == [{"type": "text", "text": "A1"}]


def test_a_record_of_no_turns_is_empty() -> None:
    assert render_session((), "/", SESSION) == b""


def test_a_prompt_is_one_line_whatever_is_in_it() -> None:
    line = encode_prompt('a\nb\r\u2028"\\', verbatim=False)
    assert line.count(b"\n") == 1
    assert json.loads(line)["message"] == {"role": "user", "content": 'a\nb\r\u2028"\\'}
    assert "client_composed" not in json.loads(line)
    assert json.loads(encode_prompt("/clear", verbatim=True))["client_composed"] is True


@pytest.mark.parametrize("name", ["Explore", "general-purpose"])
def test_the_clis_own_agents_cannot_be_asked_for(standin: Path, world_dir: Path, name: str) -> None:
    ran = TestClaudeRunner().run_prompt(standin, world_dir, "hello", agent=name, definition=name)
    assert ran.outcome == "unknown_agent"


def test_a_defined_agent_is_run(standin: Path, world_dir: Path) -> None:
    stage = RunnerHarness.make(
        ClaudeRunner(standin, NoSandbox(), NO_REDACTION),
        world_dir,
        "hello",
        agent="triage",
        definition="triage",
    )
    place = stage.spec.checkout
    assert place.config_dir is not None
    text = "---\nname: triage\ndescription: Sorts.\n---\nSort.\n"
    folder = place.config_dir / "agents"
    folder.mkdir()
    (folder / "triage.md").write_text(text, encoding="utf-8")
    known = {"triage": AgentDefinition("triage", "Sorts.", text, "workspace")}
    stage.spec = replace(stage.spec, checkout=replace(place, definitions=known))
    assert asyncio.run(stage.run()).outcome == "success"


@pytest.mark.long
def test_a_gigabyte_of_any_kind_leaves_the_service_within_fifty_megabytes(
    standin: Path, world_dir: Path
) -> None:
    TestClaudeRunner().run_flood(standin, world_dir, "1G")
