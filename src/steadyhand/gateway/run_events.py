"""What the gateway tells a job of: bounded, so that an agent that asks in a loop fills no store."""

from steadyhand.events import Body, EgressRefused, Warned
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Emit

MOST_REFUSALS = 200
MOST_HOSTS = 200
_LONGEST = 255


class Reports:
    """The events of one run: each refusal and each new host, up to a number that is said when it is reached."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._refusals = 0
        self._hosts: set[str] = set()
        self._paths: set[str] = set()

    async def refused(self, host: str) -> None:
        """Tell of a host that the agent asked for and may not reach."""
        await self._refusal(EgressRefused(printable(host)))

    async def refused_path(self, method: str, path: str) -> None:
        """Tell, once for each, of a way on the model's socket that does not lead to the model."""
        asked = printable(f"{method} {path}")
        if asked not in self._paths and len(self._paths) < MOST_REFUSALS:
            self._paths.add(asked)
            await self._refusal(Warned(WarningCode.GATEWAY_REFUSED, f"The gateway does not pass {asked}."))

    async def reached(self, host: str) -> None:
        """Tell of a host that the agent reached for the first time in this run."""
        if host not in self._hosts and len(self._hosts) < MOST_HOSTS:
            self._hosts.add(host)
            await self._emit(Warned(WarningCode.EGRESS_HOST, f"The agent reached {host}."))

    async def unpriced(self, model: str) -> None:
        """Tell of a model whose price is not known."""
        text = (
            f"The price of {printable(model)} is not known; its calls are counted at the dearest one that is."
        )
        await self._emit(Warned(WarningCode.UNPRICED_MODEL, text))

    async def _refusal(self, body: Body) -> None:
        self._refusals += 1
        if self._refusals <= MOST_REFUSALS:
            await self._emit(body)
        elif self._refusals == MOST_REFUSALS + 1:
            more = f"More than {MOST_REFUSALS} requests were refused; further ones are not recorded."
            await self._emit(Warned(WarningCode.EGRESS_REFUSALS, more))


def printable(text: str) -> str:
    """Give what an agent wrote so that it can stand in an event: ASCII without controls, of a bounded length."""
    shown = "".join(c if " " <= c <= "~" else "?" for c in text[:_LONGEST])
    return shown if len(text) <= _LONGEST else f"{shown}…"
