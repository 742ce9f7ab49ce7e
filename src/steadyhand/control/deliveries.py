"""Operations on the deliveries of callbacks: list, get, replay."""

from dataclasses import replace

from steadyhand.control.deps import ControlDeps
from steadyhand.control.requests import Caller
from steadyhand.errors import Forbidden, NotFound
from steadyhand.ports import Delivery, DeliveryFilter, DeliveryPage, Outbox


class CallbackDeliveries:
    """Reads and replays deliveries. A key sees those to the receivers of its own jobs; `read:all` sees all."""

    def __init__(self, deps: ControlDeps) -> None:
        self._deps = deps

    async def list_deliveries(
        self, caller: Caller, delivery_filter: DeliveryFilter, limit: int, cursor: str | None = None
    ) -> DeliveryPage:
        """Return a page of deliveries, newest first.

        Raise `Forbidden` if the filter names an endpoint and the key lacks `read:all`.
        """
        caller.require_scope("read")
        if not caller.has_scope("read:all"):
            if delivery_filter.endpoint is not None:
                raise Forbidden("This key lacks the scope 'read:all'.")
            delivery_filter = replace(delivery_filter, api_key_id=caller.key_id)
        return await self._outbox.list_deliveries(delivery_filter, limit, cursor)

    async def get_delivery(self, caller: Caller, delivery_id: str) -> Delivery:
        """Return a delivery. Raise `NotFound` if there is none that the key may see."""
        caller.require_scope("read")
        delivery = await self._outbox.get_delivery(delivery_id)
        if delivery is None or not _may_see(caller, delivery):
            raise NotFound("Delivery not found")
        return delivery

    async def replay_delivery(self, caller: Caller, delivery_id: str) -> Delivery:
        """Send a delivery once more, with the same id. Raise `NotFound` as `get_delivery` does."""
        caller.require_scope("submit")
        await self.get_delivery(caller, delivery_id)
        delivery = await self._outbox.replay(delivery_id, self._deps.clock())
        if delivery is None:  # its job was deleted meanwhile
            raise NotFound("Delivery not found")
        return delivery

    @property
    def _outbox(self) -> Outbox:
        if self._deps.outbox is None:
            raise NotFound("This service sends no callbacks.")
        return self._deps.outbox


def _may_see(caller: Caller, delivery: Delivery) -> bool:
    return caller.has_scope("read:all") or (
        delivery.endpoint is None and delivery.api_key_id == caller.key_id
    )
