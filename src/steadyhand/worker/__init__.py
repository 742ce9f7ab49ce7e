"""Claims jobs and runs them: check out, run, judge, keep; drains on the way out and recovers on the way in."""

from steadyhand.worker.parked import ParkedJobs
from steadyhand.worker.run_executor import WorkerConfig, WorkerDeps
from steadyhand.worker.worker import Worker

__all__ = ["ParkedJobs", "Worker", "WorkerConfig", "WorkerDeps"]
