"""What an agent's process is given, and how it is talked to."""

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steadyhand.errors import SpawnError
from steadyhand.ports import Command
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus, LaunchSpec, start_ticks
from steadyhand.testing.processes import pids_with_mark

Python = Callable[..., Command]

# Signals 32 and 33 are libc's own: nobody can set them.
SELF = """
import json, os, signal
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "cwd": os.getcwd(),
    "privileges": int(status["NoNewPrivs"]), "ignored": int(status["SigIgn"], 16) & ~(3 << 31),
     "blocked": int(status["SigBlk"], 16),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")), "environment": dict(os.environ),
    "leader": os.getpid() == os.getsid(0), "core": __import__("resource").getrlimit(4),
    "size": __import__("resource").getrlimit(1), "pid": os.getpid(),
}))
"""


def _run(launch: LaunchSpec, feed: bytes = b"") -> tuple[bytes, bytes, ExitStatus]:
    async def scenario() -> tuple[bytes, bytes, ExitStatus]:
        async with asyncio.timeout(20), AgentProcess.start(launch) as process:
            async with asyncio.TaskGroup() as group:
                out = group.create_task(process.stdout.read())
                err = group.create_task(process.stderr.read())
                await process.write(feed)
                process.end_input()
                ended = await process.wait()
            return out.result(), err.result(), ended

    return asyncio.run(scenario())


@pytest.mark.parametrize("means", ["pid_namespace", "cgroup", "walk"])
def test_an_agent_has_its_user_and_nothing_of_the_service(python: Python, mark: str, means: str) -> None:
    command = python(SELF)
    out, err, ended = _run(LaunchSpec(command, containment_methods=(means, "walk"), file_size=1 << 30))
    assert (ended, err) == (ExitStatus(0, None), b"")
    seen: dict[str, Any] = json.loads(out)
    uid = os.geteuid() if command.uid is None else command.uid
    assert seen["uid"] == [uid] * 3
    if command.uid is not None:
        assert seen["gid"] == [uid] * 3
        assert seen["groups"] == []
    assert seen["cwd"] == str(command.cwd)
    assert seen["privileges"] == 1
    assert seen["leader"]
    assert seen["core"] == [0, 0]
    assert seen["size"] == [1 << 30] * 2
    # The interpreter itself ignores SIGPIPE and SIGXFSZ; nothing else is ignored, and nothing blocked.
    assert seen["ignored"] == sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert seen["blocked"] == 0
    # 3 is the listing of the directory itself.
    assert seen["descriptors"] == [0, 1, 2, 3]
    environment = {k: v for k, v in seen["environment"].items() if k != "LC_CTYPE"}
    assert environment == {"SH_MARK": mark}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_agent_in_a_namespace_sees_itself_in_proc(python: Python) -> None:
    code = "import os; print(os.readlink('/proc/self') == str(os.getpid()), sum(map(str.isdigit, os.listdir('/proc'))))"
    out, _, _ = _run(LaunchSpec(python(code), containment_methods=("pid_namespace",)))
    assert out == b"True 2\n"


def test_two_megabytes_go_through_stdin(python: Python) -> None:
    text = os.urandom(1 << 20).hex().encode()
    out, _, ended = _run(
        LaunchSpec(python("import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())")),
        text,
    )
    assert ended == ExitStatus(0, None)
    assert out.decode().strip() == hashlib.sha256(text).hexdigest()


def test_writing_to_an_agent_that_does_not_read_says_so(python: Python) -> None:
    async def scenario() -> bool:
        code = "import os; os.close(0); print('closed', flush=True); import time; time.sleep(20)"
        async with asyncio.timeout(10), AgentProcess.start(LaunchSpec(python(code))) as process:
            assert await process.stdout.readline() == b"closed\n"
            told = True
            while told:
                told = await process.write(b"x" * 65536)
            return told

    assert asyncio.run(scenario()) is False


@pytest.mark.parametrize("code", [0, 1, 3, 143, 255])
def test_exit_codes_come_as_they_are(python: Python, code: int) -> None:
    _, _, ended = _run(LaunchSpec(python(f"raise SystemExit({code})")))
    assert ended == ExitStatus(code, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL])
@pytest.mark.parametrize("means", ["pid_namespace", "walk"])
def test_a_signal_is_told_apart_from_an_exit_code(python: Python, number: int, means: str) -> None:
    launch = LaunchSpec(
        python(f"import os; os.kill(os.getpid(), {int(number)})"), containment_methods=(means, "walk")
    )
    _, _, ended = _run(launch)
    assert ended == ExitStatus(None, number)


def test_a_program_that_is_not_there_is_a_spawn_error_that_says_why(open_dir: Path) -> None:
    command = Command([str(open_dir / "nobody")], {}, open_dir)
    for means in (("pid_namespace", "walk"), ("cgroup", "walk"), ("walk",)):
        with pytest.raises(SpawnError, match="nobody could not be run: No such file"):
            _run(LaunchSpec(command, containment_methods=means))


def test_a_program_that_may_not_be_run_is_a_spawn_error(open_dir: Path) -> None:
    program = open_dir / "closed"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o600)
    with pytest.raises(SpawnError, match="Permission denied"):
        _run(LaunchSpec(Command([str(program)], {}, open_dir)))


def test_a_folder_that_is_not_there_is_a_spawn_error(python: Python, open_dir: Path) -> None:
    command = python("pass")
    with pytest.raises(SpawnError, match="No such file"):
        _run(LaunchSpec(Command(command.argv, {}, open_dir / "gone", command.uid)))


def test_files_are_written_as_the_agents_user_and_never_through_a_link(
    python: Python, open_dir: Path
) -> None:
    command = python("pass")
    target = open_dir / "deep" / "note"
    _run(LaunchSpec(command, files=[(target, b"hello")], folders=[open_dir / "tmp"]))
    assert target.read_bytes() == b"hello"
    uid = os.geteuid() if command.uid is None else command.uid
    assert target.stat().st_uid == uid
    assert (open_dir / "tmp").stat().st_uid == uid
    victim = open_dir / "victim"
    (open_dir / "link").symlink_to(victim)
    with pytest.raises(SpawnError, match="File exists"):
        _run(LaunchSpec(command, files=[(open_dir / "link", b"owned")]))
    assert not victim.exists()


def test_the_supervisor_is_known_by_pid_and_start_time(python: Python) -> None:
    seen: list[tuple[int, int]] = []

    async def scenario() -> None:
        launch = LaunchSpec(python("input()"))
        async with AgentProcess.start(launch, lambda pid, ticks: seen.append((pid, ticks))) as process:
            assert seen == [(process.pid, process.started_ticks)]
            assert start_ticks(process.pid) == process.started_ticks

    asyncio.run(scenario())


def test_a_flood_that_nobody_reads_blocks_and_is_still_stopped(python: Python, mark: str) -> None:
    async def scenario() -> None:
        code = "import os\nwhile True: os.write(1, b'x' * 65536)"
        async with AgentProcess.start(LaunchSpec(python(code))) as process:
            await process.stdout.read(1)
            async with asyncio.timeout(10):
                await process.stop()
            assert pids_with_mark(mark) == []

    asyncio.run(scenario())


def test_what_is_laid_leaves_alone_what_is_there_and_goes_behind_no_link(
    python: Python, open_dir: Path
) -> None:
    command = python("print('here')")
    folder, elsewhere, linked = (open_dir / name for name in ("folder", "elsewhere", "linked"))
    for each in (folder, elsewhere):
        each.mkdir(mode=0o777)
        each.chmod(0o777)
    (folder / "old").write_bytes(b"the agent's own")
    (folder / "hanging").symlink_to(open_dir / "nowhere")
    linked.symlink_to(elsewhere)
    paths = [folder / "old", folder / "new", folder / "hanging", linked / "new", open_dir / "made" / "new"]
    out, _, ended = _run(LaunchSpec(command, optional_files=[(path, b"laid") for path in paths]))
    assert (out, ended) == (b"here\n", ExitStatus(0, None))
    assert [path.read_bytes() for path in (folder / "old", folder / "new")] == [b"the agent's own", b"laid"]
    assert (open_dir / "made" / "new").read_bytes() == b"laid"
    assert list(elsewhere.iterdir()) == []
    assert not (open_dir / "nowhere").exists()
