"""The output of an agent: split into lines, stored on disk up to a cap, and in memory up to a limit."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from steadyhand.ports import RunOutput
from steadyhand.redact import Redactor

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The longest line, in bytes, that is read as a protocol message; a longer one counts as printed."""
STDOUT_HEAD_BYTES = 256 * 1024
STDOUT_TAIL_BYTES = 768 * 1024
STDERR_HEAD_BYTES = 64 * 1024
STDERR_TAIL_BYTES = 192 * 1024
DISK_HEAD_BYTES = 16 * 1024 * 1024
DISK_SEGMENT_BYTES = 4 * 1024 * 1024
MAX_HELD_BYTES = 1024 * 1024
"""The bytes of one file that are held in memory while its disk is full."""
REDACTION_MARGIN_BYTES = 16 * 1024
"""Bytes kept beyond a cut, so that a secret that crosses it is found, in any encoding."""

_LARGE_LINE_BYTES = 1024 * 1024
_MAX_PARTS = 300_000  # of a large message: once parsed, each part costs a hundred times its length
_UNSTORABLE = re.compile("[\ud800-\udfff\x00]")


class LineSplitter:
    """Splits chunks into lines. A line that may be a message is returned whole, any other data at once.

    So only a line that begins with `{` is buffered, up to `MAX_LINE_BYTES` of it.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._in_long_line = False

    def feed(self, chunk: bytes) -> Iterator[tuple[bool, bytes]]:
        """Return pieces as (True for a whole line that may be a message, the bytes with the newline)."""
        at = 0
        while at < len(chunk):
            end = chunk.find(b"\n", at)
            stop = len(chunk) if end < 0 else end + 1
            part = chunk[at:stop]
            at = stop
            yield from self._feed_part(part, line_ended=end >= 0)

    def _feed_part(self, part: bytes, *, line_ended: bool) -> Iterator[tuple[bool, bytes]]:
        if self._in_long_line or not (self._buffer or part.startswith(b"{")):
            self._in_long_line = not line_ended
            yield False, part
        elif len(self._buffer) + len(part) > self._limit:
            yield from self._flush()
            self._in_long_line = not line_ended
            yield False, part
        elif not line_ended:
            self._buffer += part
        elif self._buffer:
            self._buffer += part
            line = bytes(self._buffer)
            self._buffer.clear()
            yield True, line
        else:
            yield True, part

    def _flush(self) -> Iterator[tuple[bool, bytes]]:
        pending = bytes(self._buffer)
        self._buffer = bytearray()  # a new one: `clear` may keep the memory
        if pending:
            yield False, pending

    def finish(self) -> Iterator[tuple[bool, bytes]]:
        """Return the rest at the end of the output: a line without its newline may be a message, too."""
        rest = bytes(self._buffer)
        self._buffer = bytearray()
        if rest:
            yield True, rest


def parse_message(line: bytes) -> dict[str, Any] | None:
    """Parse a line as a JSON object with a `type`; return None if it is none. See `parse_object`."""
    value = parse_object(line)
    return value if value is not None and isinstance(value.get("type"), str) else None


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Parse a line as a JSON object; return None if it is none, or has too many parts to be genuine.

    Lone surrogates and NUL, which a store cannot hold, become U+FFFD; NaN, the infinities and
    numbers that are too large for a float become None.
    """
    if len(line) > _LARGE_LINE_BYTES and line.count(b",") + line.count(b"[") + line.count(b"{") > _MAX_PARTS:
        return None
    try:
        value = _DECODER.decode(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if b"\\ud" in line or b"\\uD" in line or b"\\u0000" in line:
        return {str(_sanitize(name)): _sanitize(member) for name, member in value.items()}
    return value


def _finite_float(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


_DECODER = json.JSONDecoder(parse_float=_finite_float, parse_constant=lambda _: None)
"""`json.loads` makes one for each line."""


def _sanitize(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [_sanitize(member) for member in value]
    if isinstance(value, dict):
        return {_sanitize(key): _sanitize(member) for key, member in value.items()}
    return value


class HeadTailBuffer:
    """A buffer that holds the first `head` and the last `tail` bytes. Its text has no live secrets."""

    def __init__(self, head: int, tail: int, redactor: Redactor) -> None:
        self._redactor = redactor
        self._head_size = head
        self._tail_size = tail
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def append(self, data: bytes) -> None:
        """Append bytes."""
        self._total += len(data)
        head_left = self._head_size + REDACTION_MARGIN_BYTES - len(self._head)
        if head_left > 0:
            self._head += data[:head_left]
            data = data[head_left:]
        size = self._tail_size + REDACTION_MARGIN_BYTES
        self._tail += data[-size:]
        if len(self._tail) > 2 * size:
            del self._tail[:-size]

    def text(self) -> str:
        """Return the text, with a line in the gap that counts the bytes that were left out."""
        redactor = self._redactor
        left_out = self._total - self._head_size - self._tail_size
        if left_out <= 0:
            return redactor.data(bytes(self._head + self._tail)).decode("utf-8", "replace")
        # Bytes that may be the beginning or the end of a secret are left out.
        head_bytes = redactor.truncated(bytes(self._head))[: self._head_size]
        is_contiguous = self._total == len(self._head) + len(self._tail)
        recent = bytes(self._head + self._tail) if is_contiguous else bytes(self._tail)
        size = self._tail_size + REDACTION_MARGIN_BYTES
        tail_bytes = redactor.data(recent[-size:])
        tail_bytes = tail_bytes[min(REDACTION_MARGIN_BYTES, len(tail_bytes)) if len(recent) >= size else 0 :]
        tail_bytes = tail_bytes[max(0, len(tail_bytes) - self._tail_size) :]
        head = head_bytes.decode("utf-8", "replace")
        gap = "" if head.endswith("\n") or not head else "\n"
        return f"{head}{gap}[{left_out} bytes left out]\n{tail_bytes.decode('utf-8', 'replace')}"


class CappedFile:
    """A file that is written up to a cap; later bytes go to two segments beside it in turn.

    So the first `head` bytes and at least the last `segment` bytes are on disk, and never more than the head and
    both segments. The files are NAME, NAME.1 and NAME.2. While the disk is full, up to `MAX_HELD_BYTES` are held in
    memory and the rest is left out: an agent does not end because of its output.
    """

    def __init__(self, path: Path, head: int = DISK_HEAD_BYTES, segment: int = DISK_SEGMENT_BYTES) -> None:
        self._path = path
        self._bytes_left = head
        self._segment = segment
        self._number = 0
        self._held = bytearray()
        self._left_out = 0
        self._file: BinaryIO | None = None
        self.write(b"")

    def write(self, data: bytes) -> None:
        """Write bytes, after those that are held."""
        if not self._held:
            written = self._write_now(data)
            data = data[written:]
        room = max(0, MAX_HELD_BYTES - len(self._held))
        self._held += data[:room]
        self._left_out += max(0, len(data) - room)
        if self._held:
            del self._held[: self._write_now(self._held)]
        if self._left_out and not self._held:
            text = f"\n[{self._left_out} bytes left out: the disk was full]\n".encode()
            self._left_out = 0
            self.write(text)

    def _write_now(self, data: bytes | bytearray) -> int:
        """Write as many bytes as possible and return their number."""
        written = 0
        try:
            if self._file is None:
                self._file = self._open()
            while written < len(data):
                if self._bytes_left == 0:
                    self._rotate()
                count = self._file.write(data[written : written + self._bytes_left])
                written += count
                self._bytes_left -= count
        except OSError:
            return written
        return written

    def _open(self) -> BinaryIO:
        name = f"{self._path.name}.{self._number}" if self._number else self._path.name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path.with_name(name).open("wb", buffering=0)

    def _rotate(self) -> None:
        assert self._file is not None  # noqa: S101  # open as long as it is written
        self._file.close()
        self._number = self._number % 2 + 1
        self._bytes_left = self._segment
        self._file = None
        self._file = self._open()

    def close(self) -> None:
        """Close the file; what it did not take is lost."""
        if self._file is not None:
            self._file.close()


class OutputCapture:
    """The whole output of one run, without live secrets. The printed text is stdout without protocol messages."""

    def __init__(self, folder: Path, redactor: Redactor) -> None:
        self._redactor = redactor
        self._stdout_redactor = self._redactor.bytes_stream()
        self._stderr_redactor = self._redactor.bytes_stream()
        self._stdout_file = CappedFile(folder / "stdout")
        self._stderr_file = CappedFile(folder / "stderr", DISK_SEGMENT_BYTES, DISK_SEGMENT_BYTES)
        self._stdout_text = HeadTailBuffer(STDOUT_HEAD_BYTES, STDOUT_TAIL_BYTES, self._redactor)
        self._stderr_buffer = HeadTailBuffer(STDERR_HEAD_BYTES, STDERR_TAIL_BYTES, self._redactor)
        self._lines = LineSplitter()

    def feed_stdout(self, chunk: bytes) -> Iterator[bytes]:
        """Store a chunk of stdout and return the whole lines in it that may be messages."""
        self._stdout_file.write(self._stdout_redactor.feed(chunk))
        yield from self._message_lines(self._lines.feed(chunk))

    def finish(self) -> Iterator[bytes]:
        """Return the last line if it had no newline and may be a message."""
        yield from self._message_lines(self._lines.finish())

    def _message_lines(self, parts: Iterator[tuple[bool, bytes]]) -> Iterator[bytes]:
        for is_line, data in parts:
            if is_line:
                yield data
            else:
                self._stdout_text.append(data)

    def add_printed(self, data: bytes) -> None:
        """Add a line that is no message to the printed text."""
        self._stdout_text.append(data)

    def feed_stderr(self, chunk: bytes) -> None:
        """Store a chunk of stderr."""
        self._stderr_file.write(self._stderr_redactor.feed(chunk))
        self._stderr_buffer.append(chunk)

    def printed_text(self) -> str:
        """Return the printed text, up to its limit."""
        return self._stdout_text.text()

    def stderr_text(self) -> str:
        """Return the text of stderr, up to its limit."""
        return self._stderr_buffer.text()

    def to_run_output(self, result: bytes | None) -> RunOutput:
        """Return the output as in docs/http-api.md: printed lines, then the result object on one line, never cut."""
        lines = _split_lines(self._stdout_text.text())
        if result is not None:
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += "\n"
            lines.append(self._redactor.line(result).decode("utf-8", "replace").rstrip("\r\n") + "\n")
        return RunOutput(lines, self._stderr_buffer.text())

    def close(self) -> None:
        """Write the rest and close the files."""
        self._stdout_file.write(self._stdout_redactor.end())
        self._stderr_file.write(self._stderr_redactor.end())
        self._stdout_file.close()
        self._stderr_file.close()


def _split_lines(text: str) -> list[str]:
    # Not `splitlines`: it also splits at characters that a program may print inside a line.
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
