"""Updates of a session as events: their order, their bounds, and what a hostile agent may send."""

from typing import Any

import pytest

from steadyhand.events import (
    Message,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    WarningEvent,
)
from steadyhand.runner.acp.update_reader import PLAN_TOOL, UpdateReader
from steadyhand.runner.process.event_limits import MAX_OUTPUT_BYTES, MAX_TEXT_BYTES


class Session:
    """A reader that is fed updates, one second after the other."""

    def __init__(self) -> None:
        self.reader = UpdateReader(1)
        self.now = 0.0

    def feed(self, update: str, **fields: Any) -> list[Any]:
        self.now += 1
        params = {"sessionId": "s", "update": {"sessionUpdate": update, **fields}}
        return list(self.reader.feed(params, self.now))

    def say(self, text: str, kind: str = "agent_message_chunk", **fields: Any) -> list[Any]:
        return self.feed(kind, content={"type": "text", "text": text}, **fields)


@pytest.fixture
def session() -> Session:
    return Session()


def test_chunks_are_pieces_and_then_one_message(session: Session) -> None:
    assert session.say("Hel") == [TextDelta("run1_text1", "Hel")]
    assert session.say("lo") == [TextDelta("run1_text1", "lo")]
    assert list(session.reader.finish()) == [Message("assistant", "Hello")]
    assert session.reader.answer == "Hello"


def test_a_thought_and_another_message_id_end_a_message(session: Session) -> None:
    session.say("a", messageId="1")
    assert session.say("b", messageId="2")[0] == Message("assistant", "a")
    assert session.say("hm", "agent_thought_chunk") == [
        Message("assistant", "b"), ThinkingDelta("run1_text3", "hm"),
    ]  # fmt: skip
    assert session.say("c")[0] == Thinking("hm")


def test_a_tool_call_is_told_once_its_input_is_whole(session: Session) -> None:
    session.say("I look.")
    start = session.feed(
        "tool_call", toolCallId="t", title="Read", kind="read", status="pending", rawInput={}
    )
    assert start == [Message("assistant", "I look.")]
    assert session.feed("tool_call_update", toolCallId="t", rawInput={"path": "a"}) == []
    [began] = session.feed(
        "tool_call_update", toolCallId="t", status="in_progress", rawInput={"path": "a.txt"}
    )
    assert began == ToolStarted("run1_t", "Read", {"path": "a.txt"})
    content = [{"type": "content", "content": {"type": "text", "text": "green"}}]
    [ended] = session.feed("tool_call_update", toolCallId="t", status="completed", content=content)
    assert ended == ToolFinished("run1_t", is_error=False, output="green", truncated=False, duration_ms=3000)
    assert session.feed("tool_call_update", toolCallId="t", status="completed") == []


def test_a_call_that_no_status_tells_is_told_by_what_follows_it(session: Session) -> None:
    meta = {"claudeCode": {"toolName": "Bash", "parentToolUseId": "p"}}
    session.feed("tool_call", toolCallId="t", title="Run it", status="pending", _meta=meta)
    session.feed("tool_call_update", toolCallId="t", rawInput={"command": "ls"})
    assert session.feed("usage_update", used=1, size=2) == [
        ToolStarted("run1_t", "Bash", {"command": "ls"}, "run1_p")
    ]


def test_a_change_of_a_file_is_the_output_of_its_tool(session: Session) -> None:
    diff = [{"type": "diff", "path": "/w/a", "oldText": "red", "newText": "green"}]
    session.feed("tool_call", toolCallId="t", title="rm -rf / and more", kind="edit", content=diff)
    [began, ended] = session.feed("tool_call_update", toolCallId="t", status="failed", rawOutput="no")
    assert (began.name, began.input) == ("edit", {"title": "rm -rf / and more"})
    assert ended.is_error
    assert ended.output == "no\n--- /w/a\n+++ /w/a\n-red\n+green"


def test_a_plan_is_a_todo_list(session: Session) -> None:
    entries = [{"content": "Look", "priority": "high", "status": "completed"}]
    [began, ended] = session.feed("plan", entries=entries)
    assert (began.name, began.input) == (PLAN_TOOL, {"items": [{"text": "Look", "completed": True}]})
    assert ended.tool_id == began.tool_id


def test_what_a_subagent_says_is_left_out_and_a_notice_is_a_warning(session: Session) -> None:
    session.say("Hel")
    assert session.say("x", _meta={"claudeCode": {"parentToolUseId": "p"}}) == []
    [notice] = session.say("Mind the gap", _meta={"claudeCode": {"kind": "informational"}})
    assert isinstance(notice, WarningEvent)
    session.say("lo")
    assert list(session.reader.finish()) == [Message("assistant", "Hello")]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sessionId": 1, "update": None},
        {"sessionId": "s", "update": {"sessionUpdate": "agent_message_chunk"}},
        {
            "sessionId": "s",
            "update": {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": 1}},
        },
        {"sessionId": "s", "update": {"sessionUpdate": "something_new", "x": 1}},
        {"sessionId": "s", "update": {"sessionUpdate": "tool_call", "toolCallId": [], "title": {}}},
        {"sessionId": "s", "update": {"sessionUpdate": "plan", "entries": "all"}},
    ],
)
def test_an_update_of_another_shape_is_skipped(params: dict[str, Any]) -> None:
    assert list(UpdateReader(1).feed(params, 0.0)) == []


def test_texts_and_outputs_are_bounded(session: Session) -> None:
    for _ in range(4):
        session.say("x" * (MAX_TEXT_BYTES // 2))
    [message] = session.reader.finish()
    assert isinstance(message, Message)
    assert len(message.text) <= MAX_TEXT_BYTES
    session.feed("tool_call", toolCallId="t", title="Read", rawInput={"a": "x" * 1_000_000})
    [began, ended] = session.feed(
        "tool_call_update", toolCallId="t", status="completed", rawOutput="y" * 1_000_000
    )
    assert began.input == {"left_out": "1000009 bytes"}
    assert ended.truncated
    assert len(ended.output) == MAX_OUTPUT_BYTES


def test_calls_that_never_end_are_not_kept_without_a_bound(session: Session) -> None:
    for number in range(1000):
        session.feed("tool_call", toolCallId=str(number), title="Read", rawInput={"n": number})
    assert session.feed("tool_call_update", toolCallId="999", status="completed") == []
