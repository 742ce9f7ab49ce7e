"""Plays generated histories in a job's sandbox and beside it in a plain clone, and compares what is harvested."""

import asyncio
import shutil
from pathlib import Path

from tests.workspace.histories import History
from tests.workspace.history_bases import PLAIN_USER, Base, make_base, make_plain
from tests.workspace.history_check import Comparison
from tests.workspace.history_git import git
from tests.workspace.history_oracle import expect
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts

from steadyhand.agents import Workspace
from steadyhand.ports import Checkout
from steadyhand.testing.contracts.checkouts import run_shell
from steadyhand.testing.contracts.samples import make_job

# What a side looks like in the end: refs, HEAD, and each file with its kind, mode, size and target.
_LOOK = r"""
echo refs; git for-each-ref --format='%(objectname) %(refname)' 2>/dev/null || :
git symbolic-ref -q HEAD 2>/dev/null || git rev-parse HEAD 2>/dev/null || :
echo files; find . -name .git -prune -o ! -type d -printf '%p %y %m %s %l\n' 2>/dev/null | LC_ALL=C sort
"""


class HistoryWorld:
    """Repositories, checkouts in the sandbox and plain clones, shared by many histories."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sealed = SandboxedCheckouts(folder)
        self._bases: dict[str, Base] = {}

    def problems(self, history: History) -> list[str]:
        """Play a history on both sides and return what differs from what has to be."""
        return asyncio.run(self._bounded(history))

    async def _bounded(self, history: History) -> list[str]:
        async with asyncio.timeout(120):
            return await self._problems(history)

    async def _problems(self, history: History) -> list[str]:
        if history.base not in self._bases:
            self._bases[history.base] = make_base(history.base, self._folder)
        base = self._bases[history.base]
        side = self._folder / "side"
        side.mkdir()
        job = make_job(publish="branch")
        checkouts = self._sealed.checkouts
        place = await self._sealed.prepare(Workspace("example", repository=str(base.folder)), job=job)
        try:
            return await self._compare(history, base, place, side)
        finally:
            await checkouts.release(place)
            await checkouts.delete_job(job.id)
            shutil.rmtree(side)
            git("update-ref", "-d", f"refs/heads/steadyhand/{job.id}", cwd=base.folder)

    async def _compare(self, history: History, base: Base, place: Checkout, side: Path) -> list[str]:
        script = history.script() + _LOOK
        seen = await self._sealed.run_as_agent(place, script)
        harvest = await self._sealed.checkouts.harvest(place)
        home, scratch = side / "home", side / "scratch"
        home.mkdir()
        scratch.mkdir()
        plain = make_plain(base, home)
        seen_plain = run_shell(script, plain, user=PLAIN_USER, home=home)
        if seen != seen_plain:
            return [f"sides: they differ:\n{_first_difference(seen, seen_plain)}"]
        expected = expect(base, plain, scratch)
        return Comparison(harvest, place.paths, base, expected, scratch).problems()


def _first_difference(one: str, other: str) -> str:
    lines = zip(one.split("\n"), other.split("\n"), strict=False)
    return next(
        (f"sandbox: {left}\nplain:   {right}" for left, right in lines if left != right), "one is longer"
    )


def shrink(world: HistoryWorld, history: History, attempts: int = 40) -> tuple[History, list[str]]:
    """Return the history with as few steps as still have a problem of the first one's kind, and its problems."""
    problems = world.problems(history)
    kind = problems[0].partition(":")[0]
    index = len(history.steps)
    while index > 0 and attempts > 0:
        index, attempts = index - 1, attempts - 1
        shorter = history.without(index)
        found = world.problems(shorter)
        if any(problem.startswith(f"{kind}:") for problem in found):
            # What was needed before may be needless now.
            history, problems, index = shorter, found, len(shorter.steps)
    return history, problems
