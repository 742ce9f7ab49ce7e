"""The client: one method for each route, and streams that are opened again when they break."""

import ipaddress
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx2

from steadyhand.client.server_sent_events import parse_server_sent_events
from steadyhand.errors import (
    CallerError,
    Conflict,
    FieldError,
    Forbidden,
    InvalidRequest,
    NotFound,
    RetryLater,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)

DEFAULT_URL = "http://127.0.0.1:8080"
ENDED_STATES = frozenset({"completed", "failed", "timeout", "cancelled", "interrupted", "error"})
"""The states of an ended job: only a request changes it again."""

_CONNECT_TIMEOUT_SECONDS = 5.0
_RESPONSE_TIMEOUT_SECONDS = 60.0
_STREAM_READ_TIMEOUT_SECONDS = 35.0  # the service sends bytes on a stream at least every 10 s
_MAX_PREFER_WAIT_SECONDS = 30  # of one `Prefer: wait`; the service takes up to 60
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.1, 2.0
_STABLE_STREAM_SECONDS = 1.0  # a stream that lasted this long was a good one

_ERROR_BY_STATUS: Mapping[int, type[CallerError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    406: InvalidRequest,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RetryLater,
    503: RetryLater,
}


class Client:
    """A connection to one service. Use it as a context manager, or `close` it; do not share it between threads.

    `token` is sent as the bearer key. If the service becomes unreachable, `events` and `wait` try again for
    `patience_seconds` before they raise `Unreachable`; each received byte starts this time anew. If the service never
    answered, they raise at once.
    """

    def __init__(
        self, base_url: str = DEFAULT_URL, token: str | None = None, *, patience_seconds: float = 30.0
    ) -> None:
        try:
            url = httpx2.URL(base_url)
        except (httpx2.InvalidURL, TypeError) as error:
            raise InvalidRequest(f"{base_url!r} is not the address of a service.") from error
        if url.scheme not in {"http", "https"} or not url.host:
            raise InvalidRequest(
                f"{base_url!r} is not the address of a service: it needs http:// or https://."
            )
        self.base_url = base_url.rstrip("/")
        self.local = _is_loopback(url.host)
        self._reconnect_seconds = patience_seconds
        self._has_connected = False
        headers = {"authorization": f"Bearer {_validate_token(token)}"} if token else {}
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx2.Timeout(_RESPONSE_TIMEOUT_SECONDS, connect=_CONNECT_TIMEOUT_SECONDS),
            trust_env=not self.local,  # no proxy between this machine and itself
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- submitting and changing jobs ------------------------------------------------------

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Submit a job and return it as accepted; `fields` are those of `POST /v1/jobs`, without those that are `None`.

        The request is safe if the connection breaks: it always has an idempotency key, which is generated if you pass
        none, and is sent once more with the same key.
        """
        body = {"prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        try:
            return self._request_json("POST", "/v1/jobs", json=body, headers=headers)
        except ServiceUnreachable as error:
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | None):
                raise  # the service did not get the first request
            return self._request_json("POST", "/v1/jobs", json=body, headers=headers)

    def retry(self, job_id: str, *, after_run: int | None = None) -> dict[str, Any]:
        """Start a new run of an ended job and return the job; with `after_run`, a repeated request has no effect."""
        body = {} if after_run is None else {"after_run": after_run}
        return self._request_json("POST", f"/v1/jobs/{_job_path_segment(job_id)}/retry", json=body)

    def resume(
        self,
        job_id: str,
        *,
        after_run: int | None = None,
        budget_usd: float | None = None,
        prompt: str | None = None,
    ) -> dict[str, Any]:
        """Resume an ended job in its session and checkout and return it, with another budget or a prompt if set."""
        fields = {"after_run": after_run, "budget_usd": budget_usd, "prompt": prompt}
        body = {name: value for name, value in fields.items() if value is not None}
        return self._request_json("POST", f"/v1/jobs/{_job_path_segment(job_id)}/resume", json=body)

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it; an ended job does not change."""
        return self._request_json("POST", f"/v1/jobs/{_job_path_segment(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        """Delete an ended job and all its files."""
        self._request("DELETE", f"/v1/jobs/{_job_path_segment(job_id)}")

    # --- reading ---------------------------------------------------------------------------

    def get(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return self._request_json("GET", f"/v1/jobs/{_job_path_segment(job_id)}")

    def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Return a job when it has ended, or as it is after `timeout_seconds` (`None` waits without a limit)."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        backoff = _Backoff(self._reconnect_seconds if self._has_connected else 0)
        while True:
            remaining = (
                _MAX_PREFER_WAIT_SECONDS
                if deadline is None
                else min(_MAX_PREFER_WAIT_SECONDS, deadline - time.monotonic())
            )
            # Whole seconds only, so the rest of a short wait is polled.
            prefer = {"prefer": f"wait={int(remaining)}"} if remaining >= 1 else {}
            try:
                job = self._request_json("GET", f"/v1/jobs/{_job_path_segment(job_id)}", headers=prefer)
            except ServiceUnreachable as error:
                backoff.sleep_or_raise(error)
                continue
            backoff.reset(self._reconnect_seconds)
            if job.get("state") in ENDED_STATES:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                return job
            if not prefer:
                time.sleep(_MIN_PAUSE_SECONDS)

    def diff(self, job_id: str) -> bytes:
        """Return the changes of an ended job as a patch for `git apply`."""
        return self._request(
            "GET", f"/v1/jobs/{_job_path_segment(job_id)}/diff", headers={"accept": "text/x-diff"}
        ).content

    def bundle(self, job_id: str) -> bytes:
        """Return the job's commits as a git bundle."""
        return self._request(
            "GET", f"/v1/jobs/{_job_path_segment(job_id)}/bundle", headers={"accept": "*/*"}
        ).content

    def transcript(self, job_id: str) -> bytes:
        """Return the transcript of an ended job: one JSON object a line."""
        return self._request(
            "GET", f"/v1/jobs/{_job_path_segment(job_id)}/transcript", headers={"accept": "*/*"}
        ).content

    def agents(self) -> Sequence[dict[str, Any]]:
        """Return the agents that callers can name, with their limits."""
        return _rows(self._request_json("GET", "/v1/agents"))

    def workspaces(self) -> Sequence[dict[str, Any]]:
        """Return the workspaces that callers can name."""
        return _rows(self._request_json("GET", "/v1/workspaces"))

    def events(self, job_id: str, *, after: int = 0, follow: bool = True) -> Iterator[dict[str, Any]]:
        """Yield a job's events after number `after`, as they happen, until the job has ended.

        Without `follow`, yield only the events that exist now. A broken connection is opened again after the last
        numbered event, so each of those comes once; parts of a text that was in progress (`seq` is null) are lost then.
        """
        if not follow:
            yield from self._list_events(job_id, after)
            return
        backoff = _Backoff(self._reconnect_seconds if self._has_connected else 0)
        position = _StreamPosition(after)
        while not position.ended:
            first_contact, position.opened_at = not self._has_connected, None
            stream_error = ServiceUnreachable("The stream of events ended early several times.")
            try:
                for event in self._stream_events(job_id, position):
                    backoff.reset(self._reconnect_seconds)
                    yield event
            except ServiceUnreachable as error:
                stream_error = error
            if position.opened_at is not None and (
                first_contact or time.monotonic() - position.opened_at > _STABLE_STREAM_SECONDS
            ):
                backoff.reset(self._reconnect_seconds)  # the service answered, though nothing happened
            if not position.ended:
                backoff.sleep_or_raise(stream_error)

    def list(self, *, limit: int = 20, cursor: str | None = None, **filters: Any) -> dict[str, Any]:
        """Return a page of jobs, newest first: `data`, `has_more` and the `next_cursor` of the page after it.

        `filters` are the query parameters of `GET /v1/jobs`; a sequence repeats one, `None` leaves it out.
        """
        query = {"limit": limit, "cursor": cursor, **filters}
        return self._request_json("GET", "/v1/jobs", params={k: v for k, v in query.items() if v is not None})

    # --- keys ------------------------------------------------------------------------------

    def list_keys(self) -> Sequence[dict[str, Any]]:
        """Return every key of the service, without their secrets. All methods for keys need the scope `admin`."""
        return _rows(self._request_json("GET", "/v1/keys"))

    def create_key(
        self, name: str, *, scopes: Sequence[str] | None = None, strict: bool = False, **limits: Any
    ) -> dict[str, Any]:
        """Create a key and return it with its `secret`, shown only once; `limits` are those of `POST /v1/keys`.

        With `strict` an agent that is not known and the name of another valid key are refused.
        """
        body: dict[str, Any] = {"name": name}
        if scopes is not None:
            body["scopes"] = tuple(scopes)
        if key_limits := {name: value for name, value in limits.items() if value is not None}:
            body["limits"] = key_limits
        if strict:
            body["strict"] = True
        return self._request_json("POST", "/v1/keys", json=body)

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        """Revoke a key at once and return it."""
        return self._request_json("DELETE", f"/v1/keys/{_key_path_segment(key_id)}")

    def rotate_key(self, key_id: str, *, grace_seconds: float = 0) -> dict[str, Any]:
        """Return a key with a new `secret`; the old one ends at once, or after `grace_seconds`."""
        body = {"grace_seconds": grace_seconds}
        return self._request_json("POST", f"/v1/keys/{_key_path_segment(key_id)}/rotate", json=body)

    def usage(self, *, by: Sequence[str] = (), **filters: Any) -> Sequence[dict[str, Any]]:
        """Return usage and cost, one row for each group of `by`; `filters` are the parameters of `GET /v1/usage`."""
        query = {"by": tuple(by), "limit": 1000, **{k: v for k, v in filters.items() if v is not None}}
        rows: Sequence[dict[str, Any]] = []
        while True:
            page = self._request_json("GET", "/v1/usage", params=query)
            rows = [*rows, *_rows(page)]
            if not page.get("has_more"):
                return rows
            query["cursor"] = page.get("next_cursor")

    # --- HTTP ------------------------------------------------------------------------------

    def _request_json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._request(method, path, **options)
        try:
            body = response.json()
        except (ValueError, RecursionError) as error:
            raise self._bad_answer_error(response.status_code) from error
        if not isinstance(body, dict):
            raise self._bad_answer_error(response.status_code)
        return body

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise self._unreachable_error(error) from error
        except (
            TypeError,
            ValueError,
        ) as error:  # NaN, a lone surrogate, or another value without a form in JSON
            raise InvalidRequest("The request contains a value that JSON cannot represent.") from error
        if not response.is_success:
            raise self._parse_error(response)
        self._has_connected = True
        return response

    def _list_events(self, job_id: str, after: int) -> Iterator[dict[str, Any]]:
        path, accept = f"/v1/jobs/{_job_path_segment(job_id)}/events", {"accept": "application/json"}
        has_more = True
        while has_more:
            page = self._request_json("GET", path, params={"after": after}, headers=accept)
            events = _rows(page)
            yield from events
            has_more = bool(events) and page.get("has_more") is True
            after = max(
                (event["seq"] for event in events if isinstance(event.get("seq"), int)), default=after
            )

    def _stream_events(self, job_id: str, position: "_StreamPosition") -> Iterator[dict[str, Any]]:
        """Yield the events of one connection, and record the progress in `position`."""
        headers = {"accept": "text/event-stream"}
        if position.after:
            headers["last-event-id"] = str(position.after)
        timeout = httpx2.Timeout(
            _RESPONSE_TIMEOUT_SECONDS, connect=_CONNECT_TIMEOUT_SECONDS, read=_STREAM_READ_TIMEOUT_SECONDS
        )
        path = f"/v1/jobs/{_job_path_segment(job_id)}/events"
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise self._parse_error(response)
                self._has_connected, position.opened_at = True, time.monotonic()
                last_event = None
                for event in parse_server_sent_events(response.iter_bytes()):
                    if isinstance(event.get("seq"), int):
                        position.after, last_event = event["seq"], event
                    yield event
                position.ended = response.status_code == HTTPStatus.NO_CONTENT or (
                    last_event is not None and _is_final_event(last_event)
                )
        except httpx2.HTTPError as error:
            raise self._unreachable_error(error) from error

    def _unreachable_error(self, error: httpx2.HTTPError) -> ServiceUnreachable:
        reason = str(error) or type(error).__name__
        return ServiceUnreachable(f"No answer from {self.base_url}: {reason}.")

    def _bad_answer_error(self, status: int) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"{self.base_url} answered {status} with a body that is not Steadyhand's.", code="bad_answer"
        )

    def _parse_error(self, response: httpx2.Response) -> SteadyhandError:
        """Return the error that an error body describes."""
        try:
            body = response.json()
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or "detail" not in body:
            return self._bad_answer_error(response.status_code)
        detail, code = str(body["detail"]), str(body.get("code") or "internal")
        error_class = _ERROR_BY_STATUS.get(response.status_code)
        if error_class is InvalidRequest:
            return InvalidRequest(detail, code=code, field_errors=_parse_field_errors(body.get("errors")))
        if error_class is RetryLater:
            return RetryLater(
                detail, code=code, retry_after=_parse_retry_after(response.headers.get("retry-after"))
            )
        if error_class is not None:
            return error_class(detail, code=code)
        code = "internal" if body.get("code") == "internal" else "bad_answer"
        return ServiceUnreachable(f"{self.base_url} answered {response.status_code}: {detail}", code=code)


@dataclass(slots=True)
class _StreamPosition:
    """The progress of a follower: the last event number, and whether the stream is complete.

    `opened_at` is the start of the newest stream on the monotonic clock; `None` if no stream was opened.
    """

    after: int
    ended: bool = False
    opened_at: float | None = None


class _Backoff:
    """Pauses between attempts, each longer than the last, until the time without an answer exceeds its limit."""

    def __init__(self, seconds: float) -> None:
        self.reset(seconds)

    def reset(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause_seconds = _MIN_PAUSE_SECONDS

    def sleep_or_raise(self, error: SteadyhandError) -> None:
        """Sleep, or raise the error if the time is over."""
        if time.monotonic() + self._pause_seconds > self._deadline:
            raise error
        time.sleep(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 2, _MAX_PAUSE_SECONDS)


def _is_final_event(event: Mapping[str, Any]) -> bool:
    data = event.get("data")
    return event.get("type") == "state.changed" and isinstance(data, dict) and data.get("to") in ENDED_STATES


def _rows(document: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    data = document.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, Sequence) else []


def _parse_field_errors(errors: object) -> tuple[FieldError, ...]:
    if not isinstance(errors, Sequence):
        return ()
    return tuple(
        FieldError(str(entry.get("pointer", "")), str(entry.get("detail", "")))
        for entry in errors
        if isinstance(entry, dict)
    )


def _parse_retry_after(value: str | None) -> int:
    return int(value) if value is not None and value.isascii() and value.isdigit() else 1


def _job_path_segment(job_id: str) -> str:
    """Return an id that is safe as one part of a path. Raise `NotFound` if it is no id."""
    if not (job_id.isascii() and job_id.isalnum()):
        raise NotFound(f"{job_id!r} is not the id of a job.")
    return job_id


def _key_path_segment(key_id: str) -> str:
    if not (key_id.isascii() and key_id.replace("_", "").isalnum()):
        raise NotFound(f"{key_id!r} is not the id of a key.")
    return key_id


def _validate_token(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise InvalidRequest("The key contains characters that no key has.")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
