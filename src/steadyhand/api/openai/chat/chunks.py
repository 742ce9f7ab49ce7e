"""A chat completion as a stream of chunks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadyhand.api.openai.chat.completion import (
    completion_id,
    final_calls_json,
    final_finish_reason,
    pending_calls_json,
    usage_json,
)
from steadyhand.api.openai.chat.reasoning import ReasoningText, tool_name
from steadyhand.api.openai.output_spec import OutputSpec
from steadyhand.api.openai.run_failure import failure_reason, failure_status, is_answered, refusal_text
from steadyhand.api.openai.text_assembler import Remainder, TextAssembler
from steadyhand.api.openai.usage_since import UsageSince
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.transport.errors import json_bytes, openai_error_json
from steadyhand.api.transport.sse import Frame
from steadyhand.events import (
    Event,
    LiveProgress,
    LiveText,
    Thinking,
    ThinkingDelta,
    ToolCallsRequested,
    ToolFinished,
    ToolStarted,
)
from steadyhand.job import Job, Usage

DONE_FRAME = b"data: [DONE]\n\n"
_MESSAGE_SEPARATOR = "\n\n"
"""The separator of two messages of the agent in one content."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Options of an answer: the model's name as requested, and the parts that are sent beside the text."""

    model: str
    output_spec: OutputSpec
    include_usage: bool = False
    reasoning: ReasoningText = field(default_factory=lambda: ReasoningText("none", lambda _: False))


class ChunkBuilder:
    """Builds the chunks of one stream. Text of the agent is sent at once, unless JSON is requested."""

    def __init__(self, job: Job, options: ChatOptions, after: int = 0) -> None:
        """Build chunks for events after the event `after`; feed the events before it too."""
        self._options = options
        self._usage = UsageSince(after)
        self.ended_with_calls = False
        """Return True if the stream ended with calls for the client to make."""
        self._assembler = TextAssembler()
        self.content = ""
        """All that has gone out as the answer."""
        self._started = False
        self._has_text = False
        self._in_message = False
        self._last_message: str | None = None
        self._is_structured = options.output_spec.output_schema is not None
        self._envelope: openai_bodies.Chunk = {
            "id": completion_id(job, after),
            "object": "chat.completion.chunk",
            "created": int(job.created_at.timestamp()),
            "model": options.model,
            "system_fingerprint": None,
            "choices": [],
        }

    def feed(self, item: Event | LiveText | LiveProgress) -> list[Frame]:
        """Return the chunks for one event or piece of live text; there are none for the progress of a phase."""
        if self.ended_with_calls or isinstance(item, LiveProgress):
            return []
        if isinstance(item, Event):
            self._usage.feed(item)
            if item.seq <= self._usage.after:
                self._assembler.feed(item)
                self._assembler.drain_early()
                return []
            if item.type == ToolCallsRequested.type:
                return self._end_with_calls(item.data["calls"])
        if isinstance(item, LiveText):
            return self._live_frames(item)
        remainder = self._assembler.feed(item)
        frames = []
        if item.type == ToolStarted.type:
            frames = self._tool_frames(item.data)
        elif item.type == ToolFinished.type:
            frames = [_comment_frame("tool finished")]
        elif item.type == Thinking.type and remainder is not None:
            frames = self._thinking_frames(remainder.text, is_last=True)
        elif remainder is not None and not self._is_structured:
            frames = self._finish_message(item.data["text"], remainder)
        for early in self._assembler.drain_early():
            frames += self._live_frames(early)
        return frames

    def _live_frames(self, item: LiveText) -> list[Frame]:
        if item.body.type == ThinkingDelta.type:
            return self._thinking_frames(self._assembler.feed_live(item), is_last=False)
        return [] if self._is_structured else self._text_frames(self._assembler.feed_live(item))

    def _thinking_frames(self, text: str, *, is_last: bool) -> list[Frame]:
        added = self._options.reasoning.add_thinking(text, is_last=is_last)
        return self._delta_frames({"reasoning_content": added}) if added else []

    def _end_with_calls(self, calls: Sequence[Mapping[str, Any]]) -> list[Frame]:
        self.ended_with_calls = True
        frames = self._first_chunk()
        for index, call in enumerate(pending_calls_json(calls)):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = ""
            frames += self._delta_frames({"tool_calls": [{"index": index, **call}]})
            frames += self._delta_frames(
                {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
            )
        return [*frames, self._chunk_frame({}, "tool_calls"), *self._usage_and_done(self._usage.so_far())]

    def _usage_and_done(self, usage: Usage) -> list[Frame]:
        usage_frames = (
            [_data_frame({**self._envelope, "usage": usage_json(usage)})]
            if self._options.include_usage
            else []
        )
        return [*usage_frames, Frame(DONE_FRAME)]

    def _finish_message(self, text: str, remainder: Remainder) -> list[Frame]:
        if not remainder.continues:
            self._in_message = False
        frames = self._text_frames(remainder.text)
        self._in_message = False
        self._last_message = text
        return frames

    def _text_frames(self, text: str) -> list[Frame]:
        if not text:
            return []
        if self._has_text and not self._in_message:
            text = _MESSAGE_SEPARATOR + text
        self._has_text = self._in_message = True
        return self._delta_frames({"content": text})

    def _tool_frames(self, data: Mapping[str, Any]) -> list[Frame]:
        added = self._options.reasoning.add_tool(data)
        if added:
            return self._delta_frames({"reasoning_content": added})
        return [_comment_frame(f"tool {tool_name(data)} started")]

    def finish(self, job: Job) -> list[Frame]:
        """Return the end of the stream of an ended job: the rest of its answer, or its error."""
        if not is_answered(job):
            code, detail = failure_reason(job)
            error = openai_error_json(failure_status(job), code, detail)
            return [_data_frame({"error": error})]
        output_spec = self._options.output_spec
        frames: list[Frame] = []
        refusal = refusal_text(job)
        if refusal is not None:
            frames += self._delta_frames({"refusal": refusal})
        elif output_spec.forced_call is not None:
            for index, call in enumerate(final_calls_json(job, output_spec.forced_call)):
                frames += self._delta_frames({"tool_calls": [{"index": index, **call}]})
        elif self._is_structured:
            frames += self._delta_frames({"content": output_spec.answer_text(job)})
        else:
            frames += self._remaining_answer(job.answer or "")
        frames += self._first_chunk()
        frames.append(self._chunk_frame({}, final_finish_reason(job, output_spec)))
        return [*frames, *self._usage_and_done(self._usage.final(job))]

    def _remaining_answer(self, answer: str) -> list[Frame]:
        # The result is what the last message said; it differs when there was none, or one that was cut.
        last_message = self._last_message or ""
        if answer.strip() == last_message.strip() or (
            last_message and self.content.rstrip().endswith(answer.strip())
        ):
            return []
        if last_message and answer.startswith(last_message):
            self._in_message = True
            return self._text_frames(answer[len(last_message) :])
        return self._text_frames(answer)

    def _first_chunk(self) -> list[Frame]:
        if self._started:
            return []
        self._started = True
        return [self._chunk_frame({"role": "assistant", "content": ""}, None)]

    def _delta_frames(self, delta: openai_bodies.Delta) -> list[Frame]:
        self.content += delta.get("content") or ""
        return [*self._first_chunk(), self._chunk_frame(delta, None)]

    def _chunk_frame(self, delta: openai_bodies.Delta, ending: openai_bodies.FinishReason | None) -> Frame:
        chunk: openai_bodies.Chunk = {
            **self._envelope,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": ending}],
        }
        return _data_frame({**chunk, "usage": None} if self._options.include_usage else chunk)


def _data_frame(body: openai_bodies.Chunk | openai_bodies.ChunkFault) -> Frame:
    return Frame(b"data: " + json_bytes(body) + b"\n\n")


def _comment_frame(text: str) -> Frame:
    return Frame(f": {text}\n\n".encode("utf-8", "replace"))
