"""The refs that an agent sees: those of the newest fetch, in each kind of checkout, in turns and in resumed runs."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.workspace.sandboxed_checkouts import PhaseList, SandboxedCheckouts, run_async, told_at_once

from steadyhand.job import Job
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, phases_reported_to
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, run_as_agent
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts
from steadyhand.workspace.git import _BASE_ENVIRONMENT
from steadyhand.workspace.job_dirs import fetched_refs_path
from steadyhand.workspace.sandboxed_git import plan_ref_updates, read_packed_refs

LIST_REFS = "git for-each-ref --format='%(refname) %(objectname)' refs/remotes refs/tags"
IMAGE_BYTES = 64 * 1024 * 1024


class Agents:
    """Checkouts of one kind, and agents that work in them."""

    def __init__(self, checkouts: GitCheckouts, sandboxed: SandboxedCheckouts | None) -> None:
        self.checkouts = checkouts
        self._sandboxed = sandboxed

    async def run(self, place: Checkout, script: str) -> str:
        if self._sandboxed is None:
            return run_as_agent(place, script)
        return await self._sandboxed.run_as_agent(place, script)

    async def refs(self, place: Checkout) -> dict[str, str]:
        """Return the branches of `origin` and the tags in a job's repository."""
        listing = await self.run(place, LIST_REFS)
        return dict(line.split(" ") for line in listing.split("\n") if line)

    async def restarted(self, world: Path, kind: str) -> "Agents":
        """Return the same after a restart of the service."""
        again = KINDS[kind](world)
        await again.checkouts.remove_leftovers([path.name for path in (world / "data" / "jobs").iterdir()])
        return again


def bare(world: Path) -> Agents:
    (world / "data").mkdir(exist_ok=True)
    return Agents(
        GitCheckouts(world / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION),
        None,
    )


def sandboxed(**options: Any) -> Callable[[Path], Agents]:
    def make(world: Path) -> Agents:
        made = SandboxedCheckouts(world, **options)
        return Agents(made.checkouts, made)

    return make


KINDS: dict[str, Callable[[Path], Agents]] = {
    "overlay": sandboxed(overlay=True),
    "overlay in an image": sandboxed(overlay=True, disk_limit_of=lambda _: IMAGE_BYTES),
    "shared objects": sandboxed(overlay=False, shares_objects=True),
    "copy": sandboxed(overlay=False),
    "no sandbox": bare,
}
_NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")


def kinds(*quick: str) -> pytest.MarkDecorator:
    """Return all kinds as parameters; those that are not named are tried in `make test-long` alone."""
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                kind,
                marks=[
                    *((_NEEDS_ROOT,) if "overlay" in kind else ()),
                    *(() if kind in quick else (pytest.mark.long,)),
                ],
            )
            for kind in KINDS
        ],
    )


def move_refs(repository: Repository) -> None:
    """Push to a repository: a new branch and a new tag, a moved branch, a deleted branch, a branch `old/deeper`."""
    repository.run(
        "git branch gone && git branch old && git tag dropped"
        if not repository.run("git branch --list old")
        else "git branch -D -q gone old side && git tag -d dropped && git branch new && git tag -a -m note v2"
        " && git branch side v1 && git branch old/deeper"
    )


def own_refs(repository: Repository) -> dict[str, str]:
    """Return the refs that a job must see now."""
    listing = repository.run("git for-each-ref --format='%(refname) %(objectname)' refs/heads refs/tags")
    pairs = (line.split(" ") for line in listing.split("\n") if line)
    return {name.replace("refs/heads/", "refs/remotes/origin/"): value for name, value in pairs}


def stored_refs(place: Checkout) -> dict[str, str]:
    """Return the record of a job's refs that only the service can write."""
    refs = read_packed_refs(fetched_refs_path(place.paths).read_bytes())
    return {name.decode(): value.decode() for name, value in refs.items()}


def continued(job: Job, place: Checkout) -> Job:
    """Return the next turn of a job's session."""
    return replace(make_job(), begin="resume", parent_job_id=job.id, commit=place.commit)


@kinds("overlay", "shared objects")
def test_a_job_on_a_commit_that_has_not_moved_sees_the_refs_as_they_are_now(
    world_dir: Path, repository: Repository, kind: str
) -> None:
    async def work() -> None:
        agents = KINDS[kind](world_dir)
        move_refs(repository)
        first_job = make_job()
        first = await agents.checkouts.prepare(first_job, repository.workspace(), 0)
        before = own_refs(repository)
        assert await agents.refs(first) == before
        move_refs(repository)
        second = await agents.checkouts.prepare(make_job(), repository.workspace(), 1)
        assert second.commit == first.commit
        assert await agents.refs(second) == own_refs(repository) == stored_refs(second)
        assert await agents.run(second, "git describe --tags origin/new") == "v2\n"
        assert await agents.refs(first) == before == stored_refs(first)
        turn = await agents.checkouts.prepare(continued(first_job, first), repository.workspace(), 2)
        assert turn.commit == first.commit
        assert turn.warnings == ()
        assert await agents.refs(turn) == own_refs(repository)

    run_async(work())


@kinds("overlay")
def test_a_run_that_continues_in_a_kept_checkout_sees_the_refs_as_they_are_now(
    world_dir: Path, repository: Repository, kind: str
) -> None:
    async def work() -> None:
        agents = KINDS[kind](world_dir)
        move_refs(repository)
        job = make_job()
        place = await agents.checkouts.prepare(job, repository.workspace(), 0)
        await agents.run(
            place,
            "git tag mine && git branch -q -r -d origin/gone && git tag -f v1 HEAD > /dev/null && git pack-refs --all",
        )
        mine = (await agents.run(place, "git rev-parse HEAD")).strip()
        await agents.checkouts.retain(place)
        move_refs(repository)
        agents = await agents.restarted(world_dir, kind)
        again = await agents.checkouts.prepare(replace(job, begin="resume"), repository.workspace(), 1)
        assert again.warnings == ()
        expected = own_refs(repository)
        assert stored_refs(again) == expected
        assert await agents.refs(again) == {**expected, "refs/tags/mine": mine, "refs/tags/v1": mine}
        assert (
            await agents.run(again, "git rev-parse HEAD && git fsck --connectivity-only 2>&1") == f"{mine}\n"
        )

    run_async(work())


@kinds("copy")
def test_a_turn_goes_on_without_its_repository_and_says_that_its_refs_may_be_old(
    world_dir: Path, repository: Repository, kind: str
) -> None:
    async def work() -> None:
        agents = KINDS[kind](world_dir)
        job = make_job()
        place = await agents.checkouts.prepare(job, repository.workspace(), 0)
        seen = await agents.refs(place)
        repository.folder.rename(world_dir / "elsewhere")
        turn = await agents.checkouts.prepare(continued(job, place), repository.workspace(), 1)
        assert [warning.code for warning in turn.warnings] == [WarningCode.REFS_STALE]
        assert "repository" in turn.warnings[0].message
        assert await agents.refs(turn) == seen

    run_async(work())


@kinds("no sandbox")
def test_a_renamed_default_branch_is_followed(world_dir: Path, repository: Repository, kind: str) -> None:
    async def work() -> None:
        agents = KINDS[kind](world_dir)
        job = make_job()
        first = await agents.checkouts.prepare(job, repository.workspace(), 0)
        repository.run("git branch -m main trunk")
        for slot, next_job in enumerate([make_job(), continued(job, first)], 1):
            place = await agents.checkouts.prepare(next_job, repository.workspace(), slot)
            assert place.commit == first.commit
            assert await agents.refs(place) == own_refs(repository)
        commit = repository.commit("later.txt", "later\n")
        assert (await agents.checkouts.prepare(make_job(), repository.workspace(), 3)).commit == commit

    run_async(work())


@_NEEDS_ROOT
def test_refs_that_setup_packs_stay_beside_those_of_the_job(world_dir: Path, repository: Repository) -> None:
    async def work() -> None:
        agents = KINDS["overlay"](world_dir)
        workspace = repository.workspace(setup=("git tag built && git pack-refs --all --prune",))
        place = await agents.checkouts.prepare(make_job(), workspace, 0)
        repository.run("git tag later")
        place = await agents.checkouts.prepare(make_job(), workspace, 1)
        refs = await agents.refs(place)
        assert refs == {**own_refs(repository), "refs/tags/built": place.commit}
        assert await agents.run(place, "git symbolic-ref HEAD && git status --porcelain") == (
            "refs/heads/steadyhand/work\n"
        )

    run_async(work())


@_NEEDS_ROOT
def test_an_agent_can_do_to_its_refs_what_it_likes_and_no_other_job_sees_it(
    world_dir: Path, repository: Repository
) -> None:
    async def work() -> None:
        agents = KINDS["overlay"](world_dir)
        place = await agents.checkouts.prepare(make_job(), repository.workspace(), 0)
        stamp = fetched_refs_path(place.paths).stat()
        await agents.run(
            place,
            "chmod 666 .git/packed-refs && echo x >> .git/packed-refs && git pack-refs --all || rm -f .git/packed-refs;"
            " ln -s /etc/passwd .git/packed-refs; rm -rf .git",
        )
        assert fetched_refs_path(place.paths).stat() == stamp
        other = await agents.checkouts.prepare(make_job(), repository.workspace(), 1)
        assert await agents.refs(other) == own_refs(repository) == stored_refs(other)

    run_async(work())


@kinds("no sandbox")
def test_the_progress_of_a_checkout_is_told_as_it_goes(
    world_dir: Path, repository: Repository, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        _BASE_ENVIRONMENT, "GIT_PROGRESS_DELAY", "0"
    )  # else git tells none of a short checkout
    details: list[str] = []

    async def work() -> None:
        agents = KINDS[kind](world_dir)
        with phases_reported_to(PhaseList(details)):
            await agents.checkouts.prepare(make_job(), repository.workspace(), 0)

    run_async(work())
    assert "checking_out" in details
    after = details[details.index("checking_out") + 1 :]
    assert set(after) <= {"updating files 50 %", "updating files 100 %"}
    assert after[-1] == "updating files 100 %"


@_NEEDS_ROOT
def test_a_job_that_waits_for_the_checkout_of_another_is_told_its_progress(
    world_dir: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_BASE_ENVIRONMENT, "GIT_PROGRESS_DELAY", "0")

    async def work() -> None:
        made = SandboxedCheckouts(world_dir)
        for details in await told_at_once(lambda slot: made.prepare(repository.workspace(), slot)):
            assert details[-1] == "updating files 100 %", details
            assert "checking_out" in details
        warm = made.checkouts.factory.warm
        assert warm is not None
        assert warm.build_count == 1

    run_async(work())


def test_the_agents_own_refs_win_over_new_ones() -> None:
    old = {
        b"refs/tags/moved": b"1",
        b"refs/tags/same": b"1",
        b"refs/tags/gone": b"1",
        b"refs/tags/kept": b"1",
    }
    current = {**old, b"refs/tags/kept": b"9", b"refs/tags/dir/mine": b"9", b"refs/tags/file": b"9"}
    new = {
        b"refs/tags/moved": b"2",
        b"refs/tags/same": b"1",
        b"refs/tags/kept": b"2",
        b"refs/tags/new": b"2",
        b"refs/tags/dir": b"2",
        b"refs/tags/file/below": b"2",
        b"refs/tags/gone/below": b"2",
    }
    updates = plan_ref_updates(current, old, new)
    assert updates.deletions == b"delete refs/tags/gone\x001\x00"
    assert updates.changes == (
        b"update refs/tags/moved\x002\x001\x00update refs/tags/new\x002\x000\x00"
        b"update refs/tags/gone/below\x002\x000\x00"
    )
    assert updates.skipped == [b"refs/tags/dir", b"refs/tags/file/below"]
