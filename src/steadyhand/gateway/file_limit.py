"""The limit of open files of this process."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def raised_file_limit(needed: int) -> Iterator[None]:
    """Let the service open as many files as agents can make it open: else they could keep its callers out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        yield
        return
    granted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if granted < needed:
        structlog.get_logger("steadyhand.gateway").warning("files.few", allowed=granted, wanted=needed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
