"""A repository that was made to run something: eleven ways, in whole jobs of a running service.

The ways go together in groups; `make test-long` has a job for each alone, too.

`test_git_calls.py` has the same ways against each single call of git.

One job taints everything it can write, in the sandbox. Then the service harvests, prepares the next job of the same
workspace, publishes, and reads the definitions; in a directory in place the next job's pull meets what is left. What
the taint runs leaves a mark in a folder that is not seen inside: a mark that comes to be was made outside.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandboxed.hostile_repository import ATTACKS, TOGETHER, AttackMarks

from steadyhand.testing.service import MakeService, Service, run_git
from steadyhand.testing.shell import shell_prompt

GROUPS = pytest.mark.parametrize(
    "taints",
    [
        *(pytest.param(taints, id=", ".join(taints)) for taints in TOGETHER),
        *(pytest.param((taint,), id=taint, marks=pytest.mark.long) for taint in ATTACKS),
    ],
)


@pytest.fixture(scope="module")
def marks() -> Iterator[AttackMarks]:
    folder = Path(tempfile.mkdtemp(prefix="sh-mk-", dir="/tmp"))
    folder.chmod(0o755)
    yield AttackMarks(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def service(make_service_in: MakeService) -> Iterator[Service]:
    made = make_service_in()
    remote = made.root / "remote.git"
    run_git(made.root, "clone", "-q", "--bare", str(made.root / "workspace"), str(remote))
    direct = made.root / "direct"
    run_git(made.root, "clone", "-q", str(remote), str(direct))
    shutil.copytree(direct, made.root / "pristine")
    run_git(direct, "config", "user.name", "Owner")
    run_git(direct, "config", "user.email", "owner@example.org")
    made.give_to_agent(direct)
    made.config_path.write_text(
        f'[workspaces.published]\nrepository = "{remote}"\npublish = "branch"\n'
        f'[workspaces.direct]\nrepository = "{direct}"\nmode = "in_place"\n',
        encoding="utf-8",
    )
    with made:
        yield made


def tainting(marks: AttackMarks, taints: tuple[str, ...]) -> str:
    """Give a prompt that taints the repository it is in, and changes a file so that there is work to keep."""
    return shell_prompt(
        "echo x > x.txt; git add x.txt", marks.attack_script(*taints), "echo more >> greeting.txt; echo done"
    )


@GROUPS
def test_a_taint_runs_nothing_outside_in_harvest_publish_and_the_next_job(
    service: Service, marks: AttackMarks, taints: tuple[str, ...]
) -> None:
    job = service.run_job(tainting(marks, taints), workspace="published")
    assert (job["state"], job["answer"]) == ("completed", "done"), job["error"]
    assert job["changes"]["published"], job["warnings"]
    diff = service.client.get(f"/v1/jobs/{job['id']}/diff").text
    assert "+more" in diff
    service.client.get("/v1/agents")  # the definitions of each workspace
    following = service.run_job(
        shell_prompt("git config --get core.fsmonitor; cat greeting.txt"), workspace="published"
    )
    assert (following["state"], following["answer"]) == ("completed", "hello")
    assert marks.take_marks() == set()


@GROUPS
def test_a_taint_in_a_directory_in_place_runs_nothing_outside(
    service: Service, marks: AttackMarks, taints: tuple[str, ...]
) -> None:
    job = service.run_job(tainting(marks, taints), workspace="direct")
    assert job["state"] == "completed", job["error"]
    # The pull, the run and the diff of the next job meet what this one left.
    service.run_job(shell_prompt("echo next"), workspace="direct")
    service.client.get("/v1/agents")
    assert marks.take_marks() == set()
    folder = service.root / "direct"
    shutil.rmtree(folder)
    shutil.copytree(service.root / "pristine", folder)
    service.give_to_agent(folder)
