"""Many jobs, one after another, leave every count where it was."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from tests.sandboxed.host_inspection import (
    host_mounts,
    leftover_job_files,
    live_agent_processes,
    loop_devices,
    service_children,
    supervisors,
)

from steadyhand.runner.process.cgroups import detect_cgroups
from steadyhand.testing.live_folders import paths_below
from steadyhand.testing.service import MakeService, Service, wait_until
from steadyhand.testing.shell import shell_prompt

MOST_OF_THE_DATABASE = 3 * 4
"""One connection writes and three read, each with the file, its log and its index."""
WARM_UP = 4


def counts(service: Service) -> dict[str, int]:
    """Count what a run could leave behind, on the machine and in the service."""
    process = Path(f"/proc/{service.pid}")
    temporary = [*paths_below(service.root / "tmp"), *paths_below(service.data_dir / "stage")]
    return {
        "agents": len(live_agent_processes(service)),
        "children": len(service_children(service)),
        "supervisors": len(supervisors(service)),
        "mounts of the machine": len(host_mounts(service)),
        "mounts of the service": len((process / "mountinfo").read_text().splitlines()),
        "loop devices": len(loop_devices(service)),
        "temporary files": len(temporary),
        "left in folders of jobs": len(leftover_job_files(service)),
        "other folders": len([path for path in paths_below(service.data_dir) if _beside_jobs(path, service)]),
    }


def at_rest(service: Service) -> bool:
    """Say whether nothing of a job is there: of the service's children only the one that supervisors come from."""
    return (
        not leftover_job_files(service) and not supervisors(service) and len(service_children(service)) == 1
    )


def groups_of_the_dead() -> set[Path]:
    """Give the control groups on this machine whose run is over."""
    found = [path for parent in detect_cgroups().parents for path in parent.glob("steadyhand-*")]
    return {path for path in found if not Path("/proc", path.name.split("-")[1]).exists()}


def _beside_jobs(path: Path, service: Service) -> bool:
    first = path.relative_to(service.data_dir).parts[0]
    return first != "jobs" and not first.startswith("steadyhand.db") and path.is_dir()


def open_files(service: Service) -> Counter[bool]:
    """Count the service's descriptors: those of its database, by true, and all others."""
    database = str(service.data_dir / "steadyhand.db")
    links = []
    for link in Path(f"/proc/{service.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(link.readlink()))
    return Counter(link.startswith(database) for link in links)


@pytest.mark.parametrize("jobs", [4, *(pytest.param(jobs, marks=pytest.mark.long) for jobs in (8, 20, 50))])
def test_many_jobs_leave_everything_where_it_was(make_service: MakeService, jobs: int) -> None:
    service = make_service().start()
    workspace = str(service.root / "workspace")
    work = shell_prompt("echo x > new.txt; mkdir -p d; mv greeting.txt d/; (setsid sleep 120 &) ; echo done")
    for _ in range(WARM_UP):
        assert service.run_job(work, workspace=workspace)["answer"] == "done"
    wait_until(lambda: at_rest(service), 10)
    before, files, dead = counts(service), open_files(service), groups_of_the_dead()
    assert before["children"] == 1
    assert (
        before["agents"]
        == before["supervisors"]
        == before["loop devices"]
        == before["left in folders of jobs"]
        == 0
    )
    for _ in range(jobs):
        assert service.run_job(work, workspace=workspace)["answer"] == "done"
    wait_until(lambda: at_rest(service) and counts(service) == before, 10)
    # Other tests kill services, whose groups the next start removes: what is there for longer was left.
    wait_until(lambda: not groups_of_the_dead() - dead, 20)
    # A connection of this test may be open; those of the database are made when they are needed, up to a bound.
    wait_until(lambda: open_files(service)[False] <= files[False] + 1, 10)
    assert open_files(service)[True] <= MOST_OF_THE_DATABASE
