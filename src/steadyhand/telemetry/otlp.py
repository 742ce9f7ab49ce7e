"""The export by OTLP over HTTP, with OpenTelemetry's SDK. Only `exporter` imports this, in a thread of its own.

The SDK reads the standard `OTEL_` variables: headers, timeout, compression, certificates, the size of the queue and of
a batch, the sampler and the attributes of the resource.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import export as sdk_metrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from steadyhand.telemetry import names
from steadyhand.telemetry.metric_points import MetricPoints, Point
from steadyhand.telemetry.spans import FinishedSpan
from steadyhand.telemetry.trace_ids import JobTrace

_KINDS = {
    "internal": api.SpanKind.INTERNAL,
    "client": api.SpanKind.CLIENT,
    "consumer": api.SpanKind.CONSUMER,
}
_MAX_DECISIONS = 10_000
_Times = tuple[int, int]
"""The begin of the counts and the moment of the figures, in nanoseconds."""
OnExport = Callable[[str, bool], None]
"""Gets the signal, `traces` or `metrics`, and True if an export of it was taken."""


def silence_sdk() -> None:
    """Keep the SDK's own lines out of the log: one for each failed export, with the address of the receiver."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def takes_exports(url: str | None, headers: Mapping[str, str] | None, seconds: float) -> bool:
    """Return True if the receiver takes an export of no spans. It blocks for about so many seconds at most."""
    exporter = OTLPSpanExporter(endpoint=url, headers=headers, timeout=seconds)
    return exporter.export([]) is SpanExportResult.SUCCESS


def create_resource(version: str, node: str) -> Resource:
    """Return the resource; the variables of OpenTelemetry may name the service otherwise."""
    attributes = {"service.version": version, "service.instance.id": node}
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
        attributes["service.name"] = names.SCOPE
    return Resource.create(attributes)


class _FixedIds(IdGenerator):
    """Returns the ids of the span that is being made."""

    trace_id = 1
    span_id = 1

    def generate_trace_id(self) -> int:
        """Return the id of the trace."""
        return self.trace_id

    def generate_span_id(self) -> int:
        """Return the id of the span."""
        return self.span_id


class _ReportingExporter(SpanExporter):
    """Reports the result of each export."""

    def __init__(self, exporter: SpanExporter, on_export: OnExport) -> None:
        self._exporter = exporter
        self._on_export = on_export

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch."""
        result = self._exporter.export(spans)
        self._on_export("traces", result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Stop; an export that waits to try again ends at once."""
        self._exporter.shutdown()


class OtlpSpans:
    """Makes spans of the SDK and queues them. Of more than `OTEL_BSP_MAX_QUEUE_SIZE` (2,048) the oldest are dropped."""

    def __init__(
        self, resource: Resource, url: str | None, headers: Mapping[str, str] | None, on_export: OnExport
    ) -> None:
        """Create the queue and its thread; without a URL that of the variables is used."""
        self._sampler = TracerProvider(resource=Resource({}), shutdown_on_exit=False).sampler
        self._ids = _FixedIds()
        self._exporter = OTLPSpanExporter(endpoint=url, headers=headers)
        self._processor = BatchSpanProcessor(_ReportingExporter(self._exporter, on_export))
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer(names.SCOPE)
        self._decisions: OrderedDict[int, bool] = OrderedDict()

    def is_sampled(self, trace: JobTrace) -> bool:
        """Return the decision of the sampler (`OTEL_TRACES_SAMPLER`), which is one for all spans of a trace."""
        key = hash((trace.trace_id, trace.caller_span_id, trace.flags))
        decision = self._decisions.get(key)
        if decision is None:
            caller = trace.caller_span_id
            parent = None if caller is None else _parent_context(trace, caller, is_remote=True)
            result = self._sampler.should_sample(parent, trace.trace_id, names.JOB_SPAN.name)
            decision = result.decision is not Decision.DROP
            self._decisions[key] = decision
            if len(self._decisions) > _MAX_DECISIONS:
                self._decisions.popitem(last=False)
        return decision

    def add(self, span: FinishedSpan) -> None:
        """Queue a span."""
        trace = span.trace
        if not self.is_sampled(trace):
            return
        self._ids.trace_id, self._ids.span_id = trace.trace_id, span.span_id
        parent = Context()
        if span.parent_id is not None:
            is_remote = span.parent_id == trace.caller_span_id
            parent = _parent_context(trace, span.parent_id, is_remote=is_remote)
        links = [
            api.Link(api.SpanContext(link.trace_id, link.span_id, is_remote=True), dict(link.attributes))
            for link in span.links
        ]
        attributes = dict(span.attributes)
        if span.error is not None:
            attributes[names.ERROR_TYPE] = span.error
        made = self._tracer.start_span(
            span.name,
            context=parent,
            kind=_KINDS[span.spec.kind],
            attributes=attributes,
            links=links,
            start_time=_nanoseconds(span.begin),
            record_exception=False,
            set_status_on_exception=False,
        )
        if span.error is not None:
            made.set_status(api.StatusCode.ERROR)
        made.end(max(_nanoseconds(span.end), _nanoseconds(span.begin)))

    def stop(self) -> None:
        """Export what is queued, for as long as the exporter takes. It blocks: the caller bounds it."""
        self._processor.shutdown()


def _parent_context(trace: JobTrace, span_id: int, *, is_remote: bool) -> Context:
    context = api.SpanContext(trace.trace_id, span_id, is_remote, api.TraceFlags(trace.flags))
    return api.set_span_in_context(api.NonRecordingSpan(context), Context())


def _nanoseconds(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000) * 1_000


class OtlpMetrics:
    """Exports the figures of the service's own metrics."""

    def __init__(
        self, resource: Resource, url: str | None, headers: Mapping[str, str] | None, on_export: OnExport
    ) -> None:
        """Create the exporter; without a URL that of the variables is used."""
        self._resource = resource
        self._exporter = OTLPMetricExporter(endpoint=url, headers=headers)
        self._on_export = on_export

    def export(self, metrics: Sequence[MetricPoints], begin: datetime, now: datetime) -> None:
        """Export the figures of one moment; `begin` is the start of the service. It blocks."""
        times = _nanoseconds(begin), _nanoseconds(now)
        scope = sdk_metrics.ScopeMetrics(
            InstrumentationScope(names.SCOPE), [_metric(each, times) for each in metrics], ""
        )
        data = sdk_metrics.MetricsData([sdk_metrics.ResourceMetrics(self._resource, [scope], "")])
        result = self._exporter.export(data)
        self._on_export("metrics", result is sdk_metrics.MetricExportResult.SUCCESS)

    def stop(self) -> None:
        """End an export that waits to try again."""
        self._exporter.shutdown()


def _metric(metric: MetricPoints, times: _Times) -> sdk_metrics.Metric:
    data: Any
    if metric.type == "histogram":
        points = [_histogram_point(each, metric.bounds, times) for each in metric.points]
        data = sdk_metrics.Histogram(points, sdk_metrics.AggregationTemporality.CUMULATIVE)
    else:
        numbers = [
            sdk_metrics.NumberDataPoint(dict(each.attributes), *times, each.value) for each in metric.points
        ]
        data = sdk_metrics.Gauge(numbers)
        if metric.type == "counter":
            temporality = sdk_metrics.AggregationTemporality.CUMULATIVE
            data = sdk_metrics.Sum(numbers, temporality, is_monotonic=True)
    return sdk_metrics.Metric(metric.name, metric.meaning, metric.unit, data)


def _histogram_point(point: Point, bounds: Sequence[float], times: _Times) -> sdk_metrics.HistogramDataPoint:
    return sdk_metrics.HistogramDataPoint(
        dict(point.attributes),
        *times,
        count=sum(point.counts),
        sum=point.value,
        bucket_counts=list(point.counts),
        explicit_bounds=list(bounds),
        min=None,  # type: ignore[arg-type]  # not known, and optional in the message
        max=None,  # type: ignore[arg-type]  # as above
    )
