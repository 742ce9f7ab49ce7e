"""What every store must do."""

from steadyhand.testing.contracts.store.deletion import StoreForgetsAndCloses
from steadyhand.testing.contracts.store.persistence import StoreKeepsEvents, StoreKeepsJobs
from steadyhand.testing.contracts.store.queries import StoreKnowsRepeats, StoreLists


class StoreContract(StoreKeepsJobs, StoreKeepsEvents, StoreKnowsRepeats, StoreLists, StoreForgetsAndCloses):
    """All of it."""
