"""The text of a scrape, made by prometheus_client, which is loaded at the first one."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from steadyhand.metrics.names import ALL_METRIC_SCOPES, METRICS, MetricScope, MetricSpec
from steadyhand.metrics.service_metrics import Reading, ServiceMetrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


_OPEN_METRICS = "application/openmetrics-text;version=1.0.0"


class Scrape(NamedTuple):
    """The body of a scrape and its content type."""

    body: bytes
    content_type: str


async def scrape(
    metrics: ServiceMetrics,
    accept: str,
    scopes: frozenset[MetricScope] = ALL_METRIC_SCOPES,
    *,
    read_later: Callable[[], Iterable[Reading]] = tuple,
) -> Scrape:
    """Return the metrics of these scopes as text, in the format that the `Accept` header asks for.

    The readings are made here, on the event loop; a thread renders them. `read_later` returns more of them in the
    thread, such as those that wait for a disk.
    """
    readings = metrics.read()
    return await asyncio.to_thread(_render, metrics, readings, read_later, accept, scopes)


def _render(
    metrics: ServiceMetrics,
    readings: Sequence[Reading],
    read_later: Callable[[], Iterable[Reading]],
    accept: str,
    scopes: frozenset[MetricScope],
) -> Scrape:
    from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415  # 0.3 s and 5 MB
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415  # as above

    registry = CollectorRegistry(auto_describe=False)
    collector: Any = _Collector(metrics, [*readings, *read_later()], scopes)
    registry.register(collector)
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(_OPEN_METRICS if accepts_open_metrics(accept) else "")
    return Scrape(encode(registry), content_type)


def accepts_open_metrics(accept: str) -> bool:
    """Return True if an `Accept` header names the format of OpenMetrics in version 1.

    The library is not given the header itself, which is a stranger's text.
    """
    for media_range in accept.split(","):
        media_type, *parameters = (part.strip() for part in media_range.split(";"))
        versions = [part.partition("=")[2] for part in parameters if part.startswith("version=")]
        if media_type == "application/openmetrics-text" and versions in ([], ["1.0.0"]):
            return True
    return False


class _Collector:
    """A collector of prometheus_client over the figures of a service."""

    def __init__(
        self, metrics: ServiceMetrics, readings: Sequence[Reading], scopes: frozenset[MetricScope]
    ) -> None:
        self._metrics = metrics
        self._readings: dict[str, list[Reading]] = {}
        for reading in readings:
            self._readings.setdefault(reading.name, []).append(reading)
        self._specs = [spec for spec in METRICS.values() if spec.scope in scopes]

    def describe(self) -> list["Metric"]:
        """Return nothing: the registry belongs to one scrape, and has no names to compare."""
        return []

    def collect(self) -> Iterator["Metric"]:
        """Yield each metric with its samples."""
        for spec in self._specs:
            if spec.name in self._readings:
                yield _family_of_readings(spec, self._readings[spec.name])
            elif spec.type == "counter":
                yield self._counter(spec)
            elif spec.type == "histogram":
                yield self._histogram(spec)

    def _counter(self, spec: MetricSpec) -> "Metric":
        from prometheus_client.metrics_core import CounterMetricFamily  # noqa: PLC0415  # loaded with the rest

        family = CounterMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        for labels, value in self._metrics.series[spec.name].items():
            family.add_metric(labels, value.n / spec.divisor)
        return family

    def _histogram(self, spec: MetricSpec) -> "Metric":
        from prometheus_client.metrics_core import HistogramMetricFamily  # noqa: PLC0415  # loaded with the rest

        family = HistogramMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        bounds = [*map(repr, spec.buckets), "+Inf"]
        for labels, distribution in self._metrics.histograms[spec.name].items():
            counts = accumulate(list(distribution.counts))
            family.add_metric(labels, list(zip(bounds, counts, strict=True)), distribution.total)
        return family


def _family_of_readings(spec: MetricSpec, readings: Sequence[Reading]) -> "Metric":
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415  # as above

    family: CounterMetricFamily | GaugeMetricFamily
    if spec.type == "counter":
        family = CounterMetricFamily(spec.name, spec.meaning, labels=spec.labels)
    else:
        family = GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)
    for reading in readings:
        family.add_metric(reading.labels, reading.value)
    return family
