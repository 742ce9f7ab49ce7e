"""The matrix's services, shared by all clients; each worker of the test run has its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.service_fixtures import make_service_root, model, reachable_tmp, stand_in

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

ALIAS = '[openai.models]\nchat = { agent = "chat", reasoning = "all" }\n'
__all__ = ["model", "reachable_tmp", "stand_in"]  # fixtures, taken in


@pytest.fixture(scope="session")
def stand_in_service(reachable_tmp: Path, stand_in: Path) -> Iterator[Service]:
    """A service whose agent is the stand-in; its chats have all that they can have as reasoning."""
    with Service(make_service_root(reachable_tmp), stand_in, config=ALIAS) as service:
        yield service


@pytest.fixture(scope="session")
def real_service(reachable_tmp: Path, model: ScriptedModel) -> Iterator[Service]:
    """A service whose agent is the real CLI, and whose model is the scripted one."""
    with Service(make_service_root(reachable_tmp), cli_path(), model=model.url) as service:
        yield service


@pytest.fixture(scope="session")
def client_runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this test run share, for what clients told."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "client-runs"
    shared.mkdir(exist_ok=True)
    return shared
