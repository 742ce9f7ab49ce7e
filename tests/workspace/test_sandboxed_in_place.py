"""A directory in place, sealed: its configuration, which earlier jobs may have written, runs inside only."""

import os
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.testing.contracts.checkouts import Repository, run_shell

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="agents have a user of their own only under root")
OWNER = 64_321


@pytest.fixture
def sealed(world_dir: Path) -> SandboxedCheckouts:
    return SandboxedCheckouts(world_dir)


@pytest.fixture
def in_place(repository: Repository) -> Repository:
    run_shell(f"chown -R {OWNER}:{OWNER} {repository.folder}", Path("/"))
    return repository


def test_what_an_agent_did_is_the_diff_and_index_and_objects_are_as_it_left_them(
    sealed: SandboxedCheckouts, in_place: Repository
) -> None:
    async def work() -> None:
        place = await sealed.prepare(in_place.workspace(mode="in_place"))
        assert [notice.code for notice in place.warnings] == ["pull_failed"]  # it has no remote
        await sealed.run_as_agent(
            place, "echo four >> readme.txt && echo new > new.txt && git add readme.txt"
        )
        before = in_place.run("git status --porcelain && find .git/objects | sort")
        harvest = await sealed.checkouts.harvest(place)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert (harvest.changes.files, harvest.changes.insertions) == (2, 2)
        assert "+four" in place.paths.diff.read_text(encoding="utf-8")
        assert in_place.run("git status --porcelain && find .git/objects | sort") == before
        await sealed.checkouts.release(place)
        assert (in_place.folder / "new.txt").stat().st_uid == OWNER
        later = await sealed.prepare(in_place.workspace(mode="in_place"), 1)
        await sealed.run_as_agent(later, "git commit -qam x && rm new.txt")
        again = await sealed.checkouts.harvest(later)
        assert again.changes is not None
        assert again.changes.head == in_place.head()

    run_async(work())


def test_a_job_that_changes_nothing_in_place_has_no_changes(
    sealed: SandboxedCheckouts, in_place: Repository
) -> None:
    async def work() -> None:
        place = await sealed.prepare(in_place.workspace(mode="in_place"))
        harvest = await sealed.checkouts.harvest(place)
        assert harvest.changes is None
        assert harvest.warnings == ()
        assert not place.paths.diff.exists()

    run_async(work())


TAINTS = {
    "fsmonitor": "git config core.fsmonitor $HOOK",
    "filter": (
        "git config filter.evil.clean $HOOK; git config filter.evil.smudge $HOOK;"
        " git config filter.evil.required true; echo '* filter=evil' > .gitattributes"
    ),
    "external diff": (
        "git config diff.external $HOOK; git config diff.evil.textconv $HOOK; echo '* diff=evil' > .gitattributes"
    ),
    "uploadpack": (
        "git config remote.origin.url .; git config remote.origin.uploadpack $HOOK;"
        " git config remote.origin.fetch '+refs/*:refs/x/*'; git config branch.main.remote origin;"
        " git config branch.main.merge refs/heads/main"
    ),
    "hooks": (
        "mkdir -p .git/hooks; for h in post-checkout pre-rebase post-merge post-index-change; do"
        " printf '#!/bin/sh\\nexec %s\\n' $HOOK > .git/hooks/$h; chmod +x .git/hooks/$h; done"
    ),
    "promisor": (
        "git config remote.origin.uploadpack $HOOK; git config extensions.partialClone origin;"
        " git config core.repositoryformatversion 1; git config remote.origin.url .;"
        " git config remote.origin.promisor true; rm -rf .git/objects/??"
    ),
    "alias and pager": 'git config alias.pull "!$HOOK"; git config core.pager $HOOK; git config core.sshCommand $HOOK',
}


TOGETHER = [
    "fsmonitor, external diff, alias and pager",
    "hooks, uploadpack",
    "filter",
    "promisor",
]
"""All of them, as many at once as do not touch each other; one by one in `make test-long`."""
QUICK = ("filter", "hooks, uploadpack")
"""Those of `make test`: what git runs when it reads files, and what it runs when it fetches."""


def test_each_taint_is_among_those_that_are_tried_together() -> None:
    assert sorted(each for taint in TOGETHER for each in taint.split(", ")) == sorted(TAINTS)


@pytest.mark.parametrize(
    "taint",
    [
        *QUICK,
        *(pytest.param(each, marks=pytest.mark.long) for each in TOGETHER if each not in QUICK),
        *(pytest.param(each, marks=pytest.mark.long) for each in TAINTS if each not in TOGETHER),
    ],
)
def test_a_tainted_directory_runs_nothing_outside(
    sealed: SandboxedCheckouts, in_place: Repository, world_dir: Path, taint: str
) -> None:
    commands = "\n".join(TAINTS[each] for each in taint.split(", "))
    marks = world_dir / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    hook = world_dir / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {marks}/mark 2>/dev/null\ncat 2>/dev/null\n", encoding="utf-8")
    hook.chmod(0o755)

    async def work() -> None:
        first = await sealed.prepare(in_place.workspace(mode="in_place"))
        await sealed.run_as_agent(first, f"HOOK={hook}\n{commands}\necho more >> readme.txt")
        await sealed.checkouts.harvest(first)
        await sealed.checkouts.release(first)
        await sealed.checkouts.agent_definitions(in_place.workspace(mode="in_place"))
        second = await sealed.prepare(in_place.workspace(mode="in_place"))
        await sealed.checkouts.harvest(second)
        await sealed.checkouts.release(second)

    run_async(work())
    assert list(marks.iterdir()) == []
