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
    fits: bool


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

    def live(self, item: LiveText) -> str:
        """Take a piece and give what can be told of it now."""
        self._track_run(item.run)
        if item.run < self._run or item.steps < self._steps:
            return ""
        if item.steps > self._steps:
            if len(self._early) < _MAX_EARLY:
                self._early.append(item)
            return ""
        new = "" if self._out_of_sync else self._unseen_text(item)
        if new:
            self._emitted.append(new)
            self._emitted_length += len(new)
        return new

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

    def take(self, event: Event) -> Remainder | None:
        """Take an event; of a whole message of the agent, give what is still to be told of it."""
        self._track_run(event.run)
        self._steps += event.type in STEP_TYPES
        if event.type != Message.type or event.data["role"] != "assistant":
            return None
        whole: str = event.data["text"]
        told = "".join(self._emitted)
        self._begin()
        if whole.startswith(told):
            return Remainder(whole[len(told) :], fits=True)
        # A message is kept up to a bound; all that is above it was told already.
        return Remainder("", fits=True) if told.startswith(whole) else Remainder(whole, fits=False)

    def early(self) -> str:
        """Give what came before its time and can be told now; call it after `take`."""
        early, self._early = self._early, []
        return "".join(self.live(item) for item in early)

    def _begin(self) -> None:
        self._emitted.clear()
        self._emitted_length = 0
        self._out_of_sync = False

    def _track_run(self, run: int) -> None:
        if run > self._run:
            self._run, self._steps = run, 0
            self._early.clear()
            self._begin()
