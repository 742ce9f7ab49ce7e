"""What of a run's messages has been told to one follower: live text as it comes, and the whole message as the truth."""

from typing import NamedTuple

from steadyhand.events import Event, Live

_EARLY = 256
"""How many pieces of a following message wait for the message before it to be kept."""


class Rest(NamedTuple):
    """What is still to be told of a message that has come whole.

    `fits` is false when what was told is not its beginning: the model began anew. Then `text` is all of it.
    """

    text: str
    fits: bool


class Told:
    """Puts live text and whole messages together, so that every character of a message is told once.

    Live text may have gaps, since followers that lag lose it, and may begin in the middle; it may also be ahead of the
    message before it, which is kept first and told second. Whatever does not follow on what was told waits for the
    whole message.
    """

    def __init__(self) -> None:
        self._run = 0
        self._messages = 0
        self._pieces: list[str] = []
        self._length = 0
        self._lost = False
        self._early: list[Live] = []

    def live(self, item: Live) -> str:
        """Take a piece and give what can be told of it now."""
        self._follow(item.run)
        if item.run < self._run or item.messages < self._messages:
            return ""
        if item.messages > self._messages:
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

    def message(self, event: Event) -> Rest:
        """Take a whole message and give what is still to be told of it; the next message may begin."""
        self._follow(event.run)
        whole: str = event.data["text"]
        told = "".join(self._pieces)
        self._messages += 1
        self._begin()
        if whole.startswith(told):
            return Rest(whole[len(told) :], fits=True)
        # A message is kept up to a bound; all that is above it was told already.
        return Rest("", fits=True) if told.startswith(whole) else Rest(whole, fits=False)

    def early(self) -> str:
        """Give what came of the next message before the one before it was whole; call it after `message`."""
        early, self._early = self._early, []
        return "".join(self.live(item) for item in early)

    def _begin(self) -> None:
        self._pieces.clear()
        self._length = 0
        self._lost = False

    def _follow(self, run: int) -> None:
        if run > self._run:
            self._run, self._messages = run, 0
            self._early.clear()
            self._begin()
