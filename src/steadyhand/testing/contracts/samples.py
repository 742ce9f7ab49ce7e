"""Jobs and drafts to try adapters with, and the way a test runs a coroutine."""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from steadyhand.events import EventBody, EventDraft, Message, StateChanged
from steadyhand.job import Job, JobSpec, State
from steadyhand.ports import ModelCall

NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
"""The time at which everything in these tests happens."""

SPEC_FIELDS = {field.name for field in fields(JobSpec)}
"""The names of the fields of a job's spec."""

_BOUND_SECONDS = 60
_TestClass = TypeVar("_TestClass")
_Error = TypeVar("_Error", bound=Exception)


def async_test(
    test: Callable[[_TestClass], Coroutine[Any, Any, None]],
) -> Callable[[_TestClass], None]:
    """Make a plain test of a coroutine function: it has an event loop of its own and a minute."""

    async def bounded(suite: _TestClass) -> None:
        async with asyncio.timeout(_BOUND_SECONDS):
            await test(suite)

    def run(suite: _TestClass) -> None:
        asyncio.run(bounded(suite))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def expect_error(kind: type[_Error], attempt: Awaitable[object]) -> _Error:
    """Await an attempt and return the error of that kind that it raised."""
    try:
        await attempt
    except kind as error:
        return error
    raise AssertionError(f"nothing was refused; {kind.__name__} was expected")


class FakeClock:
    """A clock that a test moves: call it for the time."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def advance(self, length: timedelta) -> None:
        """Let time pass."""
        self.now += length


def make_job(**changes: Any) -> Job:
    """Return a queued job with an id of its own; `changes` are other fields of it or of its spec."""
    fields: dict[str, Any] = {
        "id": secrets.token_hex(6),
        "spec": JobSpec("Say what you see."),
        "agent": "claude",
        "api_key_id": "k_one",
        "created_at": NOON,
        "queued_at": NOON,
        "budget_micros": 5_000_000,
        "timeout_seconds": 2700.0,
        "idle_timeout_seconds": 600.0,
    }
    return change_job(Job(**fields), **changes)


def change_job(job: Job, **changes: Any) -> Job:
    """Return a job with changed fields, each its own or one of its spec."""
    spec_changes = {name: changes.pop(name) for name in SPEC_FIELDS & changes.keys()}
    return replace(job, spec=replace(job.spec, **spec_changes), **changes)


def make_call(**changes: Any) -> ModelCall:
    """Return a settled call with an id of its own; `changes` are its other fields."""
    fields: dict[str, Any] = {
        "id": secrets.token_hex(8),
        "job_id": "0" * 12,
        "run": 1,
        "api_key_id": "k_one",
        "agent": "claude",
        "provider": "default",
        "model": "claude-sonnet-5",
        "at": NOON,
        "settled": True,
    }
    return ModelCall(**{**fields, **changes})


def long_text(characters: int, beginning: str = "") -> str:
    """Return a text that no compression makes shorter, of four bytes for each character after its beginning."""
    chance = random.Random(beginning)  # noqa: S311  # the same text in each run
    rest = (chr(chance.randrange(0x20000, 0x2A6DF)) for _ in range(characters - len(beginning)))
    return beginning + "".join(rest)


def accepted_draft() -> list[EventDraft]:
    """Return the first event of every job."""
    return [EventDraft(0, NOON, StateChanged(None, State.QUEUED))]


def message_drafts(*texts: str, run: int = 1) -> list[EventDraft]:
    """Return a message of the agent for each text."""
    bodies: list[EventBody] = [Message("assistant", text) for text in texts]
    return [EventDraft(run, NOON, body) for body in bodies]
