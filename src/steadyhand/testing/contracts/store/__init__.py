"""What every store must do."""

from steadyhand.testing.contracts.store.asking import StoreKnowsRepeats, StoreLists
from steadyhand.testing.contracts.store.forgetting import StoreForgetsAndCloses
from steadyhand.testing.contracts.store.keeping import StoreKeepsEvents, StoreKeepsJobs


class StoreContract(StoreKeepsJobs, StoreKeepsEvents, StoreKnowsRepeats, StoreLists, StoreForgetsAndCloses):
    """All of it."""
