"""The scripted model: an HTTP server on loopback that plays scenarios.

It speaks the Anthropic Messages API, and OpenAI's Responses and Chat Completions.

In a test: ``with ScriptedModel(scenario="ok") as model: ... model.url ...``; by hand:
``python -m steadyhand.testing.model --port 0 --scenario ok``, which prints its address on the first line.
It costs nothing, reaches nothing, and records every request for the test to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from steadyhand.testing import openai_wire, wire
from steadyhand.testing import scenario as scenarios
from steadyhand.testing.request import ModelRequest, Wire
from steadyhand.testing.responses_wire import ResponsesResponse
from steadyhand.testing.scenario import Failure, ModelTurn, Scenario

MAX_RECORDED_REQUESTS = 2000
MODELS = ("claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5")
OPENAI_MODELS = ("gpt-5.5", "gpt-5-mini")
_RESPONSES: dict[Wire, Callable[[ModelTurn, ModelRequest], wire.WireResponse]] = {
    "messages": wire.ModelResponse,
    "chat": openai_wire.ChatResponse,
    "responses": ResponsesResponse,
}


class ScriptedModel:
    """The server, in a thread of its own, on a free port of 127.0.0.1 or the one named.

    ``scenario`` is played if a prompt does not name one by ``[[scenario:NAME]]``. ``requests`` are the calls for an
    answer, oldest first (the last 2,000), ``side_requests`` those that the CLI makes for itself (titles and the like),
    ``other_requests`` the rest. ``conversation_totals`` are the tokens reported to the conversations' clients, by the
    names
    of the API, and ``all_totals`` those reported to all clients: of an answer that broke off only the part that was
    sent.
    """

    def __init__(
        self,
        scenario: str | Path | Scenario = "ok",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        record: bool = True,
    ) -> None:
        self.scenario = scenario if isinstance(scenario, Scenario) else scenarios.load(scenario)
        self._recording = record
        self._lock = threading.Lock()
        self._requests: deque[ModelRequest] = deque(maxlen=MAX_RECORDED_REQUESTS)
        self._side_requests: deque[ModelRequest] = deque(maxlen=MAX_RECORDED_REQUESTS)
        self._other_requests: deque[ModelRequest] = deque(maxlen=MAX_RECORDED_REQUESTS)
        self._conversation_totals: Counter[str] = Counter()
        self._all_totals: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()
        self._calls = 0
        self.valid_secrets: frozenset[str] | None = None
        """The credentials that are accepted; None accepts any. Others get 401."""
        self.closing = threading.Event()
        self._server = _Server((host, port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> Self:
        """Serve until ``close``, as ``with`` does."""
        return self.__enter__()

    def close(self) -> None:
        """Stop serving; streams that are still open are cut."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def url(self) -> str:
        """The address for ``ANTHROPIC_BASE_URL``."""
        host, port = self._server.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    @property
    def requests(self) -> list[ModelRequest]:
        """The calls for an answer, oldest first."""
        with self._lock:
            return list(self._requests)

    @property
    def side_requests(self) -> list[ModelRequest]:
        """The calls the CLI made for itself."""
        with self._lock:
            return list(self._side_requests)

    @property
    def other_requests(self) -> list[ModelRequest]:
        """Every request that did not ask for a message."""
        with self._lock:
            return list(self._other_requests)

    @property
    def calls(self) -> int:
        """The number of calls for an answer, retries included."""
        with self._lock:
            return self._calls

    @property
    def conversation_totals(self) -> dict[str, int]:
        """The tokens reported in the conversations' answers so far, by the API's names."""
        with self._lock:
            return dict(self._conversation_totals)

    @property
    def all_totals(self) -> dict[str, int]:
        """The tokens reported in all answers so far, also in those for the CLI itself."""
        with self._lock:
            return dict(self._all_totals)

    def clear(self) -> None:
        """Forget the recorded requests and the totals."""
        with self._lock:
            self._requests.clear()
            self._side_requests.clear()
            self._other_requests.clear()
            self._conversation_totals.clear()
            self._all_totals.clear()
            self._calls = 0

    def record(self, request: ModelRequest) -> None:
        """Record one request."""
        with self._lock:
            if request.wire is None:
                self._other_requests.append(request)
            elif request.is_side_request:
                self._side_requests.append(request)
            else:
                self._calls += 1
                if self._recording:
                    self._requests.append(request)

    def count_tokens(self, request: ModelRequest, usage: dict[str, int]) -> None:
        """Add the tokens of an answer to the totals; negative ones are subtracted."""
        with self._lock:
            for totals in (
                [self._all_totals]
                if request.is_side_request
                else [self._all_totals, self._conversation_totals]
            ):
                for name, count in usage.items():
                    totals[name] += count

    def turn_for(self, request: ModelRequest) -> ModelTurn | Failure:
        """Return the turn for a request, or the failure in its place."""
        if request.is_side_request:
            return wire.side_turn(request)
        try:
            name = scenarios.scenario_name(request)
            scenario = scenarios.load(name) if name else self.scenario
        except scenarios.ScenarioError as error:
            return Failure(status=400, type="invalid_request_error", message=str(error))
        turn = scenario.turn_for(request.turn_index)
        if scenario.structured:
            turn = scenarios.with_structured_output(request, turn)
        if turn.error and self._is_still_failing(scenario, request, turn.error):
            return turn.error
        if (
            turn.cut_after is not None
            and turn.cut_times
            and not self._is_among_first(turn.cut_times, request.retry_digest)
        ):
            return dataclasses.replace(turn, cut_after=None)
        return turn

    def _is_still_failing(self, scenario: Scenario, request: ModelRequest, failure: Failure) -> bool:
        if failure.once:
            return self._is_among_first(
                1, f"{scenario.name} {request.turn_index} {request.conversation_digest}"
            )
        return not failure.times or self._is_among_first(failure.times, request.retry_digest)

    def _is_among_first(self, first: int, key: str) -> bool:
        """Return whether this is one of the first requests with this key, up to the limit."""
        with self._lock:
            self._attempts[key] += 1
            return self._attempts[key] <= first


_OPENAI_PATHS = ("/v1/responses", "/v1/chat/")
_NO_ROUTE = Failure(status=404, type="not_found_error", message="no such route")
_NOT_JSON = Failure(status=400, type="invalid_request_error", message="the body is not JSON")
_INVALID_KEY = Failure(status=401, type="authentication_error", message="invalid x-api-key")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], model: ScriptedModel) -> None:
        self.model = model
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no traceback for a client that disconnects in the middle: some scenarios do this on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120
    server: _Server

    def do_GET(self) -> None:
        request = self._record_request({})
        if self._is_rejected(request):
            return
        if self.path.startswith("/v1/models"):
            self._list_models(request)
        else:
            self._fail(request, _NO_ROUTE)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            self._fail(self._record_request({}), _NOT_JSON)
            return
        request = self._record_request(body)
        if self._is_rejected(request):
            return
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            self._json(200, {"input_tokens": max(1, length // 4)})
        elif request.wire:
            self._respond(request, request.wire)
        else:
            self._fail(request, _NO_ROUTE)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Print nothing: the requests are recorded."""

    def _record_request(self, body: dict[str, Any]) -> ModelRequest:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ModelRequest(method=self.command, path=self.path, headers=headers, body=body)
        self.server.model.record(request)
        return request

    def _is_rejected(self, request: ModelRequest) -> bool:
        """Answer 401 and return True if the credential of a request is not valid."""
        valid = self.server.model.valid_secrets
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if valid is None or request.headers.get("x-api-key", bearer) in valid:
            return False
        self._fail(request, _INVALID_KEY)
        return True

    def _list_models(self, request: ModelRequest) -> None:
        """List the models in the form of the API that the headers are of."""
        if "authorization" in request.headers and "anthropic-version" not in request.headers:
            self._json(200, openai_wire.model_list(OPENAI_MODELS))
        else:
            self._json(200, wire.model_list(MODELS))

    def _respond(self, request: ModelRequest, kind: Wire) -> None:
        turn = self.server.model.turn_for(request)
        if isinstance(turn, Failure):
            self._fail(request, turn)
            return
        if turn.delay_seconds:
            self.server.model.closing.wait(turn.delay_seconds)
        message = _RESPONSES[kind](turn, request)
        if request.body.get("stream"):
            self._stream(message)
        elif message.is_cut:
            # The CLI asks again without streaming when streams keep breaking; that answer breaks as well.
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id":')
            self._break_off()
        else:
            with self._counted(request, message.usage):
                self._json(200, message.body())

    @contextlib.contextmanager
    def _counted(self, request: ModelRequest, usage: dict[str, int]) -> Iterator[None]:
        """Count the tokens that the block sends, before they are sent; undo it if sending fails.

        So a client that has them finds them counted.
        """
        self.server.model.count_tokens(request, usage)
        try:
            yield
        except OSError:
            self.server.model.count_tokens(request, {name: -count for name, count in usage.items()})
            raise

    def _fail(self, request: ModelRequest, failure: Failure) -> None:
        extra = {}
        if failure.retry_after is not None:
            extra["retry-after"] = failure.retry_after
        if failure.should_retry is not None:
            extra["x-should-retry"] = str(failure.should_retry).lower()
        if request.path.startswith(_OPENAI_PATHS):
            status, body = openai_wire.failure_answer(failure)
        else:
            status, body = failure.status, wire.error_body(failure.type, failure.message)
        self._json(status, body, extra)

    def _stream(self, message: wire.WireResponse) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("cache-control", "no-cache")
        self._send_request_id(f"req_{message.id.rpartition('_')[2]}")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for data, usage in self._paced_parts(message):
            with self._counted(message.request, usage):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        if message.is_cut:
            self._break_off()
        else:
            self.wfile.write(b"0\r\n\r\n")

    def _break_off(self) -> None:
        """Break the connection in the middle of the answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _paced_parts(self, message: wire.WireResponse) -> Iterator[tuple[bytes, dict[str, int]]]:
        """Yield the stream as bytes, with their tokens; parts without a pause between them are joined."""
        pause = message.turn.pace_ms / 1000
        buffer, usage = b"", Counter[str]()
        for part in message.stream_parts():
            buffer += part.data
            usage.update(part.usage)
            if part.is_delta and pause:
                yield buffer, usage
                buffer, usage = b"", Counter()
                if self.server.model.closing.wait(pause):
                    return
        if buffer:
            yield buffer, usage

    def _send_request_id(self, request_id: str) -> None:
        self.send_header("request-id", request_id)
        self.send_header("x-request-id", request_id)

    def _json(self, status: int, body: dict[str, Any], extra: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self._send_request_id("req_scripted")
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; the address is the first line on stdout."""
    parser = argparse.ArgumentParser(description="The scripted model on loopback.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--scenario", default="ok", help="one of: " + ", ".join(scenarios.names()))
    options = parser.parse_args(argv)
    try:
        model = ScriptedModel(scenario=options.scenario, host=options.host, port=options.port, record=False)
    except scenarios.ScenarioError as error:
        parser.error(str(error))
    with model:
        print(model.url, flush=True)  # noqa: T201 - the first line is how the caller learns the port
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
