"""The ids of traces and spans. Those of jobs and runs follow from the job, so they are the same after a restart. Pure.

A trace goes on over restarts, retries and resumes: the spans of a later run have the job's span as their parent, also
if another process of the service has exported it or never will.
"""

import random
from dataclasses import dataclass
from hashlib import sha256

from steadyhand.job import Job

_RANDOM = random.SystemRandom()
_SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class JobTrace:
    """The trace of a job: its id, the caller's span (None without one) and the caller's flags."""

    trace_id: int
    caller_span_id: int | None
    flags: int


def _digest(kind: str, *parts: str | int, size: int) -> int:
    text = "\0".join((f"steadyhand {kind}", *map(str, parts)))
    return int.from_bytes(sha256(text.encode()).digest()[:size]) or 1


def job_span_id(job_id: str, requeues: int = 0) -> int:
    """Return the id of a job's span; a job that had ended and was queued again has another one."""
    return _digest("job", job_id, requeues, size=8)


def run_span_id(job_id: str, run: int) -> int:
    """Return the id of the span of a run."""
    return _digest("run", job_id, run, size=8)


def new_span_id() -> int:
    """Return a random id of a span."""
    return _RANDOM.getrandbits(64) or 1


def new_traceparent(job_id: str) -> str:
    """Return the trace that begins with a job: its parent is the job's own span."""
    return format_traceparent(_digest("trace", job_id, size=16), job_span_id(job_id), _SAMPLED)


def format_traceparent(trace_id: int, span_id: int, flags: int) -> str:
    """Return a span's context as the header `traceparent` of W3C Trace Context has it."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


def parse_context(traceparent: str) -> tuple[int, int]:
    """Return the ids of the trace and of the span of a checked `traceparent`."""
    _, trace_id, span_id, _ = traceparent.split("-")
    return int(trace_id, 16), int(span_id, 16)


def trace_of(job: Job) -> JobTrace:
    """Return the trace of a job; one that was accepted without tracing has a trace of its own."""
    _, trace_id, span_id, flags = (job.traceparent or new_traceparent(job.id)).split("-")
    parent = int(span_id, 16)
    return JobTrace(int(trace_id, 16), None if parent == job_span_id(job.id) else parent, int(flags, 16))
