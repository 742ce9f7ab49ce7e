"""The exporter of a service: it loads OpenTelemetry's SDK in a thread, and no job ever waits for it."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from steadyhand.metrics import Reading, ServiceMetrics
from steadyhand.telemetry.metric_points import MetricPoints, read_metrics
from steadyhand.telemetry.spans import FinishedSpan
from steadyhand.telemetry.trace_ids import JobTrace

if TYPE_CHECKING:
    from steadyhand.telemetry.otlp import OtlpMetrics, OtlpSpans

MAX_EARLY_SPANS = 2_048
"""The spans that wait until the SDK is loaded."""


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """The settings of the export. A URL of None is taken from the variables of OpenTelemetry."""

    version: str
    node: str
    traces: bool = True
    metrics: bool = True
    traces_url: str | None = None
    metrics_url: str | None = None
    headers: Mapping[str, str] | None = None
    metrics_seconds: float = 60.0
    stop_seconds: float = 5.0
    read_later: Callable[[], Sequence[Reading]] = field(default=tuple)
    """Returns the readings that wait for a disk, in the thread that exports."""


class TelemetryExporter:
    """Exports spans and metrics. `run` is its task, `stop` ends it within `stop_seconds`.

    It is the `SpanSink` of the tracer. Until the SDK is loaded the spans wait in memory. Threads export, and end with
    the process: a receiver that hangs holds nothing.
    """

    def __init__(self, config: ExportConfig, metrics: ServiceMetrics, clock: Callable[[], datetime]) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._begin = clock()
        self._early: deque[FinishedSpan] = deque(maxlen=MAX_EARLY_SPANS)
        self._spans: OtlpSpans | None = None
        self._otlp_metrics: OtlpMetrics | None = None
        self._exporting: threading.Thread | None = None
        self._log = structlog.get_logger("steadyhand.telemetry")
        self._lock = threading.Lock()
        self._failing: set[str] = set()

    # --- spans -----------------------------------------------------------------------------

    def is_sampled(self, trace: JobTrace) -> bool:
        """Return the sampler's decision; True as long as it is not loaded."""
        return self._spans is None or self._spans.is_sampled(trace)

    def add(self, span: FinishedSpan) -> None:
        """Queue a span. An error of the SDK is logged and ends nothing."""
        if not self._config.traces:
            return
        if self._spans is None:
            self._early.append(span)
            return
        try:
            self._spans.add(span)
        except Exception:  # noqa: BLE001  # the boundary of another's code
            self._log.exception("telemetry.span_lost", span=span.spec.name)

    # --- its life --------------------------------------------------------------------------

    async def run(self) -> None:
        """Load the SDK, then export the metrics at an interval, until cancelled."""
        await self._in_thread(self._load)
        while self._spans is not None and self._early:
            self.add(self._early.popleft())
        while True:
            await asyncio.sleep(self._config.metrics_seconds)
            if self._otlp_metrics is not None and not self._is_exporting():
                try:
                    self._export_metrics(self._otlp_metrics)
                except Exception:  # noqa: BLE001  # a figure that cannot be read ends no service
                    self._log.exception("telemetry.metrics_lost")

    def _is_exporting(self) -> bool:
        """Return True if the last export of metrics goes on; the figures of the next one include its own."""
        return self._exporting is not None and self._exporting.is_alive()

    def _load(self) -> None:
        try:
            from steadyhand.telemetry import otlp  # noqa: PLC0415  # a tenth of a second, and 20 MB

            otlp.silence_sdk()
            config = self._config
            resource = otlp.create_resource(config.version, config.node)
            if config.metrics:
                self._otlp_metrics = otlp.OtlpMetrics(
                    resource, config.metrics_url, config.headers, self._on_export
                )
            if config.traces:
                self._spans = otlp.OtlpSpans(resource, config.traces_url, config.headers, self._on_export)
        except Exception:  # noqa: BLE001  # such as a certificate that cannot be read
            self._log.exception("telemetry.not_started")

    def _export_metrics(self, exporter: "OtlpMetrics") -> threading.Thread:
        """Read the figures here, on the event loop's thread, and export them in a thread."""
        readings, now = self._metrics.read(), self._clock()

        def export() -> None:
            try:
                found: list[MetricPoints] = read_metrics(
                    self._metrics, [*readings, *self._config.read_later()]
                )
                exporter.export(found, self._begin, now)
            except Exception:  # noqa: BLE001  # as above
                self._log.exception("telemetry.metrics_lost")

        self._exporting = threading.Thread(target=export, name="telemetry metrics", daemon=True)
        self._exporting.start()
        return self._exporting

    async def stop(self) -> None:
        """Export what is left, for at most `stop_seconds`. What does not get out by then is lost."""
        last: threading.Thread | None = None
        if self._otlp_metrics is not None and not self._is_exporting():
            last = self._export_metrics(self._otlp_metrics)

        def finish() -> None:
            if self._spans is not None:
                self._spans.stop()
            if last is not None:
                last.join()

        try:
            async with asyncio.timeout(self._config.stop_seconds):
                await self._in_thread(finish)
        except TimeoutError:
            self._log.warning("telemetry.incomplete", seconds=self._config.stop_seconds)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Run work in a thread that the end of the process does not wait for, unlike one of the event loop's pool."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def run() -> None:
            try:
                work()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(done.set)

        threading.Thread(target=run, name="telemetry", daemon=True).start()
        await done.wait()

    def _on_export(self, signal: str, taken: bool) -> None:  # noqa: FBT001  # a callback
        """Log the first export that fails and the first that succeeds after it; called on the threads that export."""
        with self._lock:
            is_news = taken is (signal in self._failing)
            (self._failing.discard if taken else self._failing.add)(signal)
        if is_news and taken:
            self._log.info("telemetry.exporting_again", signal=signal)
        elif is_news:
            self._log.warning(
                "telemetry.failed",
                signal=signal,
                meaning="the receiver did not take an export, whose spans are lost; further ones are tried",
            )
