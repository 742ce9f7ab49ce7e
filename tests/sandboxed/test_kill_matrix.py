"""Every kind of child against every way in which a run ends: nothing is alive a second later, and all is reclaimed.

At both levels: a sealed run's namespaces and groups end it, and without a boundary its supervisor does. A memory limit
is of the sandbox alone.
"""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.host_inspection import (
    cgroup_folders,
    host_mounts,
    leftover_job_files,
    live_agent_processes,
    loop_devices,
)

from steadyhand.testing.service import ADMIN_KEY, MakeService, Service, wait_until

KINDS = {"plain": "child", "setsid": "setsid", "daemon": "daemon", "reforking": "refork"}
LEVELS = {"bwrap": 3, "none": 2}
"""The levels, and how many processes of a run with one child have the agent's user there; bwrap is one of them."""
AFTER_SECONDS = 1.0
LIFETIME = 90
"""After which the children end by themselves, should the test not end them."""
HOG = "echo 1000 > /proc/self/oom_score_adj; /usr/bin/python3 -c 'bytearray(300 << 20)'"
"""Takes 300 MB where 200 may be had: it is killed, and the agent of the test then breaks."""


def unruly(kind: str, *, stay: bool = True, more: str = "") -> str:
    """A prompt of an agent, deaf to SIGTERM, that leaves such a child behind and then stays or ends."""
    deaf = f"lifetime={LIFETIME} deaf spawn={KINDS[kind]}:deaf say=spawned"
    return f"[[standin: {deaf} {f'sleep={LIFETIME}' if stay else 'sleep=0.3'} {more} text=done]]"


def spawned(service: Service, job_id: str) -> dict[int, str]:
    """Wait until the child is there and give all that is alive."""

    def look() -> bool:
        said = [event["data"] for event in service.events(job_id) if event["type"] == "message"]
        return any(each.get("text") == "spawned" for each in said)

    wait_until(look)
    found = live_agent_processes(service)
    assert found
    return found


def gone(service: Service, groups: set[Path]) -> None:
    """Hold that nothing of any run is there: processes, mounts, loop devices, groups, uppers."""
    wait_until(lambda: none_alive(service), AFTER_SECONDS)
    assert host_mounts(service) == []
    wait_until(lambda: not loop_devices(service), 10)  # the kernel gives them back a moment later
    wait_until(lambda: not any(group.exists() for group in groups))


def none_alive(service: Service) -> bool:
    """Say that nothing is seen in several looks: what forks again and again is missed by every other one."""
    return not any(live_agent_processes(service) for _ in range(5))


def reclaimed(service: Service, job_id: str, groups: set[Path]) -> dict[str, Any]:
    """Hold the same after the job has ended, and that its upper and home are removed; gives the job."""
    job = service.wait_until_ended(job_id)
    gone(service, groups)
    wait_until(lambda: not leftover_job_files(service), 10)
    return job


def kept(service: Service, job_id: str, groups: set[Path]) -> dict[str, Any]:
    """Hold that nothing of a run is alive or mounted and that what a resume needs is there, until it is deleted."""
    job = service.wait_until_ended(job_id)
    gone(service, groups)
    assert {name.partition("/")[0] for name in leftover_job_files(service)} == {job_id}
    assert service.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert leftover_job_files(service) == []
    return job


def each_kind(ending: int) -> pytest.MarkDecorator:
    """Return the kinds at the levels as parameters: one of each, in turn by the ending; all in the long run."""
    now = (ending % len(LEVELS), (-1 - ending) % len(KINDS))
    cases = [
        pytest.param(level, kind, marks=[] if (level_at, kind_at) == now else [pytest.mark.long])
        for level_at, level in enumerate(LEVELS)
        for kind_at, kind in enumerate(KINDS)
    ]
    return pytest.mark.parametrize(("service", "kind"), cases, indirect=["service"])


@pytest.fixture(scope="module")
def service(make_service_in: MakeService, request: pytest.FixtureRequest) -> Any:
    with make_service_in(env={"STEADYHAND_ISOLATION": request.param}) as made:
        yield made


class TestOfARunThatEndedBy:
    @each_kind(0)
    def test_itself(self, service: Service, kind: str) -> None:
        job_id = service.submit(unruly(kind, stay=False, more="sleep=1"))["id"]
        groups = cgroup_folders(spawned(service, job_id))
        assert groups or service.environment()["STEADYHAND_ISOLATION"] == "none"
        job = reclaimed(service, job_id, groups)
        assert (job["state"], job["answer"]) == ("completed", "done")

    @each_kind(1)
    def test_a_timeout(self, service: Service, kind: str) -> None:
        job_id = service.submit(unruly(kind), timeout_seconds=2)["id"]
        groups = cgroup_folders(spawned(service, job_id))
        assert reclaimed(service, job_id, groups)["state"] == "timeout"

    @each_kind(2)
    def test_a_cancel(self, service: Service, kind: str) -> None:
        job_id = service.submit(unruly(kind))["id"]
        groups = cgroup_folders(spawned(service, job_id))
        assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
        assert reclaimed(service, job_id, groups)["state"] == "cancelled"

    @each_kind(3)
    def test_its_own_budget(self, service: Service, kind: str) -> None:
        job_id = service.submit(unruly(kind, stay=False, more="sleep=1 api_error=402"))["id"]
        groups = cgroup_folders(spawned(service, job_id))
        job = kept(service, job_id, groups)
        assert (job["state"], job["outcome"]["type"]) == ("failed", "budget")

    @each_kind(4)
    def test_a_chat_client_that_goes_away(self, service: Service, kind: str) -> None:
        # A socket of one's own: the client is gone when it is closed.
        body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": unruly(kind)}]}).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(
            ("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=30
        ) as client:
            client.sendall(head.encode() + body)
            job_id = wait_until(lambda: running(service))
            groups = cgroup_folders(spawned(service, job_id))
        assert reclaimed(service, job_id, groups)["state"] == "cancelled"


@pytest.mark.parametrize(
    "kind",
    [*(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS if kind != "reforking"), "reforking"],
)
def test_of_a_sealed_run_that_ended_by_its_memory_limit(sealed: Service, kind: str) -> None:
    hog = f'run="{HOG}" die={signal.SIGKILL:d}'
    job_id = sealed.submit(unruly(kind, stay=False, more=hog), agent="small")["id"]
    groups = cgroup_folders(spawned(sealed, job_id))
    job = reclaimed(sealed, job_id, groups)
    assert (job["state"], job["outcome"]["type"]) == ("failed", "memory")


def all_kinds(service: Service, level: str) -> tuple[list[str], set[Path]]:
    """Start a run with a child of each kind and give them and their groups."""
    # What may go on after an interruption keeps its upper; these may not.
    jobs = [str(service.submit(unruly(kind), on_interrupt="fail")["id"]) for kind in KINDS]
    groups: set[Path] = set()
    for job_id in jobs:
        groups |= cgroup_folders(spawned(service, job_id))
    wait_until(lambda: len(live_agent_processes(service)) >= LEVELS[level] * len(KINDS))
    return jobs, groups


@pytest.mark.parametrize("level", ["bwrap", pytest.param("none", marks=pytest.mark.long)])
def test_a_sigterm_to_the_service_ends_all_kinds(make_service: MakeService, level: str) -> None:
    env = {"STEADYHAND_SERVICE__DRAIN_SECONDS": "0.5", "STEADYHAND_ISOLATION": level}
    service = make_service(env=env).start()
    jobs, groups = all_kinds(service, level)
    assert service.terminate(20) == 0
    gone(service, groups)
    service.restart()
    assert {service.get_job(job_id)["state"] for job_id in jobs} == {"interrupted"}
    assert leftover_job_files(service) == []


@pytest.mark.parametrize("level", LEVELS)
def test_a_kill_9_of_the_service_ends_all_kinds(make_service: MakeService, level: str) -> None:
    service = make_service(env={"STEADYHAND_ISOLATION": level}).start()
    jobs, groups = all_kinds(service, level)
    service.kill()
    wait_until(lambda: none_alive(service), AFTER_SECONDS)
    assert host_mounts(service) == []
    wait_until(lambda: not loop_devices(service), 10)  # the kernel gives them back a moment later
    service.restart()
    gone(service, groups)  # what a control group was is removed by the next life at the latest
    assert {service.get_job(job_id)["state"] for job_id in jobs} == {"interrupted"}
    assert leftover_job_files(service) == []


def running(service: Service) -> str | None:
    """Give the id of the job that runs."""
    found = service.client.get("/v1/jobs", params={"state": "running"}).json()["data"]
    return str(found[0]["id"]) if found else None
