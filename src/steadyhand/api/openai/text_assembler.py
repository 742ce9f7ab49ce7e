"""What of a run's messages has been told to one follower: live text as it comes, and the whole message as the truth."""

from typing import NamedTuple

from steadyhand.events import STEP_TYPES, Event, LiveText, Message

_MAX_EARLY = 256
"""How many pieces wait for what came before them to be kept."""


class Remainder(NamedTuple):
    """What is still to be told of a message that has come whole.

    `fits` is false when what was told is not its beginning: the model began anew. Then `text` is all of it.
    """

    text: str
    continues: bool


class TextAssembler:
    """Puts live text and whole messages together, so that every character of a message is told once.

    Live text may have gaps, since followers that lag lose it, and may begin in the middle; it may also be ahead of what
    came before it, which is kept first and told second. Whatever does not follow on what was told waits.
    """

    def __init__(self) -> None:
        self._run = 0
        self._steps = 0
        self._emitted: list[str] = []
        self._emitted_length = 0
        self._out_of_sync = False
        self._early: list[LiveText] = []

    def feed_live(self, item: LiveText) -> str:
        """Take a piece and give what can be told of it now."""
        self._track_run(item.run)
        if item.run < self._run or item.steps < self._steps:
            return ""
        if item.steps > self._steps:
            if len(self._early) < _MAX_EARLY:
                self._early.append(item)
            return ""
        unseen = "" if self._out_of_sync else self._unseen_text(item)
        if unseen:
            self._emitted.append(unseen)
            self._emitted_length += len(unseen)
        return unseen

    def _unseen_text(self, item: LiveText) -> str:
        text, overlap = item.body.text, self._emitted_length - item.offset
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
        """Take an event; of a whole message of the agent, give what is still to be told of it."""
        self._track_run(event.run)
        self._steps += event.type in STEP_TYPES
        if event.type != Message.type or event.data["role"] != "assistant":
            return None
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

    def drain_early(self) -> str:
        """Give what came before its time and can be told now; call it after `take`."""
        early, self._early = self._early, []
        return "".join(self.feed_live(item) for item in early)

    def _reset(self) -> None:
        self._emitted.clear()
        self._emitted_length = 0
        self._out_of_sync = False

    def _track_run(self, run: int) -> None:
        if run > self._run:
            self._run, self._steps = run, 0
            self._early.clear()
            self._reset()
