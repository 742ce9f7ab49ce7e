"""The configured receivers of callbacks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from steadyhand.callbacks.address_guard import CallbackUrl
from steadyhand.job import CallbackBody, CallbackEvent, Job
from steadyhand.ports import Schedule


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver of the configuration, with the events and the agents that it is told of; no agents are all."""

    name: str
    url: CallbackUrl = field(repr=False)
    events: frozenset[CallbackEvent]
    agents: frozenset[str]
    body: CallbackBody
    secrets: Sequence[str] = field(repr=False)
    """The secrets that sign, the newest first; a receiver accepts any of them."""

    @property
    def circuit(self) -> str:
        """The name of the circuit of its deliveries."""
        return f"endpoint {self.name}"

    def is_told(self, event: CallbackEvent, job: Job) -> bool:
        """Return True if it is told of this event of this job."""
        return event in self.events and (not self.agents or job.agent in self.agents)

    def is_told_of_pause(self, schedule: Schedule) -> bool:
        """Return True if it is told that this schedule has paused itself."""
        return "schedule.paused" in self.events and (
            not self.agents or schedule.spec.job.agent in self.agents
        )
