"""Services with the real CLI whose processes wait for jobs, and the log by which tests know them."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.service_fixtures import make_service_root

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service, wait_until

PATIENCE = {
    "steadyhand.runner.claude.warm.ANSWER_SECONDS": 30.0,
    "steadyhand.worker.warm_pool.SETTLE_SECONDS": 30.0,
}
"""Times after which a job goes on without a process that is slow, as all are on a busy machine."""


@pytest.fixture(scope="module")
def cli(reachable_tmp: Path) -> Path:
    """The real CLI under a path that any user can reach."""
    target = make_service_root(reachable_tmp) / "claude"
    try:
        target.hardlink_to(cli_path())
    except OSError:
        shutil.copyfile(cli_path(), target)
    target.chmod(0o755)
    return target


@contextlib.contextmanager
def warm_service(
    reachable_tmp: Path,
    cli: Path,
    model: ScriptedModel,
    level: str,
    config: str,
    *,
    constants: Mapping[str, float] | None = None,
) -> Iterator[Service]:
    root = make_service_root(reachable_tmp)
    env = {"STEADYHAND_ISOLATION": level, "STEADYHAND_SERVICE__LOG_LEVEL": "debug"}
    try:
        with Service(root, cli, model=model.url, env=env, config=config, constants=constants) as service:
            yield service
    finally:
        shutil.rmtree(root, ignore_errors=True)


def events_of(service: Service, name: str) -> list[dict[str, Any]]:
    lines = (line for line in service.log_since_start.splitlines() if f'"{name}"' in line)
    return [json.loads(line) for line in lines]


def wait_for_slot(service: Service, agent: str | None = None) -> int:
    """Wait until one process waits, of this agent or of any, that no job has had; return its supervisor's pid."""

    def waiting() -> int | None:
        ready = [each for each in events_of(service, "warm.ready") if agent in (None, each["agent"])]
        taken = events_of(service, "warm.taken")
        free = {each["slot_id"] for each in ready} - {each["slot_id"] for each in taken}
        free -= {each["slot_id"] for each in events_of(service, "warm.ended")}
        return next((each["supervisor"] for each in ready if each["slot_id"] in free), None)

    return wait_until(waiting, 60)


def cli_below(supervisor: int) -> int:
    """Return the pid of the CLI below a supervisor."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                found.append((int(folder.name), int(stat[1]), (folder / "cmdline").read_bytes()))
    below = {supervisor}
    for _ in range(6):
        below |= {pid for pid, parent, _ in found if parent in below}
    return next(
        pid for pid, _, line in found if pid in below and b"--input-format" in line and b"--args" not in line
    )
