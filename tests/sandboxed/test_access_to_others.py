"""What an agent can read and write of others: another job, the mirror, the data directory, the warm checkout."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from tests.sandboxed.host_inspection import folder_contents, run_commands

from steadyhand.testing.live_folders import stats_below
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, Service, run_git, wait_until
from steadyhand.testing.shell import python_command, shell_prompt

SECRET = "canary-of-another-job-5b1f"
UNREADABLE = {
    "the shadow file": "/etc/shadow",
    "the service's own memory": "/proc/1/root/../data",
    "the kernel's log": "/dev/kmsg",
    "the memory of the machine": "/dev/mem",
    "a disk": "/dev/vda",
    "loop devices": "/dev/loop-control",
    "root's home": "/root/.ssh",
    "the container engine": "/var/run/docker.sock",
    "the system bus": "/run/dbus/system_bus_socket",
    "the temporary files of others": "/tmp/sh-se-",  # noqa: S108  # no file of ours
    "the groups": "/sys/fs/cgroup",
    "the host's modules": "/sys/module",
}
WALK = """
import os, json, sys
needle = sys.argv[1].encode() if len(sys.argv) > 1 else NEEDLE
hits = []
for top in ("/home", "/tmp", "/var", "/run", "/opt", "/mirror", "/etc", "/dev/shm", "/workspace", "/root", "/srv"):
    for where, folders, names in os.walk(top):
        for name in names:
            path = os.path.join(where, name)
            try:
                if os.path.isfile(path) and needle in open(path, "rb").read(1 << 22):
                    hits.append(path)
            except OSError:
                pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "mountinfo"):
        try:
            if needle in open(f"/proc/{pid}/{name}", "rb").read():
                hits.append(f"/proc/{pid}/{name}")
        except OSError:
            pass
print(json.dumps([path for path in hits if not path.endswith("c.py")]))
"""
CONNECT = """
import json, os, socket
found = []
known = "/run/steadyhand/model.sock"  # its folder cannot be listed
socket.socket(socket.AF_UNIX).connect(known)
found.append(known)
for where, folders, names in os.walk("/"):
    if where == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys", "usr")]
    for name in names:
        path = os.path.join(where, name)
        if not os.path.exists(path) or not (os.stat(path).st_mode & 0o170000) == 0o140000:
            continue
        try:
            socket.socket(socket.AF_UNIX).connect(path)
        except OSError:
            continue
        found.append(path)
with open("/proc/net/unix") as names:
    abstract = [line.split()[-1] for line in names if line.rstrip().split()[-1].startswith("@")]
print(json.dumps([found, abstract]))
"""
PROCESSES = """
import json, os, signal
me = os.getpid()
seen = sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit())
signalled = []
for pid in range(1, 40000):
    if pid in seen:
        continue
    try:
        os.kill(pid, 0)
        signalled.append(pid)
    except OSError:
        pass
there = [pid for pid in seen if os.path.exists(f"/proc/{pid}")]
uids = {open(f"/proc/{pid}/status").read().split("Uid:")[1].split()[0] for pid in there}
print(json.dumps([len(seen), signalled, sorted(uids)]))
"""


def together_or_alone(names: Iterable[str]) -> pytest.MarkDecorator:
    """Return names as parameter of a test: all of them at once, and each alone in the long run."""
    alone = [pytest.param((name,), id=name, marks=pytest.mark.long) for name in names]
    return pytest.mark.parametrize("names", [pytest.param(tuple(names), id="together"), *alone])


def walk(needle: str) -> str:
    # The needle is put together inside, so that neither the program nor the prompt holds it.
    half = len(needle) // 2
    return python_command(WALK.replace("NEEDLE", f"({needle[:half]!r} + {needle[half:]!r}).encode()"))


def test_a_search_finds_what_is_there_to_be_found(sealed: Service, workspace: str) -> None:
    """The probe: the same search sees what the agent itself wrote."""
    found = run_commands(sealed, f"echo {SECRET} > /workspace/mine.txt", walk(SECRET), workspace=workspace)
    assert "/workspace/mine.txt" in json.loads(found)


def test_nothing_of_another_job_is_seen_while_it_runs(sealed: Service, workspace: str) -> None:
    other = sealed.submit(
        shell_prompt(
            f"echo {SECRET} > a.txt; echo {SECRET} > ~/b.txt; echo {SECRET} > /tmp/c.txt", "sleep 60"
        ),
        workspace=workspace,
        metadata={"secret": SECRET},
    )["id"]
    wait_until(lambda: any(event["type"] == "tool.finished" for event in sealed.events(other)))
    assert SECRET.encode() in folder_contents(sealed.data_dir / "jobs" / other)  # it is there, outside
    assert json.loads(run_commands(sealed, walk(SECRET), workspace=workspace)) == []
    assert sealed.get_job(other)["state"] == "running"
    sealed.client.post(f"/v1/jobs/{other}/cancel")
    assert sealed.wait_until_ended(other)["state"] == "cancelled"
    assert json.loads(run_commands(sealed, walk(SECRET), workspace=workspace)) == []


# test_attacks_by_process_mode.py searches for all of them.
@pytest.mark.parametrize(
    "what",
    [
        "the admin key",
        *(
            pytest.param(what, marks=pytest.mark.long)
            for what in ("the callers' key", "the data directory", "the service's folder")
        ),
    ],
)
def test_nothing_of_the_service_is_seen(sealed: Service, workspace: str, what: str) -> None:
    needles = {
        "the admin key": ADMIN_KEY,
        "the callers' key": CLASSIC_KEY,
        "the data directory": "SQLite format 3",
        "the service's folder": f"{sealed.root}/service.log",
    }
    assert json.loads(run_commands(sealed, walk(needles[what]), workspace=workspace)) == []


@together_or_alone(UNREADABLE)
def test_nothing_of_this_machine_is_read(sealed: Service, names: Sequence[str]) -> None:
    looks = [
        f"(head -c 20 {UNREADABLE[name]}* || ls -A {UNREADABLE[name]}*) >/dev/null 2>&1"
        f' && echo "READ {name}" || echo refused'
        for name in names
    ]
    said = run_commands(sealed, "; ".join(looks))
    assert said.splitlines() == ["refused"] * len(names)


def test_the_jobs_and_sockets_of_others_cannot_be_reached(sealed: Service, workspace: str) -> None:
    paths, abstract = json.loads(run_commands(sealed, python_command(CONNECT), workspace=workspace))
    assert paths == ["/run/steadyhand/model.sock"]
    assert abstract == []


def test_the_processes_of_others_are_not_there(sealed: Service) -> None:
    count, signalled, uids = json.loads(run_commands(sealed, python_command(PROCESSES)))
    assert count <= 6
    assert signalled == []
    assert uids == ["1000"]


STAMPS = ("whole",)
"""What the service itself marks when a warm checkout was used."""
WRITES = {
    "a file of the mirror": "for f in $(find /mirror -type f | head -5); do echo x > $f; done; echo x > /mirror/x",
    "an object of the mirror": "cd /mirror && rm -rf * ; mkdir -p aa && echo x > aa/x; chmod -R u+w /mirror",
    "an alternate": "echo /etc >> /mirror/info/alternates; mkdir -p /mirror/info && echo /x > /mirror/info/alternates",
    "a file of the root": "echo x > /x; mkdir /y; echo x > /usr/bin/ls; echo x > /etc/passwd; rm -rf /usr/bin/git",
    "the agent's program": "echo x > /opt/steadyhand/claude; rm /opt/steadyhand/*; mv /opt/steadyhand /opt/x",
    "the socket's folder": "rm /run/steadyhand/model.sock; touch /run/steadyhand/x",
    "the kernel's settings": "echo x > /proc/sys/kernel/core_pattern; echo 1 > /proc/sysrq-trigger",
    "the lower through /proc": "for p in /proc/*/fd /proc/*/root /proc/*/cwd; do echo x > $p/../x; echo x > $p/x; done",
    "a bind made anew": "mount -o remount,rw /mirror; mount --bind /mirror /tmp; umount /mirror; unshare -Urm true",
    "a link out": "ln -s /mirror m; echo x > m/x; ln /opt/steadyhand/claude hard; ln -s /etc/passwd p; echo x > p",
}


@pytest.fixture(scope="module")
def warm_workspace(sealed: Service) -> str:
    """The repository of the shared service, of which a job has made the mirror."""
    workspace = str(sealed.root / "workspace")
    run_commands(sealed, "echo ready", workspace=workspace)
    return workspace


@together_or_alone(WRITES)
def test_nothing_of_others_is_written(sealed: Service, warm_workspace: str, names: Sequence[str]) -> None:
    workspace = warm_workspace
    shared = [folder for folder in sealed.data_dir.iterdir() if folder.name not in ("jobs", "stage")]
    shared = [folder for folder in shared if folder.is_dir()]
    before = {folder: _listing(folder) for folder in shared}
    assert any("objects" in name for listing in before.values() for name in listing)
    attempts = "; ".join(f"({WRITES[name]}) >/dev/null 2>&1" for name in names)
    assert run_commands(sealed, f"{attempts}; echo tried", workspace=workspace) == "tried"
    assert {folder: _listing(folder) for folder in shared} == before
    # The next job begins with what was committed, and its repository is whole.
    look = "cat greeting.txt; git status --porcelain; git fsck 2>&1 | grep -v dangling; true"
    said = run_commands(sealed, look, workspace=workspace)
    assert said == "hello"
    assert Path("/etc/passwd").read_text().startswith("root:")


def _listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path, about in stats_below(folder):
        stamp = path.parent == folder or path.name in STAMPS
        found[str(path)] = (about.st_size, 0 if stamp else about.st_mtime_ns, about.st_mode)
    return found


def test_a_job_cannot_take_the_way_of_another_slot(sealed: Service, workspace: str) -> None:
    """Two at once: each sees one socket, and it is not the other's."""
    look = "stat -c %i /run/steadyhand/model.sock; sleep 2"
    ids = [sealed.submit(shell_prompt(look), workspace=workspace)["id"] for _ in range(2)]
    answers = [sealed.wait_until_ended(one)["answer"] for one in ids]
    assert len(set(answers)) == 2
    shown = {path.parent.name for path in (sealed.data_dir / "run").glob("slot-*/model.sock")}
    assert len(shown) >= 2
    assert "slot-" not in run_commands(sealed, "ls /run /run/steadyhand")


def test_git_of_one_job_leaves_no_object_for_another(sealed: Service, workspace: str) -> None:
    commit = f"echo {SECRET} > s.txt && git add -A && git commit -qm s && git rev-parse HEAD"
    made = run_commands(sealed, commit, workspace=workspace)
    assert len(made) == 40
    look = f"git cat-file -e {made} 2>/dev/null && echo SEEN || echo unknown"
    assert run_commands(sealed, look, workspace=workspace) == "unknown"

    assert run_git(Path(workspace), "log", "--format=%s") == "first"
