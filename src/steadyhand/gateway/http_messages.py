"""A proxy's requests and answers as they are read: by the parser in C, for an agent may write as much as it likes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httptools

MAX_RESPONSE_HEAD_BYTES = 256 * 1024
_FIRST_FINAL_STATUS = 200

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    }
)
"""Headers that speak of one connection and not of the message (RFC 9110, 7.6.1); the framing is not among them."""

Headers = Iterable[tuple[bytes, bytes]]


def end_to_end_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers without the hop-by-hop ones, with those named by `connection`. Names are in lower case."""
    headers = list(headers)
    connection_headers = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    framing = {b"content-length", b"transfer-encoding"}
    excluded = HOP_BY_HOP | (connection_headers - framing)
    return [(name, value) for name, value in headers if name not in excluded]


class MalformedMessage(Exception):
    """Not a request or an answer in HTTP/1.1, or one with two lengths."""


@dataclass
class ProxyRequest:
    """A request with a complete head; `feed` parses its body."""

    method: bytes = b""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = False
    chunked: bool = False
    headers_complete: bool = False
    body_chunks: list[bytes] = field(default_factory=list)
    parser: Any = None

    @classmethod
    def parse(cls, head: bytes) -> "ProxyRequest":
        """Read a head, its blank line included. Raises `Unreadable`."""
        request = cls()
        request.parser = httptools.HttpRequestParser(request)
        request.feed(head)
        if not request.headers_complete or request.parser.get_http_version() not in {"1.0", "1.1"}:
            raise MalformedMessage
        request.method = request.parser.get_method()
        lengths = [value for name, value in request.headers if name == b"content-length"]
        codings = [value.lower() for name, value in request.headers if name == b"transfer-encoding"]
        if len(lengths) + len(codings) > 1 or codings not in ([], [b"chunked"]):
            raise MalformedMessage
        request.chunked = bool(codings)
        return request

    def feed(self, data: bytes) -> bytes:
        """Parse bytes and return the body in them, with its framing. Raises `BadRequest`."""
        was_complete = self.complete
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.complete = (
                True  # what follows is no body: a tunnel, or words to a host that is not asked to change
            )
        except httptools.HttpParserError as error:
            if not self.complete:
                raise MalformedMessage from error
        body = b"".join(self.body_chunks)
        self.body_chunks.clear()
        if not self.chunked:
            return body
        end = b"0\r\n\r\n" if self.complete and not was_complete else b""
        return (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + end

    def forwarded_head(self, path: bytes, host: bytes) -> bytes:
        """Return the head for the host: its own name, origin form, one request per connection."""
        headers: Headers = [
            (name, value)
            for name, value in end_to_end_headers(self.headers)
            if name not in (b"host", b"expect")
        ]
        lines = [b"%b %b HTTP/1.1" % (self.method, path), b"host: " + host]
        lines += [b"%b: %b" % header for header in headers]
        return b"\r\n".join([*lines, b"connection: close", b"", b""])

    @property
    def expects_continue(self) -> bool:
        """Return True if the client waits for `100 Continue` before it sends the body."""
        return any(name == b"expect" and value.lower() == b"100-continue" for name, value in self.headers)

    # --- what the parser calls ---

    def on_url(self, url: bytes) -> None:
        """Append a piece of the target."""
        if not self.complete:
            self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header. Trailers, which come after the head, are ignored."""
        if not self.headers_complete:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self.headers_complete = True

    def on_body(self, body: bytes) -> None:
        """Append a piece of the body."""
        if not self.complete:
            self.body_chunks.append(body)

    def on_message_complete(self) -> None:
        """Note the end; a second request on the connection is not listened to."""
        self.complete = True


class ProxyResponse:
    """Follows an answer to see where it ends."""

    def __init__(self, *, without_body: bool) -> None:
        self.complete = False
        self._without_body = without_body
        self._headers_complete = False
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse bytes of it. Raise `Unreadable`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.complete = True
        except httptools.HttpParserError as error:
            if not self.complete:
                raise MalformedMessage from error
        self._head_bytes += 0 if self._headers_complete else len(data)
        if self._head_bytes > MAX_RESPONSE_HEAD_BYTES:
            raise MalformedMessage

    # --- what the parser calls ---

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._headers_complete = self._parser.get_status_code() >= _FIRST_FINAL_STATUS
        self.complete = self.complete or (self._headers_complete and self._without_body)

    def on_message_complete(self) -> None:
        """Note the end, unless it was only a word in between."""
        self.complete = self.complete or self._headers_complete
