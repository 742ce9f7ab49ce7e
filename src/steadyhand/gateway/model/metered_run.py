"""A run that is let out, as the gateway knows it: its way to the model, its calls, and what they came to."""

import asyncio
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from steadyhand.gateway.model.providers import Provider
from steadyhand.gateway.model.usage_meter import Reading
from steadyhand.gateway.money.budgets import Budgets, Exhausted, Held, Payer
from steadyhand.gateway.money.ledger_writer import Books
from steadyhand.gateway.money.prices import Price, Prices
from steadyhand.gateway.run_events import Reports, printable
from steadyhand.ports import AllowancesOf, Call, Spent, Tokens, Work

FIRST_OUTPUT = 4_096
"""The tokens of output that a call reserves before the run has had any."""
FIRST_TOKENS_A_BYTE = 0.25
MOST_KEPT_BYTES = 64 << 20
"""What one run's requests may hold here at once, to be asked again; those beyond that are not."""
SETTLE_SECONDS = 5.0
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Office:
    """What all visits of a node share."""

    budgets: Budgets
    books: Books
    prices: Prices
    clock: Callable[[], datetime]
    allowances_of: AllowancesOf


class Visit:
    """One run's calls, from its start to its end. It belongs to one event loop."""

    def __init__(self, work: Work, provider: Provider, office: Office, reports: Reports) -> None:
        self.provider = provider
        self.reports = reports
        self.wall: datetime | None = None
        self.spent_out: str | None = None
        self.room = MOST_KEPT_BYTES
        self._work = work
        self._office = office
        self._payer = Payer(
            work.job.id,
            work.agent.name,
            work.job.api_key_id,
            lambda: office.allowances_of(work.job, work.agent),
        )
        self._open: dict[str, OpenCall] = {}
        self._made: set[str] = set()
        self._spent = Spent()
        self._changed = asyncio.Event()
        self._sent_bytes = 0
        self._sent_tokens = 0
        self._most_output = 0
        self._unpriced: str | None = None
        self._told_unpriced = False

    @property
    def spent(self) -> Spent:
        """What its settled calls came to."""
        return self._spent

    async def begin(self, model: str | None, size: int) -> "OpenCall":
        """Let a call through once the budgets do, and write it down. Raises `Exhausted`, `Crowded`."""
        reserve = self.reserve(model, size)
        try:
            held = await self._office.budgets.admit(self._payer, reserve)
        except Exhausted as exhausted:
            self.spent_out = exhausted.text
            raise
        job = self._work.job
        call = Call(
            id=secrets.token_hex(12),
            job_id=job.id,
            run=job.run,
            api_key_id=job.api_key_id,
            agent=self._work.agent.name,
            provider=self.provider.name,
            model=UNKNOWN if model is None else printable(model),
            at=self._office.clock(),
            reserved_micros=held.reserved,
        )
        opened = OpenCall(self, call, model, held, size)
        self._open[call.id] = opened
        self._made.add(call.id)
        self._office.books.keep(call)
        return opened

    def reserve(self, model: str | None, size: int) -> int:
        """Give what a call of so many bytes may come to, as this run's earlier calls went; micro-dollars."""
        a_byte = self._sent_tokens / self._sent_bytes if self._sent_bytes else FIRST_TOKENS_A_BYTE
        tokens = Tokens(input=math.ceil(size * a_byte), output=self._most_output or FIRST_OUTPUT)
        return self._price(model)[0].micros(tokens)

    def _price(self, model: str | None) -> tuple[Price, bool]:
        """Give a model's price, and whether it is known: else it is the dearest one that is."""
        prices = self._office.prices
        found = None if model is None else prices.price_of(model)
        return (prices.dearest, False) if found is None else (found, True)

    def settle(self, opened: "OpenCall", reading: Reading | None, status: int | None, *, asked: bool) -> None:
        """Put what a call came to in place of what it reserved; what nobody told costs what it reserved.

        `asked` is whether the service may have seen it. Settling again changes nothing.
        """
        if self._open.pop(opened.call.id, None) is None:
            return
        model = opened.model if reading is None or reading.model is None else reading.model
        call = replace(
            opened.call,
            settled=True,
            status=status,
            model=opened.call.model if model is None else printable(model),
        )
        if reading is None or (not reading.seen and not reading.complete):
            call = replace(call, micros=opened.held.reserved if asked else 0, complete=not asked)
        else:
            price, priced = self._price(model)
            micros = price.micros(reading.likely, reading.extras)
            if reading.seen and not priced:
                self._unpriced = model or UNKNOWN
            priced = priced or not reading.seen
            call = replace(
                call, tokens=reading.tokens, micros=micros, priced=priced, complete=reading.complete
            )
            self._learn(opened.size, reading.tokens)
        opened.held.settle(call.micros)
        self._spent = self._spent.plus(Spent(1, call.tokens, call.micros, call.priced, call.complete))
        self._office.books.keep(call)
        self._changed.set()

    def _learn(self, size: int, tokens: Tokens) -> None:
        told = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
        if told and size:
            self._sent_bytes += size
            self._sent_tokens += told
        self._most_output = max(self._most_output, tokens.output)

    async def tell(self) -> None:
        """Tell the job, once, of a model whose price is not known."""
        if self._unpriced is not None and not self._told_unpriced:
            self._told_unpriced = True
            await self.reports.unpriced(self._unpriced)

    async def settled(self) -> Spent:
        """Wait, for a bounded time, until all calls have ended and are kept; give what this run's came to."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._open:
                    self._changed.clear()
                    await self._changed.wait()
                await self._office.books.kept(self._made)
        except TimeoutError:
            pass
        return replace(self._spent, complete=self._spent.complete and not self._open)


@dataclass(eq=False, slots=True)
class OpenCall:
    """A call that was let through and has not ended."""

    visit: Visit
    call: Call
    model: str | None
    held: Held
    size: int
    asked: bool = False
    """Whether the service may have seen it, and not turned it away."""

    def grew(self, size: int) -> None:
        """Reserve anew for a body that turned out to be larger."""
        self.size = size
        self.held.resize(max(self.held.reserved, self.visit.reserve(self.model, size)))

    def settle(self, reading: Reading | None, status: int | None, *, asked: bool = True) -> None:
        """End the call; see `Visit.settle`."""
        self.visit.settle(self, reading, status, asked=asked)
