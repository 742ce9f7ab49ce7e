"""The redactor of whole values, and its streams for chunks. Pure."""

import codecs
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

from steadyhand.redact.encodings import MIN_SECRET, REPLACEMENT, encodings_of
from steadyhand.redact.matcher import EARLY_BYTES, Matcher, Spans, merged
from steadyhand.redact.ngram_index import MIN_PATTERN, NgramIndex

_E = TypeVar("_E")
_TEXT = REPLACEMENT.decode("ascii")
LINE_LIMIT = 8 << 20
"""The bytes up to which a line of JSON stays valid JSON; a longer one may not."""
_NUMBER = 10 ** (MIN_SECRET - 1)


class Redactor:
    """Replaces live secrets. Secrets may be added while it is in use; its streams see them, too."""

    def __init__(self, secrets: Iterable[str | bytes] = ()) -> None:
        """Create it for these secrets; those below `MIN_SECRET` bytes are not looked for."""
        self._secrets: frozenset[bytes] = frozenset()
        self._permanent: Matcher | None = None
        self._lent_index = NgramIndex()
        self._lent_short: Counter[bytes] = Counter()
        self._lent_matcher: Matcher | None = None
        self._matchers: tuple[Matcher | NgramIndex, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str | bytes]) -> None:
        """Look for these as well, from now on."""
        more = _encoded(secrets) - self._secrets
        if not more:
            return
        self._secrets |= more
        known = () if self._permanent is None else self._permanent.patterns
        self._permanent = _matcher_of({*known, *_patterns_of(more)})
        self._use_matchers()

    @contextmanager
    def lent(self, secrets: Iterable[str | bytes]) -> Iterator[None]:
        """Look for these as well for the length of the block, which may be as short as a run."""
        patterns = _patterns_of(_encoded(secrets))
        # Runs come and go, and all others wait for this: it must not cost as much as the secrets of all runs.
        long = {pattern for pattern in patterns if len(pattern) >= MIN_PATTERN}
        short = Counter(patterns - long)
        self._lent_index.add(long)
        self._use_matchers(self._lent_short + short)
        try:
            yield
        finally:
            self._lent_index.remove(long)  # one that is lent twice stays until the other block ends
            self._use_matchers(self._lent_short - short)

    def _use_matchers(self, lent_short: Counter[bytes] | None = None) -> None:
        if lent_short is not None and lent_short != self._lent_short:
            self._lent_short, self._lent_matcher = lent_short, _matcher_of(lent_short)
        matchers = (self._permanent, self._lent_matcher, self._lent_index or None)
        self._matchers = tuple(matcher for matcher in matchers if matcher is not None)

    # --- whole things ----------------------------------------------------------------------

    def data(self, data: bytes) -> bytes:
        """Return bytes without secrets: the same object if there are none in it."""
        return _cut(data, self.spans(data))

    def text(self, text: str) -> str:
        """Return text without secrets: the same object if there are none in it."""
        if not self._matchers or len(text) < MIN_SECRET:
            return text
        data = text.encode("utf-8", "surrogatepass")
        spans = self.spans(data, text_only=True)
        return _cut(data, spans).decode("utf-8", "surrogatepass") if spans else text

    def value(self, value: Any) -> Any:
        """Return a JSON value without secrets, in keys and in long numbers as well."""
        if not self._matchers:
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
        """Return an event's body, or another frozen record, without secrets in its texts and values."""
        if not self._matchers:
            return body
        changed = {}
        for field in fields(body):  # type: ignore[arg-type]  # a dataclass
            value = getattr(body, field.name)
            cleaned = self.value(value) if isinstance(value, str | Mapping) else value
            if cleaned != value:
                changed[field.name] = cleaned
        return replace(body, **changed) if changed else body  # type: ignore[type-var]

    def line(self, line: bytes) -> bytes:
        """Return a line of JSON without secrets: still JSON, with its newline; the same object without any."""
        cleaned = self.data(line)
        if cleaned is line:
            return line
        end = line[len(line.rstrip(b"\r\n")) :]
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return cleaned
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

    def truncated(self, data: bytes) -> bytes:
        """Return the beginning of some data without secrets, and without an end that may begin one."""
        spans, begun = self.search(data)
        return _cut(data[:begun], _before(spans, begun))

    def spans(self, data: bytes, *, text_only: bool = False) -> Spans:
        """Return where secrets stand in data that is whole; see `search`."""
        found = [spans for matcher in self._matchers if (spans := matcher.find(data, text_only=text_only)[0])]
        return merged(span for spans in found for span in spans) if len(found) > 1 else [*found, []][0]

    def search(self, data: bytes, *, text_only: bool = False, early: bool = False) -> tuple[Spans, int]:
        """Return where secrets stand, and from where on the data may be the beginning of one; see `Matcher`."""
        if len(self._matchers) == 1:
            return self._matchers[0].search(data, text_only=text_only, early=early)
        found = [matcher.search(data, text_only=text_only, early=early) for matcher in self._matchers]
        return merged(span for spans, _ in found for span in spans), min(
            (b for _, b in found), default=len(data)
        )

    # --- in chunks -------------------------------------------------------------------------

    def bytes_stream(self) -> "ByteStream":
        """Return a stream that is fed with bytes."""
        return ByteStream(self)

    def text_stream(self) -> "TextStream":
        """Return a stream that is fed with text."""
        return TextStream(self)

    def line_stream(self) -> "LineStream":
        """Return a stream that is fed with lines of JSON."""
        return LineStream(self)


class _NoRedaction(Redactor):
    """A redactor that never has a secret: it is shared, and one user's secrets are none of another's."""

    def add(self, secrets: Iterable[str | bytes]) -> None:
        if _encoded(secrets):
            message = "NO_REDACTION cannot hold secrets: create a Redactor."
            raise TypeError(message)

    @contextmanager
    def lent(self, secrets: Iterable[str | bytes]) -> Iterator[None]:
        self.add(secrets)
        yield


class ByteStream:
    """Bytes in chunks: only an end that may be the beginning of a secret is held back."""

    def __init__(self, redactor: Redactor, *, is_live: bool = False) -> None:
        """Create it; `is_live` is for UTF-8, of which no character may be cut, and which somebody reads meanwhile.

        Then an end of one or two bytes is not held back (`EARLY_BYTES`): these may come out before the replacement.
        """
        self._redactor = redactor
        self._is_live = is_live
        self._tail = b""
        self._sent = 0
        """The bytes of the tail that are out: with others a secret may begin in them."""
        self._replaced = 0
        """The bytes of the tail that are in a secret that the replacement stands for already."""
        self.taken_back = b""
        """The last bytes before those that `feed` or `end` returned: they begin the secret that is replaced now."""

    def feed(self, chunk: bytes) -> bytes:
        """Return the part of this chunk, and of the text held back before, that is safe to send."""
        data = self._tail + chunk if self._tail else chunk
        spans, begun = self._search(data)
        end = max(begun, self._sent)
        self.taken_back = self._beginning(data, spans) if end > self._sent else b""
        out = _cut(data[:end], _before(spans, end), self._sent, replaced=self._replaced > 0)
        first = min(begun, max(0, end - EARLY_BYTES)) if self._is_live else begun
        if end > self._sent:
            last = max((stop for start, stop in spans if start < end), default=0)
            self._replaced = max(0, last - first)
        else:
            self._replaced = max(0, self._replaced - first)
        self._tail, self._sent = data[first:], end - first
        return out

    def end(self) -> bytes:
        """Return the text held back, at the end of the stream."""
        spans, _ = self._search(self._tail)
        self.taken_back = self._beginning(self._tail, spans)
        out = _cut(self._tail, spans, self._sent, replaced=self._replaced > 0)
        self._tail, self._sent, self._replaced = b"", 0, 0
        return out

    def _beginning(self, data: bytes, spans: Spans) -> bytes:
        """Return the bytes of a secret that were sent before it was known."""
        for start, end in spans:
            if start < self._sent < end:
                return data[max(start, self._replaced) : self._sent]
        return b""

    def _search(self, data: bytes) -> tuple[Spans, int]:
        spans, begun = self._redactor.search(data, text_only=self._is_live, early=self._is_live)
        return (merged([(0, self._replaced), *spans]) if self._replaced else spans), begun


class TextStream:
    """Live text in pieces: an end that may be the beginning of a secret is held back, unless it is very short."""

    def __init__(self, redactor: Redactor) -> None:
        self._bytes = ByteStream(redactor, is_live=True)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")

    @property
    def taken_back(self) -> int:
        """The number of characters before the text returned last that begin the secret that is replaced now."""
        return len(self._bytes.taken_back.decode("utf-8", "surrogatepass"))

    def feed(self, text: str) -> str:
        """Return the part of this text, and of the text held back before, that is safe to send; often all of it."""
        return self._decoder.decode(self._bytes.feed(text.encode("utf-8", "surrogatepass")))

    def end(self) -> str:
        """Return the text held back, at the end of the stream."""
        return self._decoder.decode(self._bytes.end(), final=True)


class LineStream:
    """Lines of JSON in chunks; each comes out whole and still is JSON. One above `LINE_LIMIT` comes as bytes do."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = bytearray()
        self._long: ByteStream | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Return the lines that are whole with this chunk."""
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
        """Return the last line if it has no newline; a `torn` one without an end that may begin a secret."""
        held, self._held = bytes(self._held), bytearray()
        if torn:
            return self._redactor.truncated(held)
        return self._redactor.line(held) if self._long is None else self._long.end()

    def _lines(self, lines: bytes) -> bytes:
        if self._redactor.data(lines) is lines:
            return lines
        return b"".join(self._redactor.line(line + b"\n") for line in lines[:-1].split(b"\n"))


def _before(spans: Spans, place: int) -> Spans:
    return [(start, min(end, place)) for start, end in spans if start < place]


def _cut(data: bytes, spans: Spans, at: int = 0, *, replaced: bool = False) -> bytes:
    """Return the data from `at` on with the replacement for each span.

    If `replaced`, the replacement is there already for the span at the beginning.
    """
    if not spans:
        return data[at:]
    parts = []
    for start, end in spans:
        if end > at:
            parts += [data[at:start], b"" if replaced and start == 0 else REPLACEMENT]
            at = end
    return b"".join([*parts, data[at:]])


def _encoded(secrets: Iterable[str | bytes]) -> set[bytes]:
    return {each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each for each in secrets}


def _patterns_of(secrets: Iterable[bytes]) -> set[bytes]:
    return {encoding for secret in secrets for encoding in encodings_of(secret)}


def _matcher_of(patterns: Collection[bytes]) -> Matcher | None:
    return Matcher(patterns) if patterns else None


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate as JSON escapes it


NO_REDACTION = _NoRedaction()
"""For those that are meant to redact nothing."""
