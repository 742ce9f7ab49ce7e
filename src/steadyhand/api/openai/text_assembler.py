"""Joins live text and the whole messages and thinking of a run for one follower: each character is sent once."""

from typing import NamedTuple

from steadyhand.events import STEP_TYPES, Event, LiveText, Message, TextDelta, Thinking, ThinkingDelta

_MAX_EARLY = 256
"""The most pieces that wait for the events before them."""
_DELTA_TYPES = {Message.type: TextDelta.type, Thinking.type: ThinkingDelta.type}
"""The types of live text by those of the whole events."""


class Remainder(NamedTuple):
    """The part of a whole message, or of whole thinking, that is still to be sent.

    `continues` is false if the text sent before is not its beginning, because the model began again. Then `text` is the
    whole of it.
    """

    text: str
    continues: bool


class TextAssembler:
    """Joins live text and whole messages or thinking, so that every character is sent once.

    Live text may have gaps, since slow followers lose it, and may begin in the middle. It may also be ahead of earlier
    events, which are stored first and sent second. Text that does not continue the text sent so far waits.
    """

    def __init__(self) -> None:
        self._run = 0
        self._steps = 0
        self._type = ""
        self._emitted: list[str] = []
        self._emitted_length = 0
        self._out_of_sync = False
        self._early: list[LiveText] = []

    def feed_live(self, item: LiveText) -> str:
        """Add a piece of live text and return the text that can be sent now."""
        self._track_run(item.run)
        if item.run < self._run or item.steps < self._steps:
            return ""
        if item.steps > self._steps:
            if len(self._early) < _MAX_EARLY:
                self._early.append(item)
            return ""
        self._begin(item.body.type)
        unseen = "" if self._out_of_sync else self._unseen_text(item)
        if unseen:
            self._emitted.append(unseen)
            self._emitted_length += len(unseen)
        return unseen

    def _unseen_text(self, item: LiveText) -> str:
        text, overlap = item.body.text, self._emitted_length - item.offset
        if item.taken_back and overlap == item.taken_back:
            # The whole message does not have these characters: the replacement stands for them, too.
            self._emitted = ["".join(self._emitted)[: item.offset]]
            self._emitted_length = item.offset
            return text
        if overlap < 0:
            self._out_of_sync = True
            return ""
        if overlap == 0:
            return text
        if "".join(self._emitted)[item.offset :][: len(text)] != text[:overlap]:
            self._out_of_sync = True
            return ""
        return text[overlap:]

    def feed(self, event: Event) -> Remainder | None:
        """Add an event; for thinking or a whole message of the agent, return the part that is still to be sent."""
        self._track_run(event.run)
        self._steps += event.type in STEP_TYPES
        if event.type not in _DELTA_TYPES or event.data.get("role", "assistant") != "assistant":
            return None
        self._begin(_DELTA_TYPES[event.type])
        full_text: str = event.data["text"]
        emitted = "".join(self._emitted)
        self._reset()
        if full_text.startswith(emitted):
            return Remainder(full_text[len(emitted) :], continues=True)
        # A message is kept up to a bound; all that is above it was told already.
        return (
            Remainder("", continues=True)
            if emitted.startswith(full_text)
            else Remainder(full_text, continues=False)
        )

    def drain_early(self) -> list[LiveText]:
        """Return the early pieces, to be fed again; call it after `feed`."""
        early, self._early = self._early, []
        return early

    def _begin(self, delta_type: str) -> None:
        if delta_type != self._type:
            self._type = delta_type
            self._reset()

    def _reset(self) -> None:
        self._emitted.clear()
        self._emitted_length = 0
        self._out_of_sync = False

    def _track_run(self, run: int) -> None:
        if run > self._run:
            self._run, self._steps = run, 0
            self._early.clear()
            self._reset()
