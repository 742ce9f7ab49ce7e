"""The result of one check of `doctor`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """The result of one check of `doctor`; `remedy` says how to fix it if it is not `ok`."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
    warning: bool = False
    """The check passed, but this machine or the configuration lacks something."""
