"""Fixtures: the command line against the scripted service, and against a real one with the stand-in agent."""

import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.command_line import (
    KEY,
    CommandLine,
    InProcessCommandLine,
    RealService,
    ScriptedService,
    read_until,
)

from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.service import UNUSED_MODEL_URL


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


@pytest.fixture
def steadyhand(tmp_path: Path, service: ScriptedService) -> CommandLine:
    """The command line, talking to the scripted service; called, not started, but for terminals and signals."""
    return InProcessCommandLine(tmp_path, service.url, KEY)


@pytest.fixture(scope="session")
def real_service(standin: Path) -> Iterator[RealService]:
    """One real service for all tests of this session that need nothing else of it than to be there."""
    root = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    root.chmod(0o755)
    command = CommandLine(root, None, None)
    command.env |= {
        "STEADYHAND_RUNNER__CLAUDE__PATH": str(standin),
        "ANTHROPIC_API_KEY": DUMMY_API_KEY,
        "ANTHROPIC_BASE_URL": UNUSED_MODEL_URL,
    }
    with (
        (root / "log").open("wb") as log,
        command.running("serve", "--port", "0", stderr=log.fileno()) as process,
    ):
        line = read_until(process.stdout, "\n", 60)
        found = re.search(r"http://\S+", line)
        assert found, line
        yield RealService(found[0], (root / "data" / "admin.key").read_text().strip(), process)
        process.send_signal(signal.SIGTERM)
        process.wait(45)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def live(world_dir: Path, real_service: RealService) -> CommandLine:
    """The command line, talking to the real service; its home is one that agents can come through."""
    return CommandLine(world_dir, real_service.url, real_service.token)
