"""The exit codes of the command line (docs/cli.md), for jobs and for errors."""

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
    RetryLater,
    SchemaInUse,
    SchemaTooNew,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)
from steadyhand.job import OutcomeType


class ExitCode(IntEnum):
    """The exit codes of commands; users and scripts depend on them."""

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
    HANGUP = 129
    CTRL_C = 130
    TERMINATED = 143


_CODE_BY_STATE = {
    "completed": ExitCode.COMPLETED,
    "failed": ExitCode.FAILED,
    "cancelled": ExitCode.CANCELLED,
    "interrupted": ExitCode.INTERRUPTED,
    "error": ExitCode.ERROR,
    "timeout": ExitCode.TIMEOUT,
}

_CODE_BY_ERROR: tuple[tuple[type[SteadyhandError], ExitCode], ...] = (
    (InvalidRequest, ExitCode.USAGE),
    (ConfigError, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (Unauthenticated, ExitCode.AUTHENTICATION),
    (Forbidden, ExitCode.AUTHENTICATION),
    (Conflict, ExitCode.FAILED),
    (RetryLater, ExitCode.TRY_LATER),
    (DataDirectoryBusy, ExitCode.TRY_LATER),
    (SchemaTooNew, ExitCode.USAGE),
    (SchemaInUse, ExitCode.TRY_LATER),
    (ServiceUnreachable, ExitCode.UNREACHABLE),
)


def exit_code_for_job(job: Mapping[str, Any]) -> ExitCode:
    """Return the exit code of an ended job; a job that has not ended is a wait that timed out."""
    outcome = job.get("outcome")
    if isinstance(outcome, Mapping) and outcome.get("type") == OutcomeType.BUDGET:
        return ExitCode.BUDGET
    return _CODE_BY_STATE.get(str(job.get("state")), ExitCode.TIMEOUT)


def exit_code_for_error(error: SteadyhandError) -> ExitCode:
    """Return the exit code of an error; errors that the caller did not cause are `ERROR`."""
    return next(
        (code for error_class, code in _CODE_BY_ERROR if isinstance(error, error_class)), ExitCode.ERROR
    )
