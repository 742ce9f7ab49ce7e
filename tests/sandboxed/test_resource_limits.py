"""A fork bomb, a memory hog, a disk filler and a flood of output: each ends with a word, `/health` answers.

Each attack is bounded by itself (512 MB of memory, 128 processes, 256 MB of disk, 20 s) and is made only after a small
probe, first in line to be killed, has shown that its limit is there.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandboxed.host_inspection import live_agent_processes

from steadyhand.testing.live_folders import stats_below
from steadyhand.testing.resource_hogs import OOM_KILL_FIRST, SMALL_LIMITS_CONFIG, fork_bomb, memory_hog
from steadyhand.testing.service import MakeService, Service, wait_until
from steadyhand.testing.shell import shell_prompt

MEBIBYTE = 1 << 20
HEALTH_SECONDS = 2.0
"""How long `/health` may take at most on a machine that runs other tests; half of the looks take less than a tenth."""


@pytest.fixture(scope="module")
def service(make_service_in: MakeService) -> Iterator[Service]:
    with make_service_in(config=SMALL_LIMITS_CONFIG) as made:
        yield made


def watched(service: Service, text: str, **fields: Any) -> dict[str, Any]:
    """Run a job and ask for the health all the while; gives the job."""
    job_id = service.submit(text, **fields)["id"]
    times: list[float] = []
    with service.new_client(None) as client:
        while client.get("/health").json()["active"] or not times:
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            times.append(time.monotonic() - began)
            time.sleep(0.02)
            if len(times) > 3000:
                break
    assert max(times) < HEALTH_SECONDS
    assert sorted(times)[len(times) // 2] < 0.1
    job = service.wait_until_ended(job_id)
    wait_until(lambda: not live_agent_processes(service))
    return job


def test_a_memory_hog_ends_as_such(service: Service) -> None:
    # In the tool; its agent breaks over it.
    hog = memory_hog(service)
    job = watched(service, f"{shell_prompt(hog, options='die=9')}", agent="small")
    assert (job["state"], job["outcome"]["type"]) == ("failed", "memory")
    assert "memory" in job["error"]["message"].lower()
    # What an agent copes with is no failure.
    job = watched(service, shell_prompt(hog + "; echo lived on"), agent="small")
    assert job["state"] == "completed"
    assert job["answer"].endswith("lived on")


def test_memory_in_files_of_memory_counts_as_well(service: Service) -> None:
    fill = OOM_KILL_FIRST + "head -c 400M /dev/zero > /tmp/fill; echo filled $?"
    job = watched(service, shell_prompt(fill), agent="small")
    assert job["state"] == "completed"
    assert "filled 0" not in job["answer"]


# test_attacks_by_process_mode.py has the limit on processes.
@pytest.mark.long
def test_a_fork_bomb_comes_to_its_limit(service: Service) -> None:
    job = watched(service, shell_prompt(fork_bomb(service)), agent="small")
    assert job["state"] in ("completed", "failed")
    assert job["outcome"]["type"] in ("success", "agent_error", "killed", "empty")
    assert service.run_job(shell_prompt("echo well"), agent="small")["answer"] == "well"


def test_a_file_comes_to_its_limit(service: Service) -> None:
    probe = service.run_job(
        shell_prompt("head -c 80M /dev/zero > big 2>/dev/null; stat -c %s big"), agent="small"
    )
    assert int(probe["answer"]) <= 64 * MEBIBYTE, "the limit does not hold: no attack"
    job = watched(
        service,
        shell_prompt("dd if=/dev/zero of=big bs=1M count=250 2>&1 | tail -1; stat -c %s big"),
        agent="small",
    )
    assert job["state"] in ("completed", "failed")
    assert sum(about.st_size for _, about in stats_below(service.data_dir, "big")) <= 64 * MEBIBYTE


@pytest.mark.parametrize(
    "kind", ["flood", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("flood_raw", "flood_line"))]
)
def test_a_flood_of_output_leaves_the_memory_where_it_was(service: Service, kind: str) -> None:
    flood(service, kind, "100M")


@pytest.mark.long
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("kind", ["flood", "flood_raw", "flood_line"])
def test_ten_gigabytes_of_floods_leave_the_memory_where_it_was(service: Service, kind: str) -> None:
    flood(service, kind, "3500M", 900)


def flood(service: Service, kind: str, size: str, seconds: float = 170) -> None:
    for _ in range(4):
        service.run_job("hello")  # what a first job loads for good is no part of the question
    before = service.resident_bytes
    job_id = service.submit(f"[[standin: {kind}={size} text=done]]", idle_timeout_seconds=600)["id"]
    peak = 0

    def over() -> bool:
        nonlocal peak
        peak = max(peak, service.resident_bytes)
        return service.get_job(job_id)["finished_at"] is not None

    wait_until(over, seconds, interval=0.1)
    assert service.get_job(job_id)["state"] == "completed"
    assert peak - before < 50 * MEBIBYTE
    assert len("".join(service.poll_classic(job_id)["output"])) < 1.2 * MEBIBYTE


def test_output_that_is_no_text_is_kept_as_far_as_it_goes(service: Service) -> None:
    job = watched(service, "[[standin: bad_utf8 text=done]]")
    assert (job["state"], job["answer"]) == ("completed", "done")
