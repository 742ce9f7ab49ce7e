"""A chat completion as a stream of chunks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import Response

from steadyhand.api.openai.chat.completion import calls_json, finish_reason, tool_calls, usage_json
from steadyhand.api.openai.chat.rounds import completion_id
from steadyhand.api.openai.output_spec import Wanted
from steadyhand.api.openai.run_failure import why_failed
from steadyhand.api.openai.text_assembler import Rest, Told
from steadyhand.api.openai.usage_since import Spending
from steadyhand.api.schemas import openai_bodies
from steadyhand.api.transport.errors import error_json, json_bytes
from steadyhand.api.transport.sse import Ending, Item, Piece
from steadyhand.events import CallsWaiting, Event, Live, ToolFinished, ToolStarted
from steadyhand.job import Job, State, Usage

DONE = b"data: [DONE]\n\n"
_BETWEEN = "\n\n"
"""What stands between two messages of the agent in one content."""
_INPUT_SHOWN = 200

Reasoning = Literal["none", "tools"]


@dataclass(frozen=True, slots=True)
class Shown:
    """How a stream is to be: the model's name as it was asked for, and what goes out beside the text."""

    model: str
    wanted: Wanted
    usage: bool = False
    reasoning: Reasoning = "none"


class Chunks:
    """Makes the chunks of one stream. What is text of the agent goes out at once, unless JSON is wanted."""

    def __init__(self, job: Job, shown: Shown, after: int = 0) -> None:
        """Tell of what comes after the event `after`; what was before it is to be taken all the same."""
        self._shown = shown
        self._spending = Spending(after)
        self.over = False
        """Whether the stream ended with calls for the client to make."""
        self._told = Told()
        self.content = ""
        """All that has gone out as the answer."""
        self._begun = False
        self._said = False
        self._in_message = False
        self._last_message: str | None = None
        self._whole = shown.wanted.output_schema is not None
        self._head: openai_bodies.Chunk = {
            "id": completion_id(job, after),
            "object": "chat.completion.chunk",
            "created": int(job.created_at.timestamp()),
            "model": shown.model,
            "system_fingerprint": None,
            "choices": [],
        }

    def take(self, item: Event | Live) -> list[Piece]:
        """Give what one thing that happened adds to the stream."""
        if self.over:
            return []
        if isinstance(item, Event):
            self._spending.take(item)
            if item.seq <= self._spending.after:
                self._told.take(item)
                self._told.early()
                return []
            if item.type == CallsWaiting.type:
                return self._calls(item.data["calls"])
        if isinstance(item, Live):
            return [] if self._whole else self._text(self._told.live(item))
        rest = self._told.take(item)
        pieces = []
        if item.type == ToolStarted.type:
            pieces = self._tool(item.data)
        elif item.type == ToolFinished.type and self._shown.reasoning == "none":
            pieces = [_comment("tool finished")]
        if self._whole:
            return pieces
        if rest is not None:
            pieces = self._message(item.data["text"], rest)
        return pieces + self._text(self._told.early())

    def _calls(self, calls: Sequence[Mapping[str, Any]]) -> list[Piece]:
        self.over = True
        pieces = self._begin()
        for index, call in enumerate(calls_json(calls)):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = ""
            pieces += self._delta({"tool_calls": [{"index": index, **call}]})
            pieces += self._delta({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
        return [*pieces, self._chunk({}, "tool_calls"), *self._done(self._spending.since())]

    def _done(self, usage: Usage) -> list[Piece]:
        told = [_data({**self._head, "usage": usage_json(usage)})] if self._shown.usage else []
        return [*told, Piece(DONE)]

    def _message(self, whole: str, rest: Rest) -> list[Piece]:
        if not rest.fits:
            self._in_message = False
        pieces = self._text(rest.text)
        self._in_message = False
        self._last_message = whole
        return pieces

    def _text(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._said and not self._in_message:
            text = _BETWEEN + text
        self._said = self._in_message = True
        return self._delta({"content": text})

    def _tool(self, data: Mapping[str, Any]) -> list[Piece]:
        name = " ".join(str(data["name"]).split())[:80] or "unknown"
        if self._shown.reasoning == "none" or self._shown.wanted.forced is not None:
            return [_comment(f"tool {name} started")]
        given = json.dumps(data["input"], ensure_ascii=False)
        cut = given if len(given) <= _INPUT_SHOWN else f"{given[:_INPUT_SHOWN]}…"
        return self._delta({"reasoning_content": f"{name} {cut}\n"})

    def end(self, job: Job, refusal: Response) -> list[Item]:
        """Give the end of the stream; `refusal` answers a run that failed before anything was sent."""
        if job.state is not State.COMPLETED:
            code, detail = why_failed(job)
            return [Ending(_data({"error": error_json(503, code, detail)}).data, refusal)]
        wanted = self._shown.wanted
        pieces: list[Item] = []
        if wanted.forced is not None:
            for index, call in enumerate(tool_calls(job, wanted.forced)):
                pieces += self._delta({"tool_calls": [{"index": index, **call}]})
        elif self._whole:
            pieces += self._delta({"content": wanted.text(job)})
        else:
            pieces += self._rest(job.answer or "")
        pieces += self._begin()
        pieces.append(self._chunk({}, finish_reason(wanted)))
        return [*pieces, *self._done(self._spending.rest(job))]

    def _rest(self, answer: str) -> list[Piece]:
        # The result is what the last message said; it differs when there was none, or one that was cut.
        last = self._last_message or ""
        if answer.strip() == last.strip():
            return []
        if last and answer.startswith(last):
            self._in_message = True
            return self._text(answer[len(last) :])
        return self._text(answer)

    def _begin(self) -> list[Piece]:
        if self._begun:
            return []
        self._begun = True
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def _delta(self, delta: openai_bodies.Delta) -> list[Piece]:
        self.content += delta.get("content") or ""
        return [*self._begin(), self._chunk(delta, None)]

    def _chunk(self, delta: openai_bodies.Delta, finish: openai_bodies.FinishReason | None) -> Piece:
        chunk: openai_bodies.Chunk = {
            **self._head,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }
        return _data({**chunk, "usage": None} if self._shown.usage else chunk)


def _data(body: openai_bodies.Chunk | openai_bodies.ChunkFault) -> Piece:
    return Piece(b"data: " + json_bytes(body) + b"\n\n")


def _comment(text: str) -> Piece:
    # A run that fails after its tools and before its text can still be answered with an error.
    return Piece(f": {text}\n\n".encode("utf-8", "replace"), opens=False)
