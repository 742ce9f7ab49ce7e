"""Tests of every store."""

from steadyhand.testing.contracts.store.deletion import StoreRetentionContract
from steadyhand.testing.contracts.store.filters import StoreFilterContract
from steadyhand.testing.contracts.store.long_texts import StoreLongTextsContract
from steadyhand.testing.contracts.store.persistence import StoreEventsContract, StoreJobsContract
from steadyhand.testing.contracts.store.queries import StoreIdempotencyContract, StoreListingContract
from steadyhand.testing.contracts.store.sampling import StoreSamplesContract


class StoreContract(
    StoreJobsContract,
    StoreEventsContract,
    StoreIdempotencyContract,
    StoreListingContract,
    StoreFilterContract,
    StoreLongTextsContract,
    StoreSamplesContract,
    StoreRetentionContract,
):
    """All of it."""
