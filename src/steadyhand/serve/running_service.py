"""The check of `steadyhand doctor` that asks the running service, if there is one at the configured address."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx2

from steadyhand.config.settings import Settings
from steadyhand.ports import DoctorCheck

_TIMEOUT_SECONDS = 3.0
_MAX_DETAIL = 500
SHORTAGES = {
    "memory": (
        "too little memory is available on the machine or in the service's control group",
        "free memory, or set a smaller `warm`",
    ),
    "warm_memory": (
        "`service.warm_memory` has no room for more",
        "set it to at least 100 MB for each process, or set a smaller `warm`",
    ),
    "trust": (
        "a workspace has full trust, so nothing of it runs before a job",
        "remove `warm` from the agent, or the full trust from its workspace",
    ),
    "in_place": (
        "jobs in a directory in place have processes of their own",
        "remove `warm` from the agent, or set another mode of its workspace",
    ),
    "process": ("the last process did not become ready", "see `steadyhand agents`, and `warm.failed` in the log"),
    "checkout": (
        "the last checkout could not be made", "see `steadyhand agents`, and `warm.failed` in the log"
    ),
}  # fmt: skip
"""The meaning and the remedy of each reason why fewer processes wait for jobs than are configured."""
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
    body = _get(f"{url}/readyz")
    if not body:
        return []
    detail = str(body.get("detail", ""))[:_MAX_DETAIL]
    if body.get("code") == "credential_rejected":
        remedy = "Replace the credential: a file is read without a restart, a variable of the environment with one."
        return [DoctorCheck("running service", ok=False, detail=detail, remedy=remedy)]
    if body.get("status") == "ok":
        return [DoctorCheck("running service", ok=True, detail=f"takes work at {url}"), *_check_warm(url)]
    if isinstance(body.get("code"), str):
        return [DoctorCheck("running service", ok=False, detail=detail, remedy="See the log of the service.")]
    return []


def _get(url: str) -> dict[str, Any]:
    """Return the object that a URL answers with; empty without one."""
    try:
        body: Any = httpx2.get(url, timeout=_TIMEOUT_SECONDS, trust_env=False).json()
    except (httpx2.HTTPError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _check_warm(url: str) -> Sequence[DoctorCheck]:
    """Return a check of the processes that wait for jobs; none if no agent has them."""
    warm = _get(f"{url}/health").get("warm")
    if not isinstance(warm, dict):
        return []
    counts = {
        name: _count(warm.get(name)) for name in ("configured", "waiting", "hits", "live_hits", "misses")
    }
    detail = (
        f"{counts['waiting']} wait, {counts['configured']} are configured; "
        f"{counts['hits'] + counts['live_hits']} jobs had one, {counts['misses']} did not"
    )
    shortage = warm.get("shortage")
    if not isinstance(shortage, str):
        return [DoctorCheck("warm processes", ok=True, detail=detail)]
    meaning, remedy = SHORTAGES.get(shortage, (shortage[:_MAX_DETAIL], "see the log of the service"))
    return [DoctorCheck("warm processes", True, f"{detail}: {meaning}", remedy, warning=True)]


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
