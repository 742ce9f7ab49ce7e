"""The errors of answers that are no success, of the service or of a proxy before it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

from steadyhand.errors import (
    CallerError,
    Conflict,
    FieldError,
    Forbidden,
    InvalidRequest,
    NotFound,
    QueryTooSlow,
    RetryLater,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)

ErrorT = TypeVar("ErrorT", bound=SteadyhandError)

BAD_ANSWER = "bad_answer"

_ERROR_BY_STATUS: Mapping[int, type[CallerError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    406: InvalidRequest,
    408: RetryLater,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RetryLater,
    503: RetryLater,
}
_ERROR_BY_CODE: Mapping[str, type[CallerError]] = {"query_too_slow": QueryTooSlow}
"""Codes of another error than their status."""
_MAX_RETRY_AFTER_DIGITS = 9


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer: its status, its headers with names in lower case, and its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """True for a status of 200 to 299."""
        return 200 <= self.status < 300  # noqa: PLR2004  # the class of success


def lower_case_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers by their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def parse_object(response: HttpResponse, base_url: str) -> dict[str, Any]:
    """Return the JSON object of an answer. Raise `ServiceUnreachable` (`bad_answer`) if it has none."""
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError) as error:
        raise bad_answer(base_url, response) from error
    if not isinstance(body, dict):
        raise bad_answer(base_url, response)
    return body


def bad_answer(base_url: str, response: HttpResponse, reason: str = "") -> ServiceUnreachable:
    """Return the error of an answer that is not the service's; `reason` tells which part of it is not."""
    suffix = f" ({reason})" if reason else ""
    return _from_response(
        ServiceUnreachable(
            f"{base_url} answered {response.status} with a body that is not Steadyhand's{suffix}.",
            code=BAD_ANSWER,
        ),
        response,
    )


def response_error(response: HttpResponse, base_url: str) -> SteadyhandError | None:
    """Return the error that an answer describes; `None` for a success."""
    if response.is_success:
        return None
    try:
        body = json.loads(response.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or "detail" not in body:
        return _foreign_error(response, base_url)
    return _from_response(_error_of_body(response, body, base_url), response)


def _foreign_error(response: HttpResponse, base_url: str) -> SteadyhandError:
    """Return the error of an answer that is not the service's own; a proxy may refuse a request for now, too."""
    error = bad_answer(base_url, response)
    seconds = retry_after_seconds(response)
    if (
        response.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
        or seconds is None
    ):
        return error
    return _from_response(RetryLater(error.detail, code=BAD_ANSWER, retry_after=seconds), response)


def _error_of_body(response: HttpResponse, body: Mapping[str, Any], base_url: str) -> SteadyhandError:
    detail, code = str(body["detail"]), str(body.get("code") or "internal")
    error_class = _ERROR_BY_CODE.get(code) or _ERROR_BY_STATUS.get(response.status)
    if error_class is InvalidRequest:
        return InvalidRequest(detail, code=code, field_errors=_parse_field_errors(body.get("errors")))
    if error_class is RetryLater:
        return RetryLater(detail, code=code, retry_after=retry_after_seconds(response) or 1)
    if error_class is not None:
        return error_class(detail, code=code)
    code = "internal" if body.get("code") == "internal" else BAD_ANSWER
    return ServiceUnreachable(f"{base_url} answered {response.status}: {detail}", code=code)


def _from_response(error: ErrorT, response: HttpResponse) -> ErrorT:
    error.status = response.status
    error.request_id = response.headers.get("x-request-id")
    return error


def retry_after_seconds(response: HttpResponse) -> int | None:
    """Return the seconds of `Retry-After`, which may also be a date; `None` if there is none that can be read."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return int(value) if len(value) <= _MAX_RETRY_AFTER_DIGITS else 10**_MAX_RETRY_AFTER_DIGITS
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, round((moment - datetime.now(UTC)).total_seconds()))


def _parse_field_errors(errors: object) -> tuple[FieldError, ...]:
    if not isinstance(errors, Sequence):
        return ()
    return tuple(
        FieldError(str(entry.get("pointer", "")), str(entry.get("detail", "")))
        for entry in errors
        if isinstance(entry, dict)
    )
