"""Redaction: replace live secrets in text, bytes, JSON values and events, whole or in chunks. Pure.

A secret is found as it is, in base64 of both alphabets at the three alignments, in hex, percent-encoded, in JSON
nested up to five layers, and percent-encoded over JSON once, wherever a stream cuts it. It is not found in other
encodings, or in mixes of these: an agent that means to hide a secret can. Such an agent must not be given it.
"""

from steadyhand.redact.encodings import MIN_SECRET
from steadyhand.redact.matcher import EARLY_BYTES
from steadyhand.redact.redactor import LINE_LIMIT, NO_REDACTION, ByteStream, LineStream, Redactor, TextStream

__all__ = [
    "EARLY_BYTES",
    "LINE_LIMIT",
    "MIN_SECRET",
    "NO_REDACTION",
    "ByteStream",
    "LineStream",
    "Redactor",
    "TextStream",
]
