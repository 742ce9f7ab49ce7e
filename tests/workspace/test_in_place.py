import asyncio
import os
from pathlib import Path

import pytest

from steadyhand.errors import WorkspaceError
from steadyhand.ports import Checkout, Harvest
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import DEFINITION, Repository, run_as_agent, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts

OWNER = 64777
ROOT = os.geteuid() == 0
only_as_root = pytest.mark.skipif(not ROOT, reason="needs a directory of another user")


@pytest.fixture
def workspace(world_dir: Path, repository: Repository) -> Repository:
    """Give a clone of the repository with a user of its own, as an operator would have it."""
    clone = Repository(world_dir / "workspace")
    run_shell(f"git clone -q file://{repository.folder} {clone.folder}", world_dir)
    clone.run("git config user.name Bob && git config user.email bob@example.org")
    if ROOT:
        run_shell(f"chown -R {OWNER}:{OWNER} {clone.folder} {repository.folder}", world_dir)
    return clone


def taken(checkouts: GitCheckouts, workspace: Repository, **fields: object) -> Checkout:
    return asyncio.run(checkouts.prepare(make_job(), workspace.workspace(mode="in_place", **fields), 0))


def codes(what: Checkout | Harvest) -> list[str]:
    return [notice.code for notice in what.warnings]


def test_the_directory_itself_is_used_after_a_pull(
    checkouts: GitCheckouts, repository: Repository, workspace: Repository
) -> None:
    commit = repository.commit("new.txt", "new\n")
    place = taken(checkouts, workspace)
    assert place.directory == workspace.folder
    assert codes(place) == []
    assert place.commit == commit
    assert (workspace.folder / "new.txt").is_file()
    assert place.uid == (OWNER if ROOT else None)
    assert run_as_agent(place, "stat -c %u new.txt").strip() == str(OWNER if ROOT else os.geteuid())


def test_a_pull_that_fails_is_a_notice_and_the_directory_is_as_it_was(
    checkouts: GitCheckouts, repository: Repository, workspace: Repository
) -> None:
    repository.commit("readme.txt", "theirs\n")
    place = taken(checkouts, workspace)
    run_as_agent(place, "git reset -q --hard HEAD~1 && echo ours > readme.txt && git commit -qam ours")
    again = taken(checkouts, workspace)
    assert codes(again) == ["pull_failed"]
    assert (
        run_as_agent(again, "git status --porcelain && cat readme.txt && git log -1 --format=%s")
        == "ours\nours\n"
    )
    repository.folder.rename(repository.folder.with_name("moved"))
    assert codes(taken(checkouts, workspace)) == ["pull_failed"]


def test_the_diff_is_kept_and_neither_index_nor_objects_nor_commits_are_touched(
    checkouts: GitCheckouts, workspace: Repository, world_dir: Path
) -> None:
    place = taken(checkouts, workspace)
    run_as_agent(
        place, "echo a > a.txt && git add -A && git commit -qm a && echo b > b.txt && echo four >> readme.txt"
    )
    before = run_as_agent(
        place, "git status --porcelain; git log --format=%H; find .git/objects | sort; cat .git/index | cksum"
    )
    harvest = asyncio.run(checkouts.harvest(place))
    assert harvest.warnings == ()
    assert harvest.changes is not None
    assert (harvest.changes.base, harvest.changes.files) == (place.commit, 3)
    assert harvest.changes.head == run_as_agent(place, "git rev-parse HEAD").strip()
    after = run_as_agent(
        place, "git status --porcelain; git log --format=%H; find .git/objects | sort; cat .git/index | cksum"
    )
    assert after == before
    copy = world_dir / "copy"
    reader = "git -c safe.directory=* upload-pack"
    run_shell(f"git clone -q -u '{reader}' file://{workspace.folder} {copy}", world_dir)
    run_shell(f"git checkout -q {place.commit}", copy)
    run_shell(f"git apply {place.paths.diff} && cat a.txt b.txt && tail -1 readme.txt", copy)


def test_release_leaves_the_directory_where_it_is(checkouts: GitCheckouts, workspace: Repository) -> None:
    place = taken(checkouts, workspace)
    run_as_agent(place, "echo x > x.txt")
    asyncio.run(checkouts.release(place))
    asyncio.run(checkouts.remove_leftovers())
    asyncio.run(checkouts.delete_job(place.paths.root.name))
    assert (workspace.folder / "x.txt").is_file()
    assert not place.paths.root.exists()


@only_as_root
def test_git_in_the_directory_never_runs_as_root(
    checkouts: GitCheckouts, workspace: Repository, world_dir: Path
) -> None:
    marks = world_dir / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    hook = world_dir / "hook"
    hook.write_text(f'#!/bin/sh\ntouch "{marks}/$(id -u)-$$"\ncat 2>/dev/null\n', encoding="utf-8")
    hook.chmod(0o755)
    # A filter does run, as it must for git-crypt and the like; so the marks show who ran it.
    run_shell(
        f"git config filter.evil.clean {hook} && git config core.fsmonitor {hook}\n"
        "echo '* filter=evil' > .gitattributes",
        workspace.folder,
        user=OWNER,
    )
    for mark in marks.iterdir():
        mark.unlink()
    place = taken(checkouts, workspace)
    run_as_agent(place, "echo more >> readme.txt")
    harvest = asyncio.run(checkouts.harvest(place))
    assert harvest.changes is not None
    assert {path.stat().st_uid for path in marks.iterdir()} == {OWNER}


def test_a_directory_without_git_is_used_as_it_is(checkouts: GitCheckouts, world_dir: Path) -> None:
    plain = Repository(world_dir / "plain")
    plain.folder.mkdir(mode=0o777)
    plain.folder.chmod(0o777)
    place = taken(checkouts, plain)
    assert place.commit is None
    assert codes(place) == []
    run_as_agent(place, "echo x > x.txt")
    assert asyncio.run(checkouts.harvest(place)).changes is None


@only_as_root
def test_a_directory_that_the_agent_may_not_write_is_said_to_be_so(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    assert repository.folder.stat().st_uid == 0
    place = taken(checkouts, repository)
    assert place.uid == 64000
    assert "workspace_not_writable" in codes(place)


def test_a_directory_that_is_not_there_and_a_url_are_refused(
    checkouts: GitCheckouts, world_dir: Path
) -> None:
    with pytest.raises(WorkspaceError, match="nowhere"):
        taken(checkouts, Repository(world_dir / "nowhere"))
    workspace = Repository(world_dir).workspace(mode="in_place")
    elsewhere = type(workspace)("x", repository="https://git.example.org/x.git", mode="in_place")
    with pytest.raises(WorkspaceError, match="directory"):
        asyncio.run(checkouts.prepare(make_job(), elsewhere, 0))


def test_the_classic_profile_uses_the_services_home_when_the_agent_can(
    world_dir: Path, workspace: Repository
) -> None:
    (world_dir / "data").mkdir()
    home = world_dir / "home"
    home.mkdir()
    home.chmod(0o777)
    checkouts = GitCheckouts(
        world_dir / "data", classic=True, home=home, agent_files=ClaudeFiles(), redactor=NO_REDACTION
    )
    place = taken(checkouts, workspace)
    assert (place.home, place.config_dir, place.full_trust) == (home, None, True)
    # Its transcript is the newest of this directory since the run began, not another session's.
    slug = "".join(
        letter if letter.isascii() and letter.isalnum() else "-" for letter in str(workspace.folder)
    )
    run_as_agent(
        place, f"mkdir -p ~/.claude/projects/{slug} ~/.claude/projects/-other && cd ~/.claude/projects"
    )
    run_as_agent(
        place,
        f"echo other > ~/.claude/projects/-other/o.jsonl && echo mine > ~/.claude/projects/{slug}/m.jsonl",
    )
    asyncio.run(checkouts.harvest(place))
    assert place.paths.transcript.read_text(encoding="utf-8") == "mine\n"


@only_as_root
def test_the_classic_profile_gives_a_private_home_when_the_services_is_shut(
    world_dir: Path, workspace: Repository
) -> None:
    (world_dir / "data").mkdir()
    home = world_dir / "home"
    home.mkdir(mode=0o700)
    place = taken(
        GitCheckouts(
            world_dir / "data", classic=True, home=home, agent_files=ClaudeFiles(), redactor=NO_REDACTION
        ),
        workspace,
    )
    assert (place.home, place.config_dir) == (place.paths.home, place.paths.config_dir)
    run_as_agent(place, "touch ~/x ../../")


def test_definitions_are_those_of_the_directorys_head(
    checkouts: GitCheckouts, repository: Repository, workspace: Repository
) -> None:
    repository.commit(".claude/agents/helper.md", DEFINITION)
    place = taken(checkouts, workspace)
    assert list(place.definitions) == ["helper"]
    assert "hooks" not in place.definitions["helper"].text
    listed = asyncio.run(checkouts.agent_definitions(workspace.workspace(mode="in_place")))
    assert listed == place.definitions
