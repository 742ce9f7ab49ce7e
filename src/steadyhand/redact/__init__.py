"""Live secrets never leave: text, bytes, JSON values and events without them, whole or piece by piece. Pure.

A secret is found as it stands, in base64 at any alignment and in either alphabet, in hex, and each of these with any
mix of percent escapes and JSON escapes of any depth. An agent that means to hide it from this can; what keeps secrets
from such an agent is that it is not given them.
"""

import codecs
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

from steadyhand.redact.encodings import REPLACEMENT, SHORTEST, Form, begun_escape, forms_of
from steadyhand.redact.matcher import Index, Spans, merged

__all__ = ["SHORTEST", "ByteStream", "LineStream", "Redactor", "TextStream"]

_E = TypeVar("_E")
_TEXT = REPLACEMENT.decode("ascii")
_CHAIN = 1 << 12
"""Bytes of overlapping secrets that are held as one at the end of a chunk."""
LINE_LIMIT = 8 << 20
"""Bytes of a line of JSON that is kept JSON; a longer one may come out as something else."""
_NUMBER = 10 ** (SHORTEST - 1)


class Redactor:
    """Takes the live secrets out. `add` takes more while it is in use; what was made of it sees them, too."""

    def __init__(self, secrets: Iterable[str | bytes] = ()) -> None:
        """Take the secrets; those below `SHORTEST` characters are not looked for."""
        self._secrets: frozenset[bytes] = frozenset()
        self._kept: Index | None = None
        self._lent: list[bytes] = []
        self._indexes: tuple[Index, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str | bytes]) -> None:
        """Look for these as well, from now on."""
        more = _encoded(secrets) - self._secrets
        if not more:
            return
        self._secrets |= more
        known = () if self._kept is None else self._kept.forms
        self._kept = _index_of(more, known)
        self._look_for_lent()

    @contextmanager
    def lent(self, secrets: Iterable[str | bytes]) -> Iterator[None]:
        """Look for these as well for the length of the block, which may be as short as a run."""
        given = _encoded(secrets)
        self._lent += given
        self._look_for_lent()
        try:
            yield
        finally:
            for secret in given:
                self._lent.remove(secret)  # one that is lent twice stays until the other block ends
            self._look_for_lent()

    def _look_for_lent(self) -> None:
        # An index of its own: the other one is made of many secrets, and a run should not wait for that.
        indexes = (self._kept, _index_of(set(self._lent)))
        self._indexes = tuple(index for index in indexes if index is not None)

    # --- whole things ----------------------------------------------------------------------

    def data(self, data: bytes) -> bytes:
        """Give bytes without secrets: the same object when there are none in it."""
        return self._cut(data, self._spans(data))

    def text(self, text: str) -> str:
        """Give text without secrets: the same object when there are none in it."""
        if not self._indexes or len(text) < SHORTEST:
            return text
        data = text.encode("utf-8", "surrogatepass")
        spans = self._spans(data, text_only=True)
        return self._cut(data, spans).decode("utf-8", "surrogatepass") if spans else text

    def value(self, value: Any) -> Any:
        """Give a JSON value without secrets, in keys and in long numbers as well."""
        if not self._indexes:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if isinstance(value, int) and abs(value) >= _NUMBER:
            text = str(value)
            return value if self.text(text) is text else self.text(text)
        return value

    def body(self, body: _E) -> _E:
        """Give an event's body, or another frozen record, without secrets in its texts and values."""
        if not self._indexes:
            return body
        changed = {}
        for field in fields(body):  # type: ignore[arg-type]  # a dataclass
            value = getattr(body, field.name)
            cleaned = self.value(value) if isinstance(value, str | Mapping) else value
            if cleaned != value:
                changed[field.name] = cleaned
        return replace(body, **changed) if changed else body  # type: ignore[type-var]

    def line(self, line: bytes) -> bytes:
        """Give a line of JSON without secrets: still JSON, with its newline; the same object without any."""
        found = self.data(line)
        if found is line:
            return line
        end = line[len(line.rstrip(b"\r\n")) :]
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return found
        clean = _json(self.value(value)) + end
        again = self.data(clean)
        if again is clean:
            return clean
        # A secret that goes across the marks of JSON itself, or stands in a number with a fraction.
        try:
            json.loads(again)
        except ValueError:
            kind = value.get("type") if isinstance(value, dict) else None
            return _json({"type": self.value(kind), "redacted": _TEXT}) + end
        return again

    def _spans(self, data: bytes, *, text_only: bool = False) -> Spans:
        if len(data) < SHORTEST:
            return ()
        found = [spans for index in self._indexes if (spans := index.spans(data, text_only=text_only))]
        if len(found) <= 1:
            return found[0] if found else ()
        return merged([span for spans in found for span in spans])

    @staticmethod
    def _cut(data: bytes, spans: Spans) -> bytes:
        if not spans:
            return data
        parts = []
        at = 0
        for start, end in spans:
            parts += [data[at:start], REPLACEMENT]
            at = end
        return b"".join([*parts, data[at:]])

    # --- piece by piece --------------------------------------------------------------------

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """Give what of the data can go, without secrets, and what may be the beginning of one."""
        if not self._indexes or not data:
            return data, b""
        spans = self._spans(data)
        begins = _outside(spans, min(index.begins(data) for index in self._indexes))
        # What is held is read again by itself, and half an escape means something else than the whole one.
        begins = _outside(spans, begun_escape(data, begins))
        gone = [span for span in spans if span[1] <= begins]
        return self._cut(data[:begins], gone), data[begins:]

    def bytes_stream(self) -> "ByteStream":
        """Give what takes bytes in chunks."""
        return ByteStream(self)

    def text_stream(self) -> "TextStream":
        """Give what takes text in pieces."""
        return TextStream(self)

    def line_stream(self) -> "LineStream":
        """Give what takes lines of JSON in chunks."""
        return LineStream(self)


class ByteStream:
    """Bytes in chunks: only an end that may be the beginning of a secret is held back."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take more and give what can go."""
        out, self._held = self._redactor.split(self._held + chunk if self._held else chunk)
        return out

    def end(self) -> bytes:
        """Give what was held back, when nothing more comes."""
        held, self._held = self._held, b""
        return self._redactor.data(held)


class TextStream:
    """Text in pieces: only an end that may be the beginning of a secret is held back."""

    def __init__(self, redactor: Redactor) -> None:
        self._bytes = ByteStream(redactor)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")

    def feed(self, text: str) -> str:
        """Take more and give what can go; often that is all of it."""
        return self._decoder.decode(self._bytes.feed(text.encode("utf-8", "surrogatepass")))

    def end(self) -> str:
        """Give what was held back, when nothing more comes."""
        return self._decoder.decode(self._bytes.end(), final=True)


class LineStream:
    """Lines of JSON in chunks; each comes out whole and still is JSON. One above `LINE_LIMIT` comes as bytes do."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = bytearray()
        self._long: ByteStream | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take more and give the lines that are whole."""
        out = b""
        if self._long is not None:
            end = chunk.find(b"\n") + 1
            if not end:
                return self._long.feed(chunk)
            out = self._long.feed(chunk[:end]) + self._long.end()
            self._long = None
            chunk = chunk[end:]
        end = chunk.rfind(b"\n") + 1
        if end:
            out += self._lines(bytes(self._held) + chunk[:end])
            self._held = bytearray()
        self._held += chunk[end:]
        if len(self._held) > LINE_LIMIT:
            self._long = self._redactor.bytes_stream()
            out += self._long.feed(bytes(self._held))
            self._held = bytearray()
        return out

    def end(self, *, torn: bool = False) -> bytes:
        """Give the last line when it has no newline; a `torn` one without what may begin a secret."""
        held, self._held = bytes(self._held), bytearray()
        if torn:
            return self._redactor.split(held)[0]
        return self._redactor.line(held) if self._long is None else self._long.end()

    def _lines(self, lines: bytes) -> bytes:
        if self._redactor.data(lines) is lines:
            return lines
        return b"".join(self._redactor.line(line + b"\n") for line in lines[:-1].split(b"\n"))


def _outside(spans: Spans, place: int) -> int:
    """Give a place in some data that is in no secret: its beginning, or the end of what is too long to be held."""
    for start, end in spans:
        if start < place < end:
            return start if end - start <= _CHAIN else end
    return place


def _encoded(secrets: Iterable[str | bytes]) -> set[bytes]:
    return {each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each for each in secrets}


def _index_of(secrets: Collection[bytes], known: Iterable[Form] = ()) -> Index | None:
    forms = [*known, *(form for secret in sorted(secrets) for form in forms_of(secret))]
    return Index(forms) if forms else None


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON escapes it
