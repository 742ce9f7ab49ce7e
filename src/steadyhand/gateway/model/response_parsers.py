"""Takes answers of the model's service apart as they pass: one JSON object, server-sent events, or Bedrock's frames.

What is found goes to a `Sink`. Each part gives it the same however the bytes were cut into pieces, and holds a bounded
part of them. Events of a block of content cannot carry a figure: of those only the length of what is said is taken.
"""

import binascii
import json
import zlib
from collections.abc import Iterator
from typing import Protocol

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_EVENT_BYTES = 1024 * 1024
MAX_DECOMPRESSED_BYTES = 256 * 1024 * 1024

_BLOCK = b'"content_block_'
_DELTA = b'"content_block_delta"'
_DELTA_LINE = b"event: content_block_delta\n"
_USAGE = b'"usage"'
_TEXT_KEYS = (b'"text":', b'"partial_json":', b'"thinking":')
_DELTA_SUFFIX_BYTES = len(b'""}}')
_EVENT_HEAD_BYTES = 256
"""Bytes in which an event that is too long to be kept still says what it is."""

_DECOMPRESS_BYTES = 64 * 1024
_WBITS_WRAPPED, _WBITS_RAW = 47, -15  # zlib's words for: a head of gzip or zlib, or none
_ZLIB_METHOD, _ZLIB_CHECK = 8, 31
_GZIP = b"\x1f\x8b"

_PRELUDE_BYTES, _MIN_FRAME_BYTES = 12, 16
_MAX_FRAME_BYTES = 2 * MAX_EVENT_BYTES


class UsageSink(Protocol):
    """What was found: events and whole answers to read, how many bytes were said, and whether something was lost."""

    output_bytes: int
    malformed: bool

    def on_event(self, data: bytes) -> None:
        """Read the JSON of an event that may carry figures."""
        ...

    def on_body(self, data: bytes | bytearray) -> None:
        """Read the JSON of an answer that came in one piece."""
        ...


class BodyParser(Protocol):
    """A body on its way: pieces, then its end."""

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        ...

    def finish(self) -> None:
        """Take what is left for what it is."""
        ...


def count_delta(sink: UsageSink, event: bytes) -> bool:
    """Take the length of what an event says; false when the event has to be read, as it is none of a block."""
    if _USAGE in event:
        return False
    if event.startswith(_DELTA_LINE) or _DELTA in event:
        sink.output_bytes += _delta_bytes(event)
        return True
    return _BLOCK in event


def _delta_bytes(event: bytes) -> int:
    """Say how many bytes of text, thinking or a tool's input an event brings; about, as they are written in JSON."""
    for name in _TEXT_KEYS:
        at = event.find(name)
        if at >= 0:
            return max(0, len(event) - at - len(name) - _DELTA_SUFFIX_BYTES)
    return 0


class JsonParser:
    """A body that is one JSON object."""

    def __init__(self, sink: UsageSink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Keep a piece, as long as the whole may be kept."""
        self._size += len(data)
        if self._size <= MAX_JSON_BYTES:
            self._buffer += data
        else:
            self._buffer.clear()

    def finish(self) -> None:
        """Read the whole."""
        if self._size <= MAX_JSON_BYTES:
            self._sink.on_body(self._buffer)
        else:
            self._sink.malformed = True
        if self._sink.malformed:
            self._sink.output_bytes = self._size


class SseParser:
    """A body of server-sent events. What has no empty line after it yet waits for one, up to a bound."""

    def __init__(self, sink: UsageSink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._dropped = 0
        self._pending_return = False

    def feed(self, data: bytes) -> None:
        """Take a piece, and read the events that end in it."""
        if self._pending_return or b"\r" in data:
            data = self._normalize_newlines(data)
        buffer = self._buffer
        search_from = max(0, len(buffer) - 1)
        if buffer:
            buffer += data
            end = buffer.rfind(b"\n\n", search_from)
        else:
            end = data.rfind(b"\n\n")
        if end >= 0:
            block = bytes(buffer[:end]) if buffer else data[:end]
            if block.endswith(b"\n"):
                # Of an odd run of newlines the last one opens the next event, wherever the pieces were cut.
                odd = (len(block) - len(block.rstrip(b"\n"))) % 2
                block, end = block[: len(block) - odd], end - odd
            if buffer:
                del buffer[: end + 2]
            else:
                buffer += data[end + 2 :]
            self._parse_block(block)
        elif not buffer:
            buffer += data
        excess = len(buffer) - MAX_EVENT_BYTES - 1
        if excess > 0:
            # The head says what it is; the last byte may be the first half of its end.
            self._dropped += len(buffer) - _EVENT_HEAD_BYTES - 1
            del buffer[_EVENT_HEAD_BYTES:-1]

    def finish(self) -> None:
        """Read what has no empty line after it: that may be a last event, or the half of one."""
        if self._buffer:
            self._parse_block(bytes(self._buffer))
            self._buffer.clear()

    def _normalize_newlines(self, data: bytes) -> bytes:
        """Turn every end of a line into a newline, also one that is parted between two pieces."""
        if self._pending_return and data.startswith(b"\n"):
            data = data[1:]
            self._pending_return = False
        if data:
            self._pending_return = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _parse_block(self, block: bytes) -> None:
        sink = self._sink
        only_deltas = _USAGE not in block and len(block) <= MAX_EVENT_BYTES and not self._dropped
        for event in block.split(b"\n\n"):
            if only_deltas and event.startswith(_DELTA_LINE):  # nearly all of them
                sink.output_bytes += _delta_bytes(event)
                continue
            length = len(event) + self._dropped
            self._dropped = 0
            if length > MAX_EVENT_BYTES:
                self._skip_oversized(event[:_EVENT_HEAD_BYTES], length)
            elif event and not count_delta(sink, event):
                self._parse_event(event)

    def _skip_oversized(self, head: bytes, length: int) -> None:
        self._sink.output_bytes += length
        if _BLOCK not in head:
            self._sink.malformed = True

    def _parse_event(self, event: bytes) -> None:
        data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
        if data and data != b"[DONE]":
            self._sink.on_event(data)


class EventStreamParser:
    """A body of AWS event-stream frames: a length, headers, a payload, and checksums. One that is wrong ends it."""

    def __init__(self, sink: UsageSink) -> None:
        self._sink = sink
        self._buffer = bytearray()
        self._failed = False

    def feed(self, data: bytes) -> None:
        """Take a piece, and read the frames that end in it."""
        if self._failed:
            return
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _PRELUDE_BYTES:
            size = int.from_bytes(buffer[at : at + 4], "big")
            checksum = int.from_bytes(buffer[at + 8 : at + _PRELUDE_BYTES], "big")
            if (
                not _MIN_FRAME_BYTES <= size <= _MAX_FRAME_BYTES
                or zlib.crc32(buffer[at : at + 8]) != checksum
            ):
                self._fail()
                return
            if len(buffer) - at < size:
                break
            self._parse_frame(bytes(buffer[at : at + size]))
            if self._failed:
                return
            at += size
        del buffer[:at]

    def finish(self) -> None:
        """Let go of the half of a frame."""
        self._buffer.clear()

    def _fail(self) -> None:
        self._failed = True
        self._sink.malformed = True
        self._buffer.clear()

    def _parse_frame(self, frame: bytes) -> None:
        if zlib.crc32(frame[:-4]) != int.from_bytes(frame[-4:], "big"):
            self._fail()
            return
        payload = _PRELUDE_BYTES + int.from_bytes(frame[4:8], "big")
        if b"chunk" not in frame[_PRELUDE_BYTES:payload]:
            return  # an exception, or the answer's head
        try:
            encoded = json.loads(frame[payload:-4])["bytes"]
            event = binascii.a2b_base64(encoded)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._sink.malformed = True
            return
        if not count_delta(self._sink, event):
            self._sink.on_event(event)


class Decompressor:
    """Undoes gzip and deflate, a bounded piece at a time and up to a bound in all."""

    def __init__(self) -> None:
        self.malformed = False
        self._pending = b""
        self._stream: zlib._Decompress | None = None
        self._bytes_left = MAX_DECOMPRESSED_BYTES

    def decompress(self, data: bytes) -> Iterator[bytes]:
        """Give what a piece holds."""
        while data and not self.malformed:
            if self._stream is None:
                data = self._pending + data
                self._pending = b""
                if len(data) < len(_GZIP):
                    self._pending = data
                    return
                self._stream = zlib.decompressobj(_window_bits(data))
            try:
                chunk = self._stream.decompress(data, _DECOMPRESS_BYTES)
            except zlib.error:
                self.malformed = True
                return
            data = self._stream.unconsumed_tail
            while chunk:
                self._bytes_left -= len(chunk)
                if self._bytes_left < 0:
                    self.malformed = True
                    chunk = chunk[: self._bytes_left]
                yield chunk
                chunk = (
                    b""
                    if data or self.malformed or self._stream.eof
                    else self._stream.decompress(b"", _DECOMPRESS_BYTES)
                )
            if self._stream.eof:
                data = self._stream.unused_data
                self._stream = None


def _window_bits(data: bytes) -> int:
    """Tell by its first two bytes whether packed data has a head: `deflate` comes with one and without."""
    is_zlib = data[0] & 0x0F == _ZLIB_METHOD and int.from_bytes(data[:2], "big") % _ZLIB_CHECK == 0
    return _WBITS_WRAPPED if is_zlib or data[:2] == _GZIP else _WBITS_RAW
