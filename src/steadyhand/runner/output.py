"""What an agent prints: split into lines, kept on disk with a cap, and in memory within a bound."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from steadyhand.ports import RunOutput
from steadyhand.redact import Redactor

LINE_LIMIT = 16 * 1024 * 1024
"""The longest line, in bytes, that is read as a protocol message; a longer one counts as printed."""
HEAD = 256 * 1024
TAIL = 768 * 1024
STDERR_HEAD = 64 * 1024
STDERR_TAIL = 192 * 1024
DISK_HEAD = 16 * 1024 * 1024
DISK_SEGMENT = 4 * 1024 * 1024
MARGIN = 16 * 1024
"""Bytes kept beyond a cut, so that a secret that goes across it is seen whole, however it is written."""

_LARGE = 1024 * 1024
_MOST_PARTS = 300_000  # of a large message: parsed, each costs a hundred times its length
_UNSTORABLE = re.compile("[\ud800-\udfff\x00]")


class Lines:
    """Splits what comes in chunks. A line that may be a message comes out whole, all else as soon as it is there.

    So only a line that begins with `{` is held, and no more than `LINE_LIMIT` of it.
    """

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._held = bytearray()
        self._passing = False

    def feed(self, chunk: bytes) -> Iterator[tuple[bool, bytes]]:
        """Give pieces as (whole line that may be a message, its bytes with the newline)."""
        at = 0
        while at < len(chunk):
            end = chunk.find(b"\n", at)
            stop = len(chunk) if end < 0 else end + 1
            piece = chunk[at:stop]
            at = stop
            yield from self._take(piece, ended=end >= 0)

    def _take(self, piece: bytes, *, ended: bool) -> Iterator[tuple[bool, bytes]]:
        if self._passing or not (self._held or piece.startswith(b"{")):
            self._passing = not ended
            yield False, piece
        elif len(self._held) + len(piece) > self._limit:
            yield from self._let_go()
            self._passing = not ended
            yield False, piece
        elif not ended:
            self._held += piece
        elif self._held:
            self._held += piece
            line = bytes(self._held)
            self._held.clear()
            yield True, line
        else:
            yield True, piece

    def _let_go(self) -> Iterator[tuple[bool, bytes]]:
        held = bytes(self._held)
        self._held = bytearray()  # a new one: `clear` may keep the memory
        if held:
            yield False, held

    def end(self) -> Iterator[tuple[bool, bytes]]:
        """Give what is left when nothing more comes: a line without its newline may be a message, too."""
        held = bytes(self._held)
        self._held = bytearray()
        if held:
            yield True, held


def parse(line: bytes) -> dict[str, Any] | None:
    """Read a line as a JSON object with a `type`; null when it is none, or too intricate to be an honest one.

    Lone surrogates and NUL, which a store cannot keep, become U+FFFD; NaN and the infinities become null.
    """
    if len(line) > _LARGE and line.count(b",") + line.count(b"[") + line.count(b"{") > _MOST_PARTS:
        return None
    try:
        value = json.loads(line.decode("utf-8", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return None
    if b"\\ud" in line or b"\\uD" in line or b"\\u0000" in line:
        return {str(_storable(name)): _storable(each) for name, each in value.items()}
    return value


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_storable(each) for each in value]
    if isinstance(value, dict):
        return {_storable(key): _storable(each) for key, each in value.items()}
    return value


class Bounded:
    """Bytes of which the first `head` and the last `tail` are given, without live secrets."""

    def __init__(self, head: int, tail: int, redactor: Redactor | None = None) -> None:
        self._redactor = redactor or Redactor()
        self._head_size = head
        self._tail_size = tail
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        """Take more."""
        self._total += len(data)
        room = self._head_size + MARGIN - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        size = self._tail_size + MARGIN
        self._tail += data[-size:]
        if len(self._tail) > 2 * size:
            del self._tail[:-size]

    def text(self) -> str:
        """Give what is kept, with a line that says how many bytes were left out."""
        redactor = self._redactor
        left_out = self._total - self._head_size - self._tail_size
        if left_out <= 0:
            return redactor.data(bytes(self._head + self._tail)).decode("utf-8", "replace")
        # What may be the beginning of a secret stays away, and so does what may be the end of one.
        first = redactor.truncated(bytes(self._head))[: self._head_size]
        whole = self._total == len(self._head) + len(self._tail)
        known = bytes(self._head + self._tail) if whole else bytes(self._tail)
        size = self._tail_size + MARGIN
        last = redactor.data(known[-size:])
        last = last[min(MARGIN, len(last)) if len(known) >= size else 0 :]
        last = last[max(0, len(last) - self._tail_size) :]
        head = first.decode("utf-8", "replace")
        gap = "" if head.endswith("\n") or not head else "\n"
        return f"{head}{gap}[{left_out} bytes left out]\n{last.decode('utf-8', 'replace')}"


class Capped:
    """A file that is written up to a cap; what comes later goes round in two segments beside it.

    So the first `head` bytes and at least the last `segment` bytes are on disk, and never more than the head and
    both segments. The files are NAME, NAME.1 and NAME.2.
    """

    def __init__(self, path: Path, head: int = DISK_HEAD, segment: int = DISK_SEGMENT) -> None:
        self._path = path
        self._room = head
        self._segment = segment
        self._number = 0
        self._file: BinaryIO = path.open("wb", buffering=0)

    def add(self, data: bytes) -> None:
        """Write more."""
        rest = memoryview(data)
        while rest:
            if self._room == 0:
                self._next()
            part = rest[: self._room]
            self._file.write(part)
            self._room -= len(part)
            rest = rest[len(part) :]

    def _next(self) -> None:
        self._file.close()
        self._number = self._number % 2 + 1
        self._file = self._path.with_name(f"{self._path.name}.{self._number}").open("wb", buffering=0)
        self._room = self._segment

    def close(self) -> None:
        """Be done."""
        self._file.close()


class Spool:
    """All that one run prints, without live secrets. `printed` of stdout is what is no protocol message."""

    def __init__(self, folder: Path, redactor: Redactor | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._redactor = redactor or Redactor()
        self._out = self._redactor.bytes_stream()
        self._err = self._redactor.bytes_stream()
        self._stdout = Capped(folder / "stdout")
        self._stderr = Capped(folder / "stderr", DISK_SEGMENT, DISK_SEGMENT)
        self._printed = Bounded(HEAD, TAIL, self._redactor)
        self._errors = Bounded(STDERR_HEAD, STDERR_TAIL, self._redactor)
        self._lines = Lines()

    def stdout(self, chunk: bytes) -> Iterator[bytes]:
        """Keep a chunk of stdout and give the whole lines in it that may be messages."""
        self._stdout.add(self._out.feed(chunk))
        yield from self._candidates(self._lines.feed(chunk))

    def end(self) -> Iterator[bytes]:
        """Give the last line when it had no newline and may be a message."""
        yield from self._candidates(self._lines.end())

    def _candidates(self, pieces: Iterator[tuple[bool, bytes]]) -> Iterator[bytes]:
        for whole, data in pieces:
            if whole:
                yield data
            else:
                self._printed.add(data)

    def printed(self, data: bytes) -> None:
        """Take a line that turned out to be no message."""
        self._printed.add(data)

    def stderr(self, chunk: bytes) -> None:
        """Keep a chunk of stderr."""
        self._stderr.add(self._err.feed(chunk))
        self._errors.add(chunk)

    def printed_text(self) -> str:
        """Give what was printed and is no message, within its bound."""
        return self._printed.text()

    def stderr_text(self) -> str:
        """Give what stderr had, within its bound."""
        return self._errors.text()

    def output(self, result: bytes | None) -> RunOutput:
        """Give the output as docs/http-api.md says: printed lines, then the result object on one line, never cut."""
        lines = _split(self._printed.text())
        if result is not None:
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += "\n"
            lines.append(self._redactor.line(result).decode("utf-8", "replace").rstrip("\r\n") + "\n")
        return RunOutput(lines, self._errors.text())

    def close(self) -> None:
        """Be done with the files."""
        self._stdout.add(self._out.end())
        self._stderr.add(self._err.end())
        self._stdout.close()
        self._stderr.close()


def _split(text: str) -> list[str]:
    # Not `splitlines`, which also splits at what a program may well print inside a line.
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
