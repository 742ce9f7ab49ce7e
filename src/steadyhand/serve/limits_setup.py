"""Wires the limits that several nodes of one Postgres share. A service on SQLite counts alone and has none of this."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadyhand.config.settings import Settings
from steadyhand.store import is_postgres_url

if TYPE_CHECKING:
    from steadyhand.serve.shared_state import SharedState
    from steadyhand.store.postgres.budget_leases import PostgresBudgetLeases
    from steadyhand.store.postgres.credential_states import PostgresCredentialStates
    from steadyhand.store.postgres.key_rates import PostgresKeyRates
    from steadyhand.store.postgres.limits_connection import LimitsConnection


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """The limits of all nodes, as this one counts them."""

    connection: "LimitsConnection"
    leases: "PostgresBudgetLeases"
    rates: "PostgresKeyRates"
    credentials: "PostgresCredentialStates"

    def listen(self, listen_to: Callable[[str, Callable[[str | None], None]], None]) -> None:
        """Hear of the changes of other nodes: `listen_to` registers a callback for a channel."""
        from steadyhand.store.postgres import budget_leases, credential_states  # noqa: PLC0415  # loaded by now

        listen_to(budget_leases.CHANNEL, self.leases.hear)
        listen_to(credential_states.CHANNEL, self.credentials.hear)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Create the tables unless they are there, and give back at the end what this node has."""
        await self.connection.install()
        await self.leases.clear()
        try:
            yield
        finally:
            await self.leases.close()
            await self.connection.close()

    async def run(self) -> None:
        """Undo in the database what was undone here, until cancelled."""
        await self.rates.run()


def create_shared_limits(
    settings: Settings, shared: "SharedState | None", *, may_use: Callable[[], bool]
) -> SharedLimits | None:
    """Return the limits of a service whose database other nodes may use, else None.

    They hear of other nodes by the `shared` state. `may_use` returns False while others may take this node for dead.
    """
    table = settings.tables.service
    url = table.database_url or ""
    if shared is None or not is_postgres_url(url):
        return None
    from steadyhand.queue.procrastinate.lease import DEAD_SECONDS  # noqa: PLC0415  # it needs an extra
    from steadyhand.store.postgres.budget_leases import PostgresBudgetLeases  # noqa: PLC0415
    from steadyhand.store.postgres.credential_states import PostgresCredentialStates  # noqa: PLC0415
    from steadyhand.store.postgres.key_rates import PostgresKeyRates  # noqa: PLC0415
    from steadyhand.store.postgres.limits_connection import LimitsConnection  # noqa: PLC0415

    connection = LimitsConnection(url)
    limits = SharedLimits(
        connection,
        PostgresBudgetLeases(connection, table.node, dead_seconds=DEAD_SECONDS, may_use=may_use),
        PostgresKeyRates(connection),
        PostgresCredentialStates(connection, table.node, dead_seconds=DEAD_SECONDS),
    )
    limits.listen(shared.listener.on)
    shared.tasks.append(("rates", limits.run))
    return limits
