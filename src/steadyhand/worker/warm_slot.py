"""One process that waits for jobs, and the counts of all."""

import asyncio
import time
import uuid
from dataclasses import dataclass, field

from steadyhand.agents import Agent
from steadyhand.job import Job
from steadyhand.ports import Checkout, HeldAccess, JobPaths, WarmAgent
from steadyhand.worker.warm_demand import SlotKey

SUPERVISOR_FILE = "supervisor"
"""The record of a process in the folder of a checkout that has no job; the store has that of a job's process."""


def write_supervisor(paths: JobPaths, pid: int, started: int) -> None:
    """Write down the supervisor of a waiting process."""
    (paths.root / SUPERVISOR_FILE).write_text(f"{pid} {started}", "ascii")


def read_supervisor(paths: JobPaths) -> tuple[int, int] | None:
    """Return the pid and the start time in the record of a folder, or None."""
    try:
        pid, started = (paths.root / SUPERVISOR_FILE).read_text("ascii").split()
        return int(pid), int(started)
    except (OSError, ValueError):
        return None


@dataclass(eq=False, slots=True)
class WarmSlot:
    """One waiting process, from the making of its checkout to its end."""

    key: SlotKey
    number: int
    initialise: bool
    id: str = field(default_factory=lambda: f"warm-{uuid.uuid4().hex}")
    began: float = field(default_factory=time.monotonic)
    checkout: Checkout | None = None
    access: HeldAccess | None = None
    agent: WarmAgent | None = None
    supervisor: int | None = None
    is_background: bool = False
    is_claimed: bool = False
    job_id: str | None = None
    """The job that has the checkout."""
    owner: tuple[str, str | None] | None = None
    """The key and the caller's user of the jobs that the process had; None if it had none."""
    live_job: str | None = None
    """The job whose conversation the process holds."""
    can_reset: bool = False
    """True if its jobs can have left nothing behind."""
    settling: str | None = None
    """The job that has ended, until the process is ready for the next one."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    kept_at: float = 0.0
    is_kept: bool = False
    """True if the process stays after its job."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_ready(self) -> bool:
        """True if a job can have it."""
        return self.agent is not None and not self.is_claimed and not self.released.is_set()


@dataclass(slots=True)
class WarmCounts:
    """Counts of the waiting processes since the start."""

    hits: int = 0
    misses: int = 0
    refills: int = 0
    failures: int = 0
    kept: int = 0
    """The processes that stayed after their jobs."""
    live_hits: int = 0
    dropped: int = 0
    """The processes that were ended without a job."""


def preference(slot: WarmSlot) -> tuple[bool, bool, bool, float]:
    """Return the key by which the slot that fits best is the greatest."""
    return slot.live_job is None, slot.owner is not None, slot.initialise, -slot.kept_at


def owner_of(job: Job) -> tuple[str, str | None]:
    """Return the caller whose jobs may share a process: the key, and the `user` that the request names."""
    user = (job.spec.metadata or {}).get("user")
    return job.api_key_id, None if user is None else str(user)


def may_reset(agent: Agent, job: Job) -> bool:
    """Return True if a job can have left nothing in its process: it had no tools."""
    return agent.tools == () and not job.spec.tools and agent.definition is None
