"""Databases with a long history: jobs, runs, events and calls written in bulk, in the newest schema.

The rows are those that the store itself writes for a sample; what differs between them is drawn from a fixed seed.
Keys, agents and workspaces are skewed, and some pairs of frequent ones never occur together.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, make_url

from steadyhand.job import Job, JobSpec, Outcome, OutcomeType, Run, State
from steadyhand.ports import ModelCall, TokenCounts
from steadyhand.store import derived, open_store, upkeep, usage_sums
from steadyhand.store.mapping import call_row, job_row, run_row
from steadyhand.store.sqlite import create_sqlite_engine

BEGAN = datetime(2025, 6, 1, tzinfo=UTC)
LENGTH = timedelta(days=365)
"""The time over which the jobs are spread, in the order of their acceptance."""

RARE_KEY, NEW_KEY, FIRST_KEY, CHAT_KEY = "k_rare", "k_new", "k_0000000000", "k_0000000001"
RARE_AGENT, RARE_WORKSPACE, RARE_WORD, RARE_METADATA = "archivist", "attic", "quokka", ("batch", "nightly-7")
RARE_JOBS = 10
"""The jobs of each rare thing, among all."""
FREQUENT_AGENT, FREQUENT_WORKSPACE, FREQUENT_WORD, FREQUENT_METADATA = (
    "claude",
    "infra",
    "summarise",
    ("user", "anna"),
)
"""Each is in a tenth of the jobs or more, and none of them with `CHAT_KEY`."""

_KEYS = [f"k_{number:010d}" for number in range(40)]
_AGENTS = (FREQUENT_AGENT, "reviewer", "chat", "tester")
_WORKSPACES = (FREQUENT_WORKSPACE, *(f"service-{number}" for number in range(30)))
_USERS = ("anna", *(f"user-{number}" for number in range(200)))
_MODELS = ("claude-sonnet-5", "claude-haiku-5", "claude-opus-5")
_STATES = (State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMEOUT, State.INTERRUPTED)
_STATE_WEIGHTS = (90, 6, 2, 1, 1)
_SYLLABLES = ("ka", "lo", "mi", "ren", "tas", "vu", "dor", "pel", "sin", "gra")
_WORDS = [f"{a}{b}{c}" for a, b, c in itertools.product(_SYLLABLES, repeat=3)]
_SENTENCES = 2000
_BATCH = 20_000
_MARK = "7777777777777"  # a time in the sample's record, replaced in each row
_RUN_SECONDS = 40


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What is drawn for one job."""

    sequence: int
    key: str
    agent: str
    workspace: str | None
    state: State
    created: int
    metadata: str | None
    prompt: str


def write_history(path: Path, jobs: int, calls: int | None = None) -> None:
    """Create a database with so many ended jobs, and as many calls unless said otherwise."""
    asyncio.run(_create(path))
    engine = create_sqlite_engine(make_url(f"sqlite:///{path}"), connections=1, begin="BEGIN IMMEDIATE")
    with engine.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        for pragma in ("synchronous = OFF", "cache_size = -400000", "wal_autocheckpoint = 100000"):
            driver.execute(f"PRAGMA {pragma}")
        drawn = _draw(jobs)
        while batch := list(itertools.islice(drawn, _BATCH)):
            with connection.begin():
                _insert_jobs(connection, batch)
        _insert_calls(connection, jobs, jobs if calls is None else calls)
        with connection.begin():
            upkeep.optimize(connection)
        driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


async def _create(path: Path) -> None:
    await (await open_store(f"sqlite:///{path}")).close()


def _draw(count: int) -> Iterator[_Drawn]:
    chance = random.Random(7)  # noqa: S311  # the same history in each run
    began, step = _microseconds(BEGAN), int(LENGTH.total_seconds() * 1e6) // max(count, 1)
    rare = max(count // RARE_JOBS, 1)
    key_weights = list(itertools.accumulate(100 // (1 + number) for number in range(len(_KEYS))))
    word_weights = list(itertools.accumulate(1000 // (3 + number) + 1 for number in range(len(_WORDS))))
    sentences = [
        chance.choices(_WORDS, cum_weights=word_weights, k=12 + each % 20) for each in range(_SENTENCES)
    ]
    for sequence in range(1, count + 1):
        key = chance.choices(_KEYS, cum_weights=key_weights)[0]
        agent = "chat" if key == CHAT_KEY else chance.choices(_AGENTS, (60, 20, 15, 5))[0]
        workspace = None if agent == "chat" else _WORKSPACES[min(int(chance.expovariate(0.2)), 30)]
        words = [*chance.choice(sentences), str(sequence)]
        if key != CHAT_KEY and sequence % 3 == 0:
            words.insert(1, FREQUENT_WORD)
        user = "user-7" if key == CHAT_KEY else _USERS[min(int(chance.expovariate(0.1)), 200)]
        batch = f"b{sequence // 1000}"
        if sequence % rare == rare // 2 + 1 or rare == 1:
            key, agent, workspace, batch = RARE_KEY, RARE_AGENT, RARE_WORKSPACE, RARE_METADATA[1]
            words.append(RARE_WORD)
        metadata = f'{{"batch":"{batch}","user":"{user}","ticket":"T-{sequence}"}}'
        yield _Drawn(
            sequence,
            key,
            agent,
            workspace,
            chance.choices(_STATES, _STATE_WEIGHTS)[0],
            began + sequence * step,
            metadata if sequence % 4 else None,
            " ".join(words),
        )


def _insert_jobs(connection: Connection, batch: Sequence[_Drawn]) -> None:
    row, run = _sample_rows()
    record = row["record"]
    jobs, runs, events = [], [], []
    for each in batch:
        end = each.created + _RUN_SECONDS * 1_000_000
        values = {
            **row,
            "sequence": each.sequence,
            "id": f"{each.sequence * 0x9E3779B97F4A7C15 % 2**48:012x}",
            "state": each.state.value,
            "api_key_id": each.key,
            "agent": each.agent,
            "workspace": each.workspace,
            "created_at": each.created,
            "finished_at": end,
            "metadata": each.metadata,
            "session_id": f"{each.sequence:036d}",
            "record": record.replace(_MARK, str(each.created)),
            "prompt": each.prompt,
        }
        jobs.append(values)
        runs.append({**run, "job": each.sequence, "state": each.state.value, "started_at": each.created})
        for seq, (before, after) in enumerate(((None, "queued"), ("queued", each.state.value)), 1):
            data = f'{{"from":"{before}","to":"{after}"}}'
            events.append((each.sequence, seq, seq - 1, each.created, "state.changed", data))
    _insert(connection, "jobs", jobs)
    _insert(connection, "runs", runs)
    connection.exec_driver_sql(
        "INSERT INTO events (job, seq, run, at, type, data) VALUES (?,?,?,?,?,?)", events
    )
    derived.add(
        connection,
        [derived.source_of_columns(values["sequence"], values, "Nightly") for values in jobs],
    )


def _insert_calls(connection: Connection, jobs: int, count: int) -> None:
    """Insert calls of these jobs, in their order."""
    query = "SELECT sequence, id, api_key_id, agent, coalesce(workspace, ''), created_at FROM jobs ORDER BY sequence"
    with connection.begin():
        found: Iterable[Any] = itertools.cycle(connection.exec_driver_sql(query).fetchall()) if jobs else ()
    sample = ModelCall(
        "", "", 1, "", "", "default", "", BEGAN, settled=True, tokens=TokenCounts(900, 300, 9000)
    )
    row = call_row(sample)
    rows = (
        {
            **row,
            "id": f"c{number:015d}",
            "job_id": job_id,
            "api_key_id": key,
            "agent": agent,
            "workspace": workspace,
            "provider": "default" if sequence % 5 else "other",
            "model": _MODELS[sequence % 7 % 3],
            "at": at,
            "day": at // 86_400_000_000,
            "micros": 1000 + number % 5000,
            "priced": int(number % 1000 != 0),
        }
        for number, (sequence, job_id, key, agent, workspace, at) in zip(range(count), found, strict=False)
    )
    while batch := list(itertools.islice(rows, _BATCH)):
        with connection.begin():
            _insert(connection, "calls", batch)
            usage_sums.add_calls(connection, added=batch, removed=())


def _insert(connection: Connection, table: str, rows: Sequence[dict[str, Any]]) -> None:
    names = list(rows[0])
    text = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608  # our own words
    connection.exec_driver_sql(text, [tuple(row.values()) for row in rows])


def _sample_rows() -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the row of an ended job and of its run, as the store would write them."""
    mark = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(_MARK))
    outcome = Outcome(OutcomeType.SUCCESS)
    run = Run(1, State.COMPLETED, outcome, mark, mark, 0, "n1", 4711, 12)
    job = Job(
        id="",
        spec=JobSpec("", title="Nightly"),
        agent="",
        api_key_id="",
        created_at=mark,
        queued_at=mark,
        started_at=mark,
        finished_at=mark,
        state=State.COMPLETED,
        outcome=outcome,
        answer="All is well. " * 5,
        budget_micros=5_000_000,
        timeout_seconds=2700.0,
        idle_timeout_seconds=600.0,
    )
    return job_row(job), run_row(0, run)


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000
