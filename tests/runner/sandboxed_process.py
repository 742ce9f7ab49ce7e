"""A world for sealed runs: a data directory, a place with a layered checkout, and the real sandbox around it."""

import asyncio
import atexit
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from steadyhand.agents import Agent, Workspace
from steadyhand.ports import Checkout, Command, JobPaths, OverlayLayers, SandboxSpec
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.sandbox.etc_dir import make_etc
from steadyhand.sandbox.sandbox import BwrapSandbox

PYTHON = "/usr/bin/python3"
BASE = 64600
OWNER = BASE - 1
MIB = 1 << 20
ROOT = os.geteuid() == 0


@dataclass
class SandboxHarness:
    """One data directory with one place in it; `agent` is what its limits are taken from."""

    data_dir: Path
    sandbox: BwrapSandbox
    place: Checkout
    mark: str
    agent: Agent = field(default_factory=lambda: Agent("claude"))

    def command(self, *argv: str, **env: str) -> Command:
        """Give a sealed command, known by the world's mark."""
        plain = Command(
            list(argv), {"PATH": "/usr/bin:/bin", "SH_MARK": self.mark, **env}, Path("/workspace")
        )
        return self.sandbox.wrap(replace(plain, uid=self.place.uid), self.place, self.agent)

    def python(self, code: str, *words: str) -> Command:
        """Give a sealed command that runs Python code."""
        return self.command(PYTHON, "-I", "-S", "-c", code, *words)

    def sandbox_spec(self, command: Command) -> SandboxSpec:
        """Give the seal of a command of this world."""
        assert command.sandbox is not None
        return command.sandbox


@functools.cache
def shared_etc() -> Path:
    """Make the sandbox's `/etc` once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_etc(folder)


@contextmanager
def sandbox_harness(
    mark: str, *, slot: int = 0, layered: bool = ROOT, etc: Path | None = None
) -> Iterator[SandboxHarness]:
    """Make a world and remove it afterwards."""
    data = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    data.chmod(0o755)
    try:
        user = BASE + slot if ROOT else None
        files = JobPaths(data / "jobs" / "job1")
        folders = [data / "stage", data / "run" / f"slot-{slot}", data / "warm" / "tree" / "folder"]
        folders += [files.root / "upper", files.root / "work", files.checkout, files.home, files.config_dir]
        for folder in folders:
            folder.mkdir(parents=True)
        tree = data / "warm" / "tree"
        (tree / "README").write_text("hello\n")
        (tree / "folder" / "deep").write_text("deep\n")
        if user is not None:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, OWNER, OWNER)
            for path in (
                files.root / "upper",
                files.root / "work",
                files.checkout,
                files.home,
                files.config_dir,
            ):
                os.chown(path, user, user)
        layers = OverlayLayers(tree, files.root / "upper", files.root / "work", OWNER) if layered else None
        place = Checkout(
            workspace=Workspace("tree"),
            paths=files,
            directory=files.checkout,
            home=files.home,
            config_dir=files.config_dir,
            uid=user,
            commit=None,
            layers=layers,
            slot=slot,
        )
        sandbox = BwrapSandbox.detect(
            data, Path(PYTHON), program_name="claude", config_dir_name=".claude", etc_dir=etc or shared_etc()
        )
        yield SandboxHarness(data, sandbox, place, mark)
    finally:
        shutil.rmtree(data, ignore_errors=True)


async def wait_until_ready(process: AgentProcess) -> None:
    """Wait until the command says so."""
    line = await process.stdout.readline()
    assert line == b"ready\n", (line, await process.stderr.read(2000))


async def _run_service(mark: str, etc: Path, words: Sequence[str]) -> None:
    """Be a service of its own, which can be killed: start what it is given, and say who supervises it."""
    with sandbox_harness(mark, etc=etc) as world:
        async with AgentProcess.start(LaunchSpec(world.python(*words))) as process:
            await wait_until_ready(process)
            sys.stdout.write(json.dumps([process.pid, process.started_ticks, str(world.data_dir)]) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(_run_service(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
