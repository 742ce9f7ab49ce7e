"""A real lock and a real full disk under a real service: nothing is lost or stuck, and nothing needs a restart."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from steadyhand.testing.service import MakeService, Service, wait_until

DISK_BYTES = 64 << 20
STAYS = "[[standin: say=hello sleep=60]]"
SLOTS = {"STEADYHAND_CONCURRENCY": "3"}


def talks(go: Path | None = None) -> str:
    """A prompt of an agent that says something before and after the file `go` is there."""
    gate = "" if go is None else f"wait_for={go} "
    return f"[[standin: say=before {gate}say={'x' * 20_000} text=done]]"


@contextmanager
def lock_of(service: Service) -> Iterator[None]:
    """Hold the database for the length of the block, as a backup or a shell does."""
    with closing(sqlite3.connect(service.data_dir / "steadyhand.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def fill(file: FileIO, size: int) -> None:
    """Write pieces of this size until not one more fits."""
    with suppress(OSError):
        for _ in range(2 * DISK_BYTES // size):
            file.write(bytes(size))


@contextmanager
def full_disk_of(service: Service) -> Iterator[None]:
    """Fill the disk of the data directory for the length of the block."""
    filler = service.data_dir / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            fill(file, size)
    yield
    filler.unlink()


def follow(service: Service, job_id: str) -> list[int]:
    """Follow a job to the end of its stream and give the numbers of its events."""
    with (
        service.new_client() as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream"}) as reply,
    ):
        return [int(line[4:]) for line in reply.iter_lines() if line.startswith("id: ")]


def ask_chat(service: Service, prompt: str) -> str:
    """Ask as a chat client does and give the answer."""
    with service.new_client() as client:
        messages = [{"role": "user", "content": prompt}]
        reply = client.post("/v1/chat/completions", json={"model": "claude", "messages": messages})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def state_of(service: Service, job_id: str) -> str:
    return str(service.get_job(job_id)["state"])


def talking(service: Service) -> list[str]:
    """The running jobs whose agent has said something."""
    running = service.client.get("/v1/jobs", params={"state": "running"}).json()["data"]
    return [job["id"] for job in running if any(e["type"] == "message" for e in service.events(job["id"]))]


def agents_alive(service: Service) -> int:
    return len(service.live_agent_pids())


@contextmanager
def closing_on_failure(service: Service) -> Iterator[None]:
    """End the service if the block fails: else those who follow would wait."""
    try:
        yield
    except BaseException:
        service.close()
        raise


def outage_scene(
    service: Service, go: Path, outage: Callable[[], Any], check: Callable[[], None] = lambda: None
) -> None:
    """Let jobs run, wait and be cancelled through an outage that begins while they run.

    The file `go` lets the agents end, during the outage.
    """
    with ThreadPoolExecutor(3) as pool, closing_on_failure(service):
        going = service.submit(talks(go))["id"]
        stopped = service.submit(STAYS)["id"]
        chat: Future[str] = pool.submit(ask_chat, service, talks(go))
        following = [pool.submit(follow, service, job_id) for job_id in (going, stopped)]
        wait_until(lambda: state_of(service, going) == state_of(service, stopped) == "running")
        wait_until(lambda: len(talking(service)) == 3)
        queued = [service.submit(talks())["id"] for _ in range(2)]
        with outage():
            refused = service.client.post("/v1/jobs", json={"prompt": "x", "workspace": "scratch"})
            assert refused.status_code == 503, refused.text
            assert refused.json()["code"] == "unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            assert service.client.get("/readyz").status_code == 503
            assert service.client.get("/livez").status_code == 200
            for job_id in (stopped, queued[0]):
                answer = service.client.post(f"/v1/jobs/{job_id}/cancel")
                assert answer.status_code in (200, 202), answer.text
            go.touch()
            wait_until(lambda: agents_alive(service) == 0, 30)
            assert state_of(service, going) == "running"
            check()
        assert service.wait_until_ended(going)["state"] == "completed"
        assert service.wait_until_ended(stopped)["state"] == "cancelled"
        assert service.wait_until_ended(queued[0])["state"] == "cancelled"
        assert service.wait_until_ended(queued[1])["state"] == "completed"
        assert chat.result(30) == "done"
        for job_id, numbers in zip((going, stopped), following, strict=True):
            job = service.get_job(job_id)
            assert numbers.result(30) == list(range(1, job["last_event"] + 1))
            assert len(job["runs"]) == 1
    assert service.client.get("/readyz").status_code == 200
    assert service.log.count("store.unavailable") == 1
    assert service.log.count("store.available") == 1
    assert "Traceback" not in service.log


@pytest.mark.long  # a full disk is the same scene, and a lock is in the kill below
def test_a_lock_of_another_program_delays_what_was_reached_and_loses_nothing(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env=SLOTS).start()
    outage_scene(service, common_dir / "go", lambda: lock_of(service))


@pytest.fixture
def small_disk(make_service: MakeService) -> Iterator[Service]:
    """A service whose data directory is a small file system of its own."""
    service = make_service(env=SLOTS)
    service.data_dir.mkdir()
    options = ["-o", f"size={DISK_BYTES},mode=711"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", service.data_dir], check=True, timeout=10)
    try:
        yield service
    finally:
        service.close()
        subprocess.run(["umount", "-l", service.data_dir], check=True, timeout=10)


def test_a_kill_9_during_an_outage_interrupts_what_ran_and_loses_nothing_else(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env=SLOTS).start()
    done = service.run_job("[[standin: text=done]]")
    prompt = f"[[standin: say=before touch={common_dir}/{{}} wait_for={common_dir}/go say=after text=done]]"
    jobs = [service.submit(prompt.format(name), on_interrupt="fail")["id"] for name in ("ends", "stays")]
    stays = service.submit(f"[[standin: say=before touch={common_dir}/third sleep=60]]", on_interrupt="fail")[
        "id"
    ]
    wait_until(lambda: all((common_dir / name).exists() for name in ("ends", "stays", "third")))
    queued = [service.submit("[[standin: text=later]]")["id"] for _ in range(2)]
    stored = {job_id: service.events(job_id) for job_id in (*jobs, stays, *queued)}
    with lock_of(service), closing_on_failure(service):
        refused = service.client.post("/v1/jobs", json={"prompt": "x", "workspace": "scratch"})
        assert refused.status_code == 503
        (common_dir / "go").touch()  # two agents end, and their ends are held in memory
        wait_until(lambda: agents_alive(service) == 1, 30)
        service.kill()
    service.restart()
    ended = [service.wait_until_ended(job_id) for job_id in queued]
    assert [(job["state"], job["answer"]) for job in ended] == [("completed", "later")] * 2
    for job_id in (*jobs, stays):
        job = service.get_job(job_id)
        assert (job["state"], job["outcome"]["type"], job["run"]) == ("interrupted", "interrupted", 1)
    for job_id, before in stored.items():
        events = service.events(job_id)
        assert events[: len(before)] == before
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert service.get_job(done["id"]) == done
    listed = {job["id"] for job in service.client.get("/v1/jobs").json()["data"]}
    assert listed == {done["id"], *jobs, stays, *queued}
    assert agents_alive(service) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root")
def test_a_full_disk_delays_what_was_reached_and_loses_nothing_and_doctor_names_it(
    small_disk: Service, common_dir: Path
) -> None:
    service = small_disk.start()

    def check() -> None:
        assert "disk is full" in service.client.get("/readyz").json()["detail"]
        found = doctor(service)
        assert f"Free space on the disk of {service.data_dir}" in found
        assert "owner" not in found

    outage_scene(service, common_dir / "go", lambda: full_disk_of(service), check)


def doctor(service: Service) -> str:
    """Run `steadyhand doctor` with the settings of the service and give what it prints, in one line."""
    program = Path(sys.executable).parent / "steadyhand"
    result = subprocess.run(
        [program, "doctor"],
        cwd=service.root,
        env={**service.environment(), "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return " ".join(result.stdout.split())
