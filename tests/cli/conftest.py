"""Fixtures: the command line against the scripted service, and against a real one with the stand-in agent."""

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.command_line import (
    COMMAND,
    KEY,
    CommandLine,
    InProcessCommandLine,
    RealService,
    ScriptedService,
    read_until,
)

from steadyhand.testing.cli import SYSTEM_PATH


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
    env = {
        "PATH": SYSTEM_PATH,
        "HOME": str(root),
        "LANG": "C.UTF-8",
        "STEADYHAND_DATA_DIR": str(root / "data"),
        "STEADYHAND_RUNNER__CLAUDE__PATH": str(standin),
        "ANTHROPIC_API_KEY": "sk-ant-scripted-no-real-key",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    }
    command = [*COMMAND, "serve", "--port", "0"]
    with (
        (root / "log").open("wb") as log,
        subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            line = read_until(process.stdout, "\n", 60)
            found = re.search(r"http://\S+", line)
            assert found, line
            yield RealService(found[0], (root / "data" / "admin.key").read_text().strip(), process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(45)
            except subprocess.TimeoutExpired:
                process.kill()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def live(world_dir: Path, real_service: RealService) -> CommandLine:
    """The command line, talking to the real service; its home is one that agents can come through."""
    return CommandLine(world_dir, real_service.url, real_service.token)
