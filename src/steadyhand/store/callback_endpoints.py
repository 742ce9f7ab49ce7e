"""Endpoints of callbacks in SQL: functions of a connection inside a transaction."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, update

from steadyhand.ports import StoredEndpoint
from steadyhand.store.announcements import ENDPOINTS_CHANNEL, announce
from steadyhand.store.mapping import from_microseconds, to_microseconds
from steadyhand.store.schema import callback_endpoints, deliveries


def list_endpoints(connection: Connection) -> Sequence[StoredEndpoint]:
    """Return the endpoints, oldest first."""
    query = select(callback_endpoints).order_by(callback_endpoints.c.created_at, callback_endpoints.c.name)
    return [
        StoredEndpoint(
            name=row["name"],
            url=row["url"],
            events=tuple(json.loads(row["events"])),
            agents=tuple(json.loads(row["agents"])),
            body=row["body"],
            secrets=tuple(json.loads(row["secrets"])),
            created_at=from_microseconds(row["created_at"]),
        )
        for row in connection.execute(query).mappings()
    ]


def save_endpoint(connection: Connection, endpoint: StoredEndpoint) -> None:
    """Store an endpoint; see `EndpointStore.save_endpoint`."""
    connection.execute(delete(callback_endpoints).where(callback_endpoints.c.name == endpoint.name))
    row = {
        "name": endpoint.name,
        "url": endpoint.url,
        "events": json.dumps(endpoint.events),
        "agents": json.dumps(endpoint.agents),
        "body": endpoint.body,
        "secrets": json.dumps(endpoint.secrets),
        "created_at": to_microseconds(endpoint.created_at),
    }
    connection.execute(insert(callback_endpoints), row)
    announce(connection, ENDPOINTS_CHANNEL)


def delete_endpoint(connection: Connection, name: str) -> None:
    """Delete an endpoint and cancel its pending deliveries; see `EndpointStore.delete_endpoint`."""
    connection.execute(delete(callback_endpoints).where(callback_endpoints.c.name == name))
    connection.execute(
        update(deliveries)
        .where(deliveries.c.endpoint == name, deliveries.c.state == "pending")
        .values(state="cancelled", error="The endpoint was removed.")
    )
    announce(connection, ENDPOINTS_CHANNEL)
