"""What a job leaves on one node is there on another: its files, its session and its work, also after a death."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from steadyhand.clock import utc_now
from steadyhand.errors import Conflict, StoreUnavailable
from steadyhand.job import Job, Run, State
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, Checkouts
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.claude.session import session_file
from steadyhand.store import SqlStore, open_store
from steadyhand.store.shared_artifacts import SharedArtifacts
from steadyhand.testing.contracts.checkouts import CheckoutsContract, Repository, run_as_agent
from steadyhand.testing.contracts.samples import NOON, accepted_draft, expect_error, make_job
from steadyhand.testing.contracts.store.harness import complete_job
from steadyhand.workspace.shared_checkouts import SharedCheckouts

SESSION = "11111111-2222-4333-8444-555555555555"
RUNNING = frozenset({State.RUNNING})


class AwayArtifacts(SharedArtifacts):
    """A shared store that can be away, or be held up until `go_on` is set. `saves` counts the calls that save."""

    away = False
    go_on: asyncio.Event | None = None
    saves = 0

    async def save(self, job_id: str, run: int, files: Mapping[str, Path | None]) -> None:
        if self.away:
            raise StoreUnavailable("The object store does not answer.")
        self.saves += 1
        if self.go_on is not None:
            await self.go_on.wait()
        await super().save(job_id, run, files)


@dataclass
class Cluster:
    """Nodes with data directories of their own, and the store that they share."""

    root: Path
    store: SqlStore
    repository: Repository
    artifacts: AwayArtifacts

    def node(self, name: str) -> SharedCheckouts:
        """Return the checkouts of a node; those of the same name are one after a restart."""
        data_dir = self.root / name
        data_dir.mkdir(exist_ok=True)
        data_dir.chmod(0o711)
        return SharedCheckouts(
            data_dir,
            artifacts=self.artifacts,
            debounce_seconds=0,
            agent_files=ClaudeFiles(),
            redactor=NO_REDACTION,
        )

    async def start(self, job: Job, **changes: Any) -> Job:
        """Store that the next run of a job begins; return the job."""
        runs = (
            *(replace(each, state=State.INTERRUPTED) for each in job.runs),
            Run(job.run + 1, State.RUNNING),
        )
        job = replace(job, state=State.RUNNING, runs=runs, session_id=SESSION, **changes)
        if await self.store.get(job.id) is None:
            await self.store.add(job, accepted_draft())
        else:
            await self.store.update_job(job.id, RUNNING, lambda _: job)
        return job

    async def run(self, node: Checkouts, job: Job) -> Checkout:
        """Prepare a run on a node."""
        return await node.prepare(job, self.repository.workspace(), 0)


def work(checkout: Checkout, script: str, said: str) -> None:
    """Do what an agent would: change files, and write to its session."""
    assert checkout.config_dir is not None
    path = session_file(checkout.config_dir, str(checkout.directory.resolve()), SESSION)
    run_as_agent(checkout, f"{script}\nmkdir -p {path.parent}\necho '{said}' >> {path}")


def said(checkout: Checkout) -> str:
    """Return what the session holds in a checkout, where the agent looks for it."""
    assert checkout.config_dir is not None
    return session_file(checkout.config_dir, str(checkout.directory.resolve()), SESSION).read_text("utf-8")


def look(checkout: Checkout) -> str:
    """Return the content of the file that the tests change."""
    return run_as_agent(checkout, "cat new.txt 2>/dev/null || true")


@pytest.fixture
def play(
    world_dir: Path, repository: Repository
) -> Callable[[Callable[[Cluster], Coroutine[Any, Any, None]]], None]:
    @asynccontextmanager
    async def cluster() -> AsyncIterator[Cluster]:
        store = await open_store(f"sqlite:///{world_dir / 'jobs.db'}")
        artifacts = AwayArtifacts(store._writer.submit, store._read, utc_now, database_bytes=1 << 20)
        try:
            yield Cluster(world_dir, store, repository, artifacts)
        finally:
            await store.close()

    def run(scene: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(120), cluster() as opened:
                await scene(opened)

        asyncio.run(bounded())

    return run


Play = Callable[[Callable[[Cluster], Coroutine[Any, Any, None]]], None]


class TestSharedCheckoutsAlone(CheckoutsContract):
    """One node of a cluster does all that a machine of its own does."""

    long_tests = (
        frozenset(  # the tests below do the same with several nodes, or it is done before anything is shared
            {
                "test_commits_and_uncommitted_work_are_kept_when_the_checkout_is_gone",
                "test_a_second_run_of_a_job_starts_over_and_leaves_nothing_of_the_first",
                "test_scratch_is_an_empty_directory_of_the_agent",
                "test_a_branch_a_tag_and_a_commit_can_each_be_checked_out",
                "test_an_unknown_ref_is_named_in_the_error",
                "test_a_repository_that_is_not_there_is_an_error_without_its_path",
                "test_the_next_job_sees_a_new_commit",
                "test_uncommitted_work_of_the_repository_is_not_in_a_checkout",
                "test_what_one_job_does_is_unknown_to_another_and_to_the_repository",
                "test_the_diff_applies_and_gives_the_tree_that_the_agent_left",
                "test_a_file_a_link_and_a_folder_that_took_each_others_place_are_kept_without_a_warning",
                "test_a_job_that_changes_nothing_has_no_changes",
                "test_definitions_come_by_the_trust_of_the_workspace",
            }
        )
    )

    @pytest.fixture(autouse=True)
    def place(self, world_dir: Path) -> None:
        self.root = world_dir
        (world_dir / "data").mkdir()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Checkouts]:
        store = await open_store(f"sqlite:///{self.root / 'jobs.db'}")
        try:
            yield SharedCheckouts(
                self.root / "data",
                artifacts=store.open_artifacts(1 << 20, None),
                debounce_seconds=0,
                agent_files=ClaudeFiles(),
                redactor=NO_REDACTION,
            )
        finally:
            await store.close()

    def remaining_names(self, place: Checkout) -> set[str]:
        return super().remaining_names(place) - {"run", "unshared"}


def test_the_next_turn_on_another_node_has_the_session_and_the_work(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        first = await cluster.start(make_job())
        checkout = await cluster.run(one, first)
        work(checkout, "echo mine > new.txt && git add -A && git commit -qm Mine", "hello")
        await one.harvest(checkout)
        await one.release(checkout)
        assert await two.has_session(first.id)
        turn = await cluster.start(make_job(parent_job_id=first.id), begin="resume", commit=checkout.commit)
        continued = await cluster.run(two, turn)
        assert look(continued) == "mine\n"
        assert run_as_agent(continued, "git log --format=%s | head -1") == "Mine\n"
        assert said(continued) == "hello\n"

    play(scene)


def test_every_node_gives_out_the_files_of_the_last_run(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two, three = (cluster.node(name) for name in ("one", "two", "three"))
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo first > new.txt", '{"turn":1}')
        await one.harvest(checkout)
        await one.release(checkout)
        for name in ("diff", "bundle", "transcript"):
            texts = {await read(node, job.id, name) for node in (one, two, three)}
            assert len(texts) == 1, name
        job = await cluster.start(job, begin="fresh")
        checkout = await cluster.run(two, job)
        work(checkout, "echo second > other.txt", '{"turn":2}')
        await two.harvest(checkout)
        for node in (one, two, three):  # the first has files of an earlier run, the last has fetched some
            assert b"second" in await read(node, job.id, "diff")
            assert await read(node, job.id, "transcript") == b'{"turn":2}\n'

    play(scene)


async def read(node: SharedCheckouts, job_id: str, name: Any) -> bytes:
    path = await node.find_file(job_id, name)
    assert path is not None
    return path.read_bytes()


def test_a_run_whose_node_died_is_resumed_elsewhere_from_what_was_stored_and_again_at_home(
    play: Play,
) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        first = await cluster.start(make_job())
        checkout = await cluster.run(one, first)
        work(checkout, "echo kept > new.txt", "kept")
        await one.save_progress(first, checkout)
        work(checkout, "echo lost > new.txt", "lost")  # and the node dies

        second = await cluster.start(first, begin="resume", commit=checkout.commit)
        resumed = await cluster.run(two, second)
        assert look(resumed) == "kept\n"
        assert said(resumed) == "kept\n"
        # The first node was not dead, but cut off: what it stores now is refused.
        error = await expect_error(Conflict, one.save_progress(first, checkout))
        assert error.code == "run_is_over"
        await one.harvest(checkout)
        work(resumed, "echo more >> new.txt", "more")
        await two.save_progress(second, resumed)

        third = await cluster.start(second, begin="resume")
        again = await cluster.run(cluster.node("one"), third)
        assert look(again) == "kept\nmore\n"
        assert said(again) == "kept\nmore\n"

    play(scene)


def test_a_node_resumes_its_own_run_in_the_checkout_that_it_kept(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one = cluster.node("one")
        first = await cluster.start(make_job())
        checkout = await cluster.run(one, first)
        work(checkout, "echo kept > new.txt", "kept")
        await one.save_progress(first, checkout)
        work(checkout, "echo newer > new.txt && echo x > .git/info/ignored-by-all", "newer")
        second = await cluster.start(first, begin="resume", commit=checkout.commit)
        again = await cluster.run(cluster.node("one"), second)
        assert look(again) == "newer\n"
        assert said(again) == "kept\nnewer\n"
        assert run_as_agent(again, "cat .git/info/ignored-by-all") == "x\n"

    play(scene)


def test_what_has_not_changed_is_not_read_again_within_a_minute(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(cluster: Cluster) -> None:
        one = cluster.node("one")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo a > new.txt", "a")
        await one.save_progress(job, checkout)
        before = await cluster.artifacts.list_stored(job.id)
        assert {"diff", "bundle", "session"} == set(before)
        run_as_agent(checkout, "echo b > new.txt")
        await one.save_progress(job, checkout)
        assert await cluster.artifacts.list_stored(job.id) == before
        monkeypatch.setattr("steadyhand.workspace.shared_checkouts.UNCHANGED_SECONDS", 0.0)
        await one.save_progress(job, checkout)  # one tool works for long
        after = await cluster.artifacts.list_stored(job.id)
        assert after["diff"].digest != before["diff"].digest
        assert after["session"] == before["session"]
        assert not (checkout.paths.root / "progress").exists()

    play(scene)


def test_files_that_could_not_be_stored_are_stored_later_also_by_the_next_service(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo a > new.txt", "a")
        cluster.artifacts.away = True
        harvest = await one.harvest(checkout)
        assert harvest.changes is not None
        assert harvest.warnings == ()
        await one.release(checkout)
        assert b"new.txt" in await read(one, job.id, "diff")
        assert await two.find_file(job.id, "diff") is None
        await expect_error(StoreUnavailable, one.save_pending())
        again = cluster.node("one")
        await expect_error(StoreUnavailable, again.save_pending())
        cluster.artifacts.away = False
        await again.save_pending()
        assert b"new.txt" in await read(two, job.id, "diff")
        assert await two.has_session(job.id)
        assert not (checkout.paths.root / "unshared").exists()
        await one.save_pending()

    play(scene)


def test_a_look_for_pending_files_leaves_those_alone_that_a_harvest_stores(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo a > new.txt", "a")
        cluster.artifacts.go_on = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            harvest = group.create_task(one.harvest(checkout))
            while not cluster.artifacts.saves:  # noqa: ASYNC110  # it is looked at from outside
                await asyncio.sleep(0.01)
            pending = group.create_task(one.save_pending())
            # The look would store them, too, within this time; that it does not cannot be waited for.
            await asyncio.wait({pending}, timeout=0.3)
            assert cluster.artifacts.saves == 1
            cluster.artifacts.go_on.set()
        assert harvest.result().warnings == ()
        assert cluster.artifacts.saves == 1
        assert await read(two, job.id, "transcript") == b"a\n"
        assert await two.has_session(job.id)
        assert not (checkout.paths.root / "unshared").exists()

    play(scene)


def test_a_file_that_is_too_large_is_named_and_the_others_are_stored(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "head -c 1500000 /dev/urandom > new.bin", "a")
        harvest = await one.harvest(checkout)
        (warning,) = harvest.warnings
        assert warning.code == WarningCode.NOT_SHARED
        assert await two.has_session(job.id)
        assert await two.find_file(job.id, "bundle") is None
        assert await one.find_file(job.id, "bundle") is not None
        assert await read(two, job.id, "transcript") == b"a\n"

    play(scene)


def test_a_deleted_job_leaves_nothing_on_any_node(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo a > new.txt", "a")
        await one.harvest(checkout)
        await one.release(checkout)
        assert await read(two, job.id, "diff")
        await cluster.store.update_job(job.id, RUNNING, complete_job(NOON))
        await cluster.store.delete(job.id)
        for node in (one, two):
            assert await node.list_job_ids() == [job.id]
            assert await node.find_file(job.id, "diff") is None
            await node.delete_job(job.id)
            assert await node.list_job_ids() == []
        assert not [path for name in ("one", "two") for path in (cluster.root / name).rglob(f"*{job.id}*")]
        rows = await cluster.store._read(
            lambda at: at.exec_driver_sql("SELECT count(*) FROM artifacts").scalar()
        )
        assert rows == 0

    play(scene)


def test_old_sessions_and_transcripts_go_everywhere_and_diffs_stay(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo a > new.txt", "a")
        await one.harvest(checkout)
        await one.release(checkout)
        assert await read(two, job.id, "transcript")
        later = utc_now() + timedelta(days=31)
        await two.apply_retention(later, timedelta(days=30), None, {job.id})
        assert await two.has_session(job.id)
        await two.apply_retention(later, timedelta(days=30), None)
        assert not await two.has_session(job.id)
        assert await two.find_file(job.id, "transcript") is None
        assert await two.find_file(job.id, "diff") is not None
        assert await one.find_file(job.id, "transcript") is None
        await one.apply_retention(later, timedelta(days=30), None)
        assert not await one.has_session(job.id)

    play(scene)


def test_a_run_of_which_nothing_was_stored_begins_anew_elsewhere(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one, two = cluster.node("one"), cluster.node("two")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        assert not await two.has_session(job.id)  # it died before anything was stored
        second = await cluster.start(job, begin="resume", commit=checkout.commit)
        fresh = await cluster.run(two, second)
        assert look(fresh) == ""

    play(scene)


def test_a_folder_that_lost_its_files_is_filled_again(play: Play) -> None:
    async def scene(cluster: Cluster) -> None:
        one = cluster.node("one")
        job = await cluster.start(make_job())
        checkout = await cluster.run(one, job)
        work(checkout, "echo a > new.txt", "a")
        await one.harvest(checkout)
        await one.release(checkout)
        shutil.rmtree(checkout.paths.root)  # the disk of the node was replaced
        assert b"new.txt" in await read(one, job.id, "diff")
        turn = await cluster.start(make_job(parent_job_id=job.id), begin="resume", commit=checkout.commit)
        assert look(await cluster.run(one, turn)) == "a\n"

    play(scene)
