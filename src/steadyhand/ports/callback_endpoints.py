"""The ports of endpoints of callbacks: those that are stored, and all of them for the API."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from steadyhand.job import CallbackBody, CallbackEvent

EndpointOrigin = Literal["config", "api"]
"""An endpoint of the configuration file is changed there."""


@dataclass(frozen=True, slots=True)
class StoredEndpoint:
    """An endpoint that was made by the API; no agents are all. The first secret is the newest."""

    name: str
    url: str = field(repr=False)
    events: tuple[CallbackEvent, ...]
    agents: tuple[str, ...]
    body: CallbackBody
    secrets: tuple[str, ...] = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """An endpoint as it is shown; `receiver` is the part of its address that is no secret."""

    name: str
    receiver: str
    events: Sequence[CallbackEvent]
    agents: Sequence[str]
    body: CallbackBody
    origin: EndpointOrigin
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """The fields of an endpoint to change; None leaves one as it is."""

    url: str | None = field(default=None, repr=False)
    events: tuple[CallbackEvent, ...] | None = None
    agents: tuple[str, ...] | None = None
    body: CallbackBody | None = None
    rotate_secret: bool = False


class EndpointStore(Protocol):
    """The stored endpoints."""

    async def list_endpoints(self) -> Sequence[StoredEndpoint]:
        """Return the endpoints, oldest first."""
        ...

    async def save_endpoint(self, endpoint: StoredEndpoint) -> None:
        """Store an endpoint; it replaces one of the same name."""
        ...

    async def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint and cancel its pending deliveries, in one transaction."""
        ...


class CallbackEndpoints(Protocol):
    """All endpoints, those of the configuration among them, which cannot be changed."""

    def list_endpoints(self) -> Sequence[EndpointInfo]:
        """Return the endpoints: those of the configuration first, then the oldest first."""
        ...

    def get(self, name: str) -> EndpointInfo:
        """Return an endpoint, or raise `NotFound`."""
        ...

    async def create(self, name: str, change: EndpointChange) -> tuple[EndpointInfo, str]:
        """Create an endpoint and return it with its secret, which is not shown again.

        Raise `Conflict` if the name is taken and `InvalidRequest` (`callback_refused`) for its address.
        """
        ...

    async def change(self, name: str, change: EndpointChange) -> tuple[EndpointInfo, str | None]:
        """Change an endpoint and return it, with its secret if that is new.

        Raise `NotFound`, `Conflict` for one of the configuration, `InvalidRequest` (`callback_refused`).
        """
        ...

    async def remove(self, name: str) -> None:
        """Remove an endpoint: nothing more is sent to it. Raise `NotFound`, `Conflict` for one of the configuration."""
        ...
