"""A long history on SQLite: a query takes the same steps, a long one is stopped, an old database is migrated."""

import asyncio
import itertools
import re
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from bench.history import (
    BEGAN,
    CHAT_KEY,
    FIRST_KEY,
    FREQUENT_AGENT,
    FREQUENT_WORD,
    FREQUENT_WORKSPACE,
    NEW_KEY,
    RARE_AGENT,
    RARE_JOBS,
    RARE_KEY,
    RARE_METADATA,
    RARE_WORD,
    RARE_WORKSPACE,
    write_history,
)
from sqlalchemy import Connection, create_engine, event

import steadyhand.store
from steadyhand.api.transport.errors import http_status
from steadyhand.control.forecast import FORECAST_STATES, SAMPLE_JOBS
from steadyhand.errors import QueryTooSlow, StoreError
from steadyhand.job import Job, State
from steadyhand.ports import JobFilter, UsageQuery
from steadyhand.store import SqlStore, job_samples, lists, open_store, readers, search, usage_sums
from steadyhand.store.mapping import metadata_tag
from steadyhand.store.sql_store import OPTIMIZE_SECONDS
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_call, make_job

SHORT, LONG = 1500, 6000
"""The jobs of two histories."""
STEPS_AT_ONCE = 50
MIGRATIONS = Path(steadyhand.store.__file__).parent / "migrations"
FAILED = frozenset({State.FAILED})
OLD = BEGAN + timedelta(days=20)

FILTERS = {
    "none": JobFilter(),
    "a new key": JobFilter(api_key_id=NEW_KEY),
    "a rare key": JobFilter(api_key_id=RARE_KEY),
    "a frequent key": JobFilter(api_key_id=FIRST_KEY),
    "a rare agent": JobFilter(agent=RARE_AGENT),
    "a frequent agent": JobFilter(agent=FREQUENT_AGENT),
    "a rare workspace": JobFilter(workspace=RARE_WORKSPACE),
    "a frequent workspace": JobFilter(workspace=FREQUENT_WORKSPACE),
    "a state": JobFilter(states=FAILED),
    "a state without jobs": JobFilter(states=frozenset({State.RUNNING})),
    "states": JobFilter(states=frozenset({State.FAILED, State.TIMEOUT, State.QUEUED})),
    "rare metadata": JobFilter(metadata=dict([RARE_METADATA])),
    "frequent metadata": JobFilter(metadata={"user": "anna"}),
    "frequent metadata and a state": JobFilter(metadata={"user": "anna"}, states=FAILED),
    "metadata of no job": JobFilter(metadata={"user": "nobody"}),
    "an id": JobFilter(id_prefix="abcdef"),
    "an old time": JobFilter(created_after=OLD - timedelta(days=1), created_before=OLD),
    "a time to come": JobFilter(created_after=BEGAN + timedelta(days=1000)),
    "a frequent key with a rare agent": JobFilter(api_key_id=FIRST_KEY, agent=RARE_AGENT),
    "a frequent key and a frequent agent, never together": JobFilter(
        api_key_id=CHAT_KEY, agent=FREQUENT_AGENT
    ),
    "a frequent workspace and agent, never together": JobFilter(agent="chat", workspace=FREQUENT_WORKSPACE),
    "a frequent key, metadata of others": JobFilter(api_key_id=CHAT_KEY, metadata={"user": "anna"}),
    "a frequent key, old": JobFilter(api_key_id=FIRST_KEY, created_before=OLD),
    "a key, an agent and a state": JobFilter(api_key_id=FIRST_KEY, agent=FREQUENT_AGENT, states=FAILED),
    "all": JobFilter(
        api_key_id=FIRST_KEY,
        agent=RARE_AGENT,
        workspace=FREQUENT_WORKSPACE,
        states=FAILED,
        metadata={"user": "anna"},
        created_before=OLD,
    ),
    "a rare word": JobFilter(search=RARE_WORD),
    "a frequent word": JobFilter(search=FREQUENT_WORD),
    "a frequent word, rare agent": JobFilter(search=FREQUENT_WORD, agent=RARE_AGENT),
    "a session": JobFilter(session_id="0" * 36),
    "a name of a session of another key": JobFilter(session_name="main", api_key_id=NEW_KEY),
}
USAGE = {
    "all": UsageQuery(limit=201),
    "by key": UsageQuery(by=("api_key",), limit=201),
    "by model of a key": UsageQuery(by=("model",), api_key_id=FIRST_KEY, limit=201),
    "by workspace": UsageQuery(by=("workspace",), limit=201),
    "by workspace of a key": UsageQuery(by=("workspace",), api_key_id=FIRST_KEY, limit=201),
    "of a workspace": UsageQuery(workspace=RARE_WORKSPACE, limit=201),
    "of a month": UsageQuery(by=("agent",), since=BEGAN, until=BEGAN + timedelta(days=30), limit=201),
}

STEPS_OF_NEWEST = 20 * lists._NEWEST
"""More than a look at so many jobs takes."""
RECENT = BEGAN + timedelta(days=300)
SAMPLES = {
    "of a frequent agent": JobFilter(agent=FREQUENT_AGENT, states=FORECAST_STATES, created_after=RECENT),
    "of a rare agent": JobFilter(agent=RARE_AGENT, states=FORECAST_STATES, created_after=RECENT),
    "of a key": JobFilter(FIRST_KEY, agent=FREQUENT_AGENT, states=FORECAST_STATES, created_after=RECENT),
    "of a workspace": JobFilter(agent=FREQUENT_AGENT, workspace=RARE_WORKSPACE, states=FORECAST_STATES),
}


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the databases of a short and of a long history."""
    folder = tmp_path_factory.mktemp("histories")
    paths = (folder / "short.db", folder / "long.db")
    for path, count in zip(paths, (SHORT, LONG), strict=True):
        write_history(path, count)
    return paths


def in_store(path: Path, scene: Callable[[SqlStore], Awaitable[Any]]) -> Any:
    async def play() -> Any:
        store = await open_store(f"sqlite:///{path}")
        try:
            async with asyncio.timeout(60):
                return await scene(store)
        finally:
            await store.close()

    return asyncio.run(play())


class StepCounter:
    """Counts the steps of SQLite on all connections of the readers, in units of `STEPS_AT_ONCE`."""

    def __init__(self, store: SqlStore) -> None:
        self.steps = 0
        event.listen(store._read_engine, "checkout", self._watch)

    def _watch(self, connection: Any, *_: Any) -> None:
        connection.set_progress_handler(self._count, STEPS_AT_ONCE)

    def _count(self) -> int:
        self.steps += STEPS_AT_ONCE
        return 0


async def steps_of(store: SqlStore, read: Callable[[Connection], Any]) -> int:
    counter = StepCounter(store)
    await store._readers.read(read)
    return counter.steps


def steps_of_all(path: Path) -> dict[str, int]:
    async def scene(store: SqlStore) -> dict[str, int]:
        found = {}
        for name, job_filter in FILTERS.items():
            found[name] = await steps_of(
                store,
                partial(lists.matching_sequences, job_filter=job_filter, before=lists.MAX_SEQUENCE, count=21),
            )
        for name, query in USAGE.items():
            found[f"usage {name}"] = await steps_of(store, partial(usage_sums.sum_usage, query=query))
        return found

    return in_store(path, scene)  # type: ignore[no-any-return]


def test_a_page_and_a_sum_take_no_more_steps_in_a_history_that_is_four_times_as_long(
    histories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "_FEW", 50)  # both histories have more of what is frequent
    short, long = (steps_of_all(path) for path in histories)
    grown = {
        name: (short[name], long[name])
        for name in short
        # Of the newest jobs as many are looked at as it takes: chance decides, within a bound.
        if long[name] > 1.5 * short[name] + (STEPS_OF_NEWEST if "frequent metadata" in name else 1000)
    }
    assert grown == {}


def test_what_a_start_and_retention_read_does_not_grow_with_the_history(histories: tuple[Path, Path]) -> None:
    async def scene(store: SqlStore) -> list[int]:
        counter = StepCounter(store)
        counts = []
        for read in (
            store.list_restarted(),
            store.list_in_states(frozenset({State.RUNNING, State.QUEUED, State.PARKED})),
            store.list_awaited(),
            store.list_keys(),
            store.list_ended_before(BEGAN + timedelta(days=1000), 25),
            store.usage(UsageQuery(since=BEGAN + timedelta(days=700))),
        ):
            before = counter.steps
            await read
            counts.append(counter.steps - before)
        return counts

    short, long = (in_store(path, scene) for path in histories)
    assert all(after <= 1.5 * before + 500 for before, after in zip(short, long, strict=True)), (short, long)


def test_the_calls_that_a_stop_left_open_are_found_by_their_index(histories: tuple[Path, Path]) -> None:
    with closing(sqlite3.connect(histories[0])) as connection:
        plan = connection.execute("EXPLAIN QUERY PLAN SELECT * FROM calls WHERE settled = 0").fetchall()
    assert "ix_calls_settled" in str(plan)


def _count_groups(connection: Connection, agent: str | None, key_id: str | None) -> int:
    text = "SELECT count(*) FROM job_groups WHERE agent = ? AND api_key_id = coalesce(?, api_key_id)"
    return int(connection.exec_driver_sql(text, (agent, key_id)).scalar_one())


def test_a_sample_takes_no_more_steps_for_each_group_of_its_agent_in_a_longer_history(
    histories: tuple[Path, Path],
) -> None:
    """There are as many groups as pairs of a key and a workspace; both histories have jobs enough for a sample."""

    async def scene(store: SqlStore) -> dict[str, float]:
        found = {}
        for name, job_filter in SAMPLES.items():
            count = partial(_count_groups, agent=job_filter.agent, key_id=job_filter.api_key_id)
            groups = await store._readers.read(count)
            for kind, read in (
                ("jobs", partial(job_samples.sample_jobs, job_filter=job_filter, limit=20, model=None)),
                ("tools", partial(job_samples.sample_tools, job_filter=job_filter, limit=20)),
            ):
                found[f"{kind} {name}"] = await steps_of(store, read) / groups
        return found

    short, long = (in_store(path, scene) for path in histories)
    grown = {name: (short[name], long[name]) for name in short if long[name] > 1.5 * short[name]}
    assert grown == {}


def test_a_sample_finds_each_job_and_its_runs_by_their_keys_and_reads_no_more_than_its_number(
    histories: tuple[Path, Path],
) -> None:
    statements: list[str] = []

    async def scene(store: SqlStore) -> int:
        def read(connection: Connection) -> int:
            driver: Any = connection.connection.dbapi_connection
            driver.set_trace_callback(statements.append)
            try:
                job_samples.sample_tools(connection, SAMPLES["of a frequent agent"], 30)
                return len(job_samples.sample_jobs(connection, SAMPLES["of a frequent agent"], 300, None))
            finally:
                driver.set_trace_callback(None)

        return await store._readers.read(read)

    assert in_store(histories[1], scene) == 300
    of_samples = [statement for statement in statements if "json_extract" in statement]
    # 20 and 10 jobs of their tools, then 250 and 50: no statement for each job.
    assert len(of_samples) == 4
    with closing(sqlite3.connect(histories[1])) as connection:
        plans = [str(connection.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()) for text in of_samples]
        others = [
            str(connection.execute(f"EXPLAIN QUERY PLAN {text}").fetchall())
            for text in statements
            if text.startswith(("SELECT", "WITH")) and text not in of_samples
        ]
    for plan in plans[:2]:
        assert re.search(r"SEARCH events USING (COVERING )?INDEX \S+ \(job=\?\)", plan), plan
        assert "TEMP B-TREE" not in plan
    for plan in plans[2:]:
        assert "SEARCH jobs USING INTEGER PRIMARY KEY" in plan
        assert re.search(r"SEARCH runs USING (COVERING )?INDEX \S+ \(job=\?\)", plan), plan
    assert others
    assert not [plan for plan in (*plans, *others) if re.search("SCAN (jobs|runs|events)", plan)]


def test_the_sample_of_a_forecast_fits_into_the_variables_of_a_statement() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) > SAMPLE_JOBS + 10


def test_jobs_that_are_rare_are_all_found_in_a_long_history(histories: tuple[Path, Path]) -> None:
    async def scene(store: SqlStore) -> None:
        for name in ("a rare key", "a rare agent", "a rare workspace", "rare metadata", "a rare word"):
            page = await store.list_jobs(FILTERS[name], 50)
            assert len(page.jobs) == RARE_JOBS, name

    in_store(histories[1], scene)


def test_every_way_to_answer_a_filter_gives_the_same_jobs(
    histories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constants choose the way: each of them is tried where all values count as rare, and as frequent."""
    together = [
        JobFilter(**{name: value for each in pair for name, value in _fields(each).items()})
        for pair in itertools.combinations(FILTERS.values(), 2)
    ]

    async def scene(store: SqlStore) -> list[list[str]]:
        found = []
        for job_filter in together:
            page = await store.list_jobs(job_filter, 7)
            if page.next_cursor is not None:
                page = await store.list_jobs(job_filter, 7, page.next_cursor)
            found.append([job.id for job in page.jobs])
        return found

    answers = []
    for few, most_sources, few_with_text, newest in ((2000, 5000, 100, 1000), (5, 5000, 0, 3), (20, 1, 5, 1)):
        monkeypatch.setattr(lists, "_NEWEST", newest)
        monkeypatch.setattr(lists, "_FEW", few)
        monkeypatch.setattr(lists, "_MAX_SOURCES", most_sources)
        monkeypatch.setattr(lists, "_FEW_WITH_TEXT", few_with_text)
        answers.append(in_store(histories[0], scene))
    assert answers[0] == answers[1] == answers[2]
    assert sum(map(bool, answers[0])) > len(together) // 6


def _fields(job_filter: JobFilter) -> dict[str, Any]:
    return {name: value for name in JobFilter.__dataclass_fields__ if (value := getattr(job_filter, name))}


# --- the time of a query ------------------------------------------------------------------------------


def endless(connection: Connection) -> Any:
    """Run a query that does not end by itself."""
    text = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    return connection.exec_driver_sql(text).scalar()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SHORT_SECONDS", 0.005)
    monkeypatch.setattr(readers, "QUERY_SECONDS", 0.01)


@pytest.mark.usefixtures("short_limits")
def test_a_query_that_takes_too_long_is_stopped_and_its_thread_serves_the_next(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> None:
        for _ in range(3):
            error = await expect_error(QueryTooSlow, store._readers.query(endless))
            assert (error.code, http_status(error)) == ("query_too_slow", 503)
        assert (await store.list_jobs(JobFilter(), 5)).jobs == []
        assert store.failures == 0

    in_store(tmp_path / "jobs.db", scene)


@pytest.mark.usefixtures("short_limits")
def test_a_query_of_many_short_statements_is_stopped_too(tmp_path: Path) -> None:
    def read(connection: Connection) -> None:
        query = lists.Query(connection, JobFilter(), 0, 1)
        while True:
            query.rows("SELECT 1")

    in_store(tmp_path / "jobs.db", lambda store: expect_error(QueryTooSlow, store._readers.query(read)))


def test_a_query_that_needs_more_than_a_moment_is_finished_out_of_the_way_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "SHORT_SECONDS", 0.0)
    names: list[str] = []

    def read(connection: Connection) -> int:
        names.append(threading.current_thread().name)
        text = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT max(i) FROM n"
        return int(connection.exec_driver_sql(text).scalar_one())

    assert in_store(tmp_path / "jobs.db", lambda store: store._readers.query(read)) == 20_000
    assert [name.rpartition("_")[0] for name in names] == ["store-query", "store-long-query"]


def test_queries_that_hang_keep_nobody_from_the_reads_of_one_job(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> None:
        job = make_job()
        await store.add(job, accepted_draft())
        release = threading.Event()
        queries = [asyncio.ensure_future(store._readers.query(lambda _: release.wait(30))) for _ in range(20)]
        try:
            for _ in range(50):
                assert await store.get(job.id) is not None
                assert len(await store.list_events(job.id)) == 1
        finally:
            release.set()
        assert all(await asyncio.gather(*queries))

    in_store(tmp_path / "jobs.db", scene)


@pytest.mark.usefixtures("short_limits")
def test_more_long_queries_than_may_wait_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MAX_LONG_QUERIES", 0)

    async def scene(store: SqlStore) -> None:
        error = await expect_error(QueryTooSlow, store._readers.query(endless))
        assert "are running already" in error.detail

    in_store(tmp_path / "jobs.db", scene)


def test_a_sum_of_the_service_itself_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(store: SqlStore) -> None:
        async def refuse(_: object) -> None:
            raise QueryTooSlow("Never for a budget.")

        monkeypatch.setattr(store._readers, "query", refuse)
        assert len(await store.usage(UsageQuery(job_id="one"))) == 1
        await expect_error(QueryTooSlow, store.usage(UsageQuery(limit=5)))

    in_store(tmp_path / "jobs.db", scene)


# --- an older database -----------------------------------------------------------------------------


def older_copy(source: Path, target: Path) -> None:
    """Create a database of revision 0004 with the rows of another one."""
    engine = create_engine(f"sqlite:///{target}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
    engine.dispose()
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("ATTACH ? AS source", (str(source),))
        for table in ("jobs", "runs", "events", "calls"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            columns = ", ".join(names)
            connection.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM source.{table}")  # noqa: S608
        connection.commit()


def derived_rows(path: Path) -> dict[str, Sequence[Any]]:
    """Return the derived rows, the tags with the names of their groups in place of numbers."""
    groups = "api_key_id, agent, workspace"
    queries = {
        "groups": f"SELECT {groups} FROM job_groups ORDER BY {groups}",  # noqa: S608  # our own words
        "tags": f"SELECT tag, job, {groups} FROM job_tags JOIN job_groups ON id = group_id ORDER BY tag, job",  # noqa: S608
        "zones": "SELECT * FROM job_zones ORDER BY zone",
        "sums": "SELECT * FROM usage_sums ORDER BY level, api_key_id, start, agent, model, provider, workspace",
        "progress": "SELECT * FROM progress",
        "words": f"SELECT rowid FROM job_texts WHERE job_texts MATCH '{FREQUENT_WORD}' ORDER BY rowid",  # noqa: S608
        "titles": "SELECT rowid FROM job_texts WHERE job_texts MATCH 'title : nightly' ORDER BY rowid",
    }
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO job_texts (job_texts) VALUES ('integrity-check')")
        return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def test_a_migrated_database_has_the_derived_rows_of_a_new_one(
    histories: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "old.db"
    older_copy(histories[0], path)

    async def scene(store: SqlStore) -> None:
        newest = (await store.list_jobs(JobFilter(), 1)).jobs[0]
        job_filter = JobFilter(search=FREQUENT_WORD)
        assert (await store.list_jobs(job_filter, 1)).jobs == []
        assert await store.maintain() is True
        first = (await store.list_jobs(job_filter, 1)).jobs[0]
        assert newest.sequence - 3 < first.sequence  # the newest first
        # Jobs that are not indexed yet can be changed and deleted, and new ones are found at once.
        oldest = [job.id for job in await store.list_in_states(FAILED)][:2]
        assert await store.delete_all(oldest) == []
        added = await store.add(make_job(prompt="axolotl", created_at=newest.created_at), accepted_draft())
        assert [job.id for job in (await store.list_jobs(JobFilter(search="axolotl"), 5)).jobs] == [
            added.job.id
        ]
        while await store.maintain():
            pass
        assert [job.id for job in (await store.list_jobs(JobFilter(search="axolotl"), 5)).jobs] == [
            added.job.id
        ]
        await store.update_job(added.job.id, frozenset({State.QUEUED}), _completed)
        assert await store.delete_all([added.job.id]) == []

    in_store(path, scene)
    expected = tmp_path / "new.db"
    expected.write_bytes(histories[0].read_bytes())

    async def delete_the_same(store: SqlStore) -> None:
        oldest = [job.id for job in await store.list_in_states(FAILED)][:2]
        await store.delete_all(oldest)

    in_store(expected, delete_the_same)
    assert derived_rows(path) == derived_rows(expected)


def test_a_migration_takes_the_workspaces_of_calls_from_jobs_that_are_there_without_credentials(
    tmp_path: Path,
) -> None:
    source, path = tmp_path / "source.db", tmp_path / "old.db"

    async def fill(store: SqlStore) -> None:
        for workspace in ("shop", None, "https://user:secret@git.example.org/a.git?token=x"):
            job = make_job(workspace=workspace, created_at=BEGAN)
            await store.add(job, accepted_draft())
            await store.save_call(make_call(job_id=job.id, micros=5, at=BEGAN))
        await store.save_call(make_call(job_id="deleted", micros=7, at=BEGAN))
        await store.save_call(make_call(job_id="deleted", micros=9, at=BEGAN, settled=False))

    in_store(source, fill)
    older_copy(source, path)

    async def read(store: SqlStore) -> dict[str, int]:
        for query in (UsageQuery(by=("workspace",)), UsageQuery(by=("workspace",), api_key_id="k_one")):
            found = {row.group["workspace"]: row.total.micros for row in await store.usage(query)}
            assert found == {"": 12, "shop": 5, "https://git.example.org/a.git": 5}
        return found

    in_store(path, read)
    assert b"secret@git.example.org" not in b"".join(repr(row).encode() for row in derived_rows(path)["sums"])


def _completed(job: Job) -> Job:
    return replace(job, state=State.COMPLETED, finished_at=BEGAN)


def test_a_fill_of_the_search_index_that_is_broken_off_goes_on_at_the_next_start(
    histories: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "old.db"
    older_copy(histories[0], path)

    async def some(store: SqlStore) -> int:
        assert await store.maintain() is True
        return len((await store.list_jobs(JobFilter(search="nightly"), 5000)).jobs)

    found = [in_store(path, some) for _ in range(3)]
    assert found[0] < found[1] < found[2]


def test_the_tags_of_metadata_stay_the_same_numbers() -> None:
    assert [metadata_tag("user", "anna"), metadata_tag("", ""), metadata_tag("é", "\udc80")] == [
        -7508202971862624388,
        1980364000106843477,
        -1531278777000675174,
    ]


# --- upkeep --------------------------------------------------------------------------------------------


def test_a_deleted_job_leaves_no_row_in_any_table(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def scene(store: SqlStore) -> None:
        job = make_job(
            state=State.COMPLETED, finished_at=BEGAN, metadata={"a": 1}, workspace="infra", title="T"
        )
        await store.add(job, accepted_draft())
        await store.add(make_job(agent="other"), accepted_draft())
        assert await store.delete(job.id)

    in_store(path, scene)
    with closing(sqlite3.connect(path)) as connection:
        counts = {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("jobs", "runs", "events", "job_tags", "job_groups", "job_zones")
        }
        connection.execute("INSERT INTO job_texts (job_texts) VALUES ('integrity-check')")
        assert connection.execute("SELECT rowid FROM job_texts WHERE job_texts MATCH 't'").fetchall() == []
    assert counts == {"jobs": 1, "runs": 0, "events": 1, "job_tags": 0, "job_groups": 1, "job_zones": 1}


def test_a_prompt_is_searched_up_to_a_length_that_one_write_can_bear(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> None:
        filler = "x " * (search.INDEXED_CHARACTERS // 2 - 3)
        job = make_job(prompt=f"{filler}inside {'y' * 2_000_000} outside")
        await store.add(job, accepted_draft())
        assert len((await store.list_jobs(JobFilter(search="inside"), 5)).jobs) == 1
        assert (await store.list_jobs(JobFilter(search="outside"), 5)).jobs == []
        await store.update_job(job.id, frozenset({State.QUEUED}), _completed)
        assert await store.delete(job.id)
        assert (await store.list_jobs(JobFilter(search="inside"), 5)).jobs == []

    in_store(tmp_path / "jobs.db", scene)


def test_many_jobs_are_one_part_of_the_search_index_and_not_many_to_merge(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> list[int]:
        rows = [
            search.TextRow(number, "k", "claude", None, None, f"word{number}") for number in range(1, 201)
        ]
        parts = []
        for write, some in ((search.add_texts, rows), (search.remove_texts, rows[:150])):
            with store._write_engine.begin() as connection:
                write(connection, some)
                found = connection.exec_driver_sql("SELECT count(DISTINCT segid) FROM job_texts_idx")
                parts.append(found.scalar_one())
        return parts

    assert in_store(tmp_path / "jobs.db", scene) == [1, 2]


def test_statistics_are_refreshed_once_an_hour(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> list[int]:
        now, said = 0.0, list[str]()
        store._monotonic, store._optimized_at = (lambda: now), now
        event.listen(store._write_engine, "before_cursor_execute", lambda *told: said.append(told[2]))
        counts = []
        for moment in (0.0, 0.0, OPTIMIZE_SECONDS - 1, OPTIMIZE_SECONDS, OPTIMIZE_SECONDS + 5):
            now = moment
            assert await store.maintain() is False
            counts.append(said.count("PRAGMA optimize"))
        return counts

    assert in_store(tmp_path / "jobs.db", scene) == [0, 0, 0, 1, 1]


def test_a_wrong_search_of_the_index_is_an_error_of_the_store(tmp_path: Path) -> None:
    async def scene(store: SqlStore) -> None:
        def read(connection: Connection) -> Iterator[Any]:
            return iter(connection.exec_driver_sql("SELECT rowid FROM job_texts WHERE job_texts MATCH '\"'"))

        error = await expect_error(StoreError, store._readers.query(read))
        assert not isinstance(error, QueryTooSlow)

    in_store(tmp_path / "jobs.db", scene)
