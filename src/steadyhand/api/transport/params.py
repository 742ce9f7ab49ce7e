"""What a request asks for beside its body: query parameters, `Prefer`, `Accept`, `Idempotency-Key`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path
from starlette.requests import Request

from steadyhand.api.transport.body import nearest
from steadyhand.errors import FieldFault, InvalidRequest, NotFound

LONGEST_PREFERRED_WAIT = 60
"""Seconds; a longer wish is cut to this."""
_JOB_ID = re.compile(r"[0-9a-f]{12}")
_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*', re.IGNORECASE)
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_MOST_DIGITS = 18


JobId = Annotated[str, Path(description="The job's id: 12 lower-case hexadecimal digits.")]


def known_form(job_id: str) -> str:
    """Give a job's id from the path; raises `NotFound` for what cannot be one."""
    if _JOB_ID.fullmatch(job_id) is None:
        raise NotFound("Job not found")
    return job_id


@dataclass(frozen=True, slots=True)
class Query:
    """The query parameters of a request, each known by name. Faults point at `?name`."""

    values: Mapping[str, list[str]]
    prefixed: Mapping[str, str] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        """Give every value of a repeatable parameter."""
        return self.values.get(name, [])

    def one(self, name: str) -> str | None:
        """Give the value of a parameter that may be there once."""
        values = self.all(name)
        if len(values) > 1:
            raise InvalidRequest.at(f"?{name}", "is there more than once")
        return values[0] if values else None

    def whole(self, name: str, default: int, *, least: int, most: int, code: str | None = None) -> int:
        """Give a whole number within bounds."""
        text = self.one(name)
        if text is None:
            return default
        return whole_number(text, f"?{name}", least=least, most=most, code=code)

    def time(self, name: str) -> datetime | None:
        """Give a time with its zone (RFC 3339), in UTC."""
        text = self.one(name)
        if text is None:
            return None
        try:
            # A plus sign that was not escaped arrives as a space.
            at = datetime.fromisoformat(text.replace(" ", "+"))
            if at.tzinfo is not None:
                return at.astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest.at(f"?{name}", "is not an RFC 3339 time with its zone") from error
        raise InvalidRequest.at(f"?{name}", "is not an RFC 3339 time with its zone")


def whole_number(text: str, pointer: str, *, least: int, most: int, code: str | None = None) -> int:
    """Give the whole number that a text is, within bounds."""
    if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS and least <= int(text) <= most:
        return int(text)
    raise InvalidRequest.at(pointer, f"has to be a whole number from {least} to {most}", code=code)


def query_of(request: Request, *known: str, prefix: str | None = None) -> Query:
    """Give the query parameters; raises `InvalidRequest` (`unknown_field`) for others.

    With `prefix`, parameters that begin with it are given apart, by the rest of their names.
    """
    values: dict[str, list[str]] = {}
    prefixed: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if "\0" in name or "\0" in value:
            raise InvalidRequest.at(f"?{name[:64]}", "holds a NUL character")
        if prefix and name.startswith(prefix) and len(name) > len(prefix):
            prefixed[name.removeprefix(prefix)] = value
        elif name in known:
            values.setdefault(name, []).append(value)
        else:
            text = f"is not a known parameter{nearest(name, frozenset(known))}"
            raise InvalidRequest(
                f"{name[:64]}: {text}", code="unknown_field", faults=(FieldFault(f"?{name[:64]}", text),)
            )
    return Query(values, prefixed)


def preferred_wait(request: Request) -> int | None:
    """Give the seconds of `Prefer: wait=N`, at most 60; null without. What is not understood is passed over."""
    for line in request.headers.getlist("prefer"):
        for part in line.split(","):
            found = _WAIT.fullmatch(part.partition(";")[0])
            if found:
                return min(int(found.group(1)), LONGEST_PREFERRED_WAIT)
    return None


def idempotency_key(request: Request) -> str | None:
    """Give the `Idempotency-Key`; raises `InvalidRequest` when it is empty, too long or not printable."""
    key = request.headers.get("idempotency-key")
    if key is not None and _IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise InvalidRequest("Idempotency-Key: has to be 1 to 255 printable ASCII characters")
    return key


def accepted(request: Request, offered: tuple[str, ...]) -> str:
    """Give the offered media type that `Accept` likes best, the first on a tie.

    Raises `InvalidRequest` (`not_acceptable`) when none will do.
    """
    header = ",".join(request.headers.getlist("accept"))
    if not header.strip():
        return offered[0]
    ranges = [_media_range(part) for part in header.split(",") if part.strip()]
    best = max(offered, key=lambda kind: _liking(kind, ranges))
    if _liking(best, ranges)[0] <= 0:
        raise InvalidRequest(f"This comes as {' or '.join(offered)}.", code="not_acceptable")
    return best


def _media_range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return kind, float(value)
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _liking(kind: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """Give the weight of a media type and how closely it was named."""
    family = kind.partition("/")[0] + "/*"
    for closeness, name in ((2, kind), (1, family), (0, "*/*")):
        for wanted, weight in ranges:
            if wanted == name:
                return weight, closeness
    return 0.0, 0


def etag_matches(request: Request, etag: str) -> bool:
    """Say whether `If-None-Match` names this tag."""
    for line in request.headers.getlist("if-none-match"):
        for part in line.split(","):
            if part.strip() == "*" or part.strip().removeprefix("W/") == etag:
                return True
    return False
