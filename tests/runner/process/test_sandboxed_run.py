"""A sealed run as it is inside, with the real sandbox around it, and what it leaves outside: nothing."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.runner.sandboxed_process import MIB, OWNER, PYTHON, SandboxHarness, sandbox_harness

from steadyhand.agents import Agent
from steadyhand.errors import SpawnError
from steadyhand.ports import Command, OverlayLayers
from steadyhand.runner.process import agent_process, cgroups
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus, LaunchSpec
from steadyhand.runner.process.sandbox_exec import ProcessSandboxExec
from steadyhand.runner.process.trial_run import try_command
from steadyhand.testing.live_folders import paths_below

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LOOK = """
import json, os, resource, socket
os.rename("folder", "moved")
open("README", "a").write("more\\n")
open("new", "w").write("new\\n")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getresuid(), "cwd": os.getcwd(), "tree": sorted(os.listdir()), "deep": open("moved/deep").read(),
    "owner": os.stat("moved/deep").st_uid, "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "privileges": int(status["NoNewPrivs"]), "capabilities": int(status["CapBnd"], 16),
    "interfaces": [name for _, name in socket.if_nameindex()], "oom": open("/proc/self/oom_score_adj").read().strip(),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "size": resource.getrlimit(resource.RLIMIT_FSIZE),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "processes": sum(map(str.isdigit, os.listdir("/proc"))),
    "filter": int(status["Seccomp"]),
    "mounts": open("/proc/self/mountinfo").read(),
}))
"""


@pytest.fixture
def world(mark: str) -> Iterator[SandboxHarness]:
    with sandbox_harness(mark) as made:
        yield made


def run(
    command: Command, listening: Callable[[Sequence[int]], None] | None = None
) -> tuple[bytes, bytes, ExitStatus]:
    async def scenario() -> tuple[bytes, bytes, ExitStatus]:
        launch = LaunchSpec(command)
        async with asyncio.timeout(30), AgentProcess.start(launch, None, listening) as process:
            process.end_input()
            async with asyncio.TaskGroup() as group:
                out = group.create_task(process.stdout.read())
                err = group.create_task(process.stderr.read())
                ended = await process.wait()
            return out.result(), err.result(), ended

    return asyncio.run(scenario())


def test_a_sealed_run_sees_its_own_world_and_leaves_the_lower_alone(world: SandboxHarness) -> None:
    out, err, ended = run(world.python(LOOK))
    assert (ended, err) == (ExitStatus(0, None), b"")
    seen: dict[str, Any] = json.loads(out)
    assert seen["uid"] == [1000] * 3
    assert seen["cwd"] == "/workspace"
    assert seen["tree"] == ["README", "moved", "new"]
    assert (seen["deep"], seen["owner"]) == ("deep\n", 1000)
    assert seen["descriptors"] == [0, 1, 2, 3]
    assert (seen["privileges"], seen["capabilities"], seen["filter"]) == (1, 0, 2)
    assert seen["interfaces"] == ["lo"]
    assert seen["oom"] == "500"
    ceiling = world.sandbox.resource_limits(world.agent)
    assert seen["files"] == [min(ceiling.open_files or 0, seen["files"][1])] * 2
    assert seen["size"] == [ceiling.file_size] * 2
    assert seen["core"] == [0, 0]
    assert seen["processes"] == 2
    assert "lowerdir=/proc/self/fd/" in seen["mounts"]
    upper = world.place.paths.root / "upper"
    assert {path.name for path in upper.iterdir() if not path.is_char_device()} == {"README", "moved", "new"}
    assert (upper / "new").stat().st_uid == world.place.uid
    tree = world.data_dir / "warm" / "tree"
    assert (tree / "README").read_text() == "hello\n"
    assert (tree / "folder" / "deep").stat().st_uid == OWNER


def test_what_one_run_wrote_is_there_for_the_next_of_its_place(world: SandboxHarness) -> None:
    run(world.python(LOOK))
    out, _, ended = run(world.python("import os; print(sorted(os.listdir()), open('README').read())"))
    assert ended == ExitStatus(0, None)
    assert out.decode() == "['README', 'moved', 'new'] hello\nmore\n\n"


def test_the_service_answers_where_a_sealed_run_connects(world: SandboxHarness) -> None:
    """And nothing else does: there is no route."""
    code = (
        "import socket\n"
        "s = socket.create_connection(('127.0.0.1', 3128), 5); print(s.recv(100).decode())\n"
        "try: socket.create_connection(('192.0.2.1', 80), 5)\n"
        "except OSError as error: print(error.errno)\n"
    )

    async def scenario() -> bytes:
        taken: list[int] = []
        async with (
            asyncio.timeout(20),
            AgentProcess.start(LaunchSpec(world.python(code)), None, taken.extend) as process,
        ):
            (listener,) = [socket.socket(fileno=number) for number in taken]
            listener.setblocking(False)
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            await asyncio.get_running_loop().sock_sendall(connection, b"hello from outside")
            connection.close()
            out = await process.stdout.read()
            assert await process.wait() == ExitStatus(0, None)
            listener.close()
            return out

    assert asyncio.run(scenario()) == b"hello from outside\n101\n"


def test_a_stop_reaches_the_command_inside(world: SandboxHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_process, "TERM_SECONDS", 15.0)  # on a busy machine it may take longer to end
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'asked\\n'), os._exit(7)))\n"
        "print('ready', flush=True); time.sleep(30)\n"
    )

    async def scenario() -> tuple[bytes, ExitStatus]:
        async with asyncio.timeout(20), AgentProcess.start(LaunchSpec(world.python(code))) as process:
            assert await process.stdout.readline() == b"ready\n"
            ended = await process.stop()
            return await process.stdout.read(), ended

    assert asyncio.run(scenario()) == (b"asked\n", ExitStatus(7, None))


@pytest.mark.parametrize(("how", "expected"), [("kill", 9), ("segv", 11)])
def test_a_signal_that_ended_the_command_is_told_apart_from_an_exit_code(
    world: SandboxHarness, how: str, expected: int
) -> None:
    number = {"kill": 9, "segv": 11}[how]
    _, _, ended = run(world.python(f"import os; os.kill(os.getpid(), {number})"))
    assert ended == ExitStatus(None, expected)


# --- limits ----------------------------------------------------------------------------------------

HOG = "kept = []\nfor _ in range(300): kept.append(b'x' * (1 << 20))\n"


def test_a_run_is_in_every_group_that_was_made_for_it(world: SandboxHarness) -> None:
    code = "import os; os.fork(); print('ready', flush=True); input()"

    async def scenario() -> list[int]:
        async with asyncio.timeout(20), AgentProcess.start(LaunchSpec(world.python(code))) as process:
            assert await process.stdout.readline() == b"ready\n"
            name = cgroups.cgroup_name(process.pid, process.started_ticks)
            return [
                len((path / "cgroup.procs").read_text().split())
                for path in cgroups.detect_cgroups().paths(name)
            ]

    assert asyncio.run(scenario()) == [4] * len(
        cgroups.detect_cgroups().parents
    )  # bwrap, its init, the two of the code


def test_a_run_that_needs_more_memory_than_it_may_is_ended_and_says_so(world: SandboxHarness) -> None:
    if cgroups.detect_cgroups().memory is None:
        pytest.skip("no control group for memory here")
    world.agent = Agent("claude", memory_bytes=100 * MIB)
    _, _, ended = run(world.python(HOG))
    assert ended == ExitStatus(None, 9, out_of_memory=True)


def test_a_run_copes_with_a_child_that_was_killed_for_its_memory(world: SandboxHarness) -> None:
    if cgroups.detect_cgroups().memory is None:
        pytest.skip("no control group for memory here")
    world.agent = Agent("claude", memory_bytes=100 * MIB)
    code = f"import subprocess, sys; print(subprocess.run([sys.executable, '-I', '-S', '-c', {HOG!r}]).returncode)"
    out, _, ended = run(world.python(code))
    assert (out, ended) == (b"-9\n", ExitStatus(0, None, out_of_memory=True))


def test_a_run_gets_no_more_processes_than_it_may(world: SandboxHarness) -> None:
    world.agent = Agent("claude", processes=20)
    code = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 100:\n"
        "        if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "        made += 1\n"
        "except BlockingIOError: print(made < 20)\n"
    )
    out, _, ended = run(world.python(code))
    assert (out, ended.code) == (b"True\n", 0)
    assert cgroups.detect_cgroups().processes is None or ended.forks_refused == 1


def test_a_run_fills_no_more_disk_than_its_image_has(world: SandboxHarness) -> None:
    image = world.place.paths.root / "disk"
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    mkfs = [
        "mkfs.ext4",
        "-q",
        "-F",
        "-m",
        "0",
        "-O",
        "^has_journal",
        "-E",
        f"root_owner={world.place.uid}:0",
    ]
    subprocess.run([*mkfs, str(image)], check=True)
    world.place = replace(
        world.place,
        layers=OverlayLayers(
            world.data_dir / "warm" / "tree", Path("upper"), Path("work"), OWNER, image=image
        ),
    )
    code = (
        "import os\n"
        "with open('big', 'wb', buffering=0) as file:\n"
        "    try:\n"
        "        while True: file.write(bytes(1 << 20))\n"
        "    except OSError as error: print(error.errno)\n"
    )
    out, err, ended = run(world.python(code))
    assert (out, err, ended) == (b"28\n", b"", ExitStatus(0, None, disk_full=True))
    out, _, ended = run(world.python("import os; print(os.path.getsize('big') > 1 << 20); os.remove('big')"))
    assert (out, ended.code) == (b"True\n", 0)
    assert not (loops() & {str(image)})


def loops() -> set[str]:
    """Give the files behind loop devices."""
    found = set()
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.add(entry.read_text().strip())
        except OSError:
            continue
    return found


# --- nothing is left -------------------------------------------------------------------------------


def traces(data: Path) -> list[object]:
    """Give what runs could leave: mounts, groups of ours, descriptors, files."""
    table = Path("/proc/self/mountinfo").read_text()
    mine = f"steadyhand-{os.getpid()}"
    made = [path for parent in cgroups.detect_cgroups().parents for path in parent.glob("steadyhand-*")]
    alive = [path for path in made if not path.name.startswith(mine) and data.name in str(path)]
    return [
        table.count(str(data)),
        alive,
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208  # a listing of itself
        sorted(str(path.relative_to(data)) for path in paths_below(data)),
    ]


def test_fifty_runs_leave_everything_as_it_was(world: SandboxHarness) -> None:
    seen: list[tuple[int, int]] = []

    async def one() -> None:
        launch = LaunchSpec(world.command("/bin/true"))
        async with AgentProcess.start(launch, lambda *known: seen.append(known)) as process:
            assert await process.wait() == ExitStatus(0, None)

    async def scenario() -> None:
        await one()
        before = traces(world.data_dir)
        for _ in range(50):
            await one()
        assert traces(world.data_dir) == before

    asyncio.run(scenario())
    left = [
        path
        for known in seen
        for path in cgroups.detect_cgroups().paths(cgroups.cgroup_name(*known))
        if path.exists()
    ]
    assert left == []


def test_a_sandbox_that_cannot_be_created_names_the_file_and_leaves_nothing(world: SandboxHarness) -> None:
    run(world.command("/bin/true"))
    shutil.rmtree(world.place.home)
    before = traces(world.data_dir)
    reason = f"The sandbox could not be created: the bind of '{world.place.home}': No such file or directory."
    with pytest.raises(SpawnError, match=f"^{re.escape(reason)}$"):
        run(world.command("/bin/true"))
    assert traces(world.data_dir) == before


def test_a_program_that_is_not_there_is_told_by_bwrap(world: SandboxHarness) -> None:
    _, err, ended = run(world.command("/usr/bin/nobody"))
    assert (ended, err.split(b":")[0]) == (ExitStatus(1, None), b"bwrap")


def test_a_sweep_removes_the_groups_of_the_dead_and_of_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    held = cgroups.detect_cgroups()
    if not held.parents:
        pytest.skip("no control groups here")
    ticks = cgroups.start_ticks(os.getpid()) or 0
    # A parent of one's own: in the common one each service that starts meanwhile sweeps as well.
    parent = held.parents[0] / f"test-of-a-sweep-{os.getpid()}"
    monkeypatch.setattr(cgroups, "detect_cgroups", lambda: cgroups.Cgroups(kill=parent))
    parent.mkdir()
    alive, dead = (
        parent / cgroups.cgroup_name(os.getpid(), ticks),
        parent / cgroups.cgroup_name(os.getpid(), 1),
    )
    other, elsewhere = parent / "steadyhand-else", parent / f"steadyhand-{os.getpid()}-1-1"
    for path in (alive, dead, other, elsewhere):
        path.mkdir()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (dead / "cgroup.procs").write_text(str(sleeper.pid))
        assert asyncio.run(cgroups.sweep_cgroups()) >= 1
        assert sleeper.wait(5) == -9
        assert (alive.exists(), dead.exists(), other.exists(), elsewhere.exists()) == (
            True,
            False,
            True,
            True,
        )
    finally:
        sleeper.kill()
        for path in (alive, other, elsewhere, parent):
            path.rmdir()


# --- errands and trials ----------------------------------------------------------------------------

ENV = {"PATH": "/usr/bin:/bin"}


def errand(
    world: SandboxHarness, code: str, *, stdin: bytes = b"", seconds: float = 20, most: int = MIB
) -> Any:
    argv = [PYTHON, "-I", "-S", "-c", code]
    errands = ProcessSandboxExec(world.sandbox)
    return asyncio.run(
        errands.run(
            argv, world.place, world.agent, env=ENV, stdin=stdin, timeout_seconds=seconds, max_output=most
        )
    )


def test_an_errand_is_fed_and_read_in_the_world_of_the_agent(world: SandboxHarness) -> None:
    run(world.python(LOOK))
    code = "import os, sys; sys.stderr.write('note'); print(len(sys.stdin.read()), os.listdir()); sys.exit(3)"
    done = errand(world, code, stdin=b"x" * 300_000)
    assert (done.exit_code, done.stderr) == (3, b"note")
    assert done.stdout.startswith(b"300000 [")
    assert b"moved" in done.stdout


def test_an_errand_that_prints_too_much_is_stopped(world: SandboxHarness, mark: str) -> None:
    done = errand(world, "import sys\nwhile True: sys.stdout.write('x' * 4096)", most=100_000)
    assert (done.exit_code, len(done.stdout), done.stderr) == (None, 100_000, b"")


def test_an_errand_that_takes_too_long_is_stopped(world: SandboxHarness) -> None:
    done = errand(world, "import time; print('begun', flush=True); time.sleep(60)", seconds=5)
    assert (done.exit_code, done.stdout) == (None, b"begun\n")


def test_an_errand_that_does_not_read_its_input_still_ends(world: SandboxHarness) -> None:
    assert errand(world, "print('done')", stdin=b"x" * (1 << 20)).stdout == b"done\n"


def test_a_trial_says_nothing_when_all_is_well_and_else_why(world: SandboxHarness) -> None:
    assert asyncio.run(try_command(world.command("/bin/true"))) is None
    assert (
        asyncio.run(try_command(world.command("/bin/false")))
        == "It ended with exit code 1 and printed nothing."
    )
    reason = asyncio.run(try_command(world.command("/usr/bin/nobody")))
    assert reason is not None
    assert reason.startswith("bwrap: execvp /usr/bin/nobody: No such file")
    shutil.rmtree(world.data_dir / "warm")
    reason = asyncio.run(try_command(world.command("/bin/true")))
    assert reason == "The sandbox could not be created: the overlay 'tree': No such file or directory."
