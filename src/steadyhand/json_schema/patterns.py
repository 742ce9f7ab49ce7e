"""Regular expressions of JSON Schemas: those that the agent's engine takes, and matches in linear time. Pure.

A pattern of a caller can run for years in an engine that backtracks. `LinearPattern` uses one that cannot.
"""

import re
from functools import lru_cache

from pydantic_core import SchemaError, SchemaValidator, core_schema

MAX_PATTERN_LENGTH = 4_096
_SIGNS = r"^$\\.*+?()\[\]{}|/"
_CODES = r"x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}"
_CLASS_PART = rf"(?:0-9|a-z|A-Z|0-5|0-4|1-9|a-f|A-F|\\(?:[dDsSwWfnrtv{_SIGNS}-]|{_CODES})|[^\]\\\[-])"
_TOKEN = re.compile(
    r"(?P<open>\((?:\?[:=!]|\?<[=!])?)"
    r"|(?P<close>\))"
    rf"|(?P<atom>\[\^?-?{_CLASS_PART}*-?\]|\\(?:[dDsSwWfnrtv{_SIGNS}]|{_CODES})|[^{_SIGNS}])"
    r"|(?P<dot>\.)|(?P<edge>[\^$|]|\\[bB])"
    r"|(?P<quantifier>(?:[*+?]|\{(?P<least>\d{1,5})(?:,(?P<most>\d{0,5}))?\})\??)"
)


@lru_cache(maxsize=256)
def is_surely_ecmascript(pattern: str) -> bool:
    """Return True if JavaScript takes a pattern with its flag `u`, as the agent does; False if it may refuse it."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        return False
    at, open_groups, quantifiable = 0, [], False
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            return False
        at = token.end()
        if token["open"]:
            open_groups.append(token["open"] in ("(", "(?:"))  # JavaScript repeats no lookaround
            quantifiable = False
        elif token["close"]:
            if not open_groups:
                return False
            quantifiable = open_groups.pop()
        elif token["quantifier"]:
            least, most = token["least"], token["most"]
            if not quantifiable or (most and int(least) > int(most)):
                return False
            quantifiable = False
        else:
            quantifiable = token["edge"] is None
    return not open_groups


class LinearPattern:
    """A pattern in an engine whose time is linear in the text; it knows no lookaround and no back reference."""

    def __init__(self, pattern: str) -> None:
        """Compile a pattern; raise `ValueError` for one that the engine does not take."""
        if len(pattern) > MAX_PATTERN_LENGTH:
            raise ValueError("too long")
        try:
            self._validator = SchemaValidator(core_schema.str_schema(pattern=pattern, strict=True))
        except SchemaError as error:
            raise ValueError(str(error)) from error

    def is_found_in(self, text: str) -> bool:
        """Return True if the pattern matches anywhere in a text."""
        return self._validator.isinstance_python(text.encode("utf-8", "replace").decode("utf-8"))


@lru_cache(maxsize=256)
def compile_linear(pattern: str) -> LinearPattern | None:
    """Return a pattern in the linear engine, or None if the engine does not take it."""
    try:
        return LinearPattern(pattern)
    except ValueError:
        return None
