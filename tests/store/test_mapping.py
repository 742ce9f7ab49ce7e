"""Whatever a job holds, the rows give it back exactly: through a real database, not only through the mapping."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.example_counts import examples

from steadyhand.errors import StoreError
from steadyhand.events import EVENT_TYPES, EventDraft, event_data
from steadyhand.job import (
    EFFORTS,
    CallbackBody,
    CallbackEvent,
    Changes,
    ClientTool,
    Cost,
    ErrorInfo,
    Job,
    JobCallback,
    JobSpec,
    JobWarning,
    OnInterrupt,
    Origin,
    Outcome,
    OutcomeType,
    Publish,
    Run,
    SlashCommand,
    StartMode,
    State,
    Turn,
    UncommittedChanges,
    Usage,
)
from steadyhand.job_warnings import WarningCode
from steadyhand.store import open_store
from steadyhand.testing.contracts.samples import accepted_draft, make_job

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ANY_TEXT = st.text(st.characters(), max_size=20)  # with lone surrogates, as a model may print them
NUMBERS = st.integers(-(2**70), 2**70)
COLUMN_NUMBERS = st.integers(-(2**63), 2**63 - 1)
AMOUNTS = st.integers(0, 2**62)
SECONDS = st.floats(0.001, 1e12) | st.integers(1, 10**9)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=11))])
TIMES = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=ZONES)  # noqa: DTZ001  # the zone is drawn
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=4,
)
OBJECTS = st.dictionaries(ANY_TEXT, JSON, max_size=2)
VERDICTS = st.builds(Outcome, st.sampled_from(OutcomeType), st.none() | ANY_TEXT)
TURNS = st.builds(
    Turn, st.sampled_from(["user", "assistant"]), ANY_TEXT | st.lists(OBJECTS, max_size=3).map(tuple)
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def runs(draw: st.DrawFn) -> tuple[Run, ...]:
    count = draw(st.integers(0, 3))
    return tuple(
        Run(
            number=number,
            state=draw(st.sampled_from(State)),
            outcome=draw(maybe(VERDICTS)),
            started_at=draw(maybe(TIMES)),
            finished_at=draw(maybe(TIMES)),
            exit_code=draw(maybe(COLUMN_NUMBERS)),
            node=draw(maybe(TEXT)),
            supervisor=draw(maybe(COLUMN_NUMBERS)),
            supervisor_started=draw(maybe(COLUMN_NUMBERS)),
        )
        for number in range(1, count + 1)
    )


SPEC_STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "prompt": TEXT,
    "model": maybe(ANY_TEXT),
    "priority": NUMBERS,
    "metadata": maybe(OBJECTS),
    "title": maybe(ANY_TEXT),
    "output_schema": maybe(OBJECTS),
    "expires_in_seconds": maybe(SECONDS),
    "max_turns": maybe(NUMBERS),
    "effort": maybe(st.sampled_from(EFFORTS)),
    "append_system_prompt": maybe(ANY_TEXT),
    "history": st.lists(TURNS, max_size=3).map(tuple),
    "session_name": maybe(TEXT),
    "content": st.lists(OBJECTS, max_size=2).map(tuple),
    "request": maybe(OBJECTS),
    "tools": st.lists(st.builds(ClientTool, ANY_TEXT, maybe(ANY_TEXT), OBJECTS), max_size=2).map(tuple),
    "one_call": st.booleans(),
    "command": maybe(st.builds(SlashCommand, TEXT, ANY_TEXT)),
    "uncommitted": maybe(st.builds(UncommittedChanges, TEXT, TEXT, TEXT)),
    "origin": st.sampled_from(get_args(Origin)),
    "callback": maybe(
        st.builds(
            JobCallback,
            TEXT,
            st.lists(st.sampled_from(get_args(CallbackEvent)), max_size=3).map(tuple),
            st.sampled_from(get_args(CallbackBody)),
        )
    ),
    "labels": st.lists(TEXT, max_size=2).map(tuple),
    "not_on_nodes": st.lists(TEXT, max_size=2).map(tuple),
}
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "id": st.uuids().map(lambda value: value.hex[:12]),
    "spec": st.builds(JobSpec, **SPEC_STRATEGIES),
    "agent": TEXT,
    "api_key_id": TEXT,
    "created_at": TIMES,
    "budget_micros": AMOUNTS,
    "timeout_seconds": SECONDS,
    "idle_timeout_seconds": SECONDS,
    "state": st.sampled_from(State),
    "runner": ANY_TEXT,
    "workspace": maybe(TEXT),
    "ref": maybe(ANY_TEXT),
    "commit": maybe(ANY_TEXT),
    "on_interrupt": st.sampled_from(get_args(OnInterrupt)),
    "publish": st.sampled_from(get_args(Publish)),
    "session_id": maybe(TEXT),
    "parent_job_id": maybe(ANY_TEXT),
    "conversation": maybe(TEXT),
    "begin": st.sampled_from(get_args(StartMode)),
    "continue_prompt": maybe(ANY_TEXT),
    "undelivered_results": maybe(ANY_TEXT),
    "traceparent": maybe(ANY_TEXT),
    "at_start": maybe(st.sampled_from(get_args(StartMode))),
    "requeues": st.integers(0, 9),
    "used_seconds": SECONDS,
    "since_run": st.integers(1, 9),
    "queued_at": maybe(TIMES),
    "started_at": maybe(TIMES),
    "finished_at": maybe(TIMES),
    "parked_until": maybe(TIMES),
    "outcome": maybe(VERDICTS),
    "runs": runs(),
    "answer": maybe(ANY_TEXT),
    "structured_output": JSON,
    "usage": st.builds(Usage, *[AMOUNTS] * 5),
    "cost": st.builds(Cost, AMOUNTS, st.sampled_from(["reported", "ledger"]), st.booleans(), maybe(AMOUNTS)),
    "changes": maybe(
        st.builds(Changes, ANY_TEXT, ANY_TEXT, AMOUNTS, AMOUNTS, AMOUNTS, maybe(ANY_TEXT), st.booleans())
    ),
    "warnings": st.lists(st.builds(JobWarning, st.sampled_from(WarningCode), ANY_TEXT), max_size=3).map(
        tuple
    ),
    "error": maybe(st.builds(ErrorInfo, ANY_TEXT, ANY_TEXT, st.booleans())),
}
JOBS = st.fixed_dictionaries(STRATEGIES).map(lambda values: Job(**values))


def _become(other: Job, _: Job) -> Job:
    return other


OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    WarningCode: st.sampled_from(WarningCode),
    str: ANY_TEXT,
    str | None: maybe(ANY_TEXT),
    int: AMOUNTS,
    int | None: maybe(AMOUNTS),
    bool: st.booleans(),
    Mapping[str, Any]: OBJECTS,
    Mapping[str, int] | None: st.none() | st.dictionaries(ANY_TEXT, AMOUNTS, max_size=2),
    Sequence[Mapping[str, Any]]: st.lists(OBJECTS, max_size=2),
    Sequence[str]: st.lists(ANY_TEXT, max_size=2),
}


def test_every_field_of_a_job_takes_part_in_the_round_trip() -> None:
    assert STRATEGIES.keys() == {field.name for field in fields(Job)} - {"last_event", "sequence"}
    assert SPEC_STRATEGIES.keys() == {field.name for field in fields(JobSpec)}


@pytest.fixture(scope="module")
def empty_database() -> Iterator[Path]:
    """A database with all tables, of which each example has a copy: the migrations take longer than the example."""
    with tempfile.TemporaryDirectory(prefix="sh-") as directory:
        path = Path(directory) / "jobs.db"

        async def create() -> None:
            await (await open_store(f"sqlite:///{path}")).close()

        asyncio.run(create())
        yield path


def run_with_copy(database: Path, scenario: Callable[[str], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with the URL of a copy of a database."""
    with tempfile.TemporaryDirectory(prefix="sh-") as directory:
        asyncio.run(scenario(f"sqlite:///{shutil.copy(database, directory)}"))


@settings(deadline=None, max_examples=examples(40, quick=12))
@given(jobs=st.lists(JOBS, min_size=2, max_size=3, unique_by=lambda job: job.id))
def test_a_job_comes_back_exactly_after_being_added_and_after_being_changed(
    empty_database: Path, jobs: list[Job]
) -> None:
    async def scenario(url: str) -> None:
        store = await open_store(url)
        try:
            for generated in jobs:
                job = replace(generated, parent_job_id=None)  # a parent must exist; a change may set any
                added = await store.add(job, accepted_draft())
                assert added.job == replace(job, sequence=added.job.sequence, last_event=1)
                assert await store.get(job.id) == added.job
            for job, other in pairwise(jobs):
                changed, _ = await store.update_job(job.id, frozenset(State), partial(_become, other))
                assert changed.id == job.id
                assert changed == replace(
                    other, id=job.id, sequence=changed.sequence, last_event=changed.last_event
                )
                assert await store.get(job.id) == changed
        finally:
            await store.close()

    run_with_copy(empty_database, scenario)


@settings(deadline=None, max_examples=examples(20, quick=8))
@given(
    times=st.lists(TIMES, min_size=1, max_size=5),
    data=st.data(),
)
def test_every_kind_of_event_comes_back_exactly(
    empty_database: Path, times: list[datetime], data: st.DataObject
) -> None:
    drafts = []
    for at in times:
        for body in EVENT_TYPES.values():
            values = {field.name: data.draw(OF_TYPE[field.type]) for field in fields(body)}
            drafts.append(EventDraft(data.draw(st.integers(0, 9)), at, body(**values)))

    async def scenario(url: str) -> None:
        store = await open_store(url)
        job = make_job()
        try:
            await store.add(job, [])
            events = await store.append_events(job.id, drafts)
            assert await store.list_events(job.id) == events
            assert [(each.run, each.at, each.data) for each in events] == [
                (draft.run, draft.at, event_data(draft.body)) for draft in drafts
            ]
        finally:
            await store.close()

    run_with_copy(empty_database, scenario)


def test_times_come_back_in_utc(tmp_path: Path) -> None:
    there = datetime(2026, 3, 29, 2, 30, 0, 7, tzinfo=timezone(timedelta(hours=2)))

    async def scenario() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/jobs.db")
        job = make_job(created_at=there)
        await store.add(job, accepted_draft())
        found = await store.get(job.id)
        await store.close()
        assert found is not None
        assert found.created_at.tzinfo is UTC
        assert found.created_at.isoformat() == "2026-03-29T00:30:00.000007+00:00"

    asyncio.run(scenario())


def test_a_time_without_a_zone_or_a_prompt_that_is_no_text_is_refused_and_harms_nothing(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/jobs.db")
        naive = make_job(created_at=datetime(2026, 1, 1))  # noqa: DTZ001  # what must be refused
        broken = make_job(prompt="\ud800")
        good = make_job()
        answers = await asyncio.gather(
            *(store.add(job, accepted_draft()) for job in (naive, broken, good)), return_exceptions=True
        )
        assert isinstance(answers[0], StoreError)
        assert isinstance(answers[0].__cause__, ValueError)
        assert isinstance(answers[1], StoreError)
        assert isinstance(answers[1].__cause__, UnicodeEncodeError)
        assert await store.get(good.id) is not None
        assert [job.id for job in await store.list_in_states(frozenset(State))] == [good.id]
        await store.close()

    asyncio.run(scenario())
