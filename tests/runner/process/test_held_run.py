"""A held run outlives its service: not a byte of its output is lost or doubled, and nobody else can take it."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steadyhand.ports import OrphanedRun
from steadyhand.runner.process import held_record
from steadyhand.runner.process.agent_process import AgentProcess, start_ticks
from steadyhand.runner.process.held_record import find_orphaned_runs, held_dir
from steadyhand.runner.process.held_run_directory import DirectoryHeldRuns
from steadyhand.testing.service import wait_until

SERVICE = """
import asyncio, sys
from pathlib import Path
from steadyhand.ports import Command, HoldSpec
from steadyhand.runner.process import held_record, spool
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.runner.process.held_run_directory import DirectoryHeldRuns
data_dir, program, seconds, limit, keep = sys.argv[1:]
held_record.MAX_SPOOL_BYTES = spool.MAX_SPOOL_BYTES = int(limit)
async def main():
    command = Command(["/bin/sh", "-c", program], {"PATH": "/usr/bin:/bin"}, Path("/"), None)
    folder = DirectoryHeldRuns(Path(data_dir), 1).folder_of("job", 1)
    hold = HoldSpec(folder, "job", 1, float(seconds), None, {"slot": 3})
    async with AgentProcess.start(LaunchSpec(command, hold=hold)) as process:
        if keep == "keep":
            process.hold.keep()
        print(process.pid, flush=True)
        was_kept = process.hold.is_kept
        while await process.stdout.read(1000):
            if was_kept and not process.hold.is_kept:
                was_kept = False
                print("dropped", flush=True)
        await process.wait()
        print("ended", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
COUNT = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 7"
LINES = b"".join(b"line %d\n" % n for n in range(1, 20001))
ENDLESS = "while true; do echo 0123456789012345678901234567890123456789; done"


@contextmanager
def service(
    data_dir: Path, program: str, *, seconds: float = 20, limit: int = 1 << 30, keep: bool = True
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a process that runs an agent as a service does; it is killed at the end. Gives the supervisor's pid."""
    arguments = [str(data_dir), program, str(seconds), str(limit), "keep" if keep else "drop"]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVICE), *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def lost_runs(data_dir: Path) -> tuple[list[OrphanedRun], list[str]]:
    lost: list[str] = []
    return find_orphaned_runs(data_dir, lambda _folder, error, _was_left: lost.append(error)), lost


async def read_rest(orphan: OrphanedRun) -> tuple[bytes, int | None]:
    async with AgentProcess.attach(orphan) as process, asyncio.timeout(30):
        output = b""
        while chunk := await process.stdout.read(65536):
            output += chunk
        return output, (await process.wait()).code


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))]
)
def test_not_a_byte_is_lost_or_doubled_by_a_kill_at_any_moment(data_dir: Path, seed: int) -> None:
    generator = random.Random(seed)  # noqa: S311  # for a test's variety
    with service(data_dir, COUNT) as (process, _):
        time.sleep(generator.uniform(0, 0.15))  # the random moment is what this is about
        process.kill()
        process.wait(10)
        (orphan,), lost = lost_runs(data_dir)
    assert lost == []
    assert (orphan.job_id, orphan.run, orphan.facts["slot"]) == ("job", 1, 3)
    assert asyncio.run(read_rest(orphan)) == (LINES, 7)


def test_a_run_whose_agent_and_supervisor_have_ended_is_read_from_its_files(data_dir: Path) -> None:
    with service(data_dir, COUNT) as (process, supervisor):
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        process.kill()
        process.wait(10)
        wait_until(lambda: start_ticks(supervisor) is None, 10)
        (orphan,), _ = lost_runs(data_dir)
    assert orphan.connection is None
    assert orphan.exit is not None
    assert asyncio.run(read_rest(orphan)) == (LINES, 7)


def test_a_run_that_was_taken_up_reads_input_and_ends(data_dir: Path) -> None:
    async def finish(orphan: OrphanedRun) -> tuple[bytes, int | None]:
        async with AgentProcess.attach(orphan) as process, asyncio.timeout(20):
            assert await process.write(b"hello " * 20_000)
            process.end_input()
            output = b""
            while chunk := await process.stdout.read(65536):
                output += chunk
            return output, (await process.wait()).code

    with service(data_dir, "echo begun; cat") as (process, _):
        process.kill()
        process.wait(10)
        (orphan,), _ = lost_runs(data_dir)
    assert asyncio.run(finish(orphan)) == (b"begun\n" + b"hello " * 20_000, 0)


def test_the_output_waits_at_the_limit_of_the_spool(data_dir: Path) -> None:
    limit = 3 << 20

    async def read_some(orphan: OrphanedRun) -> int:
        async with AgentProcess.attach(orphan) as process, asyncio.timeout(20):
            size = 0
            while size < 2 * limit:
                size += len(await process.stdout.read(65536))
            return size

    gate = data_dir / "gate"
    program = f"until [ -e {gate} ]; do sleep 0.1; done; {ENDLESS}"
    with service(data_dir, program, limit=limit) as (process, supervisor):
        process.kill()
        process.wait(10)
        gate.touch()
        spool = held_dir(data_dir) / "job-1" / "stdout"
        wait_until(lambda: spool.stat().st_size >= limit, 20)
        time.sleep(0.3)  # in which it would grow on
        assert spool.stat().st_size <= limit + (1 << 20)
        assert start_ticks(supervisor) is not None
        (orphan,), _ = lost_runs(data_dir)
    assert asyncio.run(read_some(orphan)) >= 2 * limit


@pytest.mark.parametrize(
    ("program", "limit", "keep"),
    [("sleep 60", 1 << 30, False), (f"sleep 0.2; {ENDLESS}", 1 << 20, True)],
    ids=["one that has not begun", "one with more output than the spool takes"],
)
def test_a_run_that_is_not_held_ends_with_its_service(
    data_dir: Path,
    program: str,
    limit: int,
    keep: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    with service(data_dir, program, limit=limit, keep=keep) as (process, supervisor):
        if keep:
            spool = held_dir(data_dir) / "job-1" / "stdout"
            wait_until(lambda: spool.stat().st_size >= limit, 20)
            assert process.stdout is not None
            assert process.stdout.readline() == "dropped\n"  # the service reads on, past the limit
        process.kill()
        process.wait(10)
        wait_until(lambda: start_ticks(supervisor) is None, 5)
        assert lost_runs(data_dir) == ([], ["it ended with its service"])
    assert list(held_dir(data_dir).iterdir()) == []


def test_a_run_that_nobody_takes_up_in_time_is_ended(data_dir: Path) -> None:
    with service(data_dir, "trap '' TERM; sleep 60 & sleep 60; sleep 60", seconds=5) as (process, supervisor):
        process.kill()
        process.wait(10)
        assert start_ticks(supervisor) is not None
        wait_until(lambda: start_ticks(supervisor) is None, 10)
        assert lost_runs(data_dir) == ([], ["it ended with its service"])


def test_nobody_takes_a_run_without_its_secret(data_dir: Path) -> None:
    with service(data_dir, "sleep 60") as (process, supervisor):
        control = held_dir(data_dir) / "job-1" / "control"
        with socket.socket(socket.AF_UNIX) as early, pytest.raises(ConnectionRefusedError):
            early.connect(str(control))  # while the service is there, nobody listens
        process.kill()
        process.wait(10)
        for attempt in (b"", b"0" * 64):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(10)
                connect(stranger, control)
                stranger.sendall(attempt)
                assert stranger.recv(100) == b""
        (orphan,), lost = lost_runs(data_dir)
        assert (orphan.pid, lost) == (supervisor, [])
        asyncio.run(DirectoryHeldRuns(data_dir, 1).end(orphan))
        assert start_ticks(supervisor) is None
    assert list(held_dir(data_dir).iterdir()) == []


def test_a_service_that_dies_while_it_takes_a_run_up_leaves_it_to_the_next(data_dir: Path) -> None:
    with service(data_dir, COUNT + "; sleep 1") as (process, _):
        process.kill()
        process.wait(10)
        (first,), _ = lost_runs(data_dir)
        first.close()
        (second,), _ = lost_runs(data_dir)
    assert asyncio.run(read_rest(second)) == (LINES, 7)


def test_a_process_in_the_place_of_the_supervisor_gets_no_secret(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_record, "CONNECT_SECONDS", 0.3)
    with service(data_dir, "sleep 60") as (process, supervisor):
        control = held_dir(data_dir) / "job-1" / "control"
        process.kill()
        process.wait(10)
        control.unlink()
        with socket.socket(socket.AF_UNIX) as impostor:
            impostor.bind(str(control))
            impostor.listen()
            impostor.settimeout(5)
            assert lost_runs(data_dir) == ([], ["another process listens in its place"])
            connection, _ = impostor.accept()
            with connection:
                assert connection.recv(100) == b""
        os.kill(supervisor, signal.SIGKILL)


def connect(sock: socket.socket, path: Path) -> None:
    """Connect once the supervisor listens: it has to notice first that its service died."""

    def try_it() -> bool:
        try:
            sock.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(try_it, 20)
