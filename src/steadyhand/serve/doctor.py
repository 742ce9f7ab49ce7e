"""Everything a start and a run will need, looked at; each room looks at its own."""

import asyncio
import contextlib
from collections.abc import Sequence

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.ports import Check
from steadyhand.runner.claude import install
from steadyhand.serve import gateway_setup, isolation
from steadyhand.serve.wiring import agent_uid_base, checkouts_of, cli_of, database_url
from steadyhand.store import check_store
from steadyhand.workspace.doctor import checks


async def doctor(settings: Settings) -> Sequence[Check]:
    """Look at everything a start and a run will need; each room looks at its own."""
    uid = agent_uid_base(settings)
    places = sorted(set(settings.sources.values()))
    found = [Check("config", True, f"from {', '.join(places)}" if places else "the defaults")]
    found += gateway_setup.checks(settings)
    found += await asyncio.to_thread(check_store, database_url(settings), settings.data_dir)
    found += await install.checks(
        settings.tables.runner.claude.path,
        classic=settings.classic,
        path_env=settings.path,
        data_dir=settings.data_dir,
        uid=uid,
    )
    found += await checks(
        settings.data_dir,
        checkouts_of(settings).mirrors,
        settings.catalogue().workspaces.values(),
        agent_uid_base=settings.tables.service.agent_uid_base,
    )
    with contextlib.suppress(ConfigError, OSError):  # a CLI that is missing has a line of its own
        found += await isolation.checks(settings, await asyncio.to_thread(cli_of, settings))
    return found


def misconfigured(error: ConfigError) -> Sequence[Check]:
    """Give what is wrong with the settings, a fault each: what else there is to look at depends on them."""
    remedy = "Correct it, and run `steadyhand doctor` again."
    return [Check("config", False, fault, remedy) for fault in error.detail.splitlines()]
