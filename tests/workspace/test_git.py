import asyncio
import io
import os
import time
from pathlib import Path

import pytest

from steadyhand.errors import WorkspaceError
from steadyhand.testing.contracts.checkouts import Repository
from steadyhand.workspace.git import Git, error_line, scrub


def test_git_sees_nothing_of_the_services_environment(
    world_dir: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("CANARY", "canary")
    ran = asyncio.run(Git().run("-c", "alias.env=!env", "env", cwd=repository.folder))
    assert "CANARY" not in ran.text
    assert "HOME=/nonexistent" in ran.text.splitlines()


def test_git_that_takes_too_long_is_ended_with_its_children(world_dir: Path, repository: Repository) -> None:
    pids = world_dir / "pids"
    deaf = f'(trap "" TERM; echo $$ >> {pids}; while :; do sleep 1; done) & echo $! >> {pids}'
    alias = f"!sh -c 'echo $$ >> {pids}; sleep 60 & echo $! >> {pids}; {deaf}; wait'"
    started = time.monotonic()
    with pytest.raises(WorkspaceError, match="took longer than 1 s"):
        asyncio.run(Git().run("-c", f"alias.slow={alias}", "slow", cwd=repository.folder, seconds=1))
    assert time.monotonic() - started < 10
    for pid in pids.read_text(encoding="utf-8").split():
        assert not running(int(pid))


def test_cancelling_a_call_ends_its_git(world_dir: Path, repository: Repository) -> None:
    pids = world_dir / "pids"
    alias = f"!sh -c 'echo $$ >> {pids}; sleep 60'"

    async def cancelled() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Git().run("-c", f"alias.slow={alias}", "slow", cwd=repository.folder))
            async with asyncio.timeout(20):
                while not (pids.exists() and pids.read_text(encoding="utf-8").strip()):  # noqa: ASYNC110  # a file has no event
                    await asyncio.sleep(0.01)
            task.cancel()

    asyncio.run(cancelled())
    assert not running(int(pids.read_text(encoding="utf-8").split()[0]))


def running(pid: int) -> bool:
    """Whether a process is there and is no zombie that waits for its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_output_above_its_limit_is_an_error_and_the_file_is_cut(repository: Repository) -> None:
    arguments = ("-c", "alias.flood=!head -c 50000000 /dev/zero", "flood")
    with pytest.raises(WorkspaceError, match="printed more than 1000000"):
        asyncio.run(Git().run(*arguments, cwd=repository.folder, limit=1_000_000))
    into = io.BytesIO()
    ran = asyncio.run(
        Git().run(*arguments, cwd=repository.folder, limit=1_000_000, stdout_file=into, check=False)
    )
    assert ran.overflowed
    assert len(into.getvalue()) <= 1_000_000


def test_a_reason_is_not_cut_where_a_name_of_the_repository_goes_on() -> None:
    said = "hint: no\nfatal: cannot use the branch a\u2028fatal: b\x85c\r\nPlease look.\n"
    assert error_line(said) == "cannot use the branch a\u2028fatal: b\x85c"


def test_the_reason_is_the_line_that_names_the_fault(repository: Repository) -> None:
    with pytest.raises(WorkspaceError, match="git rev-parse failed: Needed a single revision"):
        asyncio.run(Git().run("rev-parse", "--verify", "nothing", cwd=repository.folder))
    said = "warning: x\nfatal: '/srv/x' does not appear to be a git repository\n"
    said += "fatal: Could not read from remote repository.\n\nPlease make sure\nand the repository exists.\n"
    assert error_line(said) == "<path> does not appear to be a git repository"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("cannot open /srv/data/x.git/HEAD: no", "cannot open <path>: no"),
        (
            "unable to access 'https://ann:pw@h.org/a/b.git/': 401",
            "unable to access 'https://h.org/a/b.git/': 401",
        ),
        ("'/a path/with space' is odd", "<path> is odd"),
        ("src/code.txt is fine", "src/code.txt is fine"),
    ],
)
def test_credentials_and_host_paths_are_left_out_of_reasons(said: str, wanted: str) -> None:
    assert scrub(said) == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_git_runs_as_the_user_asked_for_and_with_no_other_group(repository: Repository) -> None:
    ran = asyncio.run(Git(user=64005).run("-c", "alias.who=!id -u; id -G", "who", cwd=repository.folder))
    assert ran.text.split() == ["64005", "64005"]


def test_a_directory_that_is_not_there_is_an_error(world_dir: Path) -> None:
    with pytest.raises(WorkspaceError, match="does not exist"):
        asyncio.run(Git().run("status", cwd=world_dir / "nowhere"))
