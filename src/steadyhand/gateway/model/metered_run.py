"""A run with access to the gateway: its model socket, its calls and their cost."""

import asyncio
import math
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from steadyhand.addresses import redact_url
from steadyhand.gateway.model.failed_calls import FailedCalls
from steadyhand.gateway.model.providers import Provider
from steadyhand.gateway.model.usage_meter import MeasuredUsage
from steadyhand.gateway.money.budgets import (
    WAIT_SECONDS,
    BudgetAccount,
    BudgetExhausted,
    BudgetQueueFull,
    Budgets,
    NearLimit,
    Reservation,
)
from steadyhand.gateway.money.ledger_writer import LedgerWriter
from steadyhand.gateway.money.prices import Price, Prices
from steadyhand.gateway.run_events import RunEvents, printable
from steadyhand.job import State
from steadyhand.metrics import ServiceMetrics
from steadyhand.ports import (
    NO_TRACING,
    GetBudgetLimits,
    JobTracing,
    ModelCall,
    RunContext,
    TokenCounts,
    UsageTotal,
)

DEFAULT_OUTPUT_TOKENS = 4_096
"""The tokens of output that a call reserves before the run has had any."""
DEFAULT_TOKENS_PER_BYTE = 0.25
MAX_BUFFERED_BYTES = 64 << 20
"""The maximum bytes of one run's requests that are buffered for a repeat; larger requests are not buffered."""
SETTLE_SECONDS = 5.0
_ID_SOURCE = random.Random()  # noqa: S311  # the ids of calls, which nobody needs to guess
os.register_at_fork(after_in_child=_ID_SOURCE.seed)  # a service that is forked has ids of its own
UNKNOWN_MODEL = "unknown"


@dataclass(frozen=True, slots=True)
class BillingContext:
    """The objects that all metered runs of a node share."""

    budgets: Budgets
    ledger_writer: LedgerWriter
    prices: Prices
    clock: Callable[[], datetime]
    get_limits: GetBudgetLimits
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    tracing: JobTracing = NO_TRACING


class MeteredRun:
    """One run's calls, from its start to its end. It belongs to one event loop."""

    def __init__(
        self,
        work: RunContext,
        provider: Provider,
        billing: BillingContext,
        events: RunEvents,
        spent: UsageTotal | None = None,
    ) -> None:
        """Create it. `spent` is the usage of the calls that it made through an earlier service."""
        self.provider = provider
        self.events = events
        self.rate_limited_until: datetime | None = None
        self.credential_rejected_until: datetime | None = None
        self.found_rejection = False
        self.has_waited = any(run.state is State.PARKED for run in work.job.runs)
        self.exhausted_budget: str | None = None
        self.last_status: int | None = None
        """The status of the last answer to the agent, the gateway's own included; None if that broke off."""
        self.failed_calls = FailedCalls()
        self.buffer_bytes_left = MAX_BUFFERED_BYTES
        self._work = work
        self._billing = billing
        self._budget_account = BudgetAccount(
            work.job.id,
            work.agent.name,
            work.job.api_key_id,
            lambda: billing.get_limits(work.job, work.agent),
        )
        self._open_calls: dict[str, OpenCall] = {}
        self._call_ids: set[str] = set()
        self._spent = spent or UsageTotal()
        self._call_settled = asyncio.Event()
        self._sent_bytes = 0
        self._sent_tokens = 0
        self._max_output = 0
        self._unpriced_model: str | None = None
        self._unpriced_reported = False
        self._near_limits: list[NearLimit] = []

    @property
    def log_fields(self) -> Mapping[str, str]:
        """Return the fields of all lines of the log about the job of the run."""
        return self._work.job.log_fields

    @property
    def spent(self) -> UsageTotal:
        """Return the usage of the settled calls."""
        return self._spent

    async def begin_call(self, model: str | None, size: int) -> "OpenCall":
        """Let a call through once the budgets do, and write it down. Raises `Exhausted`, `Crowded`."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._billing.ledger_writer.wait_for_room()
        except TimeoutError as error:
            raise BudgetQueueFull from error
        reserve = self.estimate_cost(model, size)
        call_id = f"{_ID_SOURCE.getrandbits(96):024x}"
        try:
            reservation = await self._billing.budgets.admit(self._budget_account, reserve, call_id)
        except BudgetExhausted as exhausted:
            self.exhausted_budget = exhausted.text
            raise
        job = self._work.job
        call = ModelCall(
            id=call_id,
            job_id=job.id,
            run=job.run,
            api_key_id=job.api_key_id,
            agent=self._work.agent.name,
            provider=self.provider.name,
            model=UNKNOWN_MODEL if model is None else printable(model),
            at=self._billing.clock(),
            reserved_micros=reservation.reserved,
            workspace=redact_url(job.workspace) or "",
        )
        open_call = OpenCall(self, call, model, reservation, size, self._billing.metrics.call_began())
        self._open_calls[call.id] = open_call
        self._call_ids.add(call.id)
        self._billing.ledger_writer.write(call)
        return open_call

    def estimate_cost(self, model: str | None, size: int, output: int | None = None) -> int:
        """Return the estimated cost of a call of this many bytes in micro-dollars, by the earlier calls of this run.

        `output` is the number of its tokens of output, if it is known better than by them.
        """
        tokens_per_byte = (
            self._sent_tokens / self._sent_bytes if self._sent_bytes else DEFAULT_TOKENS_PER_BYTE
        )
        tokens = TokenCounts(
            input=math.ceil(size * tokens_per_byte),
            output=(self._max_output or DEFAULT_OUTPUT_TOKENS) if output is None else output,
        )
        return self._price(model)[0].cost_micros(tokens)

    def _price(self, model: str | None) -> tuple[Price, bool]:
        """Return the price of a model and whether it is known; an unknown model has the highest known price."""
        prices = self._billing.prices
        price = None if model is None else prices.price_of(model, self.provider.name)
        return (prices.highest, False) if price is None else (price, True)

    def settle_call(
        self, open_call: "OpenCall", measured: MeasuredUsage | None, status: int | None, *, sent: bool
    ) -> None:
        """Replace a call's reservation by its cost.

        A call without reported usage costs its reservation, or what its text is estimated at if that is more.
        `asked` is true if the provider may have seen the call. Settling a call twice changes nothing.
        """
        if self._open_calls.pop(open_call.call.id, None) is None:
            return
        self.last_status = status
        self.failed_calls.note_answer(status)
        model = open_call.model if measured is None or measured.model is None else measured.model
        call = replace(
            open_call.call,
            settled=True,
            status=status,
            model=open_call.call.model if model is None else printable(model),
        )
        if measured is None or (not measured.has_usage and not measured.complete):
            micros = open_call.reservation.reserved if sent else 0
            if sent and measured is not None and measured.estimated_output:
                micros = max(
                    micros, self.estimate_cost(model, open_call.size, measured.estimated_output)
                )  # else a long answer that is cut before its usage would be a cheap one
            call = replace(call, micros=micros, complete=not sent)
        else:
            price, is_known = self._price(model)
            micros = price.cost_micros(measured.billable_tokens, measured.extras)
            if measured.has_usage and not is_known:
                self._unpriced_model = model or UNKNOWN_MODEL
            is_known = is_known or not measured.has_usage
            call = replace(
                call, tokens=measured.tokens, micros=micros, priced=is_known, complete=measured.complete
            )
            self._update_estimates(open_call.size, measured.tokens)
        reservation = open_call.reservation
        self._near_limits += reservation.settle(call.micros)
        self._spent = self._spent.plus(UsageTotal(1, call.tokens, call.micros, call.priced, call.complete))
        self._billing.ledger_writer.write(call, reservation.note_stored if reservation.is_shared else None)
        self._billing.metrics.call_ended(call, open_call.began)
        self._billing.tracing.model_called(self._work.job, call)
        self._call_settled.set()

    def _update_estimates(self, size: int, tokens: TokenCounts) -> None:
        input_tokens = tokens.input + tokens.cache_read + tokens.cache_write_5m + tokens.cache_write_1h
        if input_tokens and size:
            self._sent_bytes += size
            self._sent_tokens += input_tokens
        self._max_output = max(self._max_output, tokens.output)

    async def report_unpriced(self) -> None:
        """Report a model without a known price to the job, once."""
        if self._unpriced_model is not None and not self._unpriced_reported:
            self._unpriced_reported = True
            await self.events.report_unpriced_model(self._unpriced_model)

    async def report_near_budgets(self) -> None:
        """Report the budgets that calls of this run have nearly spent, once each."""
        near, self._near_limits = self._near_limits, []
        for each in near:
            await self.events.report_near_budget(each.limit, each.settled_micros)

    async def final_usage(self) -> UsageTotal:
        """Wait, for a bounded time, until all calls have ended and are stored; return the usage of the run."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while self._open_calls:
                    self._call_settled.clear()
                    await self._call_settled.wait()
                await self._billing.ledger_writer.flush(self._call_ids)
        except TimeoutError:
            pass
        return replace(self._spent, complete=self._spent.complete and not self._open_calls)


@dataclass(eq=False, slots=True)
class OpenCall:
    """A call that was let through and has not ended."""

    run: MeteredRun
    call: ModelCall
    model: str | None
    reservation: Reservation
    size: int
    began: float
    """The time of the metrics' clock at its admission."""
    sent: bool = False
    """True if the provider may have seen the call and did not reject it."""

    def resize(self, size: int) -> None:
        """Change the reservation for a body that was larger than announced."""
        self.size = size
        self.reservation.resize(max(self.reservation.reserved, self.run.estimate_cost(self.model, size)))

    def settle(self, measured: MeasuredUsage | None, status: int | None, *, sent: bool = True) -> None:
        """End the call; see `Visit.settle`."""
        self.run.settle_call(self, measured, status, sent=sent)
