"""The attacks of this folder in each way in which a job gets its process: new, from those that wait, kept from a turn.

The other files have each attack by itself, in new processes; here those of a kind go together in one job.
"""

import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.hostile_repository import TOGETHER, AttackMarks
from tests.sandboxed.process_modes import MODES, WAITING_MODES, Mode, ModeService, agent_tables
from tests.sandboxed.recording_server import RecordingServer
from tests.sandboxed.test_access_to_others import CONNECT, PROCESSES, UNREADABLE, WRITES, walk
from tests.sandboxed.test_credential_leaks import CALL, KEY, LOOK, everything_told
from tests.sandboxed.test_egress import BY_PROXY, PAST_IT, ports
from tests.sandboxed.warm_services import PATIENCE, events_of, wait_for_slot
from tests.service_fixtures import make_repository, make_service_root

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.resource_hogs import OOM_KILL_FIRST
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, run_git, wait_until
from steadyhand.testing.shell import python_command, shell_prompt

COUNT_FORKS = """
import os, time
made = 0
try:
    for _ in range(70):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
CANARY = "canary-of-another-key-93fe"
SMALL = 'workspace = "scratch"\nmemory = "200M"\nprocesses = 60\ndisk = "64M"'
LONG_MODES = [pytest.param(mode, marks=pytest.mark.long) for mode in MODES if mode != "live"]
"""The others in the long run: a live process is one that waited and did a turn, and the other files have new ones."""
waiting_modes_alone = pytest.mark.parametrize(
    "service", [*(each for each in LONG_MODES if each.values[0] in WAITING_MODES), "live"], indirect=True
)
"""For attacks that take long, and are made in new processes elsewhere."""


@pytest.fixture(scope="module")
def marks() -> Iterator[AttackMarks]:
    folder = Path(tempfile.mkdtemp(prefix="sh-mk-", dir="/tmp"))
    folder.chmod(0o755)
    yield AttackMarks(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=[*LONG_MODES, "live"])
def service(
    request: pytest.FixtureRequest,
    reachable_tmp: Path,
    stand_in: Path,
    model: ScriptedModel,
    listener: RecordingServer,
) -> Iterator[ModeService]:
    """A sealed service whose credential is a canary, with an agent for each kind of attack."""
    mode: Mode = request.param
    root = make_service_root(reachable_tmp)
    make_repository(root / "workspace", {"greeting.txt": "hello\n", "CLAUDE.md": "Answer in one line.\n"})
    run_git(root, "clone", "-q", "--bare", str(root / "workspace"), str(root / "remote.git"))
    listed = f'"listed.example", "*.pages.example", "127.0.0.1:{listener.port}"'
    agents = {
        "bare": 'workspace = "scratch"',
        "small": SMALL,
        "reaching": f'workspace = "scratch"\negress = [{listed}]',
        "alone": 'workspace = "scratch"\negress = []',
        "worker": 'workspace = "published"',
    }
    published = f'[workspaces.published]\nrepository = "{root / "remote.git"}"\npublish = "branch"\n'
    env = {
        "STEADYHAND_ISOLATION": "bwrap",
        "STEADYHAND_SERVICE__LOG_LEVEL": "debug",
        "ANTHROPIC_API_KEY": KEY,
        "WORKSPACE_DIR": str(root / "workspace"),
    }
    config = agent_tables(agents, mode) + published
    made = ModeService(root, stand_in, model=model.url, env=env, config=config, constants=PATIENCE)
    made.mode = mode
    with made:
        for agent in agents if mode != "cold" else ():
            wait_for_slot(
                made, agent
            )  # from now on a slot is filled when a job has taken another, with a new user
        yield made
    shutil.rmtree(root, ignore_errors=True)


def run(service: ModeService, *commands: str, agent: str = "bare", more: str = "", **fields: Any) -> str:
    """Run a job that does this and return what the last command printed."""
    job = service.run_job(shell_prompt(*commands, options=more), agent=agent, **fields)
    assert job["state"] == "completed", (job["outcome"], job["error"], service.log[-3000:])
    return str(job["answer"])


def each_in_one(commands: dict[str, str]) -> str:
    """Return one command that runs each of these by itself and prints a JSON object of their outputs."""
    program = (
        "import json, subprocess, sys\n"
        f"print(json.dumps({{name: subprocess.run(['/bin/sh', '-c', command], capture_output=True, text=True,"
        f" timeout=20).stdout.strip() for name, command in {commands!r}.items()}}))"
    )
    return python_command(program)


def test_each_job_goes_the_way_of_its_mode_and_health_counts_it(service: ModeService) -> None:
    def counts() -> list[int]:
        warm = service.client.get("/health").json().get("warm", {})
        return [warm.get(name, 0) for name in ("hits", "live_hits", "misses")]

    before = counts()
    assert run(service, "echo well") == "well"
    grown = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    # The first turn of a live conversation has a process that waited.
    assert grown == {"cold": [0, 0, 0], "warm": [1, 0, 0], "live": [1, 1, 0]}[service.mode]


def test_a_search_finds_what_the_agent_wrote(service: ModeService) -> None:
    """The probe: the searches below would find what they look for."""
    found = run(service, f"echo {CANARY} > /workspace/mine.txt; echo {CANARY} > ~/home.txt", walk(CANARY))
    assert {"/workspace/mine.txt", "/home/agent/home.txt"} <= set(json.loads(found))


def test_nothing_of_the_service_and_of_the_machine_is_read(service: ModeService) -> None:
    looks = {
        what: f"(head -c 20 {path}* || ls -A {path}*) >/dev/null 2>&1 && echo READ || echo refused"
        for what, path in UNREADABLE.items()
    }
    needles = (ADMIN_KEY, CLASSIC_KEY, "SQLite format 3", f"{service.root}/service.log")
    looks |= {f"needle {number}": walk(needle) for number, needle in enumerate(needles)}
    seen = json.loads(run(service, each_in_one(looks)))
    assert {seen[what] for what in UNREADABLE} == {"refused"}
    assert {seen[f"needle {number}"] for number in range(len(needles))} == {"[]"}


def test_no_socket_and_no_process_of_others_is_there(service: ModeService) -> None:
    paths, abstract = json.loads(run(service, python_command(CONNECT)))
    assert (paths, abstract) == (["/run/steadyhand/model.sock"], [])
    count, signalled, uids = json.loads(run(service, python_command(PROCESSES)))
    assert count <= 6
    assert (signalled, uids) == ([], ["1000"])


def test_the_key_is_on_the_calls_and_nowhere_in_the_sandbox(
    service: ModeService, model: ScriptedModel
) -> None:
    model.clear()
    job = service.run_job(shell_prompt(python_command(CALL), python_command(LOOK)), agent="bare")
    assert (job["state"], job["answer"]) == ("completed", "nowhere"), job["error"]
    calls = [*model.requests, *model.side_requests, *model.other_requests]
    assert [call.headers.get("x-api-key") for call in calls] == [KEY] * 3
    told = everything_told(service, job["id"])
    for secret in (KEY, ADMIN_KEY, CLASSIC_KEY, "[redacted]"):
        assert secret not in told


def test_what_is_not_listed_is_refused_and_told(service: ModeService, listener: RecordingServer) -> None:
    listener.requests.clear()
    reach = f"curl -sS -m 5 --noproxy '' http://127.0.0.1:{listener.port}/hello"
    assert run(service, reach, agent="reaching") == "ok"  # the probe: the way out works
    assert listener.requests == ["/hello"]
    listener.requests.clear()
    ours = {what: case for what, case in BY_PROXY.items() if case[1] == "127.0.0.1:PORT"}
    for agent, cases in (("alone", ours), ("reaching", {k: v for k, v in BY_PROXY.items() if k not in ours})):
        commands = {what: ports(command, listener, service) for what, (command, _) in cases.items()}
        job = service.run_job(shell_prompt(each_in_one(commands)), agent=agent)
        assert job["state"] == "completed", job["error"]
        refused = {e["data"]["host"] for e in service.events(job["id"]) if e["type"] == "egress.refused"}
        assert refused == {ports(host, listener, service) for _, host in cases.values()}
    assert listener.requests == []


def test_there_is_no_way_past_the_proxy(service: ModeService, listener: RecordingServer) -> None:
    listener.requests.clear()
    attempts = "".join(
        "s = socket.socket()\ns.settimeout(3)\ntry:\n    "
        + ports(code, listener, service)
        + f"\n    print({what!r})\nexcept OSError:\n    pass\n"
        for what, code in PAST_IT.items()
    )
    sent = run(service, python_command("import socket\n" + attempts + "print('over')\n"), agent="reaching")
    assert sent == "over"
    assert listener.requests == []


def test_nothing_of_others_is_written_and_the_next_job_begins_with_what_was_committed(
    service: ModeService,
) -> None:
    run(service, each_in_one({what: f"({code}) 2>&1" for what, code in WRITES.items()}), agent="worker")
    look = "cat greeting.txt; git status --porcelain; git fsck 2>&1 | grep -v dangling; true"
    job = service.run_job(shell_prompt(look), agent="worker")
    assert (job["state"], job["answer"]) == ("completed", "hello")
    assert Path("/etc/passwd").read_text().startswith("root:")


# test_hostile_repository.py has each group in new processes.
@pytest.mark.parametrize(
    "taints",
    [
        pytest.param(taints, id=" ".join(taints), marks=[] if "hooks" in taints else [pytest.mark.long])
        for taints in TOGETHER
    ],
)
def test_a_taint_runs_nothing_outside_in_harvest_publish_and_the_next_job(
    service: ModeService, marks: AttackMarks, taints: tuple[str, ...]
) -> None:
    taint = shell_prompt(
        "echo x > x.txt; git add x.txt", marks.attack_script(*taints), "echo more >> greeting.txt; echo done"
    )
    job = service.run_job(taint, agent="worker")
    assert (job["state"], job["answer"]) == ("completed", "done"), job["error"]
    assert job["changes"]["published"], job["warnings"]
    assert "+more" in service.client.get(f"/v1/jobs/{job['id']}/diff").text
    assert run(service, "git config --get core.fsmonitor; cat greeting.txt", agent="worker") == "hello"
    assert marks.take_marks() == set()


# --- what takes long, in processes that waited -----------------------------------------------------


def uid_of(service: ModeService, job_id: str) -> int:
    """Return the user of a job's processes, by the slot that the job has taken."""
    (slot_id,) = {each["slot_id"] for each in events_of(service, "warm.taken") if each["job"] == job_id}
    (slot,) = {each["slot"] for each in events_of(service, "warm.ready") if each["slot_id"] == slot_id}
    return service.uid_base + int(slot)


def alive_as(uid: int) -> list[int]:
    """Return the processes of a user, zombies apart."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                status = (folder / "status").read_text("ascii", "replace")
                if f"\nUid:\t{uid}\t" in status and "\nState:\tZ" not in status:
                    found.append(int(folder.name))
    return found


def none_alive(uid: int) -> bool:
    """Say that nothing is seen in several looks: what forks again and again is missed by every other one."""
    return not any(alive_as(uid) for _ in range(5))


@waiting_modes_alone
@pytest.mark.parametrize("ending", ["itself", pytest.param("timeout", marks=pytest.mark.long), "cancel"])
def test_no_child_of_any_kind_outlives_its_job(service: ModeService, ending: str) -> None:
    kinds = " ".join(f"spawn={kind}:deaf" for kind in ("child", "setsid", "daemon", "refork"))
    stay = "sleep=0.5" if ending == "itself" else "deaf sleep=90"
    prompt = f"[[standin: lifetime=90 {kinds} say=spawned {stay} text=done]]"
    fields = {"timeout_seconds": 3} if ending == "timeout" else {}
    job_id = service.submit(prompt, agent="bare", **fields)["id"]
    wait_until(lambda: any(each["data"].get("text") == "spawned" for each in service.events(job_id)))
    uid = uid_of(service, job_id)
    assert len(alive_as(uid)) > 4
    if ending == "cancel":
        assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    job = service.wait_until_ended(job_id)
    assert job["state"] == {"itself": "completed", "timeout": "timeout", "cancel": "cancelled"}[ending]
    if ending == "itself" and service.mode == "live":
        # The agent's own process stays, with the two of the sandbox around it, for the next turn.
        wait_until(lambda: [len(alive_as(uid)) for _ in range(5)] == [3] * 5)
        turn = service.client.post(f"/v1/jobs/{job_id}/turns", json={"prompt": "[[standin: text=again]]"})
        assert service.wait_until_ended(turn.json()["id"])["answer"] == "again"
    else:
        wait_until(lambda: none_alive(uid))


@waiting_modes_alone
def test_each_limit_of_the_agent_holds(service: ModeService) -> None:
    """Each attack is bounded by itself, and made after a probe that is first in line to be killed."""
    allocate = "held = bytearray({} << 20); print('HELD', len(held))"
    probe = run(service, OOM_KILL_FIRST + python_command(allocate.format(260)) + "; echo $?", agent="small")
    assert probe.endswith("137"), "the limit on memory does not hold: no attack"
    hog = OOM_KILL_FIRST + python_command(allocate.format(480))
    job = service.run_job(shell_prompt(hog, options="die=9"), agent="small")
    assert (job["state"], job["outcome"]["type"]) == ("failed", "memory")
    count = python_command(COUNT_FORKS)
    assert 0 < int(run(service, OOM_KILL_FIRST + count, agent="small")) < 60
    size = "head -c 80M /dev/zero > big 2>/dev/null; stat -c %s big"
    assert int(run(service, size, agent="small")) <= 64 << 20
    assert run(service, "echo well", agent="small") == "well"


# test_resource_limits.py has floods of new processes.
@pytest.mark.long
@waiting_modes_alone
def test_a_flood_of_output_is_cut_and_the_next_job_is_well(service: ModeService) -> None:
    for kind in ("flood", "flood_raw", "flood_line"):
        job = service.run_job(f"[[standin: {kind}=20M text=done]]", agent="bare")
        assert (job["state"], job["answer"]) == ("completed", "done")
        assert len("".join(service.poll_classic(job["id"])["output"])) < 1.2 * (1 << 20)
    assert run(service, "echo well") == "well"


# --- from one key to the next ----------------------------------------------------------------------


LEAVE = f"""
set -e
for path in /workspace/mine.txt ~/.bashrc ~/.gitconfig ~/.profile /tmp/mine /dev/shm/mine /var/tmp/mine; do
    echo '# {CANARY}' >> $path || true
done
mkdir -p $CLAUDE_CONFIG_DIR/agents $CLAUDE_CONFIG_DIR/projects/x
echo '{{"env": {{"A": "{CANARY}"}}}}' > $CLAUDE_CONFIG_DIR/settings.json
printf -- '---\\nname: claude\\ndescription: {CANARY}\\n---\\n' > $CLAUDE_CONFIG_DIR/agents/claude.md
echo '{CANARY}' > $CLAUDE_CONFIG_DIR/projects/x/session.jsonl
(setsid bash -c 'exec -a {CANARY} sleep 20' &) 2>/dev/null
(setsid python3 -c "import socket, time; s = socket.socket(1); s.bind('\\0{CANARY}'); s.listen(); time.sleep(20)" &)
(setsid python3 -c "import socket, time; s = socket.create_server(('127.0.0.1', 4123)); time.sleep(20)" &)
sleep 0.5
echo left
"""
LOOK_FOR_SOCKETS = """
import json, socket
with open("/proc/net/unix") as names:
    abstract = [line.split()[-1] for line in names if line.rstrip().split()[-1].startswith("@")]
try:
    socket.create_connection(("127.0.0.1", 4123), 2).close()
    port = "open"
except OSError:
    port = "closed"
print(json.dumps([abstract, port]))
"""


def new_key(service: ModeService, name: str) -> str:
    body = {"name": f"{name}-{service.mode}", "scopes": ["submit", "read", "cancel"]}
    return str(service.client.post("/v1/keys", json=body).json()["secret"])


def test_nothing_of_one_keys_job_is_seen_by_the_job_of_the_next_key(service: ModeService) -> None:
    leave = f"printf %s {base64.b64encode(LEAVE.encode()).decode()} | base64 -d | bash"
    with (
        service.new_client(new_key(service, "one")) as one,
        service.new_client(new_key(service, "two")) as two,
    ):
        own = service.run_job(
            shell_prompt(f"({leave}) >/dev/null 2>&1; {walk(CANARY)}"), agent="bare", client=one
        )
        left = json.loads(own["answer"])  # the probe: it is there to be found
        assert {"/workspace/mine.txt", "/home/agent/.bashrc", "/home/agent/.gitconfig"} <= set(left)
        assert any(path.startswith("/proc/") for path in left)
        if service.mode == "live":
            wait_until(lambda: any(each["job"] == own["id"] for each in events_of(service, "warm.kept")))
        # While the process of the first key may still wait, the second key looks around, in both of its turns.
        for _ in range(2):
            seen = run(service, walk(CANARY), agent="bare", client=two)
            assert json.loads(seen) == []
            sockets = run(service, python_command(LOOK_FOR_SOCKETS), agent="bare", client=two)
            assert json.loads(sockets) == [[], "closed"]
        for path in ("", "/events", "/transcript", "/diff"):
            assert two.get(f"/v1/jobs/{own['id']}{path}").status_code == 404
        turn = two.post(f"/v1/jobs/{own['id']}/turns", json={"prompt": "Go on."})
        assert turn.status_code == 404
        jobs = [each["id"] for each in two.get("/v1/jobs").json()["data"]]
    if service.mode != "cold":
        slots = {each["job"]: each["slot_id"] for each in events_of(service, "warm.taken")}
        assert slots[own["id"]] not in {slots[job] for job in jobs if job in slots}
