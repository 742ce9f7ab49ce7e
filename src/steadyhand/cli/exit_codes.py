"""The exit codes of the command line (docs/cli.md), and what leads to which."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from steadyhand.errors import (
    ConfigError,
    Conflict,
    DataDirectoryBusy,
    Forbidden,
    InvalidRequest,
    NotFound,
    SteadyhandError,
    TryLater,
    Unauthenticated,
    Unreachable,
)
from steadyhand.job import OutcomeType


class Exit(IntEnum):
    """What a command came to; part of the contract."""

    COMPLETED = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    AUTHENTICATION = 4
    BUDGET = 5
    CANCELLED = 6
    INTERRUPTED = 7
    ERROR = 8
    UNREACHABLE = 9
    TRY_LATER = 75
    TIMEOUT = 124
    CTRL_C = 130
    TERMINATED = 143


_BY_STATE = {
    "completed": Exit.COMPLETED,
    "failed": Exit.FAILED,
    "cancelled": Exit.CANCELLED,
    "interrupted": Exit.INTERRUPTED,
    "error": Exit.ERROR,
    "timeout": Exit.TIMEOUT,
}

_BY_ERROR: tuple[tuple[type[SteadyhandError], Exit], ...] = (
    (InvalidRequest, Exit.USAGE),
    (ConfigError, Exit.USAGE),
    (NotFound, Exit.NOT_FOUND),
    (Unauthenticated, Exit.AUTHENTICATION),
    (Forbidden, Exit.AUTHENTICATION),
    (Conflict, Exit.FAILED),
    (TryLater, Exit.TRY_LATER),
    (DataDirectoryBusy, Exit.TRY_LATER),
    (Unreachable, Exit.UNREACHABLE),
)


def exit_of_job(job: Mapping[str, Any]) -> Exit:
    """Give the code for an ended job; one that has not ended is a wait that ran out."""
    outcome = job.get("outcome")
    if isinstance(outcome, Mapping) and outcome.get("type") == OutcomeType.BUDGET:
        return Exit.BUDGET
    return _BY_STATE.get(str(job.get("state")), Exit.TIMEOUT)


def exit_of_error(error: SteadyhandError) -> Exit:
    """Give the code for an error; what is none of the caller's doing is `ERROR`."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.ERROR)
