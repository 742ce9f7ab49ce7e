"""The exceptions of Steadyhand.

    SteadyhandError
    ├── CallerError             the caller can correct it; the API turns `code` into a status
    │   ├── InvalidRequest      invalid input; names every wrong field
    │   ├── Unauthenticated     no key, or an unknown one
    │   ├── Forbidden           a valid key without the right to do this
    │   ├── NotFound            it does not exist, or belongs to another caller
    │   ├── Conflict            its state does not allow the operation
    │   ├── RetryLater          full or draining; has the time of the next try
    │   │   └── NodeGone        another node that is needed is dead or does not answer
    │   └── QueryTooSlow        a list or a sum that takes too long
    ├── RunError                Steadyhand could not run a job: it ends as `error`
    │   ├── WorkspaceError      the repository or its checkout
    │   │   └── SessionGone     the session that the job continues was deleted
    │   ├── SpawnError          the agent's process did not start
    │   └── SandboxError        the configured isolation is not available
    ├── ServiceUnreachable      no service answered the client
    ├── JobNotCompleted         the job that a client needs an answer of has none
    ├── ConfigError             the settings are wrong; the service does not start
    ├── CallbackRefused         an address that the service does not call back
    ├── InstallError            a package could not be installed; nothing of it was left
    ├── DataDirectoryBusy       another process owns the data directory
    │   └── DatabaseBusy        another service owns the database
    └── StoreError              the store failed
        ├── SchemaTooNew        the database's schema needs a newer version of Steadyhand
        ├── SchemaInUse         nodes that work on the database are too old for this version's schema
        └── StoreUnavailable    the store cannot be used for now: its disk is full, or another program holds it

An error is created once, where it is noticed, and translated once, in the API or the CLI.
"""

from dataclasses import dataclass


class SteadyhandError(Exception):
    """The base of every error here; `code` is stable and `str(error)` is one plain sentence.

    The client sets `status` and `request_id`, by which the service's log names a request, if it got an answer.
    """

    code = "internal"
    status: int | None = None
    request_id: str | None = None

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code


class CallerError(SteadyhandError):
    """An error that the caller can correct."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: a JSON pointer (RFC 6901) into the body, or `?name` for a query parameter."""

    pointer: str
    detail: str


@dataclass(frozen=True, slots=True)
class InputError:
    """One wrong field in the form of pydantic, which the classic profile passes on; `value` is the caller's own."""

    type: str
    location: tuple[str | int, ...]
    message: str
    value: object


class InvalidRequest(CallerError):
    """A request with an invalid value; nothing was stored."""

    code = "invalid_field"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        field_errors: tuple[FieldError, ...] = (),
        input_errors: tuple[InputError, ...] = (),
    ) -> None:
        super().__init__(detail, code=code)
        self.field_errors = field_errors
        self.input_errors = input_errors

    @classmethod
    def at(cls, pointer: str, detail: str, *, code: str | None = None) -> "InvalidRequest":
        """Create the error of one field; the detail begins with its name."""
        name = pointer.lstrip("/?").replace("/", ".")
        text = f"{name}: {detail}" if name else detail
        return cls(text, code=code, field_errors=(FieldError(pointer, detail),))


class Unauthenticated(CallerError):
    """No key, or an unknown one."""

    code = "unauthenticated"


class Forbidden(CallerError):
    """A valid key without the right to do this."""

    code = "scope_missing"


class NotFound(CallerError):
    """An object that does not exist, or that belongs to another caller."""

    code = "not_found"


class Conflict(CallerError):
    """An object whose state does not allow the operation."""

    code = "invalid_state"


class RetryLater(CallerError):
    """A request that is refused for now; `retry_after` is in whole seconds."""

    code = "queue_full"

    def __init__(self, detail: str, *, code: str | None = None, retry_after: int = 1) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after


class NodeGone(RetryLater):
    """Another node that does not answer a call, because it is dead, cut off or too busy.

    `may_be_done` is False if it certainly has not done what it was called for.
    """

    code = "node_gone"

    def __init__(self, detail: str, *, may_be_done: bool = False, retry_after: int = 15) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.may_be_done = may_be_done


class QueryTooSlow(CallerError):
    """A list or a sum that was interrupted, because it took too long; with narrower filters it takes less."""

    code = "query_too_slow"


class RunError(SteadyhandError):
    """A failure of Steadyhand itself to run a job; `retryable` is True if a retry may help."""

    code = "run_error"

    def __init__(self, detail: str, *, code: str | None = None, retryable: bool = True) -> None:
        super().__init__(detail, code=code)
        self.retryable = retryable


class WorkspaceError(RunError):
    """A repository that cannot be reached, a ref that does not exist, or a checkout that cannot be made."""

    code = "workspace_unavailable"


class SessionGone(WorkspaceError):
    """A conversation that a turn continues, and whose job or whose files are deleted."""


class SpawnError(RunError):
    """A failure to start the agent's process."""

    code = "agent_not_started"


class SandboxError(RunError):
    """An isolation level that is not available on this machine."""

    code = "sandbox_unavailable"


class ServiceUnreachable(SteadyhandError):
    """No service for the client: no answer, an answer of another program (`bad_answer`) or a failure (`internal`)."""

    code = "unreachable"


class JobNotCompleted(SteadyhandError):
    """A job without an answer; `code` is the type of its outcome, or `not_ready` if it has not ended."""

    code = "not_ready"

    def __init__(self, detail: str, *, code: str | None = None, job_id: str, state: str) -> None:
        super().__init__(detail, code=code)
        self.job_id = job_id
        self.state = state


class ConfigError(SteadyhandError):
    """A wrong setting; the text names it, its source and the values that are allowed."""

    code = "config"


class CallbackRefused(SteadyhandError):
    """An address that the service does not call back: malformed, not public, or on a port that is not allowed."""

    code = "callback_refused"


class InstallError(SteadyhandError):
    """A package that could not be installed; nothing of it was left."""

    code = "install_failed"


class DataDirectoryBusy(SteadyhandError):
    """A data directory that another process owns."""

    code = "data_directory_busy"


class DatabaseBusy(DataDirectoryBusy):
    """A database that another service owns."""


class StoreError(SteadyhandError):
    """A failure of the store."""

    code = "store"


class ArtifactTooLarge(StoreError):
    """A file of a job that is larger than the stores of files take; `name` is that of the artifact."""

    code = "artifact_too_large"

    def __init__(self, detail: str, *, name: str) -> None:
        super().__init__(detail)
        self.name = name


class SchemaTooNew(StoreError):
    """A database whose schema this version is too old for: it stays out until it is upgraded."""

    code = "schema_too_new"


class SchemaInUse(StoreError):
    """A database that this version would migrate to a schema for which nodes that work on it are too old."""

    code = "schema_in_use"


class StoreUnavailable(StoreError):
    """A failure of the store that a later try may not meet. The operation had no effect, unless the detail says so."""

    code = "unavailable"
