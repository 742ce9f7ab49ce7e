"""What outlives a crash and a stop: jobs, events, order."""

import random
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.blackbox.conftest import long

from steadyhand.testing.service import ADMIN_KEY, MakeService, Service, wait_until

ENDED = {"completed", "failed", "timeout", "cancelled", "interrupted", "error"}


def everything(service: Service) -> list[dict[str, Any]]:
    """All jobs, oldest first."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = service.client.get(
            "/v1/jobs", params={"limit": 200, **({"cursor": cursor} if cursor else {})}
        ).json()
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found[::-1]


def check_record(service: Service, job_id: str) -> dict[str, Any]:
    """The events of a job are gapless and tell its states; each run is told to have started once."""
    job = service.get_job(job_id)
    events = service.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, job["last_event"] + 1))
    changes = [
        (event["data"]["from"], event["data"]["to"]) for event in events if event["type"] == "state.changed"
    ]
    assert all(before[1] == after[0] for before, after in pairwise(changes)), changes
    assert changes[0] == (None, "queued")
    assert changes[-1][1] == job["state"]
    assert [to for _, to in changes].count("running") == len(job["runs"])
    return job


def test_after_a_kill_9_queued_jobs_run_and_running_ones_are_interrupted(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env={"STEADYHAND_CONCURRENCY": "2"}).start()
    running = [service.submit(f"[[standin: touch={common_dir}/r{n} sleep=60]]")["id"] for n in range(2)]
    wait_until(lambda: all((common_dir / f"r{n}").exists() for n in range(2)))
    queued = [service.submit(f"[[standin: run='echo {n} >> {common_dir}/ran']]")["id"] for n in range(5)]
    ended = [job["id"] for job in everything(service) if job["state"] in ENDED]
    service.kill()
    wait_until(lambda: not service.live_agent_pids(), 5)
    service.restart()
    for job_id in queued:
        assert service.wait_until_ended(job_id)["state"] == "completed"
    for job_id in running:
        job = check_record(service, job_id)
        assert (job["state"], job["outcome"]["type"], job["error"]["retryable"]) == (
            "interrupted",
            "interrupted",
            True,
        )
    assert [job["id"] for job in everything(service)] == ended + running + queued
    for job_id in queued:
        check_record(service, job_id)
    # Nothing ran twice.
    assert sorted((common_dir / "ran").read_text().split()) == [str(n) for n in range(5)]
    wait_until(lambda: not service.live_agent_pids(), 5)


@pytest.mark.long  # `test_python_client` asks for one again
def test_an_interrupted_job_can_be_asked_for_again(make_service: MakeService, common_dir: Path) -> None:
    service = make_service().start()
    job_id = service.submit(f"[[standin: touch={common_dir}/on wait_for={common_dir}/go]]")["id"]
    wait_until((common_dir / "on").exists)
    service.kill()
    service.restart()
    assert service.get_job(job_id)["state"] == "interrupted"
    (common_dir / "go").touch()
    assert service.client.post(f"/v1/jobs/{job_id}/retry").status_code == 202
    assert service.wait_until_ended(job_id)["state"] == "completed"
    assert [run["state"] for run in check_record(service, job_id)["runs"]] == ["interrupted", "completed"]


def storm(service: Service, common: Path, stop: threading.Event, accepted: list[str], seed: int) -> None:
    """Submit until told to stop or the service is gone; every 202 is noted with its id."""
    generator = random.Random(seed)  # noqa: S311  # for a test's variety
    number = 0
    with httpx2.Client(
        base_url=service.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=20, trust_env=False
    ) as client:
        while not stop.is_set():
            number += 1
            mark = f"{seed}-{number}"
            prompt = f"[[standin: run='echo {mark} >> {common}/ran' sleep={generator.random() / 5:.3f}]]"
            try:
                body = {"prompt": prompt, "workspace": "scratch", "metadata": {"mark": mark}}
                answer = client.post("/v1/jobs", json=body)
            except httpx2.TransportError:
                return
            if answer.status_code == 202:
                accepted.append(answer.json()["id"])
            else:
                time.sleep(0.02)


def crash_at_random(service: Service, common: Path, seed: int) -> None:
    generator = random.Random(seed)  # noqa: S311  # for a test's variety
    accepted: list[str] = []
    for _ in range(2):
        stop = threading.Event()
        threads = [
            threading.Thread(target=storm, args=(service, common, stop, accepted, generator.randrange(10**9)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(generator.uniform(0.05, 1.0))  # the random moment is what this is about
        service.kill()
        stop.set()
        for thread in threads:
            thread.join(30)
        service.restart()
    jobs = {job["id"] for job in everything(service)}
    assert set(accepted) <= jobs, "a 202 was lost"
    runs: dict[str, int] = {}
    for job_id in jobs:
        service.wait_until_ended(job_id, 60)
        job = check_record(service, job_id)
        assert job["state"] in ("completed", "interrupted")
        assert [run["number"] for run in job["runs"]] == [1]
        runs[job["metadata"]["mark"]] = len(job["runs"])
    marks = (common / "ran").read_text().split()
    assert len(marks) == len(set(marks)), "a job ran twice"
    completed = {job["metadata"]["mark"] for job in map(service.get_job, jobs) if job["state"] == "completed"}
    assert completed <= set(marks) <= set(runs)
    wait_until(lambda: not service.live_agent_pids(), 5)


@pytest.mark.parametrize("seed", [1, long(2)])
def test_a_kill_9_at_a_random_moment_loses_nothing_and_doubles_nothing(
    make_service: MakeService, common_dir: Path, seed: int
) -> None:
    crash_at_random(make_service(env={"STEADYHAND_SERVICE__MAX_QUEUED": "15"}).start(), common_dir, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_kills_at_random_moments_lose_nothing_and_double_nothing(
    make_service: MakeService, common_dir: Path, seed: int
) -> None:
    crash_at_random(make_service(env={"STEADYHAND_SERVICE__MAX_QUEUED": "15"}).start(), common_dir, seed)


def test_thirty_jobs_at_once_run_two_at_a_time_by_priority_then_arrival(
    make_service: MakeService, common_dir: Path
) -> None:
    run_two_at_a_time(make_service, common_dir, 30)


@pytest.mark.long
def test_a_hundred_jobs_at_once_run_two_at_a_time_by_priority_then_arrival(
    make_service: MakeService, common_dir: Path
) -> None:
    run_two_at_a_time(make_service, common_dir, 100)


def run_two_at_a_time(make_service: MakeService, common_dir: Path, count: int) -> None:
    service = make_service(
        env={"STEADYHAND_CONCURRENCY": "2", "STEADYHAND_SERVICE__MAX_QUEUED": "200"}
    ).start()
    go = common_dir / "go"
    gates = [service.submit(f"[[standin: wait_for={go}]]")["id"] for _ in range(2)]
    generator = random.Random(7)  # noqa: S311  # for a test's variety
    priorities = [generator.choice((-5, 0, 0, 0, 5, 9)) for _ in range(count)]

    def submit(numbers: range) -> None:
        with service.new_client() as client:
            for number in numbers:
                prompt = (
                    f"[[standin: touch={common_dir}/{number}-on sleep=0.02 touch={common_dir}/{number}-off]]"
                )
                body = {
                    "prompt": prompt,
                    "workspace": "scratch",
                    "priority": priorities[number],
                    "metadata": {"number": str(number)},
                }
                assert client.post("/v1/jobs", json=body).status_code == 202

    threads = [threading.Thread(target=submit, args=(range(first, count, 10),)) for first in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert counts(service) == (2, count)  # both slots are used
    go.touch()
    wait_until(lambda: counts(service) == (0, 0), 90, interval=0.2)
    jobs = [job for job in everything(service) if job["id"] not in gates]
    assert len(jobs) == count
    assert {job["state"] for job in jobs} == {"completed"}
    wanted = [job["id"] for job in sorted(jobs, key=lambda job: -job["priority"])]  # stable: arrival within
    started = [job["id"] for job in sorted(jobs, key=lambda job: str(job["started_at"]))]
    assert started == wanted
    assert at_once([(moment(job["started_at"]), moment(job["finished_at"])) for job in jobs]) <= 2
    spans = [
        ((common_dir / f"{n}-on").stat().st_mtime, (common_dir / f"{n}-off").stat().st_mtime)
        for n in range(count)
    ]
    assert at_once(spans) <= 2


def counts(service: Service) -> tuple[int, int]:
    body = service.client.get("/health").json()
    return body["active"], body["queued"]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def at_once(spans: list[tuple[float, float]]) -> int:
    """Give the largest number of spans that overlap."""
    edges = sorted([(end, -1) for _, end in spans] + [(begin, 1) for begin, _ in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def test_sigterm_drains(make_service: MakeService, common_dir: Path) -> None:
    service = make_service(
        env={"STEADYHAND_CONCURRENCY": "2", "STEADYHAND_SERVICE__DRAIN_SECONDS": "6"}
    ).start()
    quick = service.submit(f"[[standin: touch={common_dir}/quick wait_for={common_dir}/go]]")["id"]
    slow = service.submit(f"[[standin: touch={common_dir}/slow sleep=60]]", on_interrupt="fail")["id"]
    wait_until(lambda: (common_dir / "quick").exists() and (common_dir / "slow").exists())
    queued = service.submit(f"[[standin: touch={common_dir}/queued]]")["id"]
    with service.new_client() as client:
        service.process.terminate()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        # New work is refused, and that a client may try again is said.
        for path, body in (
            ("/v1/jobs", {"prompt": "p"}),
            ("/execute", {"prompt": "p", "agent": "claude"}),
            ("/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "p"}]}),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200
        # What runs has its grace period.
        (common_dir / "go").touch()
        wait_until(lambda: client.get(f"/v1/jobs/{quick}").json()["state"] == "completed", 5)
    assert service.process.wait(20) == 0
    assert service.live_agent_pids() == []
    assert not (common_dir / "queued").exists()
    service.restart()
    assert service.wait_until_ended(queued)["state"] == "completed"
    assert service.get_job(slow)["state"] == "interrupted"
    for job_id in (quick, slow, queued):
        check_record(service, job_id)


def test_a_second_signal_cuts_the_grace_period_short(make_service: MakeService, common_dir: Path) -> None:
    service = make_service().start()  # 30 seconds of grace
    service.submit(f"[[standin: touch={common_dir}/on sleep=60]]")
    wait_until((common_dir / "on").exists)
    service.process.terminate()
    wait_until(lambda: service.new_client().get("/readyz").status_code == 503)
    assert service.terminate(15) == 0


def test_a_second_process_on_the_same_data_directory_is_refused_with_a_clear_message(
    make_service: MakeService,
) -> None:
    service = make_service().start()
    second = make_service(env={"STEADYHAND_DATA_DIR": str(service.data_dir)})
    process = second.spawn()
    assert process.wait(30) != 0
    assert "Traceback" not in second.log
    assert "data directory" in second.log.lower()
    assert service.run_job("hello")["state"] == "completed"


@pytest.mark.parametrize(
    ("env", "config", "words"),
    [
        ({}, "[service]\nconcurency = 2\n", "did you mean concurrency"),
        ({"STEADYHAND_ISOLATION": "bwrap", "PATH": "/nonexistent"}, "", "apt-get install bubblewrap"),
        ({"STEADYHAND_RUNNER__CLAUDE__PATH": "/nonexistent/claude"}, "", "claude"),
    ],
)
def test_a_setting_that_is_wrong_stops_the_start_with_the_remedy(
    make_service: MakeService, env: dict[str, str], config: str, words: str
) -> None:
    service = make_service(env=env, config=config)
    assert service.spawn().wait(30) != 0
    assert words in service.log
    assert "Traceback" not in service.log
