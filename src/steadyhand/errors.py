"""The one exception tree.

    SteadyhandError
    ├── CallerError             the caller can mend it; the edge turns `code` into a status
    │   ├── InvalidRequest      bad input; names every field that is wrong
    │   ├── Unauthenticated     no key, or not one of ours
    │   ├── Forbidden           a good key that may not do this
    │   ├── NotFound            no such thing, or another caller's
    │   ├── Conflict            the thing is not in a state for this
    │   └── TryLater            full or draining; says when to come back
    ├── RunError                Steadyhand could not run a job: it ends as `error`
    │   ├── WorkspaceError      the repository or its checkout
    │   ├── SpawnError          the agent's process did not start
    │   └── SandboxError        the wanted isolation is not to be had
    ├── Unreachable             no service answered where the client looked for one
    ├── ConfigError             the settings are wrong; the start is refused
    ├── DataDirectoryBusy       another process owns the data directory
    └── StoreError              the store failed under us

An error is made once, where it is noticed, and translated once, at the edge.
"""

from dataclasses import dataclass


class SteadyhandError(Exception):
    """The root of every error of ours; `code` is stable and `str(error)` is one plain sentence."""

    code = "internal"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code


class CallerError(SteadyhandError):
    """Something the caller can mend."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: a JSON pointer (RFC 6901) into the body, or `?name` for a query parameter."""

    pointer: str
    detail: str


class InvalidRequest(CallerError):
    """Input that was understood as a request and refused; nothing was stored."""

    code = "invalid_field"

    def __init__(
        self, detail: str, *, code: str | None = None, field_errors: tuple[FieldError, ...] = ()
    ) -> None:
        super().__init__(detail, code=code)
        self.field_errors = field_errors

    @classmethod
    def at(cls, pointer: str, detail: str, *, code: str | None = None) -> "InvalidRequest":
        """Refuse one field; the detail names it."""
        name = pointer.lstrip("/?").replace("/", ".")
        text = f"{name}: {detail}" if name else detail
        return cls(text, code=code, field_errors=(FieldError(pointer, detail),))


class Unauthenticated(CallerError):
    """No key, or one that is not ours."""

    code = "unauthenticated"


class Forbidden(CallerError):
    """A good key without the right to do this."""

    code = "scope_missing"


class NotFound(CallerError):
    """No such thing, or one that belongs to another caller."""

    code = "not_found"


class Conflict(CallerError):
    """The thing exists and is in no state for this."""

    code = "invalid_state"


class RetryLater(CallerError):
    """Refused for now; `retry_after` is in whole seconds."""

    code = "queue_full"

    def __init__(self, detail: str, *, code: str | None = None, retry_after: int = 1) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class RunError(SteadyhandError):
    """Steadyhand itself could not run the job; `retryable` says whether asking again may help."""

    code = "run_error"

    def __init__(self, detail: str, *, code: str | None = None, retryable: bool = True) -> None:
        super().__init__(detail, code=code)
        self.retryable = retryable


class WorkspaceError(RunError):
    """The repository could not be reached, the ref not found, the checkout not made."""

    code = "workspace_unavailable"


class SpawnError(RunError):
    """The agent's process could not be started."""

    code = "agent_not_started"


class SandboxError(RunError):
    """The wanted isolation is not to be had on this machine."""

    code = "sandbox_unavailable"


class ServiceUnreachable(SteadyhandError):
    """The client found no service: nothing answered, what did is none of ours (`bad_answer`) or failed (`internal`)."""

    code = "unreachable"


class ConfigError(SteadyhandError):
    """A setting is wrong; the text says which, where it came from and what would be right."""

    code = "config"


class DataDirectoryBusy(SteadyhandError):
    """Another process owns this data directory."""

    code = "data_directory_busy"


class StoreError(SteadyhandError):
    """The store failed under us."""

    code = "store"
