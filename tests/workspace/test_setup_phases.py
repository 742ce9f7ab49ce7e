"""Each setup command of a checkout as a phase of the run."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.errors import WorkspaceError
from steadyhand.ports import phases_reported_to
from steadyhand.testing.contracts.checkouts import Repository
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace.setup_phases import SetupPhases

LOUD = "printf '\\nsetup 1\\n' >&2"
"""A command whose output looks like the next one's begin: it goes to the log of the setup, not to the service."""


class Reporter:
    """Keeps the phases of one run."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, str | None]] = []

    async def report_phase(self, phase: str, detail: str | None) -> None:
        self.phases.append((phase, detail))

    def report_progress(self, detail: str) -> None:
        """Keep no progress."""


@pytest.mark.parametrize(
    ("commands", "reported"),
    [
        ((LOUD, "true", "echo x"), 3),
        ((LOUD, "exit 3", "echo x"), 2),
        pytest.param((), 0, marks=pytest.mark.long),
    ],
    ids=["three", "the second fails", "none"],
)
def test_each_setup_command_is_a_phase_as_it_begins(
    world_dir: Path, repository: Repository, commands: tuple[str, ...], reported: int
) -> None:
    reporter = Reporter()

    async def work() -> None:
        checkouts = SandboxedCheckouts(world_dir, overlay=True, shares_objects=False).checkouts
        failure = pytest.raises(WorkspaceError) if "exit 3" in commands else nullcontext()
        with phases_reported_to(reporter), failure:
            await checkouts.prepare(make_job(), repository.workspace(setup=commands), 0)

    run_async(work())
    setup = [("setup", command) for command in commands[:reported]]
    assert reporter.phases[-1 - reported :] == [("checking_out", None), *setup]


def test_the_commands_are_told_once_and_in_order_whatever_else_comes() -> None:
    async def work() -> list[tuple[str, str | None]]:
        reporter = Reporter()
        phases = SetupPhases(("a", "b" * 300))
        for chunk in (b"setup 1\nset", b"up 0\nsetup 0\n", b"x" * 1000, b"\nsetup 1\nsetup 2\nsetup 1\n"):
            phases.feed(chunk)
        phases.close()
        with phases_reported_to(reporter):
            await phases.report()
        return reporter.phases

    assert run_async(work()) == [("setup", "a"), ("setup", "b" * 200)]
