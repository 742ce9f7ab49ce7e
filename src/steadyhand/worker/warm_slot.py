"""One process that waits for jobs, and the counts of all."""

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal

from steadyhand.agents import Agent
from steadyhand.job import Job
from steadyhand.ports import Checkout, HeldAccess, JobPaths, WarmAgent
from steadyhand.worker.parents import Ancestor
from steadyhand.worker.warm_demand import SlotKey

SLOT_BYTES = 100 << 20
"""The memory that a process is taken to need."""
Owner = tuple[str, str | None]
"""A caller: the id of the key, and the `user` of the request."""
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
    stack: AsyncExitStack | None = None
    """The owner of the access and the process if the job that claimed the slot starts them; see `live_start`."""
    agent: WarmAgent | None = None
    supervisor: int | None = None
    is_background: bool = False
    is_claimed: bool = False
    claimed_as: Literal["warm", "live"] | None = None
    """The kind of its claim, until it is counted: once its process has taken the prompt, or could not."""
    is_awake: bool | None = None
    """True if the process has answered since the slot was claimed; None if it was not asked yet."""
    job_id: str | None = None
    """The job that has the checkout."""
    owner: Owner | None = None
    """The key and the caller's user of the jobs that the process had; None if it had none."""
    live_job: str | None = None
    """The job whose conversation the process holds."""
    live_run: int = 0
    """The newest run of that job when the process was kept."""
    left_nothing: bool = False
    """True if its jobs can have left nothing behind: no files of a repository, and nothing that runs."""
    can_reset: bool = False
    """True if they left nothing, and the process was started for no job."""
    resets_for: Owner | None = None
    """The caller whose next job can have the process soon: its job is answered, and it will be reset."""
    settling: str | None = None
    """The job that has ended, until the process is ready for the next one."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    kept_at: float = 0.0
    is_kept: bool = False
    """True if the process stays after its job."""
    preparing: asyncio.Timeout | None = None
    """The block in which its process is made ready."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_unstarted(self) -> bool:
        """True if the job that claimed the slot has to start its process."""
        return self.stack is not None and self.agent is None

    @property
    def is_ready(self) -> bool:
        """True if a job can have it."""
        return self.agent is not None and not self.is_claimed and not self.released.is_set()

    def release(self) -> None:
        """Let its process end, also while it is made ready."""
        if self.preparing is not None and not self.released.is_set():
            self.preparing.reschedule(asyncio.get_running_loop().time())
        self.released.set()

    def holds(self, ancestor: Ancestor | None) -> bool:
        """Return True unless it holds another conversation than that of the job that a turn continues."""
        if self.live_job is None:
            return True
        return ancestor is not None and (ancestor.job.id, ancestor.job.run) == (self.live_job, self.live_run)


@dataclass(slots=True)
class WarmCounts:
    """Counts of the waiting processes since the start."""

    hits: int = 0
    misses: int = 0
    lost: int = 0
    """The misses whose process did not answer, or ended before it took the prompt."""
    refills: int = 0
    failures: int = 0
    kept: int = 0
    """The processes that stayed after their jobs."""
    live_hits: int = 0
    dropped: int = 0
    """The processes that were ended without a job."""


def owner_of(job: Job) -> Owner:
    """Return the caller whose jobs may share a process: the key, and the `user` that the request names."""
    user = (job.spec.metadata or {}).get("user")
    return job.api_key_id, None if user is None else str(user)


def may_reset(agent: Agent, job: Job) -> bool:
    """Return True if a job can have left nothing in its process: it had no tools."""
    return agent.tools == () and not job.spec.tools and agent.definition is None
