"""The Python client of the service: blocking, small, and of no opinion about what it is used for.

    with Client("http://127.0.0.1:8080", token) as client:
        job = client.submit("Fix the failing test.", workspace="infra", budget_usd=2.0)
        for event in client.events(job["id"]):
            print(event["type"], event["data"])
        print(client.get(job["id"])["answer"])

Jobs, events, agents and workspaces are the JSON objects of the HTTP contract, as they came. Errors are those
of `steadyhand.errors`: `InvalidRequest`, `Unauthenticated`, `Forbidden`, `NotFound`, `Conflict`, `TryLater`
and, when no service answers, `Unreachable`.
"""

import ipaddress
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx2

from steadyhand.errors import (
    CallerError,
    Conflict,
    FieldFault,
    Forbidden,
    InvalidRequest,
    NotFound,
    SteadyhandError,
    TryLater,
    Unauthenticated,
    Unreachable,
)

__all__ = ["DEFAULT_URL", "ENDED_STATES", "Client"]

DEFAULT_URL = "http://127.0.0.1:8080"
ENDED_STATES = frozenset({"completed", "failed", "timeout", "cancelled", "interrupted", "error"})
"""The states in which nothing more happens to a job unless somebody asks for it."""

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_SILENCE_SECONDS = 35.0  # the service says something on a stream at least every 10 s
_LONGEST_WAIT = 30  # of one `Prefer: wait`; the service takes up to 60
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_STEADY_SECONDS = 1.0  # a stream that held this long was a good one
_LINE_LIMIT = 32 * 1024 * 1024

_BY_STATUS: Mapping[int, type[CallerError]] = {
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
    429: TryLater,
    503: TryLater,
}


class Client:
    """A connection to one service. Use it as a context manager, or `close` it; not shared between threads.

    `token` is sent as the bearer key. `patience_seconds` bounds how long `events` and `wait` put up with a
    service that can no longer be reached before they raise `Unreachable`; each time something is heard it
    starts anew. With a service that never answered there is no patience.
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
        self._patience = patience_seconds
        self._heard = False
        headers = {"authorization": f"Bearer {_header_safe(token)}"} if token else {}
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            trust_env=not self.local,  # a proxy has no business between this machine and itself
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    # --- asking for work -------------------------------------------------------------------

    def submit(self, prompt: str, *, idempotency_key: str | None = None, **fields: Any) -> dict[str, Any]:
        """Ask for a job and give it as accepted; `fields` are those of `POST /v1/jobs`, null ones are left out.

        It is safe against a connection that breaks: without a key of yours one is made up, and the request is
        sent again once with the same key.
        """
        body = {"prompt": prompt, **{name: value for name, value in fields.items() if value is not None}}
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        try:
            return self._object("POST", "/v1/jobs", json=body, headers=headers)
        except Unreachable as error:
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | None):
                raise  # nobody heard it the first time
            return self._object("POST", "/v1/jobs", json=body, headers=headers)

    def retry(self, job_id: str, *, after_run: int | None = None) -> dict[str, Any]:
        """Ask for a new run of an ended job; with `after_run` a repeat of the request does nothing more."""
        body = {} if after_run is None else {"after_run": after_run}
        return self._object("POST", f"/v1/jobs/{_part(job_id)}/retry", json=body)

    def resume(
        self,
        job_id: str,
        *,
        after_run: int | None = None,
        budget_usd: float | None = None,
        prompt: str | None = None,
    ) -> dict[str, Any]:
        """Ask an ended job to go on in its session and checkout, perhaps with more to spend or something to say."""
        given = {"after_run": after_run, "budget_usd": budget_usd, "prompt": prompt}
        body = {name: value for name, value in given.items() if value is not None}
        return self._object("POST", f"/v1/jobs/{_part(job_id)}/resume", json=body)

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask a job to stop and give it as it then is; one that has ended stays as it is."""
        return self._object("POST", f"/v1/jobs/{_part(job_id)}/cancel")

    def delete(self, job_id: str) -> None:
        """Forget an ended job and all that was kept of it."""
        self._send("DELETE", f"/v1/jobs/{_part(job_id)}")

    # --- looking ---------------------------------------------------------------------------

    def get(self, job_id: str) -> dict[str, Any]:
        """Give a job."""
        return self._object("GET", f"/v1/jobs/{_part(job_id)}")

    def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Give a job when it has ended, or as it is after `timeout_seconds` (null waits as long as it takes)."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        patience = _Patience(self._patience if self._heard else 0)
        while True:
            left = _LONGEST_WAIT if deadline is None else min(_LONGEST_WAIT, deadline - time.monotonic())
            # Whole seconds only, so the last stretch of a short wait is spent in small looks.
            prefer = {"prefer": f"wait={int(left)}"} if left >= 1 else {}
            try:
                job = self._object("GET", f"/v1/jobs/{_part(job_id)}", headers=prefer)
            except Unreachable as error:
                patience.spend(error)
                continue
            patience.renew(self._patience)
            if job.get("state") in ENDED_STATES:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                return job
            if not prefer:
                time.sleep(_FIRST_PAUSE)

    def diff(self, job_id: str) -> bytes:
        """Give what an ended job changed, as `git apply` takes it."""
        return self._send("GET", f"/v1/jobs/{_part(job_id)}/diff", headers={"accept": "text/x-diff"}).content

    def bundle(self, job_id: str) -> bytes:
        """Give the job's commits as a git bundle."""
        return self._send("GET", f"/v1/jobs/{_part(job_id)}/bundle", headers={"accept": "*/*"}).content

    def transcript(self, job_id: str) -> bytes:
        """Give the agent's own record of an ended job: one JSON object a line."""
        return self._send("GET", f"/v1/jobs/{_part(job_id)}/transcript", headers={"accept": "*/*"}).content

    def agents(self) -> Sequence[dict[str, Any]]:
        """Give the agents that can be asked for, with their limits."""
        return _rows(self._object("GET", "/v1/agents"))

    def workspaces(self) -> Sequence[dict[str, Any]]:
        """Give the workspaces that can be asked for."""
        return _rows(self._object("GET", "/v1/workspaces"))

    def events(self, job_id: str, *, after: int = 0, follow: bool = True) -> Iterator[dict[str, Any]]:
        """Follow a job's events from number `after` on, as they happen, until it has ended.

        Without `follow` only those that there are by now are given. A connection that breaks is taken up again
        after the last numbered event, so that each of those comes once; the pieces of text that were under way
        (`seq` null) are lost then.
        """
        if not follow:
            yield from self._so_far(job_id, after)
            return
        patience = _Patience(self._patience if self._heard else 0)
        place = _Place(after)
        while not place.over:
            strange, place.opened = not self._heard, None
            broken = Unreachable("The stream of events broke off again and again.")
            try:
                for event in self._stream(job_id, place):
                    patience.renew(self._patience)
                    yield event
            except Unreachable as error:
                broken = error
            if place.opened is not None and (strange or time.monotonic() - place.opened > _STEADY_SECONDS):
                patience.renew(self._patience)  # it was there, though nothing happened
            if not place.over:
                patience.spend(broken)

    def list(self, *, limit: int = 20, cursor: str | None = None, **filters: Any) -> dict[str, Any]:
        """Give a page of jobs, newest first: `data`, `has_more` and the `next_cursor` to go on with.

        `filters` are the query parameters of `GET /v1/jobs`; a sequence repeats one, null leaves it out.
        """
        query = {"limit": limit, "cursor": cursor, **filters}
        return self._object("GET", "/v1/jobs", params={k: v for k, v in query.items() if v is not None})

    # --- keys ------------------------------------------------------------------------------

    def list_keys(self) -> Sequence[dict[str, Any]]:
        """Give every key of the service, without their secrets; needs the scope `admin`, as all of these."""
        return _rows(self._object("GET", "/v1/keys"))

    def create_key(self, name: str, *, scopes: Sequence[str] | None = None, **limits: Any) -> dict[str, Any]:
        """Make a key and give it with its `secret`, told this once; `limits` are those of `POST /v1/keys`."""
        body: dict[str, Any] = {"name": name}
        if scopes is not None:
            body["scopes"] = tuple(scopes)
        if bounds := {name: value for name, value in limits.items() if value is not None}:
            body["limits"] = bounds
        return self._object("POST", "/v1/keys", json=body)

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        """End a key at once and give it as it then is."""
        return self._object("DELETE", f"/v1/keys/{_key_part(key_id)}")

    def rotate_key(self, key_id: str, *, grace_seconds: float = 0) -> dict[str, Any]:
        """Give a key a new `secret`; the old one ends at once, or after `grace_seconds`."""
        body = {"grace_seconds": grace_seconds}
        return self._object("POST", f"/v1/keys/{_key_part(key_id)}/rotate", json=body)

    def usage(self, *, by: Sequence[str] = (), **filters: Any) -> Sequence[dict[str, Any]]:
        """Give what was spent, a row for each group of `by`; `filters` are the parameters of `GET /v1/usage`."""
        query = {"by": tuple(by), "limit": 1000, **{k: v for k, v in filters.items() if v is not None}}
        rows: Sequence[dict[str, Any]] = []
        while True:
            page = self._object("GET", "/v1/usage", params=query)
            rows = [*rows, *_rows(page)]
            if not page.get("has_more"):
                return rows
            query["cursor"] = page.get("next_cursor")

    # --- underneath ------------------------------------------------------------------------

    def _object(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = self._send(method, path, **options)
        try:
            body = response.json()
        except (ValueError, RecursionError) as error:
            raise self._foreign(response.status_code) from error
        if not isinstance(body, dict):
            raise self._foreign(response.status_code)
        return body

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        except (TypeError, ValueError) as error:  # NaN, a lone surrogate, what JSON has no word for
            raise InvalidRequest("The request holds something that JSON cannot say.") from error
        if not response.is_success:
            raise self._error(response)
        self._heard = True
        return response

    def _so_far(self, job_id: str, after: int) -> Iterator[dict[str, Any]]:
        path, accept = f"/v1/jobs/{_part(job_id)}/events", {"accept": "application/json"}
        more = True
        while more:
            page = self._object("GET", path, params={"after": after}, headers=accept)
            events = _rows(page)
            yield from events
            more = bool(events) and page.get("has_more") is True
            after = max(
                (event["seq"] for event in events if isinstance(event.get("seq"), int)), default=after
            )

    def _stream(self, job_id: str, place: "_Place") -> Iterator[dict[str, Any]]:
        """Give the events of one connection; `place` knows how far it came and whether that was all."""
        headers = {"accept": "text/event-stream"}
        if place.after:
            headers["last-event-id"] = str(place.after)
        timeout = httpx2.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS, read=_SILENCE_SECONDS)
        path = f"/v1/jobs/{_part(job_id)}/events"
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise self._error(response)
                self._heard, place.opened = True, time.monotonic()
                last = None
                for event in _server_sent(response.iter_bytes()):
                    if isinstance(event.get("seq"), int):
                        place.after, last = event["seq"], event
                    yield event
                place.over = response.status_code == HTTPStatus.NO_CONTENT or (
                    last is not None and _ends(last)
                )
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx2.HTTPError) -> Unreachable:
        why = str(error) or type(error).__name__
        return Unreachable(f"No answer from {self.base_url}: {why}.")

    def _foreign(self, status: int) -> Unreachable:
        return Unreachable(
            f"{self.base_url} answered {status} with something that is not Steadyhand's.", code="bad_answer"
        )

    def _error(self, response: httpx2.Response) -> SteadyhandError:
        """Make the error that the contract's one error body speaks of."""
        try:
            body = response.json()
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or "detail" not in body:
            return self._foreign(response.status_code)
        detail, code = str(body["detail"]), str(body.get("code") or "internal")
        kind = _BY_STATUS.get(response.status_code)
        if kind is InvalidRequest:
            return InvalidRequest(detail, code=code, faults=_faults(body.get("errors")))
        if kind is TryLater:
            return TryLater(detail, code=code, retry_after=_seconds(response.headers.get("retry-after")))
        if kind is not None:
            return kind(detail, code=code)
        code = "internal" if body.get("code") == "internal" else "bad_answer"
        return Unreachable(f"{self.base_url} answered {response.status_code}: {detail}", code=code)


@dataclass(slots=True)
class _Place:
    """How far a follower has come: the last number seen, and whether there is nothing more to come.

    `opened` is when the newest stream began, on the monotonic clock; null when it did not.
    """

    after: int
    over: bool = False
    opened: float | None = None


class _Patience:
    """Pauses between attempts, longer each time, until too long has passed since something was heard."""

    def __init__(self, seconds: float) -> None:
        self.renew(seconds)

    def renew(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE

    def spend(self, error: SteadyhandError) -> None:
        """Pause, or raise the error when there is no patience left."""
        if time.monotonic() + self._pause > self._deadline:
            raise error
        time.sleep(self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


def _server_sent(chunks: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Read server-sent events whose data is one JSON object; comments and unknown fields are skipped.

    Split at line feeds only: the JSON may hold characters that Unicode counts as line ends.
    """
    data: list[bytes] = []
    for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            try:
                event = json.loads(b"\n".join(data))
            except (ValueError, RecursionError) as error:
                raise Unreachable(
                    "The stream of events held something unreadable.", code="bad_answer"
                ) from error
            data.clear()
            if isinstance(event, dict):
                yield event


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*held, line]).removesuffix(b"\r")
            held.clear()
            size = 0
        if rest:
            held.append(rest)
            size += len(rest)
        if size > _LINE_LIMIT:
            raise Unreachable("The stream of events held a line without end.", code="bad_answer")


def _ends(event: Mapping[str, Any]) -> bool:
    data = event.get("data")
    return event.get("type") == "state.changed" and isinstance(data, dict) and data.get("to") in ENDED_STATES


def _rows(document: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    data = document.get("data")
    return [row for row in data if isinstance(row, dict)] if isinstance(data, Sequence) else []


def _faults(errors: object) -> tuple[FieldFault, ...]:
    if not isinstance(errors, Sequence):
        return ()
    return tuple(
        FieldFault(str(each.get("pointer", "")), str(each.get("detail", "")))
        for each in errors
        if isinstance(each, dict)
    )


def _seconds(value: str | None) -> int:
    return int(value) if value is not None and value.isascii() and value.isdigit() else 1


def _part(job_id: str) -> str:
    """Give an id that is safe as one part of a path; nothing else is an id."""
    if not (job_id.isascii() and job_id.isalnum()):
        raise NotFound(f"{job_id!r} is not the id of a job.")
    return job_id


def _key_part(key_id: str) -> str:
    if not (key_id.isascii() and key_id.replace("_", "").isalnum()):
        raise NotFound(f"{key_id!r} is not the id of a key.")
    return key_id


def _header_safe(token: str) -> str:
    if not token.isascii() or not token.isprintable():
        raise InvalidRequest("The key holds characters that no key has.")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
