"""Takes answers of the model's service apart as they pass: one JSON object, server-sent events, or Bedrock's frames.

What is found goes to a `Sink`. Each part gives it the same however the bytes were cut into pieces, and holds a bounded
part of them. Events of a block of content cannot carry a figure: of those only the length of what is said is taken.
"""

import binascii
import json
import zlib
from collections.abc import Iterator
from typing import Protocol

MOST_JSON_BYTES = 16 * 1024 * 1024
MOST_EVENT_BYTES = 1024 * 1024
MOST_UNPACKED_BYTES = 256 * 1024 * 1024

_BLOCK = b'"content_block_'
_DELTA = b'"content_block_delta"'
_DELTA_LINE = b"event: content_block_delta\n"
_USAGE = b'"usage"'
_SAID = (b'"text":', b'"partial_json":', b'"thinking":')
_AROUND = len(b'""}}')
_HEAD = 256
"""Bytes in which an event that is too long to be kept still says what it is."""

_STEP = 64 * 1024
_WRAPPED, _RAW = 47, -15  # zlib's words for: a head of gzip or zlib, or none
_DEFLATE, _CHECK = 8, 31
_GZIP = b"\x1f\x8b"

_PRELUDE, _LEAST_FRAME = 12, 16
_MOST_FRAME_BYTES = 2 * MOST_EVENT_BYTES


class Sink(Protocol):
    """What was found: events and whole answers to read, how many bytes were said, and whether something was lost."""

    said: int
    broken: bool

    def event(self, data: bytes) -> None:
        """Read the JSON of an event that may carry figures."""
        ...

    def whole(self, data: bytes | bytearray) -> None:
        """Read the JSON of an answer that came in one piece."""
        ...


class Body(Protocol):
    """A body on its way: pieces, then its end."""

    def take(self, data: bytes) -> None:
        """Take the next piece."""
        ...

    def end(self) -> None:
        """Take what is left for what it is."""
        ...


def offer(sink: Sink, event: bytes) -> bool:
    """Take the length of what an event says; false when the event has to be read, as it is none of a block."""
    if _USAGE in event:
        return False
    if event.startswith(_DELTA_LINE) or _DELTA in event:
        sink.said += _said(event)
        return True
    return _BLOCK in event


def _said(event: bytes) -> int:
    """Say how many bytes of text, thinking or a tool's input an event brings; about, as they are written in JSON."""
    for name in _SAID:
        at = event.find(name)
        if at >= 0:
            return max(0, len(event) - at - len(name) - _AROUND)
    return 0


class Json:
    """A body that is one JSON object."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held = bytearray()
        self._size = 0

    def take(self, data: bytes) -> None:
        """Keep a piece, as long as the whole may be kept."""
        self._size += len(data)
        if self._size <= MOST_JSON_BYTES:
            self._held += data
        else:
            self._held.clear()

    def end(self) -> None:
        """Read the whole."""
        if self._size <= MOST_JSON_BYTES:
            self._sink.whole(self._held)
        else:
            self._sink.broken = True
        if self._sink.broken:
            self._sink.said = self._size


class Events:
    """A body of server-sent events. What has no empty line after it yet waits for one, up to a bound."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held = bytearray()
        self._dropped = 0
        self._return = False

    def take(self, data: bytes) -> None:
        """Take a piece, and read the events that end in it."""
        if self._return or b"\r" in data:
            data = self._newlines(data)
        held = self._held
        looked = max(0, len(held) - 1)
        if held:
            held += data
            end = held.rfind(b"\n\n", looked)
        else:
            end = data.rfind(b"\n\n")
        if end >= 0:
            block = bytes(held[:end]) if held else data[:end]
            if block.endswith(b"\n"):
                # Of an odd run of newlines the last one opens the next event, wherever the pieces were cut.
                spare = (len(block) - len(block.rstrip(b"\n"))) % 2
                block, end = block[: len(block) - spare], end - spare
            if held:
                del held[: end + 2]
            else:
                held += data[end + 2 :]
            self._block(block)
        elif not held:
            held += data
        over = len(held) - MOST_EVENT_BYTES - 1
        if over > 0:
            # The head says what it is; the last byte may be the first half of its end.
            self._dropped += len(held) - _HEAD - 1
            del held[_HEAD:-1]

    def end(self) -> None:
        """Read what has no empty line after it: that may be a last event, or the half of one."""
        if self._held:
            self._block(bytes(self._held))
            self._held.clear()

    def _newlines(self, data: bytes) -> bytes:
        """Turn every end of a line into a newline, also one that is parted between two pieces."""
        if self._return and data.startswith(b"\n"):
            data = data[1:]
            self._return = False
        if data:
            self._return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _block(self, block: bytes) -> None:
        sink = self._sink
        usual = _USAGE not in block and len(block) <= MOST_EVENT_BYTES and not self._dropped
        for event in block.split(b"\n\n"):
            if usual and event.startswith(_DELTA_LINE):  # nearly all of them
                sink.said += _said(event)
                continue
            length = len(event) + self._dropped
            self._dropped = 0
            if length > MOST_EVENT_BYTES:
                self._long(event[:_HEAD], length)
            elif event and not offer(sink, event):
                self._read(event)

    def _long(self, head: bytes, length: int) -> None:
        self._sink.said += length
        if _BLOCK not in head:
            self._sink.broken = True

    def _read(self, event: bytes) -> None:
        data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
        if data and data != b"[DONE]":
            self._sink.event(data)


class Frames:
    """A body of AWS event-stream frames: a length, headers, a payload, and checksums. One that is wrong ends it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held = bytearray()
        self._lost = False

    def take(self, data: bytes) -> None:
        """Take a piece, and read the frames that end in it."""
        if self._lost:
            return
        held = self._held
        held += data
        at = 0
        while len(held) - at >= _PRELUDE:
            size = int.from_bytes(held[at : at + 4], "big")
            sum_ = int.from_bytes(held[at + 8 : at + _PRELUDE], "big")
            if not _LEAST_FRAME <= size <= _MOST_FRAME_BYTES or zlib.crc32(held[at : at + 8]) != sum_:
                self._lose()
                return
            if len(held) - at < size:
                break
            self._frame(bytes(held[at : at + size]))
            if self._lost:
                return
            at += size
        del held[:at]

    def end(self) -> None:
        """Let go of the half of a frame."""
        self._held.clear()

    def _lose(self) -> None:
        self._lost = True
        self._sink.broken = True
        self._held.clear()

    def _frame(self, frame: bytes) -> None:
        if zlib.crc32(frame[:-4]) != int.from_bytes(frame[-4:], "big"):
            self._lose()
            return
        payload = _PRELUDE + int.from_bytes(frame[4:8], "big")
        if b"chunk" not in frame[_PRELUDE:payload]:
            return  # an exception, or the answer's head
        try:
            coded = json.loads(frame[payload:-4])["bytes"]
            event = binascii.a2b_base64(coded)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._sink.broken = True
            return
        if not offer(self._sink, event):
            self._sink.event(event)


class Unpacked:
    """Undoes gzip and deflate, a bounded piece at a time and up to a bound in all."""

    def __init__(self) -> None:
        self.broken = False
        self._first = b""
        self._member: zlib._Decompress | None = None
        self._room = MOST_UNPACKED_BYTES

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Give what a piece holds."""
        while data and not self.broken:
            if self._member is None:
                data = self._first + data
                self._first = b""
                if len(data) < len(_GZIP):
                    self._first = data
                    return
                self._member = zlib.decompressobj(_wrapper(data))
            try:
                out = self._member.decompress(data, _STEP)
            except zlib.error:
                self.broken = True
                return
            data = self._member.unconsumed_tail
            while out:
                self._room -= len(out)
                if self._room < 0:
                    self.broken = True
                    out = out[: self._room]
                yield out
                out = b"" if data or self.broken or self._member.eof else self._member.decompress(b"", _STEP)
            if self._member.eof:
                data = self._member.unused_data
                self._member = None


def _wrapper(data: bytes) -> int:
    """Tell by its first two bytes whether packed data has a head: `deflate` comes with one and without."""
    zlibs = data[0] & 0x0F == _DEFLATE and int.from_bytes(data[:2], "big") % _CHECK == 0
    return _WRAPPED if zlibs or data[:2] == _GZIP else _RAW
