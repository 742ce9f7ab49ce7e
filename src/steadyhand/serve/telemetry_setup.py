"""Build the telemetry from the settings and the standard variables of OpenTelemetry; without them it is off."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from steadyhand import __version__
from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError, StoreError
from steadyhand.metrics import ServiceMetrics
from steadyhand.ports import (
    NO_TRACING,
    BeginDeliverySpan,
    Delivery,
    DeliverySpan,
    JobTracing,
    Store,
    no_delivery_span,
)
from steadyhand.redact import Redactor
from steadyhand.serve.metrics_setup import read_disk
from steadyhand.text_lines import split_lines

if TYPE_CHECKING:
    from steadyhand.telemetry.exporter import ExportConfig, TelemetryExporter
    from steadyhand.telemetry.job_tracer import JobTracer

EXTRA = "pip install 'steadyhand[otel]'"
_PACKAGE = "opentelemetry.exporter.otlp.proto.http"
_PROTOCOL = "http/protobuf"
_MIN_INTERVAL, _MAX_INTERVAL, _INTERVAL = 100, 3_600_000, 60_000
"""Milliseconds between two exports of the metrics."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """The parts of the telemetry. Without an exporter there are no traces, and nothing is loaded."""

    tracing: JobTracing = NO_TRACING
    tracer: "JobTracer | None" = None
    exporter: "TelemetryExporter | None" = None

    @property
    def traces(self) -> bool:
        """Return True if spans are made."""
        return self.tracer is not None

    def delivery_spans(self, store: Store) -> BeginDeliverySpan:
        """Return the function that begins the span of an attempt at a callback."""
        tracer = self.tracer
        if tracer is None:
            return no_delivery_span

        async def begin(delivery: Delivery) -> DeliverySpan | None:
            if delivery.job_id is None:
                return None
            try:
                job = await store.get(delivery.job_id)
            except StoreError:  # the attempt is made all the same
                return None
            return None if job is None else tracer.begin_callback(job, delivery)

        return begin

    async def run(self) -> None:
        """Export until cancelled."""
        if self.exporter is not None:
            await self.exporter.run()

    async def stop(self) -> None:
        """Export what is left, for a bounded time."""
        if self.exporter is not None:
            await self.exporter.stop()


def create_telemetry(
    settings: Settings, metrics: ServiceMetrics, redactor: Redactor, clock: Callable[[], datetime]
) -> Telemetry:
    """Return the telemetry. Raise `ConfigError` if `[telemetry]` asks for it and the extra is not installed."""
    config = export_config(settings)
    if config is None:
        return Telemetry()
    if not is_installed():
        if settings.tables.telemetry.endpoint is not None:
            raise ConfigError(
                f"telemetry.endpoint: the export needs packages that are not installed: {EXTRA}."
            )
        _warn("the variables of OpenTelemetry are set, and its packages are not installed", EXTRA)
        return Telemetry()
    from steadyhand.telemetry.exporter import TelemetryExporter  # noqa: PLC0415  # not loaded while it is off
    from steadyhand.telemetry.job_tracer import JobTracer  # noqa: PLC0415  # as above

    config = replace(config, read_later=partial(read_disk, settings.data_dir))
    exporter = TelemetryExporter(config, metrics, clock)
    if not config.traces:
        return Telemetry(exporter=exporter)
    providers = {each.name: each.kind for each in settings.providers}
    tracer = JobTracer(exporter, redactor, clock, providers, with_content=settings.tables.telemetry.content)
    return Telemetry(tracer, tracer, exporter)


def is_installed() -> bool:
    """Return True if the packages of the extra are installed."""
    try:
        return importlib.util.find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        return False


def export_config(settings: Settings) -> "ExportConfig | None":
    """Return the settings of the export; None if neither traces nor metrics are exported."""
    table, env = settings.tables.telemetry, settings.environment
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    traces, metrics = (
        wanted and _is_signal_on(env, signal, table.endpoint)
        for signal, wanted in (("TRACES", table.traces), ("METRICS", table.metrics))
    )
    if not traces and not metrics:
        return None
    from steadyhand.telemetry.exporter import ExportConfig  # noqa: PLC0415  # not loaded while it is off

    base = None if table.endpoint is None else table.endpoint.rstrip("/")
    return ExportConfig(
        version=__version__,
        node=settings.tables.service.node,
        traces=traces,
        metrics=metrics,
        traces_url=None if base is None else f"{base}/v1/traces",
        metrics_url=None if base is None else f"{base}/v1/metrics",
        headers=None if table.headers_file is None else read_headers(table.headers_file),
        metrics_seconds=_interval(env) / 1_000,
        stop_seconds=table.stop_seconds,
    )


def _is_signal_on(env: Mapping[str, str], signal: str, endpoint: str | None) -> bool:
    """Return True if there is a receiver for a signal; a variable that asks for another exporter turns it off."""
    exporter = env.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if exporter not in {"", "otlp"}:
        return False
    if endpoint is not None:
        return True
    if not (env.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        return False
    protocol = env.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in {None, _PROTOCOL}:
        _warn(
            f"the variables of OpenTelemetry ask for {protocol}, and the service has only {_PROTOCOL}",
            f"set OTEL_EXPORTER_OTLP_{signal}_PROTOCOL={_PROTOCOL} and an address that takes it",
        )
        return False
    return True


def _warn(meaning: str, remedy: str) -> None:
    structlog.get_logger("steadyhand.telemetry").warning("telemetry.off", meaning=meaning, remedy=remedy)


def _interval(env: Mapping[str, str]) -> int:
    text = env.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < len(str(10**12)) else _INTERVAL
    return min(max(number, _MIN_INTERVAL), _MAX_INTERVAL)


def read_headers(path: Path) -> dict[str, str]:
    """Return the headers of a file, one `name: value` on a line. Raise `ConfigError`."""
    try:
        lines = split_lines(path.read_text("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"telemetry.headers_file: {path} could not be read: {error}") from error
    headers = {}
    for line in filter(None, map(str.strip, lines)):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not name.replace("-", "").isalnum() or not value.isprintable():
            raise ConfigError(f"telemetry.headers_file: {path} has a line that is not `name: value`.")
        headers[name.lower()] = value
    return headers
