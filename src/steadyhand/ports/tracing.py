"""The tracing port: spans of jobs, of their runs and of what happens in them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from steadyhand.events import Event
from steadyhand.job import Job
from steadyhand.ports.ledger import ModelCall
from steadyhand.ports.observer import JobObserver
from steadyhand.ports.outbox import Delivery


class JobTracing(JobObserver, Protocol):
    """Makes the spans of jobs. Its methods are called on the event loop's thread, are short and do not raise."""

    def begin_trace(self, job_id: str, /) -> str | None:
        """Return the trace of a new job without a caller's trace, in the form of `Job.traceparent`; None for none."""
        ...

    def environment(self, job: Job, /) -> Mapping[str, str]:
        """Return the variables by which the agent's process and its tools find the span of the newest run."""
        ...

    def run_continues(self, job_id: str, earlier: Job) -> None:
        """Link the run that begins to the job whose conversation it continues."""
        ...

    def queued_again(self, job_id: str, traceparent: str, /) -> None:
        """Link the next run of a job to the caller's span of the request that asked for it."""
        ...

    def model_called(self, job: Job, call: ModelCall) -> None:
        """Make the span of a settled call; `job` is the job as its run began."""
        ...


class DeliverySpan(Protocol):
    """One attempt at a delivery."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers of the request that carry the trace on."""
        ...

    def end(self, status: int | None, *, delivered: bool) -> None:
        """Make the span of the attempt, with the status of the answer; None without one."""
        ...


BeginDeliverySpan = Callable[[Delivery], Awaitable[DeliverySpan | None]]
"""Begins the span of an attempt at a delivery; None if the delivery has none."""


async def no_delivery_span(_delivery: Delivery) -> DeliverySpan | None:
    """Return None."""
    return None


class _NoTracing:
    """Makes no spans."""

    def events_stored(self, events: Sequence[Event]) -> None:
        pass

    def phase_began(self, job_id: str, phase: str) -> None:
        pass

    def state_changed(self, job: Job, source: str | None, target: str) -> None:
        pass

    def begin_trace(self, _job_id: str) -> str | None:
        return None

    def environment(self, _job: Job) -> Mapping[str, str]:
        return {}

    def run_continues(self, job_id: str, earlier: Job) -> None:
        pass

    def queued_again(self, _job_id: str, _traceparent: str) -> None:
        pass

    def model_called(self, job: Job, call: ModelCall) -> None:
        pass


NO_TRACING: JobTracing = _NoTracing()
