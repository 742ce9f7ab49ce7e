"""The checks of `steadyhand doctor`, collected from all rooms."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from importlib.util import find_spec

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.ports import DoctorCheck
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude import install
from steadyhand.runner.process.cgroups import enter_service_cgroup
from steadyhand.serve import gateway_setup, isolation
from steadyhand.serve.config_warnings import check_config
from steadyhand.serve.nodes_setup import node_info
from steadyhand.serve.runner_setup import agent_uid_base, find_agent_cli
from steadyhand.serve.running_service import check_running_service
from steadyhand.serve.telemetry_check import check_telemetry
from steadyhand.serve.wiring import create_checkouts, database_url
from steadyhand.store import check_store
from steadyhand.store.database_url import is_postgres_url
from steadyhand.text_lines import split_lines
from steadyhand.workspace.doctor import check_workspaces


async def run_checks(settings: Settings) -> Sequence[DoctorCheck]:
    """Run all checks that a start and a job need. Each room has its own."""
    return [check async for checks in iter_checks(settings) for check in checks]


async def iter_checks(settings: Settings) -> AsyncGenerator[Sequence[DoctorCheck], None]:
    """Run the same checks, and yield those of each room as soon as they are there."""
    enter_service_cgroup()  # as `serve` does, so that the limits reported are those of a service
    uid = agent_uid_base(settings)
    config_sources = sorted(set(settings.sources.values()))
    yield [
        DoctorCheck(
            "config", True, f"from {', '.join(config_sources)}" if config_sources else "the defaults"
        ),
        *gateway_setup.check_providers(settings),
        *check_config(settings),
    ]
    yield await check_running_service(settings)
    yield await _run_check("telemetry", lambda: check_telemetry(settings))
    rooms: Sequence[tuple[str, Callable[[], Awaitable[Sequence[DoctorCheck]]]]] = (
        ("data directory", lambda: asyncio.to_thread(check_store, database_url(settings), settings.data_dir)),
        ("cli", lambda: _check_cli(settings, uid)),
        ("nodes", lambda: _check_nodes(settings)),
        ("workspaces", lambda: _check_workspaces(settings)),
        ("isolation", lambda: _check_isolation(settings)),
    )
    for name, check in rooms:
        yield await _run_check(name, check)


async def _run_check(
    name: str, check: Callable[[], Awaitable[Sequence[DoctorCheck]]]
) -> Sequence[DoctorCheck]:
    """Return the results of a room; an error of the system that it does not expect is a failed check."""
    try:
        return await check()
    except OSError as error:
        detail = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "Choose another data directory with --data-dir, or run this as the service's user."
        return [DoctorCheck(name, ok=False, detail=detail, remedy=remedy)]


async def _check_cli(settings: Settings, uid: int | None) -> Sequence[DoctorCheck]:
    return await install.check_cli(
        settings.tables.runner.claude.path,
        classic=settings.classic,
        path_env=settings.path,
        data_dir=settings.data_dir,
        uid=uid,
    )


async def _check_nodes(settings: Settings) -> Sequence[DoctorCheck]:
    url = database_url(settings)
    if not is_postgres_url(url) or find_spec("psycopg") is None or find_spec("procrastinate") is None:
        return ()
    from steadyhand.queue.procrastinate.doctor import check_nodes  # noqa: PLC0415  # it needs an extra

    return await check_nodes(url, node_info(settings))


async def _check_workspaces(settings: Settings) -> Sequence[DoctorCheck]:
    return await check_workspaces(
        settings.data_dir,
        create_checkouts(settings, redactor=NO_REDACTION).mirrors,
        settings.build_catalog().workspaces.values(),
        agent_uid_base=settings.tables.service.agent_uid_base,
    )


async def _check_isolation(settings: Settings) -> Sequence[DoctorCheck]:
    try:
        cli = await asyncio.to_thread(find_agent_cli, settings)
    except (ConfigError, OSError):
        return []  # a missing CLI has a check of its own
    with contextlib.suppress(ConfigError):
        return await isolation.check_isolation(settings, cli)
    return []


def config_error_checks(error: ConfigError) -> Sequence[DoctorCheck]:
    """Return one failed check for each error of the settings; all other checks need valid settings."""
    remedy = "Correct it, and run `steadyhand doctor` again."
    return [DoctorCheck("config", False, message, remedy) for message in split_lines(error.detail)]
