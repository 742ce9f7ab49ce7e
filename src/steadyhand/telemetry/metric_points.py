"""The figures of the service's metrics at one moment, for OTLP: read from the counters that Prometheus reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from steadyhand.metrics import METRICS, MetricSpec, Reading, ServiceMetrics
from steadyhand.telemetry.names import GENAI_METRICS, GenaiMetric

_UNITS = {"_seconds": "s", "_bytes": "By"}


@dataclass(frozen=True, slots=True)
class Point:
    """One figure. That of a histogram is the sum of its values, beside the number of values by bucket."""

    attributes: Mapping[str, str]
    value: float
    counts: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class MetricPoints:
    """A metric with its points; a histogram has the upper bounds of its buckets."""

    name: str
    type: str
    meaning: str
    unit: str
    points: Sequence[Point]
    bounds: Sequence[float] = field(default=())


def read_metrics(metrics: ServiceMetrics, readings: Iterable[Reading]) -> list[MetricPoints]:
    """Return the metrics that have points, and those of the conventions that have the same figures."""
    by_name: dict[str, list[Reading]] = {}
    for reading in readings:
        by_name.setdefault(reading.name, []).append(reading)
    found = {spec.name: _points(spec, metrics, by_name.get(spec.name, ())) for spec in METRICS.values()}
    result = [
        MetricPoints(spec.name, spec.type, spec.meaning, _unit(spec.name), found[spec.name], spec.buckets)
        for spec in METRICS.values()
        if found[spec.name]
    ]
    return result + list(_genai_metrics(found))


def _points(spec: MetricSpec, metrics: ServiceMetrics, readings: Iterable[Reading]) -> list[Point]:
    points = [
        Point(dict(zip(spec.labels, reading.labels, strict=True)), float(reading.value))
        for reading in readings
    ]
    if points:
        return points
    if spec.type == "counter":
        return [
            Point(dict(zip(spec.labels, labels, strict=True)), value.n / spec.divisor)
            for labels, value in metrics.series[spec.name].items()
        ]
    if spec.type == "histogram":
        return [
            Point(dict(zip(spec.labels, labels, strict=True)), values.total, tuple(values.counts))
            for labels, values in metrics.histograms[spec.name].items()
        ]
    return []


def _genai_metrics(found: Mapping[str, Sequence[Point]]) -> Iterator[MetricPoints]:
    for metric in GENAI_METRICS:
        source = METRICS[metric.source]
        points = [
            Point(_genai_attributes(metric, each), each.value, each.counts) for each in found[source.name]
        ]
        if points:
            yield MetricPoints(metric.name, source.type, source.meaning, "s", points, source.buckets)


def _genai_attributes(metric: GenaiMetric, point: Point) -> dict[str, str]:
    return {**metric.attributes, **{metric.labels[name]: value for name, value in point.attributes.items()}}


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "1")
