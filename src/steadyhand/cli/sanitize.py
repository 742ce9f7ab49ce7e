"""Sanitize and shorten text of agents and servers for a terminal. Pure.

An agent's output may contain escape sequences that retitle a window, hide text or type for the user. All text from
outside goes through `sanitize` before it is printed.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

_ESCAPE_SEQUENCES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, modes
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\\\|\x9c)"  # OSC, DCS, SOS, PM, APC
    "|\x1b[ -/]+[0-~]"  # charsets and the like
)
_UNSAFE_CHARACTERS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE_PATTERN = re.compile(f"[{_UNSAFE_CHARACTERS}]")
_CHECKOUT_PATH = re.compile(r"(?:/[^\s/'\"]+)*/jobs/[0-9a-f]{12}/checkout/")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_ELLIPSIS = "…"

_SUMMARY_FIELDS = ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt")
"""The most informative keys of a tool's input, in order, for the tools of the CLI."""


def sanitize(text: object) -> str:
    """Return text without escape sequences; other control and direction characters become a replacement mark.

    Line feeds and tabs stay. A carriage return counts as the end of a line, so that no text is overwritten.
    """
    cleaned = _ESCAPE_SEQUENCES.sub("", str(text))
    cleaned = cleaned.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSAFE_PATTERN.sub(_REPLACEMENT, cleaned)


def strip_checkout_path(text: str) -> str:
    """Return text in which paths below a job's checkout are relative to it."""
    return _CHECKOUT_PATH.sub("", text)


def one_line(text: object, limit: int = 200) -> str:
    """Return sanitized text on one line, cut to `limit` characters."""
    return truncate(" ".join(sanitize(text).split()), limit)


def truncate(text: str, limit: int) -> str:
    """Return text cut to `limit` characters, with an ellipsis if it was longer."""
    return text if len(text) <= limit else text[: max(0, limit - 1)].rstrip() + _ELLIPSIS


def first_line(text: object, limit: int = 80) -> str:
    """Return the first line that is not blank, cut to `limit` characters."""
    return next((truncate(line.strip(), limit) for line in sanitize(text).split("\n") if line.strip()), "")


def json_text(value: Any, *, indent: int | None = 2) -> str:
    """Return readable JSON without characters that a terminal interprets."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Raw line feeds are the layout's own: those inside strings are escaped already.
    return _UNSAFE_PATTERN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def summarize_tool_input(tool_input: object) -> str:
    """Return the input of a tool on one line."""
    if not isinstance(tool_input, Mapping):
        return one_line(tool_input, 160)
    for key in _SUMMARY_FIELDS:
        if isinstance(tool_input.get(key), str) and tool_input[key].strip():
            return one_line(strip_checkout_path(tool_input[key]), 160)
    return one_line(json.dumps(tool_input, ensure_ascii=False), 160) if tool_input else ""


def abbreviate_output(output: object, limit: int = 6, width: int = 160) -> list[str]:
    """Return the first and last lines of a tool's output, and a line with the number of lines between them."""
    lines = [truncate(line.rstrip(), width) for line in strip_checkout_path(sanitize(output)).split("\n")]
    lines = [line for line in lines if line]
    if len(lines) <= limit:
        return lines
    head, tail = limit // 2, limit - limit // 2 - 1
    return [*lines[:head], f"{_ELLIPSIS} {len(lines) - head - tail} more lines", *lines[-tail:]]


def display_usd(amount: object) -> str:
    """Return an amount for people: four decimals, and more only for an amount that would read as zero."""
    try:
        value = Decimal(str(amount))
    except InvalidOperation:
        return one_line(amount, 20)
    if not value.is_finite():
        return one_line(amount, 20)
    return f"${value:.6f}" if Decimal(0) < value < Decimal("0.0001") else f"${value:.4f}"


def format_duration(seconds: float) -> str:
    """Return seconds as `4.2s`, `3m 05s` or `1h 02m`."""
    if seconds < 60:  # noqa: PLR2004  # a minute
        return f"{max(0.0, seconds):.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:  # noqa: PLR2004  # an hour
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def format_age(seconds: float) -> str:
    """Return an age in its largest unit."""
    return f"{format_largest_unit(seconds)} ago"


def format_largest_unit(seconds: float) -> str:
    """Return a length of time in whole numbers of its largest unit, such as `23h`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(max(0, seconds))}s"


def format_count(number: object) -> str:
    """Return a number of tokens as `950`, `12.3k` or `4.5M`."""
    if not isinstance(number, int):
        return "?"
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def format_turns(turns: object) -> str:
    """Return `1 turn` or `5 turns`."""
    return f"{one_line(turns, 10)} turn{'' if turns == 1 else 's'}"


def parse_time(value: object) -> datetime | None:
    """Parse a time of the HTTP API; return `None` for anything else."""
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else None


def as_mapping(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one if the value is none."""
    return value if isinstance(value, Mapping) else {}


def format_changes(changes: object) -> str:
    """Return the size of a job's changes in the form of `git diff --shortstat`."""
    if not isinstance(changes, Mapping):
        return "no changes"
    parts = (
        ("files", "file", " changed"),
        ("insertions", "insertion", "(+)"),
        ("deletions", "deletion", "(-)"),
    )
    phrases = [
        f"{changes.get(key)} {noun}{'' if changes.get(key) == 1 else 's'}{rest}" for key, noun, rest in parts
    ]
    refs = changes.get("refs")
    if isinstance(refs, list) and refs:
        phrases.append(f"{len(refs)} other {'ref' if len(refs) == 1 else 'refs'}")
    return one_line(", ".join(phrases))


def format_branch(changes: object) -> str | None:
    """Return the branch of a job's changes and its push; `None` if none was asked for."""
    branch = as_mapping(changes).get("branch")
    if branch is None:
        return None
    published = as_mapping(changes).get("published") is True
    return f"{one_line(branch, 80)} {'pushed' if published else 'not pushed'}"
