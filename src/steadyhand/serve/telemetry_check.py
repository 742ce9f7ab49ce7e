"""The check of the telemetry for `steadyhand doctor`: the packages are there, and the receiver takes an export."""

import asyncio
from collections.abc import Sequence

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.ports import DoctorCheck
from steadyhand.serve.telemetry_setup import EXTRA, export_config, is_installed

_NAME = "telemetry"
_SECONDS = 5.0


async def check_telemetry(settings: Settings) -> Sequence[DoctorCheck]:
    """Return a check of the receiver, if there is one; a receiver that takes nothing is a warning: no job needs it."""
    try:
        config = export_config(settings)
    except ConfigError as error:
        return [DoctorCheck(_NAME, ok=False, detail=error.detail, remedy="see docs/telemetry.md")]
    if config is None:
        return []
    if not is_installed():
        is_error = settings.tables.telemetry.endpoint is not None
        detail = "a receiver is set, and the packages of OpenTelemetry are not installed"
        return [DoctorCheck(_NAME, not is_error, detail, EXTRA, warning=not is_error)]
    signals = " and ".join(name for name in ("traces", "metrics") if getattr(config, name))
    if not config.traces:
        return [DoctorCheck(_NAME, ok=True, detail=f"{signals} are exported")]

    def try_export() -> bool:
        from steadyhand.telemetry import otlp  # noqa: PLC0415  # loaded only if it is set

        otlp.silence_sdk()
        return otlp.takes_exports(config.traces_url, config.headers, _SECONDS)

    if await asyncio.to_thread(try_export):
        return [DoctorCheck(_NAME, ok=True, detail=f"the receiver takes exports; {signals} are sent")]
    detail = "the receiver did not take an export; jobs run without it"
    return [
        DoctorCheck(_NAME, True, detail, "check its address and headers: docs/telemetry.md", warning=True)
    ]
