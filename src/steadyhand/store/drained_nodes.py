"""The drained nodes in SQL; see `ports.DrainedNodes`."""

from collections.abc import Awaitable, Callable

from sqlalchemy import Connection, delete, insert, select, update

from steadyhand.ports.nodes import Drained
from steadyhand.store.mapping import from_microseconds, to_microseconds
from steadyhand.store.schema import drained_nodes

_Submit = Callable[[Callable[[Connection], Drained | None]], Awaitable[Drained | None]]
_COLUMNS = drained_nodes.c


class SqlDrainedNodes:
    """`ports.DrainedNodes` over the writer and the readers of a store."""

    def __init__(self, write: _Submit, read: _Submit) -> None:
        self._write = write
        self._read = read

    async def begin(self, name: str) -> Drained | None:
        """Return the state of a node that starts; one that holds until its restart ends here."""
        found = await self._read(lambda connection: _find(connection, name))
        if found is None or not found.until_restart:
            return found
        return await self._write(lambda connection: _store(connection, name, None, ""))

    async def write_drained(self, name: str, drained: Drained | None, by: str) -> Drained | None:
        """Store the state of a node and return the stored one."""
        return await self._write(lambda connection: _store(connection, name, drained, by))


def _find(connection: Connection, name: str) -> Drained | None:
    query = select(_COLUMNS.drained_at, _COLUMNS.until_restart).where(_COLUMNS.name == name)
    row = connection.execute(query).one_or_none()
    return None if row is None else Drained(from_microseconds(row.drained_at), bool(row.until_restart))


def _store(connection: Connection, name: str, drained: Drained | None, by: str) -> Drained | None:
    if drained is None:
        connection.execute(delete(drained_nodes).where(_COLUMNS.name == name))
        return None
    before = _find(connection, name)
    state = {"drained_by": by, "until_restart": int(drained.until_restart)}
    if before is not None:
        connection.execute(update(drained_nodes).where(_COLUMNS.name == name).values(state))
        return Drained(before.since, drained.until_restart)
    row = {"name": name, "drained_at": to_microseconds(drained.since), **state}
    connection.execute(insert(drained_nodes), row)
    return drained
