"""The queue of jobs: by priority, then in the order of acceptance; bounded."""

from steadyhand.queue.local import LocalQueue

__all__ = ["LocalQueue"]
