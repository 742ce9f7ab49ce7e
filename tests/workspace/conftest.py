from pathlib import Path

import pytest

from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, make_repository
from steadyhand.workspace import GitCheckouts


@pytest.fixture
def repository(world_dir: Path) -> Repository:
    return make_repository(world_dir / "repository")


@pytest.fixture
def checkouts(world_dir: Path) -> GitCheckouts:
    (world_dir / "data").mkdir()
    return GitCheckouts(
        world_dir / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
    )
