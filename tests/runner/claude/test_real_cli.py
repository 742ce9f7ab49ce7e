"""Both modes with the real CLI and the scripted model; its environment is built from nothing, all on loopback."""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import AgentDefinition
from steadyhand.events import Message, TextDelta, ToolFinished, ToolStarted, UsageReported
from steadyhand.job import Turn as Said
from steadyhand.outcome import StopReason, decide_outcome
from steadyhand.ports import Runner
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.plain import PlainRunner
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.claude.tool_names import ALL_TOOLS, BUILT_IN_TOOLS, TOOL_ALIASES, TOOL_NAMES
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY, SYSTEM_PATH
from steadyhand.testing.contracts.runner_harness import RecordedRun, RunnerHarness
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.scenario import ModelToolCall, ModelTurn, Scenario

QUIET = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
"""What every agent is told: the tools that a service of the CLI's maker adds are not there."""
SESSION = "7b8a2f0e-6f9b-4c58-9d5a-0d6c7a1b2c3d"
TRIAGE = "---\nname: triage\ndescription: Sorts.\n---\nSort what comes by the word quetzal.\n"
PLAIN, STREAM = "plain", "stream"


def modes(quick: str | None = None) -> pytest.MarkDecorator:
    """Return both modes as parameters; those that are not named are tried in `make test-long` alone.

    Where none is named, `tests/blackbox/test_real_cli.py` tries it through the service.
    """
    marks = {mode: [] if mode == quick else [pytest.mark.long] for mode in (PLAIN, STREAM)}
    return pytest.mark.parametrize("mode", [pytest.param(mode, marks=marks[mode]) for mode in marks])


def _runner(mode: str, cli: Path) -> Runner:
    return (
        PlainRunner(cli, NoSandbox(), NO_REDACTION)
        if mode == "plain"
        else ClaudeRunner(cli, NoSandbox(), NO_REDACTION)
    )


def _stage(
    mode: str, cli: Path, world: Path, model: ScriptedModel, prompt: str, **fields: Any
) -> RunnerHarness:
    stage = RunnerHarness.make(_runner(mode, cli), world, prompt, **fields)
    granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
    stage.spec = replace(stage.spec, environment={**stage.spec.environment, **granted})
    return stage


def _define(stage: RunnerHarness) -> None:
    place = stage.spec.checkout
    assert place.config_dir is not None
    (place.config_dir / "agents").mkdir()
    (place.config_dir / "agents" / "triage.md").write_text(TRIAGE, encoding="utf-8")
    known = {"triage": AgentDefinition("triage", "Sorts.", TRIAGE, "workspace")}
    stage.spec = replace(stage.spec, checkout=replace(place, definitions=known))


def test_the_cli_has_exactly_the_tools_whose_names_are_listed_and_passes_over_others(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    def tools(*names: str) -> set[str]:
        options = ["--output-format", "stream-json", "--verbose", "--tools", ",".join(names)]
        env = {"PATH": SYSTEM_PATH, "HOME": str(world_dir), "IS_SANDBOX": "1", **QUIET}
        env |= {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": scripted_model.url}
        ran = subprocess.run(
            [real_cli, "-p", "--dangerously-skip-permissions", *options],
            input="[[scenario:ok]] hello",
            env=env,
            cwd=world_dir,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        first = next(
            line for line in map(json.loads, ran.stdout.splitlines()) if line.get("subtype") == "init"
        )
        return set(first["tools"])

    assert tools("Read", "read", "Bash(git:*)", "TodoWrite") == {"Read"}
    listed = tools(*BUILT_IN_TOOLS)
    assert listed == {TOOL_ALIASES.get(name, name) for name in BUILT_IN_TOOLS}
    assert tools(ALL_TOOLS) <= listed


APPENDED = "quetzal " * 30_000


@pytest.fixture(scope="module")
def continued(real_cli: Path) -> Iterator[tuple[RecordedRun, ScriptedModel]]:
    """Return a run of the stream mode with earlier turns and an appended prompt, and the model that it asked."""
    history = (Said("user", "U1"), Said("assistant", "A1"), Said("user", "U2"), Said("assistant", "A2"))
    world = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    world.chmod(0o755)
    with ScriptedModel() as model:
        stage = _stage(
            STREAM,
            real_cli,
            world,
            model,
            "[[scenario:ok]] U3",
            history=history,
            session_id=SESSION,
            append_system_prompt=APPENDED,
        )
        yield asyncio.run(stage.run()), model
    shutil.rmtree(world)


@modes(STREAM)
def test_an_answer_with_its_usage_and_cost(
    request: pytest.FixtureRequest, real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    if mode == STREAM:
        ran: RecordedRun = request.getfixturevalue("continued")[0]
    else:
        ran = asyncio.run(_stage(mode, real_cli, world_dir, scripted_model, "[[scenario:ok]] hello").run())
    assert ran.outcome == "success"
    result = ran.report.evidence.result
    assert result is not None
    assert result.text == "ok: the scripted model has read the prompt."
    assert result.usage is not None
    assert result.usage.output_tokens > 0
    assert result.cost_micros
    assert ran.events_of(Message)[-1].text == result.text
    assert ran.events_of(UsageReported)[-1].cost_usd is not None
    assert bool(ran.events_of(TextDelta)) == (mode == "stream")
    assert ran.result["result"] == result.text


@modes()
def test_a_tool_really_runs_in_the_checkout(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    stage = _stage(mode, real_cli, world_dir, scripted_model, "[[scenario:bash]] run it")
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    assert (stage.spec.checkout.directory / "made-by-bash.txt").read_text() == "hello from bash\n"
    if mode == "stream":
        (finished,) = ran.events_of(ToolFinished)
        assert (finished.output, finished.is_error) == ("hello from bash", False)
        assert finished.duration_ms is not None


@modes()
def test_an_agent_that_nobody_defined_makes_no_model_call(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    stage = _stage(mode, real_cli, world_dir, scripted_model, "hello", agent="nobody", definition="nobody")
    ran = asyncio.run(stage.run())
    assert ran.outcome == "unknown_agent"
    assert ran.report.evidence.exit_code == 1
    assert ran.report.evidence.stderr.startswith("--agent 'nobody' not found. Available agents:")
    assert scripted_model.requests == []


@modes(STREAM)
def test_a_defined_agent_is_the_one_that_runs(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    stage = _stage(
        mode, real_cli, world_dir, scripted_model, "[[scenario:ok]] hi", agent="triage", definition="triage"
    )
    _define(stage)
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    assert any("quetzal" in str(request.body) for request in scripted_model.requests)


@modes()
def test_a_spent_credit_is_told_at_once(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    ran = asyncio.run(_stage(mode, real_cli, world_dir, scripted_model, "[[scenario:no-credit]] x").run())
    assert ran.outcome == "budget"
    assert ran.report.evidence.exit_code == 1


@modes()
def test_a_cancel_while_a_deaf_tool_runs_is_done_in_time(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel, mode: str
) -> None:
    stage = _stage(mode, real_cli, world_dir, scripted_model, "[[scenario:deaf-tool]] go")

    async def scenario() -> tuple[str, float]:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(stage.run())
            await stage.wait_until(lambda: _runs_a_tool(stage))
            begun = asyncio.get_running_loop().time()
            stage.stop.request(StopReason.CANCEL)
            ran = await running
        return ran.outcome, asyncio.get_running_loop().time() - begun

    verdict, seconds = asyncio.run(scenario())
    assert verdict == "cancelled"
    assert seconds < 2


def _runs_a_tool(stage: RunnerHarness) -> bool:
    pids = stage.spec.checkout.directory / "pids.txt"
    return pids.exists() and len(pids.read_text().splitlines()) == 3


def test_earlier_turns_reach_the_model_as_turns_in_one_call(
    continued: tuple[RecordedRun, ScriptedModel],
) -> None:
    ran, model = continued
    assert ran.outcome == "success"
    assert ran.report.session_id == SESSION
    (request,) = model.requests
    turns = [(each["role"], str(each["content"])) for each in request.body["messages"]]
    spoken = [(role, text) for role, text in turns if role != "system"]
    assert [role for role, _ in spoken] == ["user", "assistant", "user", "assistant", "user"]
    assert all(word in text for word, (_, text) in zip(["U1", "A1", "U2", "A2", "U3"], spoken, strict=True))


def test_a_schema_gives_an_object(real_cli: Path, world_dir: Path, scripted_model: ScriptedModel) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
        "required": ["name", "number"],
    }
    stage = _stage(
        "stream", real_cli, world_dir, scripted_model, "[[scenario:structured]] go", output_schema=schema
    )
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    result = ran.report.evidence.result
    assert result is not None
    assert result.structured_output == {"name": "scripted", "number": 42}


def test_an_appended_prompt_of_any_size_reaches_the_model(
    continued: tuple[RecordedRun, ScriptedModel],
) -> None:
    ran, model = continued
    assert ran.outcome == "success"
    assert APPENDED.strip() in str(model.requests[0].body["system"])


def test_an_agent_that_never_meets_its_schema_says_where_it_failed(real_cli: Path, world_dir: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wrong = Scenario(
        "wrong", "", (ModelTurn(tool=(ModelToolCall("StructuredOutput", {"n": "four"}),)),), repeat=True
    )
    with ScriptedModel(wrong) as model:
        stage = _stage("stream", real_cli, world_dir, model, "go", output_schema=schema)
        ran = asyncio.run(stage.run())
    assert ran.outcome == "invalid_output"
    detail = decide_outcome(ran.report.evidence).detail
    assert detail == "/n: 'four' is not of type 'integer' (schema: /properties/n/type)"


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PAGE = "JVBERi0xLjQKJSVFT0YK"


def test_images_and_documents_reach_the_model_as_blocks_and_a_large_file_by_its_path(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    source = {"type": "base64", "media_type": "application/pdf", "data": PAGE}
    text = {"type": "text", "media_type": "text/plain", "data": "a,b"}
    content = (
        {"type": "text", "text": "[[scenario:bash]] What is"},
        image,
        {"type": "document", "source": source, "title": "page.pdf"},
        {"type": "document", "source": text, "title": "t.csv"},
        {"type": "file", "name": "large.txt", "data": "aGVsbG8="},
    )
    history = (Said("user", (image, {"type": "text", "text": "U1"})), Said("assistant", "A1"))
    stage = _stage(
        "stream",
        real_cli,
        world_dir,
        scripted_model,
        "What is",
        content=content,
        history=history,
        origin="openai",
    )
    ran = asyncio.run(stage.run())
    assert ran.outcome == "success"
    messages = scripted_model.requests[0].body["messages"]
    blocks = [block for message in messages if message["role"] == "user" for block in message["content"]]
    kinds = [block["type"] for block in blocks if block["type"] in ("image", "document")]
    assert kinds == ["image", "image", "document", "document"]
    (path,) = stage.spec.checkout.directory.glob(".attachments/*-large.txt")
    assert path.read_text() == "hello"
    assert any(f"message: .attachments/{path.name}]" in str(block.get("text")) for block in blocks)


def test_the_calls_of_subagents_name_the_call_that_started_them(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    ran = asyncio.run(
        _stage("stream", real_cli, world_dir, scripted_model, "[[scenario:subagents]] look").run()
    )
    assert ran.outcome == "success"
    calls = ran.events_of(ToolStarted)
    agents = {call.tool_id for call in calls if call.parent_tool_id is None}
    assert len(agents) == 3
    inner = [call.parent_tool_id for call in calls if call.parent_tool_id is not None]
    assert inner
    assert set(inner) <= agents


def test_the_tools_of_the_todo_list_have_the_names_and_fields_that_the_page_reads(
    real_cli: Path, world_dir: Path, scripted_model: ScriptedModel
) -> None:
    create, update = TOOL_NAMES.create_todo, TOOL_NAMES.update_todo
    scripted_model.scenario = Scenario(
        "todo",
        "",
        (
            ModelTurn(tool=(ModelToolCall(create, {"subject": "look", "description": "around"}),)),
            ModelTurn(tool=(ModelToolCall(update, {"taskId": "1", "status": "in_progress"}),)),
            ModelTurn(text="done"),
        ),
    )
    stage = _stage("stream", real_cli, world_dir, scripted_model, "go")
    stage.spec = replace(stage.spec, agent=replace(stage.spec.agent, tools=(create, update)))
    ran = asyncio.run(stage.run())
    created, updated = ran.events_of(ToolFinished)
    assert (created.is_error, created.output) == (False, "Task #1 created successfully: look")
    assert not updated.is_error
    windows = ran.events_of(UsageReported)[-1].context_windows
    assert windows is not None
    assert set(windows.values()) == {1_000_000}
