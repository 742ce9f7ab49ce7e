"""A receiver of OTLP over HTTP on loopback, which parses what it gets with OpenTelemetry's own messages."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it arrived; ids are hexadecimal."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    begin: int
    end: int
    attributes: Mapping[str, Any]
    is_error: bool
    links: Sequence[tuple[str, str, Mapping[str, Any]]]
    resource: Mapping[str, Any]


@dataclass
class OtlpReceiver:
    """What arrived. While `hangs` is set, requests are not answered; `status` is that of the answers."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    metrics: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)
    """The newest figures by metric and by the values of the attributes; of a histogram the number of values."""
    metric_attributes: dict[str, set[str]] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    status: int = 200
    hangs: bool = False
    asked: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, job_id: str) -> list[Span]:
        """Return the spans of a job."""
        with self.lock:
            return [span for span in self.spans if span.attributes.get("steadyhand.job.id") == job_id]

    def take(self, path: str, body: bytes) -> None:
        """Parse a request; raise if it is not what its path says."""
        request: Any = ExportMetricsServiceRequest()
        if path == "/v1/traces":
            request = ExportTraceServiceRequest()
        else:
            assert path == "/v1/metrics"
        message: Message = request
        message.ParseFromString(body)
        with self.lock:
            self.bodies.append(body)
            if path == "/v1/traces":
                self.spans += _spans(request)
            else:
                self._take_metrics(request)

    def _take_metrics(self, request: Any) -> None:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    kind = metric.WhichOneof("data")
                    points = getattr(metric, kind).data_points
                    figures = {}
                    for point in points:
                        attributes = _attributes(point.attributes)
                        self.metric_attributes.setdefault(metric.name, set()).update(attributes)
                        value = point.count if kind == "histogram" else point.as_double
                        figures[tuple(attributes.values())] = float(value)
                    self.metrics[metric.name] = figures


def _attributes(values: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in values}


def _spans(request: Any) -> Iterator[Span]:
    for resource in request.resource_spans:
        of_resource = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _attributes(span.attributes),
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    [
                        (each.trace_id.hex(), each.span_id.hex(), _attributes(each.attributes))
                        for each in span.links
                    ],
                    of_resource,
                )


@contextmanager
def receiving_otlp() -> Iterator[OtlpReceiver]:
    """Start a receiver on a free port."""
    receiver = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.asked.set()
            if receiver.hangs:
                receiver.released.wait(60)
                return
            if receiver.status < 300:
                receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                receiver.take(self.path, body)
            self.send_response(receiver.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.released.set()
            server.shutdown()
            thread.join(10)


def faults_of(spans: Sequence[Span], caller: str = "") -> list[str]:
    """Return what keeps spans from being one whole trace: one root below the caller, a parent for each other span."""
    by_id = {span.span_id: span for span in spans}
    roots = [span.name for span in spans if span.parent_id == caller]
    faults = [f"two spans have the id {span.span_id}" for span in spans if by_id[span.span_id] is not span]
    faults += [] if len(roots) == 1 else [f"the roots are {roots}"]
    faults += [
        f"{span.name} has no parent"
        for span in spans
        if span.parent_id != caller and span.parent_id not in by_id
    ]
    faults += [f"{span.name} ends before it begins" for span in spans if span.end < span.begin]
    if len({span.trace_id for span in spans}) > 1:
        faults.append("there is more than one trace")
    return faults
