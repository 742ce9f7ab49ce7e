"""Fixtures for every test: a directory that agents can reach, the scripted model, the real CLI and the stand-in."""

import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from tests.example_counts import examples, note_marks

from steadyhand.testing.cli import cli_path, install_standin
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.new_databases import copy_new_databases
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.preloaded import Preloaded
from steadyhand.testing.service import Service


def pytest_configure(config: pytest.Config) -> None:
    """Make the run the same wherever it is started."""
    # A shell that starts tests in the background has them ignore Ctrl-C, and so would all that they start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Most of a service's start is importing; a test of the start itself sets this to None.
    Service.preloaded = Preloaded()
    # A new database runs each migration, which takes longer than most tests do.
    copy_new_databases()
    # A test that ends its service ends the runs as well, but for those about runs that outlive it.
    Service.reattach_seconds = 0
    # A traceback with the values of each frame, which is the default, takes longer than most tests do.
    *processors, _ = structlog.get_config()["processors"]
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*processors, renderer])
    # How long an example takes says how busy the machine is.
    note_marks(config.option.markexpr)
    settings.register_profile(
        "busy",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        max_examples=examples(100, quick=30),
    )
    settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Let the collector pass over all that was collected: looking at it is an eighth of the time of quick tests."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """As root, which CI is, everything that a test could need can be had: a skip there hides something."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.geteuid() != 0 or reporter is None or exitstatus != 0:
        return
    skipped = reporter.stats.get("skipped", [])
    if skipped:
        reporter.write_line(f"{len(skipped)} skipped as root: each is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that need a server of Postgres, and those that a class of a contract leaves to `make test-long`.

    A class names the latter in `long_tests`, also by a parameter. Each test of a contract is a part of `make test` on
    one adapter at least, and of `make test-long` on all of them.
    """
    if "postgres" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.postgres)
    long_tests: frozenset[str] = getattr(getattr(item, "cls", None), "long_tests", frozenset())
    if long_tests & {item.name, getattr(item, "originalname", item.name)}:
        item.add_marker(pytest.mark.long)


def _reachable_directory() -> Path:
    # pytest's tmp_path is closed to other users, and agents run as an unprivileged one.
    path = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """A test that runs a command of the service in this process takes its log's settings with it when it ends."""
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    yield
    structlog.configure(**before)
    logging.getLogger().handlers = handlers


@pytest.fixture
def world_dir() -> Iterator[Path]:
    """A fresh directory under /tmp that any user can enter; removed afterwards."""
    path = _reachable_directory()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def scripted_model() -> Iterator[ScriptedModel]:
    """A scripted model of one's own; a prompt picks its scenario by ``[[scenario:NAME]]``, else it is ``ok``."""
    with ScriptedModel() as model:
        yield model


@pytest.fixture(scope="session")
def real_cli() -> Path:
    """The real ``claude`` of the SDK's wheel, never one on PATH."""
    return cli_path()


@pytest.fixture(scope="session")
def standin() -> Iterator[Path]:
    """The stand-in agent as an executable ``claude`` in a directory of its own, reachable for any user."""
    directory = _reachable_directory()
    yield install_standin(directory)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres server of this process, shared by its tests; one that stops it starts its own."""
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres_database(postgres: Postgres) -> Iterator[str]:
    """The name of an empty database of one's own; `postgres.url(name)` is its URL. It is dropped afterwards."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)
