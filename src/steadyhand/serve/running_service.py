"""The check of `steadyhand doctor` that asks the running service, if there is one at the configured address."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx2

from steadyhand.config.settings import Settings
from steadyhand.ports import DoctorCheck

_TIMEOUT_SECONDS = 3.0
_MAX_DETAIL = 500
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # compared, not bound


async def check_running_service(settings: Settings) -> Sequence[DoctorCheck]:
    """Return a check of the service that answers at the address of the settings; none if nothing does."""
    server = settings.tables.server
    if not server.port:
        return []
    host = _ANY_ADDRESS.get(server.host, server.host)
    url = f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"
    return await asyncio.to_thread(_ask, url)


def _ask(url: str) -> Sequence[DoctorCheck]:
    try:
        response = httpx2.get(f"{url}/readyz", timeout=_TIMEOUT_SECONDS, trust_env=False)
        body: Any = response.json()
    except (httpx2.HTTPError, ValueError):
        return []
    if not isinstance(body, dict):
        return []
    detail = str(body.get("detail", ""))[:_MAX_DETAIL]
    if body.get("code") == "credential_rejected":
        remedy = "Replace the credential: a file is read without a restart, a variable of the environment with one."
        return [DoctorCheck("running service", ok=False, detail=detail, remedy=remedy)]
    if body.get("status") == "ok":
        return [DoctorCheck("running service", ok=True, detail=f"takes work at {url}")]
    if isinstance(body.get("code"), str):
        return [DoctorCheck("running service", ok=False, detail=detail, remedy="See the log of the service.")]
    return []
