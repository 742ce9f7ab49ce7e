from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from steadyhand.ports import Ledger
from steadyhand.testing.contracts.ledger import LedgerContract
from steadyhand.testing.memory_ledger import MemoryLedger


class TestMemoryLedger(LedgerContract):
    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ledger]:
        yield MemoryLedger()
