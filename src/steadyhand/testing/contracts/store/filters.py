"""Filters of a list: combined at random and compared with a plain search, and words of titles and prompts."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from steadyhand.errors import InvalidRequest
from steadyhand.job import ENDED, Job, State
from steadyhand.ports import JobFilter, Store
from steadyhand.testing.contracts.samples import NOON, accepted_draft, async_test, expect_error, make_job
from steadyhand.testing.contracts.store.harness import QUEUED, StoreFactory

JOBS = 260
MOST_PAGES = 15
"""About as many pages are read of a list."""
_WORDS = ("apple", "pear", "plum", "quince")


class StoreFilterContract(StoreFactory):
    """Lists by several filters at once, and full-text search."""

    seed = 1
    filters = 120
    """The lists that are compared, each with filters of its own."""

    @async_test
    async def test_any_filters_together_list_the_jobs_that_match_each_of_them(self) -> None:
        chance = random.Random(self.seed)  # noqa: S311  # the same jobs in each run
        async with self.open() as store:
            jobs = await _history(store, chance)
            for _ in range(self.filters):
                job_filter = _random_filter(chance, jobs)
                expected = [job.id for job in reversed(jobs) if _matches(job, job_filter)]
                size = max(chance.choice((1, 3, 50)), len(expected) // MOST_PAGES)
                assert await _all_pages(store, job_filter, size) == expected, job_filter

    @async_test
    async def test_a_search_finds_the_words_of_titles_and_prompts_whatever_their_case_and_accents(
        self,
    ) -> None:
        jobs = {
            "build": make_job(title="Nightly Build", prompt="Why is the main branch red?"),
            "cafe": make_job(title=None, prompt='Öffne das Café; it\'s in "Rue-de-Lille" 12.\nDanke'),
            "chinese": make_job(prompt="请修复数据库的迁移脚本"),
            "surrogate": make_job(title="odd \udc80 title", prompt="x"),
        }
        async with self.open() as store:
            for job in jobs.values():
                await store.add(job, accepted_draft())
            for search, expected in (
                ("nightly", ["build"]),
                ("BRANCH nightly", ["build"]),
                ("branch cafe", []),
                ("cafe", ["cafe"]),
                ("CAFÉ offne", ["cafe"]),
                ('"main branch"', ["build"]),
                ('"branch main"', []),
                ('"build why"', []),  # from the title into the prompt
                ("rue-de-lille", ["cafe"]),
                ("lille-rue", []),
                ("night*", []),
                ("night", []),
                ("12", ["cafe"]),
                ("数据库", ["chinese"]),
                ("库数", []),
                ("odd title", ["surrogate"]),
                ('red "main', ["build"]),
                ("nightly OR cafe", []),
                ("title:nightly", []),
                ("nightly - ?", ["build"]),
            ):
                found = await store.list_jobs(JobFilter(search=search), 10)
                assert [job.id for job in found.jobs] == [jobs[name].id for name in expected], search

    @async_test
    async def test_a_search_without_a_word_or_with_too_many_is_refused(self) -> None:
        async with self.open() as store:
            for search in ("", " ", '""', "*", "-- ?", '" "', "x" * 257, "x " * 17):
                error = await expect_error(InvalidRequest, store.list_jobs(JobFilter(search=search), 10))
                assert error.field_errors[0].pointer == "?q", search

    @async_test
    async def test_a_search_follows_changes_and_deletions_of_jobs(self) -> None:
        job = make_job(title="First", metadata={"n": 1}, state=State.COMPLETED, finished_at=NOON)
        async with self.open() as store:
            await store.add(job, accepted_draft())
            await store.add(make_job(title="First"), accepted_draft())
            completed = frozenset({State.COMPLETED})
            await store.update_job(job.id, completed, lambda old: replace(old, workspace="infra"))
            assert await _ids(store, JobFilter(search="first", workspace="infra")) == [job.id]
            assert await _ids(store, JobFilter(metadata={"n": "1"}, workspace="infra")) == [job.id]
            changed = lambda old: replace(old, spec=replace(old.spec, title="Second", metadata={"n": 2}))  # noqa: E731
            await store.update_job(job.id, completed, changed)
            assert len(await _ids(store, JobFilter(search="first"))) == 1
            assert await _ids(store, JobFilter(search="second")) == [job.id]
            assert await _ids(store, JobFilter(metadata={"n": "1"})) == []
            assert await _ids(store, JobFilter(metadata={"n": "2"}, workspace="infra")) == [job.id]
            await store.delete(job.id)
            assert await _ids(store, JobFilter(search="second")) == []
            assert await _ids(store, JobFilter(metadata={"n": "2"})) == []

    @async_test
    async def test_a_store_without_older_rows_has_no_upkeep_left(self) -> None:
        async with self.open() as store:
            await store.add(make_job(), accepted_draft())
            assert await store.maintain() is False


async def _history(store: Store, chance: random.Random) -> list[Job]:
    """Store jobs, change some and delete some; return those that are left, in the order of acceptance."""
    jobs = [_random_job(chance, number) for number in range(JOBS)]
    await asyncio.gather(*(store.add(job, accepted_draft()) for job in jobs))
    for number in range(0, JOBS, 3):
        state = chance.choice(sorted(State))
        changed = replace(jobs[number], state=state, finished_at=NOON if state in ENDED else None)
        await store.update_job(jobs[number].id, QUEUED, lambda _, changed=changed: changed)  # type: ignore[misc]
        jobs[number] = changed
    deleted = {job.id for job in chance.sample(jobs, 60) if job.state in ENDED}
    assert await store.delete_all(sorted(deleted)) == []
    return [job for job in jobs if job.id not in deleted]


def _random_job(chance: random.Random, number: int) -> Job:
    metadata: dict[str, Any] | None = {"team": chance.choice("ab"), "n": chance.randrange(4)}
    if chance.random() < 0.2:
        metadata = chance.choice((None, {}, {"team": ["a"]}, {"n": None}))
    return make_job(
        id=f"{chance.getrandbits(40):010x}{number % 256:02x}",
        api_key_id=chance.choice(("k_one", "k_one", "k_two", "k_three")),
        agent=chance.choice(("claude", "claude", "chat", "rare")),
        workspace=chance.choice((None, "infra", "infra", "shop")),
        # Not in the order of acceptance: a clock may be set back.
        created_at=NOON + timedelta(minutes=number + chance.choice((0, 0, -500, 500))),
        session_id=chance.choice((None, "s-1", "s-2")),
        session_name=chance.choice((None, None, "main")),
        conversation=chance.choice((None, None, "d-1")),
        metadata=metadata,
        title=chance.choice((None, *_WORDS)),
        prompt=" ".join(chance.choices(_WORDS, k=3)),
    )


def _random_filter(chance: random.Random, jobs: Sequence[Job]) -> JobFilter:
    """Return a filter of at most four fields, most of them from one of the jobs, so that it often matches some."""
    like = chance.choice(jobs)
    metadata = like.spec.metadata or {}
    minute = timedelta(minutes=chance.choice((-60, -5, 0, 5, 60)))
    values: Mapping[str, Any] = {
        "api_key_id": like.api_key_id,
        "agent": chance.choice((like.agent, "rare", "nobody")),
        "workspace": like.workspace,
        "states": frozenset({like.state, chance.choice(sorted(State))}),
        "metadata": {
            name: str(metadata[name]) for name in ("team", "n") if isinstance(metadata.get(name), str | int)
        },
        "created_after": like.created_at + minute - timedelta(minutes=chance.choice((1, 100))),
        "created_before": like.created_at + minute,
        "id_prefix": like.id[: chance.choice((1, 2, 4))],
        "session_id": like.session_id,
        "session_name": like.spec.session_name,
        "conversation": like.conversation,
        "search": chance.choice((like.spec.prompt, chance.choice(_WORDS), " ".join(_WORDS[:2]), "none")),
    }
    names = chance.sample(sorted(values), chance.choice((0, 1, 1, 2, 2, 3, 4)))
    return JobFilter(**{name: values[name] for name in names})


def _matches(job: Job, job_filter: JobFilter) -> bool:
    """Return True if a job matches each field; the words of the samples are plain."""
    texts = {
        name: str(value) for name, value in (job.spec.metadata or {}).items() if not isinstance(value, list)
    }
    words = [*job.spec.prompt.split(), job.spec.title or ""]
    return (
        all(
            getattr(job_filter, name) in (None, getattr(job, name))
            for name in ("api_key_id", "agent", "workspace", "session_id", "conversation")
        )
        and job_filter.session_name in (None, job.spec.session_name)
        and (not job_filter.states or job.state in job_filter.states)
        and all(texts.get(name) == value for name, value in job_filter.metadata.items())
        and _is_between(job.created_at, job_filter.created_after, job_filter.created_before)
        and job.id.startswith(job_filter.id_prefix or "")
        and set((job_filter.search or "").split()) <= set(words)
    )


def _is_between(moment: datetime, after: datetime | None, before: datetime | None) -> bool:
    return (after is None or moment > after) and (before is None or moment < before)


async def _all_pages(store: Store, job_filter: JobFilter, limit: int) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list_jobs(job_filter, limit, cursor)
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def _ids(store: Store, job_filter: JobFilter) -> list[str]:
    return [job.id for job in (await store.list_jobs(job_filter, 50)).jobs]
