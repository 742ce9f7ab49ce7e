import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand.ports import Checkout, Harvest
from steadyhand.testing.contracts.checkouts import Repository, run_as_agent, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.reserved_port import ReservedPort
from steadyhand.testing.service import wait_until
from steadyhand.workspace import GitCheckouts, harvest_context


@contextmanager
def git_daemon(folder: Path) -> Iterator[str]:
    """Serve the repositories of a folder by git's own protocol on loopback, hooks and all, and give its address."""
    with ReservedPort() as port:
        command = [
            "git",
            "-c",
            "safe.directory=*",
            "daemon",
            "--listen=127.0.0.1",
            f"--port={port.number}",
            "--export-all",
        ]
        command += ["--reuseaddr", "--enable=receive-pack", f"--base-path={folder}", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as daemon:
            try:
                wait_until(port.is_served, 20)
                yield f"git://127.0.0.1:{port.number}"
            finally:
                os.killpg(daemon.pid, signal.SIGKILL)


def published(
    checkouts: GitCheckouts,
    repository: Repository,
    script: str,
    *,
    job_id: str = "0123456789ab",
    slot: int = 0,
    source: str | None = None,
) -> tuple[Checkout, Harvest]:
    """Give the place and the harvest of a job that asked for a branch."""

    async def run() -> tuple[Checkout, Harvest]:
        job = make_job(id=job_id, publish="branch")
        workspace = repository.workspace()
        if source is not None:
            workspace = replace(workspace, repository=source)
        place = await checkouts.prepare(job, workspace, slot)
        run_as_agent(place, script)
        return place, await checkouts.harvest(place)

    return asyncio.run(run())


def test_what_a_job_did_is_pushed_to_a_branch_of_its_own(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    script = "echo a > a.txt && git add -A && git commit -qm 'Mine' && echo b > b.txt"
    _, harvest = published(checkouts, repository, script)
    assert harvest.warnings == ()
    changes = harvest.changes
    assert changes is not None
    assert (changes.branch, changes.published) == ("steadyhand/0123456789ab", True)
    assert repository.head("steadyhand/0123456789ab") == changes.head
    assert repository.run("git show steadyhand/0123456789ab:b.txt") == "b\n"
    assert repository.run("git branch --show-current && git status --porcelain") == "main\n"


def test_a_job_that_changed_nothing_and_one_that_did_not_ask_push_nothing(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    _, harvest = published(checkouts, repository, "true")
    assert harvest.changes is None

    async def unasked() -> Harvest:
        place = await checkouts.prepare(make_job(), repository.workspace(), 0)
        run_as_agent(place, "echo a > a.txt")
        return await checkouts.harvest(place)

    changes = asyncio.run(unasked()).changes
    assert changes is not None
    assert (changes.branch, changes.published) == (None, False)
    assert "steadyhand" not in repository.run("git branch --list")


def test_a_second_run_of_a_job_replaces_the_branch_of_the_first(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    published(checkouts, repository, "echo first > a.txt")
    _, harvest = published(checkouts, repository, "echo second > a.txt")
    assert harvest.warnings == ()
    assert repository.run("git show steadyhand/0123456789ab:a.txt") == "second\n"


def test_a_push_that_is_refused_leaves_the_bundle_and_a_warning(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    repository.run("git branch steadyhand")  # where it stands no branch of a name below it can be
    place, harvest = published(checkouts, repository, "echo a > a.txt")
    assert [notice.code for notice in harvest.warnings] == ["publish_failed"]
    assert harvest.changes is not None
    assert harvest.changes.published is False
    assert str(repository.folder) not in harvest.warnings[0].message
    assert "[remote rejected]" in harvest.warnings[0].message
    repository.run("git branch -m steadyhand other")
    repository.run(f"git fetch -q {place.paths.bundle} 'refs/heads/*:refs/heads/*'")
    assert repository.head("steadyhand/0123456789ab") == harvest.changes.head


def test_a_push_to_a_local_repository_runs_nothing_that_an_agent_in_it_may_have_left(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    ran = world_dir / "ran"
    ran.mkdir()
    ran.chmod(0o777)
    for hook in ("pre-receive", "update", "post-receive", "post-update", "reference-transaction"):
        path = repository.folder / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {ran}/{hook}\n", encoding="utf-8")
        path.chmod(0o755)
    # The control: a plain push runs them all.
    run_shell(
        f"git clone -q {repository.folder} plain && cd plain && git push -q origin main:plain", world_dir
    )
    assert len(list(ran.iterdir())) == 5
    for path in ran.iterdir():
        path.unlink()
    _, harvest = published(checkouts, repository, "echo a > a.txt")
    assert harvest.changes is not None
    assert harvest.changes.published, harvest.warnings
    assert list(ran.iterdir()) == []


def test_a_branch_that_somebody_has_checked_out_in_a_local_repository_is_left_alone(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    repository.run(
        f"git config filter.evil.smudge 'touch {world_dir}/ran; cat';"
        " git config receive.denyCurrentBranch updateInstead; git checkout -q -b steadyhand/0123456789ab"
    )
    before = repository.head()
    _, harvest = published(checkouts, repository, "echo '* filter=evil' > .gitattributes; echo a > a.txt")
    assert [notice.code for notice in harvest.warnings] == ["publish_failed"]
    assert (repository.head(), repository.run("git status --porcelain")) == (before, "")
    assert not (world_dir / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="another owner is only to be had under root")
def test_a_local_repository_is_written_as_its_owner(checkouts: GitCheckouts, repository: Repository) -> None:
    run_shell(f"chown -R 64500:64500 {repository.folder}", Path("/"))
    _, harvest = published(checkouts, repository, "echo a > a.txt")
    assert harvest.warnings == ()
    strange = [
        path for path in repository.folder.rglob("*") if path.lstat().st_uid != 64500
    ]  # fmt: skip
    assert strange == []


def test_a_submodule_that_was_moved_is_in_the_diff_of_the_branch_that_is_pushed(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    other = "1" * 40
    repository.run(f"git update-index --add --cacheinfo 160000,{other},sub && git commit -qm 'A submodule'")
    moved = "2" * 40
    script = f"mkdir -p sub && git update-index --cacheinfo 160000,{moved},sub && git commit -qm 'Move it'"
    place, harvest = published(checkouts, repository, script)
    assert harvest.warnings == ()
    assert harvest.changes is not None
    assert (harvest.changes.files, harvest.changes.published) == (1, True)
    diff = place.paths.diff.read_text(encoding="utf-8")
    assert f"-Subproject commit {other}\n+Subproject commit {moved}\n" in diff
    repository.run(f"git apply --index {place.paths.diff}")
    assert repository.run("git write-tree") == repository.run("git rev-parse steadyhand/0123456789ab^{tree}")


def test_a_diff_that_does_not_show_the_whole_branch_keeps_it_from_being_pushed(
    checkouts: GitCheckouts, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_context, "DIFF", (*harvest_context.DIFF, "--diff-filter=A"))
    _, harvest = published(checkouts, repository, "echo a > a.txt && echo b >> readme.txt")
    assert [warning.code for warning in harvest.warnings] == ["diff_differs", "publish_failed"]
    assert harvest.changes is not None
    assert harvest.changes.published is False
    assert "steadyhand" not in repository.run("git branch --list")


REASON = "Branches of robots need a ticket: write to the release team."


def test_the_remotes_reason_for_a_refused_push_is_in_the_warning(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    hook = repository.folder / ".git" / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    # A hostile remote may send anything: what reaches a terminal is one printable line of a bounded length.
    long_text = "x" * 3000
    hook.write_text(
        f"#!/bin/sh\nprintf '{REASON}\\033[2J\\n\\n{long_text}\\n' >&2\nexit 1\n", encoding="utf-8"
    )
    hook.chmod(0o755)
    with git_daemon(repository.folder.parent) as url:
        _, harvest = published(
            checkouts, repository, "echo a > a.txt", source=f"{url}/{repository.folder.name}"
        )
    (warning,) = harvest.warnings
    assert warning.code == "publish_failed"
    assert "[remote rejected] (pre-receive hook declined)" in warning.message
    assert REASON in warning.message
    assert warning.message.isprintable()
    assert len(warning.message) < 1000


def test_a_push_that_does_not_reach_the_remote_names_that(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    async def run() -> Harvest:
        with git_daemon(repository.folder.parent) as url:
            workspace = replace(repository.workspace(), repository=f"{url}/{repository.folder.name}")
            place = await checkouts.prepare(make_job(publish="branch"), workspace, 0)
        run_as_agent(place, "echo a > a.txt")
        return await checkouts.harvest(place)

    (warning,) = asyncio.run(run()).warnings
    assert warning.code == "publish_failed"
    assert "unable to connect to 127.0.0.1" in warning.message
