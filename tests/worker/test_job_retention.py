"""Retention of jobs: what a turn waits for is spared, and the store decides before any file is removed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.store.faults import Fault, FaultClock
from tests.worker.failing_store import CALLER, FailingService, failing_service, make_template

from steadyhand.clock import utc_now
from steadyhand.errors import StoreUnavailable, WorkspaceError
from steadyhand.job import Job, Run, State
from steadyhand.testing.contracts.samples import accepted_draft, expect_error, make_job
from steadyhand.worker.job_retention import LONGEST_LOOK_SECONDS, Retention


@pytest.fixture(autouse=True)
def _only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the worker from a retention of its own."""

    async def wait(_: Retention) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Retention, "run", wait)


def play(tmp_path: Path, scene: Callable[[FailingService], Awaitable[None]]) -> None:
    async def run() -> None:
        await make_template(tmp_path / "empty.db")
        root = tmp_path / "service"
        root.mkdir()
        async with (
            asyncio.timeout(60),
            failing_service(root, tmp_path / "empty.db", Fault(FaultClock()), {}) as service,
        ):
            await scene(service)

    asyncio.run(run())


def old_job() -> Job:
    """Return a job that ended longer ago than jobs are kept."""
    ended_at = utc_now() - timedelta(days=1000)
    runs = (Run(1, State.COMPLETED, supervisor=7, supervisor_started=1),)
    return make_job(state=State.COMPLETED, finished_at=ended_at, runs=runs)


def test_a_job_that_a_turn_waits_for_outlives_its_time(tmp_path: Path) -> None:
    async def scene(service: FailingService) -> None:
        awaited, old = old_job(), old_job()
        turn = make_job(parent_job_id=awaited.id, begin="resume")
        for job in (awaited, old, turn):  # behind the queue's back: the turn does not start
            await service.store.add(job, accepted_draft())
        await service.worker._retention.apply_to_files()
        await service.worker._retention.delete_old_jobs()
        assert service.checkouts.spared == {awaited.id}
        assert service.checkouts.calls == [("delete", old.id)]
        assert await service.store.get(awaited.id) is not None
        assert await service.store.get(old.id) is None
        await service.control.cancel(CALLER, turn.id)
        await service.worker._retention.delete_old_jobs()
        assert ("delete", awaited.id) in service.checkouts.calls

    play(tmp_path, scene)


def test_no_file_is_removed_before_the_store_has_let_the_job_go(tmp_path: Path) -> None:
    async def scene(service: FailingService) -> None:
        old = old_job()
        await service.store.add(old, accepted_draft())
        service.fault.fail_next()
        await expect_error(StoreUnavailable, service.worker._retention.delete_old_jobs())
        assert service.checkouts.calls == []
        while service.store.outage is not None:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)
        await service.worker._retention.delete_old_jobs()
        assert service.checkouts.calls == [("delete", old.id)]
        assert await service.store.get(old.id) is None

    play(tmp_path, scene)


def test_files_that_a_lost_answer_of_the_store_left_are_removed_later(tmp_path: Path) -> None:
    async def scene(service: FailingService) -> None:
        old = old_job()
        await service.store.add(old, accepted_draft())
        delete = service.store.delete_all

        async def delete_and_fail(job_ids: Sequence[str]) -> Sequence[str]:
            await delete(job_ids)
            raise StoreUnavailable("The store did not answer within 60 s.")

        service.store.delete_all = delete_and_fail  # type: ignore[method-assign]  # for once
        await expect_error(StoreUnavailable, service.worker._retention.delete_old_jobs())
        service.store.delete_all = delete  # type: ignore[method-assign]
        assert service.checkouts.calls == []
        await service.worker._retention.delete_old_jobs()
        assert service.checkouts.calls == [("delete", old.id)]

    play(tmp_path, scene)


def make_folder(service: FailingService, job_id: str) -> None:
    service.checkouts.job_paths(job_id).artifacts.mkdir(parents=True)


def test_files_are_removed_by_the_next_service_if_one_dies_after_the_store_has_deleted_their_job(
    tmp_path: Path,
) -> None:
    async def scene(service: FailingService) -> None:
        by_age, by_caller, alive = old_job(), old_job(), old_job()
        for job in (by_age, by_caller, alive):
            await service.store.add(job, accepted_draft())
            make_folder(service, job.id)
        # A service that dies here has removed no file, and the next one knows nothing of it.
        assert await service.store.delete_all([by_age.id]) == []
        assert await service.store.delete(by_caller.id)
        await Retention(service.worker._deps).remove_files_of_deleted_jobs()
        assert set(service.checkouts.calls) == {("delete", by_age.id), ("delete", by_caller.id)}

    play(tmp_path, scene)


def test_a_callers_deletion_succeeds_although_a_file_cannot_be_removed_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(service: FailingService) -> None:
        job = replace(old_job(), api_key_id=CALLER.key_id)
        await service.store.add(job, accepted_draft())
        make_folder(service, job.id)

        async def fail(_: str) -> None:
            raise WorkspaceError("A checkout could not be removed completely.")

        with monkeypatch.context() as patch:
            patch.setattr(service.checkouts, "delete_job", fail)
            await service.control.delete(CALLER, job.id)
        assert await service.store.get(job.id) is None
        await service.worker._retention.remove_files_of_deleted_jobs()
        assert service.checkouts.calls == [("delete", job.id)]

    play(tmp_path, scene)


def test_the_files_of_a_job_that_the_store_does_not_know_are_kept(tmp_path: Path) -> None:
    """A restored backup of the database is older than the files, and another database knows none of them."""

    async def scene(service: FailingService) -> None:
        make_folder(service, "01unknown")
        await service.worker._retention.remove_files_of_deleted_jobs()
        assert service.checkouts.calls == []

    play(tmp_path, scene)


def test_no_file_is_removed_while_the_store_does_not_answer(tmp_path: Path) -> None:
    async def scene(service: FailingService) -> None:
        old = old_job()
        await service.store.add(old, accepted_draft())
        make_folder(service, old.id)
        await service.store.delete(old.id)

        async def fail(job_ids: Sequence[str]) -> Sequence[str]:
            raise StoreUnavailable(f"The store is away; nobody knows of {len(job_ids)} jobs.")

        list_deleted = service.store.list_deleted
        service.store.list_deleted = fail  # type: ignore[method-assign]  # for once
        await expect_error(StoreUnavailable, service.worker._retention._look_at_files())
        assert service.checkouts.calls == []
        service.store.list_deleted = list_deleted  # type: ignore[method-assign]
        await service.worker._retention._look_at_files()
        assert service.checkouts.calls == [("delete", old.id)]

    play(tmp_path, scene)


def test_files_that_cannot_be_removed_delay_those_of_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(service: FailingService) -> None:
        jobs = [old_job() for _ in range(3)]
        for job in jobs:
            await service.store.add(job, accepted_draft())
            make_folder(service, job.id)
        first = min(job.id for job in jobs)
        removed: list[str] = []

        async def delete_job(job_id: str) -> None:
            if job_id == first and first not in removed:
                removed.append(first)
                raise WorkspaceError("A checkout could not be removed completely.")
            removed.append(job_id)

        monkeypatch.setattr(service.checkouts, "delete_job", delete_job)
        await service.worker._retention.delete_old_jobs()
        assert removed == sorted(job.id for job in jobs)
        await service.worker._retention.delete_old_jobs()
        assert len(removed) == 3
        await service.worker._retention.remove_files_of_deleted_jobs()  # the next look at the files
        assert removed.count(first) == 2

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("kept", "seconds"), [(None, 300), (timedelta(days=1), 300), (timedelta(seconds=20), 20)]
)
def test_files_are_looked_at_at_least_as_often_as_a_checkout_is_kept(
    tmp_path: Path, kept: timedelta | None, seconds: float
) -> None:
    async def scene(service: FailingService) -> None:
        retention = service.worker._retention
        config = replace(retention._deps.config, keep_checkouts=kept)
        retention._deps = replace(retention._deps, config=config)
        assert retention._files_interval() == seconds

    play(tmp_path, scene)


def test_an_idle_service_looks_for_old_jobs_seldom_and_goes_on_at_once_while_there_are_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(service: FailingService) -> None:
        retention, looks = service.worker._retention, []
        answers = [True, True, False]

        async def look() -> bool:
            looks.append(1)
            return bool(answers) and answers.pop(0)

        monkeypatch.setattr(retention, "delete_old_jobs", look)
        await retention._work()
        assert len(looks) == 3
        for _ in range(9):
            await retention._work()
        assert len(looks) == 3
        retention._look_at -= LONGEST_LOOK_SECONDS
        await retention._work()
        assert len(looks) == 4

    play(tmp_path, scene)
