"""What of a run's messages has been told to one follower: live text as it comes, and the whole message as the truth."""

from typing import NamedTuple

from steadyhand.events import STEPS, Event, Live, Message

_EARLY = 256
"""How many pieces wait for what came before them to be kept."""


class Rest(NamedTuple):
    """What is still to be told of a message that has come whole.

    `fits` is false when what was told is not its beginning: the model began anew. Then `text` is all of it.
    """

    text: str
    fits: bool


class Told:
    """Puts live text and whole messages together, so that every character of a message is told once.

    Live text may have gaps, since followers that lag lose it, and may begin in the middle; it may also be ahead of what
    came before it, which is kept first and told second. Whatever does not follow on what was told waits.
    """

    def __init__(self) -> None:
        self._run = 0
        self._steps = 0
        self._pieces: list[str] = []
        self._length = 0
        self._lost = False
        self._early: list[Live] = []

    def live(self, item: Live) -> str:
        """Take a piece and give what can be told of it now."""
        self._follow(item.run)
        if item.run < self._run or item.steps < self._steps:
            return ""
        if item.steps > self._steps:
            if len(self._early) < _EARLY:
                self._early.append(item)
            return ""
        new = "" if self._lost else self._following(item)
        if new:
            self._pieces.append(new)
            self._length += len(new)
        return new

    def _following(self, item: Live) -> str:
        text, known = item.body.text, self._length - item.offset
        if known < 0:
            self._lost = True
            return ""
        if known == 0:
            return text
        if "".join(self._pieces)[item.offset :][: len(text)] != text[:known]:
            self._lost = True
            return ""
        return text[known:]

    def take(self, event: Event) -> Rest | None:
        """Take an event; of a whole message of the agent, give what is still to be told of it."""
        self._follow(event.run)
        self._steps += event.type in STEPS
        if event.type != Message.type or event.data["role"] != "assistant":
            return None
        whole: str = event.data["text"]
        told = "".join(self._pieces)
        self._begin()
        if whole.startswith(told):
            return Rest(whole[len(told) :], fits=True)
        # A message is kept up to a bound; all that is above it was told already.
        return Rest("", fits=True) if told.startswith(whole) else Rest(whole, fits=False)

    def early(self) -> str:
        """Give what came before its time and can be told now; call it after `take`."""
        early, self._early = self._early, []
        return "".join(self.live(item) for item in early)

    def _begin(self) -> None:
        self._pieces.clear()
        self._length = 0
        self._lost = False

    def _follow(self, run: int) -> None:
        if run > self._run:
            self._run, self._steps = run, 0
            self._early.clear()
            self._begin()
