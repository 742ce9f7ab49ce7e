"""How fast an agent can be sealed off, and how fast it has a checkout of its own there.

Both sides of a row are measured in this process by one clock. Ours goes the way of a real run: the same checkouts, the
same sandbox, the same supervisor. Needs root for the layered checkout; as another user it cannot be measured.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench.rows import Row, interleave, percentile
from bench.worlds import Broken, made_in
from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SpawnError, SteadyhandError
from steadyhand.ports import Checkout, Command, Harvest, JobPaths
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.runner.process.sandbox_exec import ProcessSandboxExec
from steadyhand.sandbox.etc_dir import make_etc
from steadyhand.sandbox.sandbox import BwrapSandbox
from steadyhand.testing.cli import cli_path
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.service import run_git
from steadyhand.workspace.checkout import GitCheckouts
from steadyhand.workspace.filesystem import PRIVATE, TRAVERSABLE, make_dir

LARGE = 30_000
SMALL = 300
UID_BASE = 64_900
WARM_UP = 2
_A_FOLDER = 100
_SECONDS = 120.0
_FRESH_SECONDS = 86_400.0
_PATH = {"PATH": "/usr/bin:/bin"}
_READY = ["/bin/echo", "ready"]


@dataclass(frozen=True)
class Sealed:
    """The sandbox of this machine, with a data directory of its own."""

    data: Path
    sandbox: BwrapSandbox

    def command(self, argv: list[str], place: Checkout) -> Command:
        """Give a command sealed off in a place."""
        inner = Command(argv, _PATH, self.sandbox.agent_paths(place).directory, place.uid)
        return self.sandbox.wrap(inner, place, Agent("bench"))


def sealed_in(root: Path) -> Sealed:
    """Make it: the full profile, with the stage, the network and the mounts of a service that is root."""
    data = made_in(root, "data")
    (data / "stage").mkdir()
    (data / "run" / "slot-0").mkdir(parents=True)
    return Sealed(
        data,
        BwrapSandbox.detect(
            data, cli_path(), program_name="claude", config_dir_name=".claude", etc_dir=make_etc(data)
        ),
    )


async def said_ready(command: Command) -> int:
    """Run a command that says `ready` and no more; gives when that was read, in ns of the monotonic clock."""
    async with asyncio.timeout(_SECONDS), AgentProcess.start(LaunchSpec(command)) as process:
        process.end_input()
        line = await process.stdout.readline()
        now = time.monotonic_ns()
        ended = await process.wait()
    if line != b"ready\n" or ended.code != 0:
        raise Broken(f"the sealed command said {line!r} and ended with {ended.code}")
    return now


# --- sandbox -----------------------------------------------------------------------------------


def measure_sandbox(world: Path, pairs: int) -> Row:
    """Measure a sealed `true` from its start to its end, beside the same without anything around it."""
    root = made_in(world, "sandbox")
    sealed = sealed_in(root)
    user = UID_BASE if os.geteuid() == 0 else None
    files = JobPaths(sealed.data / "jobs" / "bench")
    make_dir(files.root.parent, TRAVERSABLE)
    make_dir(files.root, TRAVERSABLE)
    for folder in (files.checkout, files.home, files.config_dir):
        make_dir(folder, PRIVATE, user)
    place = Checkout(
        Workspace("bench"), files, files.checkout, files.home, files.config_dir, user, commit=None
    )

    async def ours() -> float:
        began = time.monotonic_ns()
        async with asyncio.timeout(_SECONDS):
            async with AgentProcess.start(LaunchSpec(sealed.command(["/bin/true"], place))) as process:
                process.end_input()
                ended = await process.wait()
        if ended.code != 0:
            raise Broken(f"a sealed `true` ended with {ended.code}")
        return (time.monotonic_ns() - began) / 1e6

    async def theirs() -> float:
        began = time.monotonic_ns()
        process = await asyncio.create_subprocess_exec("/bin/true", env=_PATH)
        await process.wait()
        return (time.monotonic_ns() - began) / 1e6

    with loop() as runner:
        figures = by_turns(pairs, lambda: runner.run(ours()), lambda: runner.run(theirs()))
    what = "a sealed `true` (full profile, our supervisor included), start to end; beside a bare spawn of it"
    return Row("sandbox", what, "ms", *figures, "at most", 9.0, spread(figures))


# --- checkout ----------------------------------------------------------------------------------


class Repository:
    """A generated repository of so many files, its warm checkout, and what makes jobs' checkouts over it."""

    def __init__(self, root: Path, files: int, runner: asyncio.Runner) -> None:
        self._root = made_in(root, f"files-{files}")
        self._sealed = sealed_in(self._root)
        self._runner = runner
        self._numbers = count()
        self._checkouts = GitCheckouts(
            self._sealed.data,
            agent_uid_base=UID_BASE,
            # One fetch serves all that ask, as for jobs that come close together; the lower is warm.
            debounce_seconds=_FRESH_SECONDS,
            sandbox_exec=ProcessSandboxExec(self._sealed.sandbox),
            overlay=True,
            agent_files=ClaudeFiles(),
            redactor=NO_REDACTION,
        )
        self.path = self._root / "repository"
        generate(self.path, files)
        self._workspace = Workspace("bench", repository=str(self.path))

    def checkout(self) -> float:
        """Make a job's checkout and give the ms from asking for it until a process in it has said that it runs."""
        return self._runner.run(self._checkout())

    async def _checkout(self) -> float:
        began = time.monotonic_ns()
        place = await self._checkouts.prepare(make_job(), self._workspace, 0)
        ready = await said_ready(self._sealed.command(_READY, place))
        if place.layers is None:
            raise Broken("the checkout was a copy: there is no overlay on this machine")
        await self._checkouts.release(place)
        return (ready - began) / 1e6

    def harvest(self, script: str) -> tuple[Harvest, float]:
        """Let an agent run a script in a checkout, and give its harvest with the ms that it took."""
        return self._runner.run(self._harvest(script))

    async def _harvest(self, script: str) -> tuple[Harvest, float]:
        place = await self._checkouts.prepare(make_job(), self._workspace, 0)
        await said_ready(self._sealed.command(["/bin/sh", "-ec", f"{script}\necho ready"], place))
        began = time.monotonic_ns()
        harvest = await self._checkouts.harvest(place)
        took = (time.monotonic_ns() - began) / 1e6
        if place.layers is None:
            raise Broken("the checkout was a copy: there is no overlay on this machine")
        await self._checkouts.release(place)
        return harvest, took

    def worktree(self) -> float:
        """Add a worktree and give the ms that it took; it is removed outside the measurement."""
        target = self._root / f"worktree-{next(self._numbers)}"
        began = time.monotonic_ns()
        run_git(self.path, "worktree", "add", "--detach", "--quiet", str(target), "HEAD")
        took = (time.monotonic_ns() - began) / 1e6
        run_git(self.path, "worktree", "remove", "--force", str(target))
        return took


def measure_checkout(world: Path, pairs: int) -> Row:
    """Measure a job's checkout of a large repository beside `git worktree add`."""
    must_be_root()
    with loop() as runner:
        large = Repository(made_in(world, "checkout"), LARGE, runner)
        # A worktree takes seconds: one is warm-up enough.
        figures = by_turns(pairs, large.checkout, large.worktree, warm_up=1)
    what = (
        f"a checkout of {LARGE:,} files, from asking to an agent's process in it; beside `git worktree add`"
    )
    return Row("checkout", what, "ms", *figures, "at most", 1 / 50, spread(figures))


def measure_growth(world: Path, pairs: int) -> Row:
    """Measure a job's checkout of a large repository beside one of a small repository."""
    must_be_root()
    with loop() as runner:
        root = made_in(world, "growth")
        large, small = Repository(root, LARGE, runner), Repository(root, SMALL, runner)
        figures = by_turns(pairs, large.checkout, small.checkout)
    what = f"a checkout of {LARGE:,} files, as above; beside the same of {SMALL} files"
    return Row("checkout-growth", what, "ms", *figures, "at most", 2.0, spread(figures))


def generate(path: Path, files: int) -> None:
    """Make a repository of so many small files, a hundred to a folder, in one commit."""
    path.mkdir()
    run_git(path, "init", "--quiet", "--initial-branch=main")
    for number in range(files):
        folder = path / f"part-{number // _A_FOLDER % 20:02}" / f"folder-{number // _A_FOLDER:03}"
        if number % _A_FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"file-{number:05}.py").write_text(f"NUMBER = {number}\n" * 20, encoding="ascii")
    run_git(path, "add", ".")
    run_git(path, "commit", "--quiet", "-m", "All of it")


# --- parts -------------------------------------------------------------------------------------


@contextmanager
def loop() -> Iterator[asyncio.Runner]:
    """Keep one event loop for all turns; what the service would refuse is `Broken`."""
    try:
        with asyncio.Runner() as runner:
            yield runner
    except (SpawnError, SteadyhandError, subprocess.SubprocessError) as error:
        raise Broken(f"{type(error).__name__}: {error}") from error


def by_turns(
    pairs: int, ours: Callable[[], float], theirs: Callable[[], float], warm_up: int = WARM_UP
) -> tuple[list[float], list[float]]:
    for _ in range(warm_up):
        theirs()
        ours()
    return interleave(pairs, ours, theirs)


def must_be_root() -> None:
    if os.geteuid() != 0:
        raise Broken("a layered checkout needs root")


def spread(figures: tuple[list[float], list[float]]) -> list[str]:
    def one(taken: list[float]) -> str:
        return f"least {min(taken):.1f} ms, p50 {percentile(taken, 0.5):.1f} ms, p90 {percentile(taken, 0.9):.1f} ms"

    return [f"ours {one(figures[0])}; theirs {one(figures[1])}"]
