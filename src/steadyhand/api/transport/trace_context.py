"""The caller's trace: the `traceparent` header of W3C Trace Context."""

import re
from collections.abc import Sequence

_TRACEPARENT = re.compile(
    rb"([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_MAX_BYTES = 512


def parse_traceparent(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return the trace of a request in version 00, from raw ASGI headers; None without a valid one.

    A header that is there twice or is not well-formed is ignored, as the standard asks for.
    """
    values = [value for name, value in headers if name == b"traceparent"]
    if len(values) != 1 or len(values[0]) > _MAX_BYTES:
        return None
    match = _TRACEPARENT.fullmatch(values[0].strip(b" \t"))
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5]):
        return None
    return b"-".join((b"00", match[2], match[3], match[4])).decode("ascii")
