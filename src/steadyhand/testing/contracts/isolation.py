"""Tests of every level of isolation, with checkouts, sandbox and process together, as one run has them.

Each test goes the whole way: a checkout is made, a command is wrapped and started in it, it ends or is ended, what it
left is looked at, and the checkout goes. The repository is real, the processes are real, nothing stands in for them.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SpawnError
from steadyhand.job import Job
from steadyhand.ports import Checkout, Checkouts, Command, Sandbox
from steadyhand.runner.process.agent_process import AgentProcess, ExitStatus, LaunchSpec
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.contracts.checkouts import Repository, make_repository
from steadyhand.testing.contracts.samples import async_test, make_job
from steadyhand.testing.processes import new_process_mark, pids_with_mark, wait_until_gone

EXIT_TIMEOUT_SECONDS = 1.0
"""The time that the processes of a run may take to die after its end."""
_AGENT = Agent("a")
_IGNORE_SIGNALS = "import os, signal, sys, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
_STAY_ALIVE = "os.write(1, b'ready\\n'); time.sleep(25); os._exit(0)"
LEFT_BEHIND = {
    "plain": f"if os.fork() == 0: {_STAY_ALIVE}\n",
    "setsid": f"if os.fork() == 0: os.setsid(); {_STAY_ALIVE}\n",
    "daemon": f"if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: {_STAY_ALIVE}\n os._exit(0)\n",
}
"""Python that leaves a process of each kind behind, deaf to all that asks it to end; it prints `ready` once alive."""


class IsolationContract:
    """Subclass it and define `open`; `root` is a directory that every user can enter."""

    root: Path
    left_behind_kinds: frozenset[str] = frozenset({"config", "kept", "prepared"})
    """The names in a job's folder once its checkout is released."""

    def open(self) -> "contextlib.AbstractAsyncContextManager[tuple[Checkouts, Sandbox]]":
        """Open checkouts and the sandbox of one level, on one data directory below `world`."""
        raise NotImplementedError

    # --- a run, step by step -------------------------------------------------------------------

    def command(
        self, sandbox: Sandbox, place: Checkout, argv: Sequence[str], mark: str = "none", **env: str
    ) -> Command:
        """Wrap a command for a place, with no more of an environment than it needs."""
        view = sandbox.agent_paths(place)
        base = {
            "PATH": SYSTEM_PATH,
            "HOME": str(view.home),
            "SH_MARK": mark,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        return sandbox.wrap(Command(argv, base | env, view.directory, place.uid), place, _AGENT)

    async def run_to_end(self, command: Command, stdin: bytes = b"") -> tuple[ExitStatus, bytes]:
        """Run a command to its end; return its exit status and all that it printed."""
        async with AgentProcess.start(LaunchSpec(command)) as process:
            await process.write(stdin)
            process.end_input()
            output = await process.stdout.read(-1)
            return await process.wait(), output

    async def run_script(self, sandbox: Sandbox, place: Checkout, script: str) -> str:
        """Run a shell script, which must succeed, and return its output."""
        end, output = await self.run_to_end(self.command(sandbox, place, ["/bin/sh", "-ec", script]))
        assert end.code == 0, (end, output)
        return output.decode()

    @contextlib.asynccontextmanager
    async def prepared_checkout(
        self, checkouts: Checkouts, repository: Repository, slot: int = 0, job: Job | None = None
    ) -> AsyncIterator[Checkout]:
        """Make a checkout, and see it go."""
        place = await checkouts.prepare(job or make_job(), repository.workspace(), slot)
        yield place
        await checkouts.release(place)
        assert {path.name for path in place.paths.root.iterdir()} <= self.left_behind_kinds

    # --- what holds ----------------------------------------------------------------------------

    @async_test
    async def test_a_command_is_where_the_view_says_and_may_write_there_and_at_home(self) -> None:
        repository = make_repository(self.root / "repository")
        async with (
            self.open() as (checkouts, sandbox),
            self.prepared_checkout(checkouts, repository) as place,
        ):
            view = sandbox.agent_paths(place)
            said = await self.run_script(
                sandbox, place, "pwd; echo $HOME; cat readme.txt; touch here ~/there; id -u"
            )
            here, home, *text, uid = said.split()
            assert (here, home) == (str(view.directory), str(view.home))
            assert text == ["one", "two", "three"]
            assert int(uid) != 0 or os.geteuid() != 0

    @async_test
    async def test_what_a_command_did_is_harvested_whether_it_ended_or_was_killed(self) -> None:
        repository = make_repository(self.root / "repository")
        async with self.open() as (checkouts, sandbox):
            for slot, last in enumerate(("exit 0", "exit 3", "kill -9 $$")):
                async with self.prepared_checkout(checkouts, repository, slot) as place:
                    script = (
                        "git config user.name A; git config user.email a@example.org; echo a > a.txt; git add -A;"
                        f" git commit -qm mine; echo four >> readme.txt; {last}"
                    )
                    end, _ = await self.run_to_end(self.command(sandbox, place, ["/bin/sh", "-ec", script]))
                    assert (end.code, end.signal) == {
                        "exit 0": (0, None), "exit 3": (3, None), "kill -9 $$": (None, signal.SIGKILL),
                    }[last]  # fmt: skip
                    harvest = await checkouts.harvest(place)
                    assert harvest.changes is not None
                    assert (harvest.changes.base, harvest.changes.files) == (place.commit, 2)
                    assert (harvest.changes.insertions, harvest.changes.deletions) == (2, 0)
                diff = place.paths.diff.read_text("utf-8")
                assert "+four" in diff
                assert "+++ b/a.txt" in diff
        repository.run("git fsck --strict && test ! -e a.txt && test \"$(git status --porcelain)\" = ''")

    @pytest.mark.parametrize("ending", ["itself", "a kill", "a task that is cancelled"])
    def test_nothing_is_alive_after_a_run_that_ended_by(self, ending: str) -> None:
        asyncio.run(asyncio.wait_for(self._check_nothing_outlives(ending), 60))

    async def _check_nothing_outlives(self, ending: str) -> None:
        repository, mark = make_repository(self.root / "repository"), new_process_mark()
        code = f"{_IGNORE_SIGNALS}{''.join(LEFT_BEHIND.values())}os.read(0, 1)\n"
        async with (
            self.open() as (checkouts, sandbox),
            self.prepared_checkout(checkouts, repository) as place,
        ):
            command = self.command(sandbox, place, ["/usr/bin/python3", "-ISc", code], mark)
            started = asyncio.Event()

            async def run() -> None:
                async with AgentProcess.start(LaunchSpec(command)) as process:
                    for _ in LEFT_BEHIND:
                        assert await process.stdout.readline() == b"ready\n"
                    assert len(pids_with_mark(mark)) > len(LEFT_BEHIND)
                    started.set()
                    if ending == "itself":
                        await process.write(b"x")
                    elif ending == "a kill":
                        await process.kill()
                    await process.wait()

            async with asyncio.TaskGroup() as group:
                task = group.create_task(run())
                await started.wait()
                if ending == "a task that is cancelled":
                    task.cancel()
            assert wait_until_gone(mark, EXIT_TIMEOUT_SECONDS)
            # Its checkout is there to be looked at and goes like any other.
            assert (await checkouts.harvest(place)).changes is None

    @async_test
    async def test_two_runs_at_once_know_nothing_of_each_other(self) -> None:
        repository = make_repository(self.root / "repository")
        async with (
            self.open() as (checkouts, sandbox),
            self.prepared_checkout(checkouts, repository, 0) as one,
            self.prepared_checkout(checkouts, repository, 1) as other,
        ):
            script = "echo $0 > mine.txt; echo $0 > ~/mine; echo ready; read go; cat mine.txt ~/mine"
            async with contextlib.AsyncExitStack() as stack:
                both = []
                for place, name in ((one, "one"), (other, "other")):
                    command = self.command(sandbox, place, ["/bin/sh", "-ec", script, name])
                    both.append(await stack.enter_async_context(AgentProcess.start(LaunchSpec(command))))
                for process in both:
                    assert await process.stdout.readline() == b"ready\n"
                for process, own in zip(both, (b"one", b"other"), strict=True):
                    await process.write(b"go\n")
                    assert await process.stdout.read(-1) == own + b"\n" + own + b"\n"

    @async_test
    async def test_a_command_has_the_environment_that_it_was_given_and_none_of_the_services(self) -> None:
        repository = make_repository(self.root / "repository")
        os.environ["SH_CANARY_OF_THE_SERVICE"] = "canary"
        try:
            async with (
                self.open() as (checkouts, sandbox),
                self.prepared_checkout(checkouts, repository) as place,
            ):
                command = self.command(sandbox, place, ["/usr/bin/env", "-0"], GIVEN="a\nb=c")
                end, said = await self.run_to_end(command)
        finally:
            del os.environ["SH_CANARY_OF_THE_SERVICE"]
        assert end.code == 0
        assert b"GIVEN=a\nb=c" in said.split(b"\0")
        assert b"canary" not in said

    @async_test
    async def test_bytes_go_in_and_come_out_as_they_are(self) -> None:
        repository = make_repository(self.root / "repository")
        given = bytes(range(256)) * 4096
        async with (
            self.open() as (checkouts, sandbox),
            self.prepared_checkout(checkouts, repository) as place,
        ):
            async with AgentProcess.start(LaunchSpec(self.command(sandbox, place, ["/bin/cat"]))) as process:
                async with asyncio.TaskGroup() as group:
                    out = group.create_task(process.stdout.read(-1))
                    await process.write(given)
                    process.end_input()
                assert (await process.wait()).code == 0
            assert out.result() == given

    @async_test
    async def test_a_second_run_of_a_job_finds_nothing_of_the_first(self) -> None:
        repository, job = make_repository(self.root / "repository"), make_job()
        async with self.open() as (checkouts, sandbox):
            for slot in (0, 1):
                async with self.prepared_checkout(checkouts, repository, slot, job) as place:
                    there = await self.run_script(
                        sandbox, place, "ls -A . ~; echo x > left.txt; echo x > ~/left"
                    )
                    assert "left" not in there

    @async_test
    async def test_an_empty_workspace_is_empty_and_what_is_no_program_does_not_end_well(self) -> None:
        async with self.open() as (checkouts, sandbox):
            place = await checkouts.prepare(make_job(), Workspace("scratch"), 0)
            assert await self.run_script(sandbox, place, "ls -A") == ""
            try:
                end, _ = await self.run_to_end(self.command(sandbox, place, ["/nonexistent/program"]))
            except SpawnError as error:
                assert "program could not be run" in error.detail  # noqa: PT017  # one of two ways to be told
            else:
                assert end.code  # bwrap has said it on stderr
            await checkouts.release(place)
