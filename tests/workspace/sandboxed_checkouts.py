"""Checkouts of sealed agents: with the real sandbox and the real supervisor, in a data directory of their own."""

import asyncio
import inspect
import json
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.runner.sandboxed_process import shared_etc

from steadyhand.agents import Agent, Workspace
from steadyhand.job import Job
from steadyhand.ports import Checkout, ExecResult, Harvest, SandboxExec, phases_reported_to
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.process.sandbox_exec import ProcessSandboxExec
from steadyhand.sandbox.sandbox import BwrapSandbox
from steadyhand.testing.contracts.checkouts import list_tree
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts
from steadyhand.workspace.sandboxed_git_client import GIVEN_DIR

GIT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/agent",
    "CLAUDE_CONFIG_DIR": "/home/agent/.claude",
    "LC_ALL": "C.UTF-8",
}
_T = TypeVar("_T")
_TREE = f"""
import json
from pathlib import Path
{inspect.getsource(list_tree)}
print(json.dumps(list_tree(Path.cwd())))
"""


class PhaseList:
    """Keeps the phases and the progress of one run, in order."""

    def __init__(self, details: list[str]) -> None:
        self._details = details

    async def report_phase(self, phase: str, detail: str | None) -> None:
        self._details.append(phase if detail is None else f"{phase} {detail}")

    def report_progress(self, detail: str) -> None:
        self._details.append(detail)


async def told_at_once(work: Callable[[int], Awaitable[object]]) -> Sequence[list[str]]:
    """Do the same work for two runs at once; return the phases and the progress that each was told."""
    told: tuple[list[str], list[str]] = ([], [])

    async def do(number: int) -> None:
        with phases_reported_to(PhaseList(told[number])):
            await work(number)

    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(do(number))
    return told


def sandbox_exec_in(world: Path, *, slots: int = 4) -> ProcessSandboxExec:
    """Give what runs commands sealed off, with the data directory `world/data`."""
    data = world / "data"
    data.mkdir(exist_ok=True)
    data.chmod(0o711)
    cli = world / "claude"
    cli.write_bytes(b"no program")
    for slot in range(slots):
        (data / "run" / f"slot-{slot}").mkdir(parents=True, exist_ok=True)
    (data / "stage").mkdir(exist_ok=True)
    return ProcessSandboxExec(
        BwrapSandbox.detect(data, cli, program_name="claude", config_dir_name=".claude", etc_dir=shared_etc())
    )


class RecordingExec:
    """Runs commands in the sandbox, and keeps what harvests asked there: `changed` are the paths to look at."""

    def __init__(self, sandbox_exec: SandboxExec) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self._sandbox_exec = sandbox_exec

    async def run(
        self, argv: Sequence[str], checkout: Checkout, agent: Agent, *, stdin: bytes = b"", **options: Any
    ) -> ExecResult:
        request = json.loads(stdin) if agent.name == "harvest" else {}
        if request.get("verb") == "harvest":
            changed = None
            if request["changed_names"] is not None:
                given = {bind.target: bind.source for bind in checkout.binds}[GIVEN_DIR]
                names = (given / Path(request["changed_names"]).name).read_bytes().split(b"\x00")
                changed = [os.fsdecode(name) for name in names if name]
            self.requests.append({**request, "changed": changed})
        return await self._sandbox_exec.run(argv, checkout, agent, stdin=stdin, **options)


class SandboxedCheckouts:
    """Checkouts whose agents are sealed off, and an agent's hands in them."""

    def __init__(self, world: Path, *, overlay: bool = True, **options: Any) -> None:
        self.recorded = RecordingExec(sandbox_exec_in(world))
        self.sandbox_exec: SandboxExec = self.recorded
        self.checkouts = GitCheckouts(
            world / "data",
            debounce_seconds=0,
            sandbox_exec=self.sandbox_exec,
            overlay=overlay,
            **options,
            agent_files=ClaudeFiles(),
            redactor=NO_REDACTION,
        )

    async def prepare(self, workspace: Workspace, slot: int = 0, job: Job | None = None) -> Checkout:
        return await self.checkouts.prepare(job or make_job(), workspace, slot)

    async def run_as_agent(self, place: Checkout, script: str, *, fails: bool = False) -> str:
        """Do in a place what an agent would do there, and give what it printed."""
        done = await self.try_as_agent(place, script)
        assert (done.exit_code != 0) == fails, (done.exit_code, done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "surrogateescape")

    async def tree(self, place: Checkout) -> dict[str, str]:
        """Give every file of a checkout as the agent sees it; see `list_tree`."""
        argv = ["/usr/bin/python3", "-c", _TREE]
        done = await self.sandbox_exec.run(
            argv, place, Agent("a"), env=GIT, timeout_seconds=60, max_output=1 << 26
        )
        assert done.exit_code == 0, done.stderr.decode("utf-8", "replace")
        return dict(json.loads(done.stdout))

    async def try_as_agent(self, place: Checkout, script: str) -> ExecResult:
        return await self.sandbox_exec.run(
            ["/bin/sh", "-ec", script], place, Agent("a"), env=GIT, timeout_seconds=60, max_output=64 * 1024 * 1024
        )  # fmt: skip

    async def run_and_harvest(self, workspace: Workspace, script: str) -> tuple[Checkout, Harvest]:
        """Give the place and the harvest after an agent did this."""
        place = await self.prepare(workspace)
        await self.run_as_agent(place, script)
        return place, await self.checkouts.harvest(place)


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a test's coroutine, for two minutes at most."""

    async def bounded() -> _T:
        async with asyncio.timeout(120):
            return await work

    return asyncio.run(bounded())
