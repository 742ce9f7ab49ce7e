"""The directives in a prompt: the actions of the stand-in, in order, and its end."""

from __future__ import annotations

import re

ACTION_NAMES = frozenset(
    """
    say think run run_deaf call sleep wait_for touch flood flood_raw flood_line bad_utf8 spawn write commit die exit_now
    """.split()  # noqa: SIM905 - read more easily than a list of strings
)
"""Things done in the order in which they stand.

say, think       a message of the assistant, a thought
run, run_deaf    a Bash call that really runs (deaf: with SIGTERM ignored), bounded by ``lifetime``
call             NAME:JSON of the input, a tool of the client's, by the control protocol as the real one calls it
sleep            seconds of silence
wait_for, touch  wait (for at most 60 s) until a file is there; make one
flood            so many bytes of valid events; flood_raw: of lines that are not JSON; flood_line: one line without end
bad_utf8         a line that is not UTF-8
spawn            child, setsid, daemon or refork, each also with ``:deaf``; pids go to ``pids``, life to ``lifetime``
write, commit    FILE:TEXT by the Write tool; everything in the directory, by git, with this message
die, exit_now    end here and now, by a signal's name or number, or with an exit code
"""

SETTING_NAMES = frozenset(
    """
    text pace chunk cost input output cache_read cache_creation turns pids lifetime deaf result is_error api_error exit
    hang stderr structured report digest history
    """.split()  # noqa: SIM905 - as above
)
"""How it answers and ends.

text, pace, chunk      the answer, with ``{last}`` for a tool's last output; ms between pieces; characters in a piece
cost, input, output, cache_read, cache_creation, turns    the figures in the result
pids, lifetime         where spawned processes write their pids; how many seconds they live (60, refork at most 30)
deaf                   SIGTERM, SIGINT and SIGHUP are ignored from here on
result                 success, error, none, truncated, empty, refusal, max_turns, max_budget
is_error, api_error    set in the result, whatever the exit code says; api_error is an HTTP status
exit                   the exit code at the end, whatever the result says
hang                   seconds to stay after the result, deaf to the end of input
stderr                 text for stderr; with ``{last}`` as above, and then after all acts
structured             the object of ``structured_output`` as JSON; with a schema and without this, a small sample
report, digest         the answer is JSON: argv, environment, uids, session; or the prompt's length and sha256
history                the answer is JSON: the earlier turns and the prompt, as [role, text]
"""

_BLOCK = re.compile(r"\[\[standin:(.*?)\]\]", re.DOTALL)
_WORD = re.compile(r"""([a-z_0-9]+)(?:=("(?:[^"\\]|\\.)*"|'[^']*'|\S+))?""")
_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class InvalidDirective(Exception):
    """An unknown directive: a mistake in a test, so it is never ignored."""


class Script:
    """The directives of one prompt: ``acts`` in order and ``settings`` by name."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.actions: list[tuple[str, str]] = []
        self.settings: dict[str, str] = {}
        for block in _BLOCK.findall(prompt):
            for name, value in _split_words(block):
                if name in ACTION_NAMES:
                    self.actions.append((name, value))
                elif name in SETTING_NAMES:
                    self.settings[name] = value
                else:
                    raise InvalidDirective(f"the stand-in knows no directive {name!r}")

    def has(self, name: str) -> bool:
        """Return whether a setting is present."""
        return name in self.settings

    def text(self, name: str, otherwise: str = "") -> str:
        """Return a setting as text."""
        return self.settings.get(name, otherwise)

    def number(self, name: str, otherwise: float) -> float:
        """Return a setting as a number."""
        return float(self.settings.get(name, otherwise))

    def count(self, name: str, otherwise: int) -> int:
        """Return a setting as an integer."""
        return int(self.settings.get(name, otherwise))


def parse_size(text: str) -> int:
    """Parse bytes from ``100``, ``64K``, ``10M`` or ``1G``."""
    unit = _SIZES.get(text[-1:].upper())
    return int(text[:-1]) * unit if unit else int(text)


def _split_words(block: str) -> list[tuple[str, str]]:
    found = []
    at = 0
    block = block.strip()
    while at < len(block):
        word = _WORD.match(block, at)
        if not word:
            raise InvalidDirective(f"cannot read {block[at : at + 40]!r}")
        found.append((word[1], _unquote(word[2] or "")))
        at = word.end()
        while at < len(block) and block[at].isspace():
            at += 1
    return found


def _unquote(value: str) -> str:
    if value[:1] == '"':
        return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), value[1:-1])
    return value[1:-1] if value[:1] == "'" else value
