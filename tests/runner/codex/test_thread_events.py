"""The lines of `codex exec --json`, as Codex 0.171.0 prints them, and what they mean."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from steadyhand.events import EventBody, Message, TextDelta, Thinking, ToolFinished, ToolStarted, WarningEvent
from steadyhand.job import OutcomeType
from steadyhand.outcome import AgentResult, RunEvidence, decide_outcome
from steadyhand.runner.codex.thread_events import CodexReader

THREAD = {"type": "thread.started", "thread_id": "01a22ede-c1c2-70b3-ae15-2fbba6c04945"}
COMMAND = {"id": "item_1", "type": "command_execution", "command": "/bin/bash -lc 'echo out'"}
TOLD = {
    "type": "turn.completed",
    "usage": {
        "input_tokens": 2000,
        "cached_input_tokens": 800,
        "cache_write_input_tokens": 0,
        "output_tokens": 14,
        "reasoning_output_tokens": 0,
    },
}
TOOL_RUN: Sequence[Mapping[str, Any]] = [
    THREAD,
    {
        "type": "item.completed",
        "item": {"id": "item_0", "type": "error", "message": "Model metadata not found."},
    },
    {"type": "turn.started"},
    {
        "type": "item.started",
        "item": {**COMMAND, "aggregated_output": "", "exit_code": None, "status": "in_progress"},
    },
    {
        "type": "item.completed",
        "item": {**COMMAND, "aggregated_output": "out\n", "exit_code": 0, "status": "completed"},
    },
    {"type": "item.completed", "item": {"id": "item_2", "type": "agent_message", "text": "All done."}},
    TOLD,
]
FAILED = {
    "type": "turn.failed",
    "error": {"message": "We are experiencing high demand, which may cause temporary errors."},
}


def read(
    lines: Sequence[Any], *, run: int = 1, has_schema: bool = False
) -> tuple[list[EventBody | TextDelta], CodexReader]:
    reader = CodexReader(run, has_schema=has_schema)
    return [event for at, line in enumerate(lines) for event in reader.feed(line, at / 10)], reader


def result_of(lines: Sequence[Any], *, has_schema: bool = False) -> AgentResult:
    result = read(lines, has_schema=has_schema)[1].result
    assert result is not None
    return result


def item(kind: str, **fields: Any) -> Mapping[str, Any]:
    return {"type": "item.completed", "item": {"id": "item_1", "type": kind, **fields}}


def test_a_run_with_a_tool_has_its_events_and_its_answer() -> None:
    events, reader = read(TOOL_RUN)
    assert events == [
        WarningEvent(events[0].code, "Model metadata not found."),  # type: ignore[union-attr]  # the first one
        ToolStarted("run1_item_1", "shell", {"command": "/bin/bash -lc 'echo out'"}),
        ToolFinished("run1_item_1", is_error=False, output="out\n", truncated=False, duration_ms=100),
        Message("assistant", "All done."),
    ]
    assert reader.thread_id == THREAD["thread_id"]
    assert reader.result is not None
    assert (reader.result.reported, reader.result.text) == (OutcomeType.SUCCESS, "All done.")
    assert reader.result.usage is None, "after a resume the figure is that of the whole session"


def test_the_tools_of_two_runs_have_ids_of_their_own() -> None:
    first, second = read(TOOL_RUN, run=1)[0][1], read(TOOL_RUN, run=2)[0][1]
    assert isinstance(first, ToolStarted)
    assert isinstance(second, ToolStarted)
    assert first.tool_id != second.tool_id


def test_each_kind_of_step_is_told() -> None:
    changes = [{"path": "/workspace/a", "kind": "update"}]
    mcp = {
        "server": "docs",
        "tool": "find",
        "arguments": {"q": 1},
        "status": "failed",
        "error": {"message": "no"},
    }
    events, _ = read(
        [
            item("reasoning", text="I think."),
            item("file_change", changes=changes, status="completed"),
        ]
    )
    assert events[0] == Thinking("I think.")
    assert events[1] == ToolStarted("run1_item_1", "apply_patch", {"changes": changes})
    called, _ = read([item("mcp_tool_call", **mcp)])
    assert called[0] == ToolStarted("run1_item_1", "docs.find", {"q": 1})
    assert called[1] == ToolFinished(
        "run1_item_1", is_error=True, output="no", truncated=False, duration_ms=0
    )
    failed, _ = read([item("command_execution", command="false", exit_code=1, status="failed")])
    assert isinstance(failed[1], ToolFinished)
    assert failed[1].is_error


@pytest.mark.parametrize(
    "line",
    [
        {"type": "item.completed"},
        {"type": "item.completed", "item": 3},
        {"type": "item.started", "item": {"type": "command_execution", "id": 5, "command": [1]}},
        {"type": "item.completed", "item": {"type": "unheard_of"}},
        {"type": "thread.started", "thread_id": "../../x"},
        {"type": "turn.failed", "error": "text"},
        {"type": ["list"]},
    ],
    ids=json.dumps,
)
def test_a_line_of_a_wrong_shape_does_no_harm(line: Any) -> None:
    reader = read([line])[1]
    assert reader.thread_id is None


def test_a_failed_turn_is_judged_by_the_last_status_of_the_model() -> None:
    result = result_of([THREAD, FAILED])
    assert (result.is_error, result.text) == (True, None)
    outcomes = {
        status: decide_outcome(
            RunEvidence(exit_code=1, result=result, counted_calls=1, last_status=status)
        ).type
        for status in (401, 402, 404, 429, 500, 200, None)
    }
    assert outcomes == {
        401: OutcomeType.UNAUTHORIZED,
        402: OutcomeType.BUDGET,
        404: OutcomeType.MODEL_ERROR,
        429: OutcomeType.RATE_LIMITED,
        500: OutcomeType.MODEL_ERROR,
        200: OutcomeType.AGENT_ERROR,
        None: OutcomeType.AGENT_ERROR,
    }


def test_a_good_end_without_a_call_of_the_model_is_no_success() -> None:
    result = result_of(TOOL_RUN)
    by_calls = {
        calls: decide_outcome(RunEvidence(exit_code=0, result=result, counted_calls=calls)).type
        for calls in (0, 2, None)
    }
    assert by_calls == {0: OutcomeType.NOT_ASKED, 2: OutcomeType.SUCCESS, None: OutcomeType.SUCCESS}


def test_an_answer_by_a_schema_is_an_object() -> None:
    lines = [item("agent_message", text='{"a": 1}'), TOLD]
    assert result_of(lines, has_schema=True).structured_output == {"a": 1}
    assert result_of(lines).structured_output is None
    assert result_of([item("agent_message", text="no JSON"), TOLD], has_schema=True).structured_output is None
