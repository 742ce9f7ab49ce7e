"""The things of one run that last from its start until its end is stored."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from steadyhand.events import PhaseStarted
from steadyhand.ports import Claim, Emit, OrphanedRun, PhaseName
from steadyhand.worker.deadline import RunDeadline
from steadyhand.worker.run_event_writer import RunEventWriter
from steadyhand.worker.run_phases import with_running_phase
from steadyhand.worker.take_up import TakenUp


@dataclass(frozen=True, slots=True)
class RunScope:
    """One run of a claimed job."""

    claim: Claim
    events: RunEventWriter
    deadline: RunDeadline
    secrets: ExitStack
    """The live secrets of the run; they are forgotten once the last event is stored."""
    taken_up: TakenUp | None = None
    """The rest of the run, if an earlier service has left it."""

    @property
    def orphan(self) -> OrphanedRun | None:
        """Return the run that an earlier service has left, or None."""
        return None if self.taken_up is None else self.taken_up.orphan

    def emit_from_agent(self, on_running: Callable[[], None]) -> Emit:
        """Return a function for the events of the agent, which leaves out what is stored already.

        `on_running` is called before the first one.
        """
        if self.taken_up is None:
            return with_running_phase(self.events.emit, on_running)
        is_running = self.taken_up.has_begun("running")
        emit = self.events.emit if is_running else with_running_phase(self.events.emit, on_running)
        return self.taken_up.rest_of(emit)

    def emit_from_gateway(self) -> Emit:
        """Return a function for the events of the gateway, which leaves out what is stored already."""
        return self.events.emit if self.taken_up is None else self.taken_up.new_only(self.events.emit)

    async def begin_phase(self, phase: PhaseName) -> None:
        """Emit that a phase begins, if that is not stored already."""
        if self.taken_up is None or not self.taken_up.has_begun(phase):
            await self.events.emit(PhaseStarted(phase))
