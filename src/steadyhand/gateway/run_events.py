"""Events of the gateway for a job, bounded, so that an agent in a loop cannot fill the store."""

from steadyhand.events import BudgetNear, EgressRefused, EventBody, WarningEvent
from steadyhand.job_warnings import WarningCode
from steadyhand.money import format_dollars
from steadyhand.ports import BudgetLimit, Emit

MAX_REFUSALS = 200
MAX_HOSTS = 200
_MAX_TEXT_LENGTH = 255


class RunEvents:
    """The events of one run: each refusal and each new host, up to a number that is said when it is reached."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._refusals = 0
        self._hosts: set[str] = set()
        self._paths: set[str] = set()

    async def report_refused_host(self, host: str) -> None:
        """Report a host that the agent requested and may not reach."""
        await self._emit_refusal(EgressRefused(printable(host)))

    async def report_refused_path(self, method: str, path: str) -> None:
        """Report, once for each, a path on the model socket that does not lead to the model."""
        request = printable(f"{method} {path}")
        if request not in self._paths and len(self._paths) < MAX_REFUSALS:
            self._paths.add(request)
            await self._emit_refusal(
                WarningEvent(WarningCode.GATEWAY_REFUSED, f"The gateway does not pass {request}.")
            )

    async def report_reached_host(self, host: str) -> None:
        """Report a host that the agent reached for the first time in this run."""
        if host not in self._hosts and len(self._hosts) < MAX_HOSTS:
            self._hosts.add(host)
            await self._emit(WarningEvent(WarningCode.EGRESS_HOST, f"The agent reached {host}."))

    async def report_unpriced_model(self, model: str) -> None:
        """Report a model without a known price."""
        text = (
            f"The price of {printable(model)} is not known; its calls are counted at the dearest one that is."
        )
        await self._emit(WarningEvent(WarningCode.UNPRICED_MODEL, text))

    async def report_near_budget(self, limit: BudgetLimit, spent_micros: int) -> None:
        """Report a budget that is nearly spent."""
        body = BudgetNear(
            limit.scope,
            limit.name,
            limit.period,
            format_dollars(limit.limit_micros, min_places=2),
            format_dollars(spent_micros, min_places=2),
        )
        await self._emit(body)

    async def _emit_refusal(self, body: EventBody) -> None:
        self._refusals += 1
        if self._refusals <= MAX_REFUSALS:
            await self._emit(body)
        elif self._refusals == MAX_REFUSALS + 1:
            text = f"More than {MAX_REFUSALS} requests were refused; further ones are not recorded."
            await self._emit(WarningEvent(WarningCode.EGRESS_REFUSALS, text))


def printable(text: str) -> str:
    """Return text of an agent in a form that fits an event: ASCII without controls, of a bounded length."""
    ascii_text = "".join(c if " " <= c <= "~" else "?" for c in text[:_MAX_TEXT_LENGTH])
    return ascii_text if len(text) <= _MAX_TEXT_LENGTH else f"{ascii_text}…"
