"""Fields that all lines of the log about one request or one job have, such as its id. Pure.

They are a context variable: a task has those of the task that started it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_NONE: Mapping[str, Any] = MappingProxyType({})
_fields: ContextVar[Mapping[str, Any]] = ContextVar("log_fields", default=_NONE)


def current_log_fields() -> Mapping[str, Any]:
    """Return the fields of the current task."""
    return _fields.get()


def set_log_fields(fields: Mapping[str, Any]) -> None:
    """Replace the fields of the current task, which is about nothing else from here on."""
    _fields.set(fields)


def add_log_fields(fields: Mapping[str, Any]) -> None:
    """Add fields to those of the current task."""
    _fields.set({**_fields.get(), **fields})


@contextmanager
def log_fields(fields: Mapping[str, Any]) -> Iterator[None]:
    """Add fields to those of the current task for the length of the block."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)
