"""Request parameters beside the body: query, `Prefer`, `Accept`, `If-None-Match`, `Idempotency-Key`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from starlette.requests import Request

from steadyhand.api.schemas.field_types import parse_time
from steadyhand.api.schemas.route_table import PathParam
from steadyhand.api.transport.body import did_you_mean
from steadyhand.errors import FieldError, InvalidRequest, NotFound

MAX_PREFERRED_WAIT_SECONDS = 60
"""Seconds; a longer wait is cut to this."""
_JOB_ID = re.compile(r"[0-9a-f]{12}")
_WAIT = re.compile(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*', re.IGNORECASE)
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_MAX_DIGITS = 18


JobId = Annotated[str, PathParam("The job's id: 12 lower-case hexadecimal digits.")]


def validate_job_id(job_id: str) -> str:
    """Return a job's id from the path; raise `NotFound` if it cannot be one."""
    if _JOB_ID.fullmatch(job_id) is None:
        raise NotFound("Job not found")
    return job_id


@dataclass(frozen=True, slots=True)
class QueryParams:
    """The query parameters of a request by name. Errors point at `?name`."""

    values: Mapping[str, list[str]]
    prefixed: Mapping[str, str] = field(default_factory=dict)

    def get_all(self, name: str) -> list[str]:
        """Return every value of a repeatable parameter."""
        return self.values.get(name, [])

    def get_one(self, name: str) -> str | None:
        """Return the value of a parameter that may occur once."""
        values = self.get_all(name)
        if len(values) > 1:
            raise InvalidRequest.at(f"?{name}", "is there more than once")
        return values[0] if values else None

    def get_int(self, name: str, default: int, *, minimum: int, maximum: int, code: str | None = None) -> int:
        """Return an integer within bounds."""
        text = self.get_one(name)
        if text is None:
            return default
        return parse_int(text, f"?{name}", minimum=minimum, maximum=maximum, code=code)

    def get_datetime(self, name: str) -> datetime | None:
        """Return a time with its zone (RFC 3339), in UTC."""
        text = self.get_one(name)
        if text is None:
            return None
        try:
            # A plus sign that was not escaped arrives as a space.
            return parse_time(text.replace(" ", "+"))
        except (ValueError, OverflowError) as error:
            raise InvalidRequest.at(f"?{name}", "is not an RFC 3339 time with its zone") from error


def parse_int(text: str, pointer: str, *, minimum: int, maximum: int, code: str | None = None) -> int:
    """Parse an integer within bounds."""
    if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS and minimum <= int(text) <= maximum:
        return int(text)
    raise InvalidRequest.at(pointer, f"has to be a whole number from {minimum} to {maximum}", code=code)


def parse_query(request: Request, *known_names: str, prefix: str | None = None) -> QueryParams:
    """Parse the query parameters; raise `InvalidRequest` (`unknown_field`) for unknown ones.

    Parameters that begin with `prefix` are returned separately, by the rest of their names.
    """
    values: dict[str, list[str]] = {}
    prefixed: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if "\0" in name or "\0" in value:
            raise InvalidRequest.at(f"?{name[:64]}", "holds a NUL character")
        if prefix and name.startswith(prefix) and len(name) > len(prefix):
            prefixed[name.removeprefix(prefix)] = value
        elif name in known_names:
            values.setdefault(name, []).append(value)
        else:
            text = f"is not a known parameter{did_you_mean(name, frozenset(known_names))}"
            raise InvalidRequest(
                f"{name[:64]}: {text}",
                code="unknown_field",
                field_errors=(FieldError(f"?{name[:64]}", text),),
            )
    return QueryParams(values, prefixed)


def parse_preferred_wait(request: Request) -> int | None:
    """Return the seconds of `Prefer: wait=N`, at most 60, or None. Other preferences are ignored."""
    for line in request.headers.getlist("prefer"):
        for part in line.split(","):
            match = _WAIT.fullmatch(part.partition(";")[0])
            if match:
                return min(int(match.group(1)), MAX_PREFERRED_WAIT_SECONDS)
    return None


def parse_idempotency_key(request: Request) -> str | None:
    """Return the `Idempotency-Key`; raise `InvalidRequest` for several of them, or a text that cannot be one."""
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise InvalidRequest("Idempotency-Key: is there more than once")
    key = keys[0] if keys else None
    if key is not None and _IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise InvalidRequest("Idempotency-Key: has to be 1 to 255 printable ASCII characters")
    return key


def negotiate_media_type(request: Request, available_types: tuple[str, ...]) -> str:
    """Return the available media type that `Accept` prefers; of equal ones the first.

    Raise `InvalidRequest` (`not_acceptable`) if none is acceptable.
    """
    header = ",".join(request.headers.getlist("accept"))
    if not header.strip():
        return available_types[0]
    ranges = [_parse_media_range(part) for part in header.split(",") if part.strip()]
    best = max(available_types, key=lambda kind: _media_type_quality(kind, ranges))
    if _media_type_quality(best, ranges)[0] <= 0:
        raise InvalidRequest(f"This comes as {' or '.join(available_types)}.", code="not_acceptable")
    return best


def _parse_media_range(text: str) -> tuple[str, float]:
    media_range, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, float(value)
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _media_type_quality(media_type: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """Return the quality of a media type and the specificity of the range that matched it."""
    type_wildcard = media_type.partition("/")[0] + "/*"
    for specificity, name in ((2, media_type), (1, type_wildcard), (0, "*/*")):
        for media_range, quality in ranges:
            if media_range == name:
                return quality, specificity
    return 0.0, 0


def etag_matches(request: Request, etag: str) -> bool:
    """Return true if `If-None-Match` has this tag."""
    for line in request.headers.getlist("if-none-match"):
        for part in line.split(","):
            if part.strip() == "*" or part.strip().removeprefix("W/") == etag:
                return True
    return False
