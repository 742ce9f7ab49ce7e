"""Jobs on refs that are neither branches nor tags: pull requests, merge requests, and commits that nothing reaches."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout
from steadyhand.testing.contracts.checkouts import DEFINITION, Repository
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts
from steadyhand.workspace.ref_names import foreign_name, own_names

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")
PULL, MERGE = "refs/pull/7/head", "refs/merge-requests/7/head"


@pytest.fixture
def stranger(repository: Repository) -> str:
    """Return a commit of a stranger, which only a pull request and a merge request hold."""
    repository.run("git checkout -q --detach && mkdir -p .claude/agents")
    (repository.folder / "theirs.txt").write_text("theirs\n", encoding="utf-8")
    (repository.folder / ".claude" / "settings.json").write_text('{"hooks": {}}', encoding="utf-8")
    commit = repository.commit(".claude/agents/helper.md", DEFINITION)
    repository.run(f"git update-ref {PULL} HEAD && git update-ref {MERGE} HEAD && git checkout -q main")
    return commit


def guarded(world_dir: Path, repository: Repository, **fields: object) -> Workspace:
    """Return a workspace with all that a stranger's code must not have; its setup says what it has."""
    secret = world_dir / "secret"
    secret.write_text("word\n", encoding="utf-8")
    return repository.workspace(
        trust="full",
        setup=(f"if test -e {secret}; then echo yes; else echo no; fi > has-secret",),
        setup_secrets=(str(secret),),
        caches=("pip",),
        **fields,
    )


async def seen_by(sealed: SandboxedCheckouts, place: Checkout) -> list[str]:
    """Return what an agent has: the file, the setup's secret, the shared cache's content; and leave a mark in it."""
    script = (
        "cat theirs.txt has-secret; mkdir -p ~/.cache/pip; ls ~/.cache/pip; echo x > ~/.cache/pip/mark;"
        " git status --porcelain"
    )
    return (await sealed.run_as_agent(place, script)).split("\n")[:-1]


def test_a_pull_request_is_checked_out_as_a_strangers_code(
    world_dir: Path, repository: Repository, stranger: str
) -> None:
    async def work() -> None:
        sealed = SandboxedCheckouts(world_dir)
        workspace = guarded(world_dir, repository, trusted_refs=("main", "HEAD"))
        for slot, ref in enumerate(
            (PULL, "pull/7/head", MERGE, "merge-requests/7/head", stranger, stranger[:12])
        ):
            job = make_job(ref=ref, publish="branch")
            place = await sealed.checkouts.prepare(job, workspace, slot % 4)
            assert place.commit == stranger
            assert await seen_by(sealed, place) == ["theirs", "no"]
            assert place.publish == "none"
            assert not place.full_trust
            assert set(place.definitions) == {"helper"}
            assert [warning.code for warning in place.warnings] == [WarningCode.FOREIGN_REF]
            text = place.warnings[0].message
            assert all(
                word in text for word in ("setup_secrets", "caches", "publish", "full trust", "trusted_refs")
            )
            await sealed.checkouts.release(place)
        assert not (world_dir / "data" / "caches").exists()
        own = await sealed.checkouts.prepare(make_job(publish="branch"), workspace, 0)
        assert (own.full_trust, own.publish, own.warnings) == (True, "branch", ())
        assert await sealed.run_as_agent(own, "cat has-secret; ls ~/.cache/pip") == "yes\n"

    run_async(work())


def test_a_listed_ref_has_what_the_workspace_has(
    world_dir: Path, repository: Repository, stranger: str
) -> None:
    async def work() -> None:
        sealed = SandboxedCheckouts(world_dir)
        workspace = guarded(world_dir, repository, trusted_refs=(PULL, "merge-requests/7/head"))
        for ref in (PULL, "pull/7/head"):
            place = await sealed.checkouts.prepare(make_job(ref=ref, publish="branch"), workspace, 0)
            assert (place.commit, place.full_trust, place.publish) == (stranger, True, "branch")
            assert place.warnings == ()
            assert (await seen_by(sealed, place))[:2] == ["theirs", "yes"]
        # A name in the list that is no full name means a branch.
        place = await sealed.checkouts.prepare(make_job(ref=MERGE), workspace, 1)
        assert (await seen_by(sealed, place))[:2] == ["theirs", "no"]
        listed = replace(workspace, trusted_refs=(stranger,))
        place = await sealed.checkouts.prepare(make_job(ref=stranger), listed, 2)
        assert (await seen_by(sealed, place))[:2] == ["theirs", "yes"]

    run_async(work())


def test_a_turn_and_a_resumed_run_stay_on_a_strangers_code(
    world_dir: Path, repository: Repository, stranger: str
) -> None:
    async def work() -> None:
        sealed = SandboxedCheckouts(world_dir)
        workspace = guarded(world_dir, repository)
        job = make_job(ref="pull/7/head", publish="branch")
        place = await sealed.checkouts.prepare(job, workspace, 0)
        await sealed.checkouts.retain(place)
        repository.run(f"git branch pull/7/head {PULL} && git branch merged {PULL}")
        again = await sealed.checkouts.prepare(replace(job, begin="resume"), workspace, 0)
        await expect_restricted(sealed, again)
        turn = replace(
            make_job(ref="pull/7/head", publish="branch"),
            begin="resume", parent_job_id=job.id, commit=stranger,
        )  # fmt: skip
        second = await sealed.checkouts.prepare(turn, workspace, 1)
        await expect_restricted(sealed, second)
        third = replace(turn, id=make_job().id, parent_job_id=turn.id)
        await expect_restricted(sealed, await sealed.checkouts.prepare(third, workspace, 2))

    async def expect_restricted(sealed: SandboxedCheckouts, place: Checkout) -> None:
        assert place.commit == stranger
        assert (await seen_by(sealed, place))[:2] == ["theirs", "no"]
        assert (place.publish, place.full_trust) == ("none", False)
        assert WarningCode.FOREIGN_REF in [warning.code for warning in place.warnings]

    run_async(work())


def test_a_turn_on_a_branch_that_was_deleted_or_rewritten_since_keeps_what_it_had(
    world_dir: Path, repository: Repository
) -> None:
    async def work() -> None:
        sealed = SandboxedCheckouts(world_dir)
        workspace = guarded(world_dir, repository)
        job: Job = make_job(ref="side")
        place = await sealed.checkouts.prepare(job, workspace, 0)
        repository.run("git branch -D -q side")
        turn = replace(make_job(ref="side"), begin="resume", parent_job_id=job.id, commit=place.commit)
        second = await sealed.checkouts.prepare(turn, workspace, 1)
        assert second.commit == place.commit
        assert await sealed.run_as_agent(second, "cat has-secret") == "yes\n"
        assert second.warnings == ()

    run_async(work())


def test_a_pull_request_that_moves_is_followed_and_one_that_is_gone_is_named(
    checkouts: GitCheckouts, repository: Repository, stranger: str
) -> None:
    async def work() -> None:
        workspace = repository.workspace()
        place = await checkouts.prepare(make_job(ref=PULL), workspace, 0)
        assert (place.commit, place.warnings) == (stranger, ())
        moved = repository.head("side")
        repository.run(f"git update-ref {PULL} side")
        assert (await checkouts.prepare(make_job(ref="pull/7/head"), workspace, 1)).commit == moved
        repository.run(f"git update-ref -d {PULL}")
        for ref in (PULL, "pull/7/head", "refs/steadyhand/HEAD", "refs/pull/8/head", "no/where"):
            with pytest.raises(WorkspaceError, match="is not in the repository") as caught:
                await checkouts.prepare(make_job(ref=ref), workspace, 1)
            assert ref in caught.value.detail
            assert not caught.value.retryable

    asyncio.run(work())


def test_a_branch_comes_before_a_pull_request_of_its_name(
    checkouts: GitCheckouts, repository: Repository, stranger: str
) -> None:
    repository.run("git branch pull/7/head side")

    async def work() -> None:
        place = await checkouts.prepare(
            make_job(ref="pull/7/head", publish="branch"), repository.workspace(), 0
        )
        assert (place.commit, place.publish) == (repository.head("side"), "branch")
        foreign = await checkouts.prepare(make_job(ref=PULL), repository.workspace(), 1)
        assert foreign.commit == stranger

    asyncio.run(work())


@pytest.mark.parametrize(
    ("ref", "own", "foreign"),
    [
        (None, ["refs/steadyhand/HEAD"], None),
        ("HEAD", ["refs/steadyhand/HEAD"], None),
        ("main", ["refs/heads/main", "refs/tags/main"], None),
        ("refs/heads/main", ["refs/heads/main"], None),
        ("refs/tags/v1", ["refs/tags/v1"], None),
        ("pull/7/head", ["refs/heads/pull/7/head", "refs/tags/pull/7/head"], "refs/pull/7/head"),
        ("refs/pull/7/head", [], "refs/pull/7/head"),
        ("refs/headsman", [], "refs/headsman"),
        ("refs/steadyhand/HEAD", [], "refs/steadyhand/HEAD"),
    ],
)
def test_a_name_means_these_refs(ref: str | None, own: list[str], foreign: str | None) -> None:
    assert own_names(ref) == own
    assert foreign_name(ref) == foreign
