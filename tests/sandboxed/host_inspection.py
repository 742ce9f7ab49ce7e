"""What the attacks on a sealed service share: a look at what is alive and at what is left outside."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from steadyhand.testing.live_folders import contents_below, paths_in
from steadyhand.testing.service import UIDS_PER_SERVICE, Service
from steadyhand.testing.shell import shell_prompt

OUTSIDE_MARKER = "the canary sang outside"
_UIDS = re.compile(r"^Uid:\s+(\d+)\s+(\d+)", re.MULTILINE)


def run_commands(service: Service, *commands: str, more: str = "", **fields: Any) -> str:
    """Run a job that does this and give what the last command printed; the job has to complete."""
    job = service.run_job(shell_prompt(*commands, options=more), **fields)
    assert job["state"] == "completed", (job["outcome"], job["error"], service.log[-3000:])
    return str(job["answer"])


def live_agent_processes(service: Service) -> dict[int, str]:
    """Give every process, zombies apart, that has a uid of this service's agents: its pid and its name."""
    return {
        pid: status.partition("\n")[0].removeprefix("Name:\t") for pid, status, _ in _agent_statuses(service)
    }


def live_agent_users(service: Service) -> set[int]:
    """Give the users of these processes: each slot has one."""
    return {uid for _, _, uid in _agent_statuses(service)}


def _agent_statuses(service: Service) -> Iterator[tuple[int, str, int]]:
    """Give the pid, the status and the user of each.

    By the uids in `status`: the owner of the folder in /proc is root's for what cannot be dumped.
    """
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "status").read_text("ascii", errors="replace")
        except OSError:
            continue
        uids = _UIDS.search(status)
        if uids is None or "\nState:\tZ" in status:
            continue
        for uid in map(int, uids.groups()):
            if service.uid_base <= uid < service.uid_base + UIDS_PER_SERVICE:
                yield int(folder.name), status, uid
                break


def service_children(service: Service) -> list[int]:
    """Give the children of the service, zombies apart: between jobs one, that supervisors are forked from."""
    return _children(service.pid)


def supervisors(service: Service) -> list[int]:
    """Give the children of its children, zombies apart."""
    return [pid for child in service_children(service) for pid in _children(child)]


def _children(pid: int) -> list[int]:
    found = []
    for task in paths_in(Path(f"/proc/{pid}/task")):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if _state(child) not in ("", "Z")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cgroup_folders(pids: dict[int, str]) -> set[Path]:
    """Give the folders of the control groups made for runs that these processes are in."""
    mounts = _cgroup_mounts()
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text("ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if "steadyhand-" in path and controllers in mounts:
                found.add(mounts[controllers] / path.lstrip("/"))
    return found


def _cgroup_mounts() -> dict[str, Path]:
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found[""] = Path(where)
        elif kind == "cgroup":
            named = [each for each in options.split(",") if each in ("memory", "pids")]
            found.update({name: Path(where) for name in named})
    return found


def host_mounts(service: Service) -> list[str]:
    """Give the mounts of this machine (not of a run) that belong to the service's data directory."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if str(service.data_dir) in line]


def loop_devices(service: Service) -> list[str]:
    """Give the loop devices whose file lies in the data directory."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text()
        except OSError:
            continue
        if str(service.data_dir) in backing:
            found.append(backing.strip())
    return found


def leftover_job_files(service: Service) -> list[str]:
    """Give the names, below the folders of jobs, of all that is made for a run only: uppers, homes, checkouts."""
    keeps = ("config", "kept", "prepared")
    paths = [path for job in paths_in(service.data_dir / "jobs") for path in paths_in(job)]
    return [f"{path.parent.name}/{path.name}" for path in paths if path.name not in keeps]


def folder_contents(folder: Path) -> bytes:
    """Give all that is in a folder's files, one after another; for searching."""
    return b"\0".join(content for _, content in contents_below(folder))
