"""The worker: it claims jobs and runs them, recovers them at its start, and drains at its stop."""

from steadyhand.worker.deps import WorkerConfig, WorkerDeps
from steadyhand.worker.parked import ParkedJobs
from steadyhand.worker.worker import Worker

__all__ = ["ParkedJobs", "Worker", "WorkerConfig", "WorkerDeps"]
