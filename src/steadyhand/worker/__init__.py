"""Claims jobs and runs them: check out, run, judge, keep; drains on the way out and recovers on the way in."""

from steadyhand.worker.parked import Parking
from steadyhand.worker.run_executor import Parts, Tending
from steadyhand.worker.worker import Worker

__all__ = ["Parking", "Parts", "Tending", "Worker"]
