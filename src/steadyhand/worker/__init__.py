"""Claims jobs and runs them: check out, run, judge, keep; drains on the way out and recovers on the way in."""

from steadyhand.worker.node import Worker
from steadyhand.worker.parking import Parking
from steadyhand.worker.runs import Parts, Tending

__all__ = ["Parking", "Parts", "Tending", "Worker"]
