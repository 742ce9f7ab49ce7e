"""A job that prints without end: the service's memory stays where it was, and it goes on answering."""

import json
import time
from pathlib import Path

import pytest
from tests.blackbox.conftest import long

from steadyhand.testing.live_folders import stats_below
from steadyhand.testing.service import Service

MEBIBYTE = 1 << 20
KINDS = {
    "valid events": "flood",
    "lines that are not JSON": "flood_raw",
    "one line without end": "flood_line",
}


def check_flood(service: Service, directive: str, size: str, seconds: float) -> None:
    for _ in range(5):
        service.run_job("hello")  # what a first job loads for good is no part of the question
    before = peak = service.resident_bytes
    job_id = service.submit(f"[[standin: {directive}={size} text=done]]", idle_timeout_seconds=600)["id"]
    answers = 0
    end = time.monotonic() + seconds
    with service.new_client() as client:
        while client.get(f"/v1/jobs/{job_id}").json()["state"] in ("queued", "running"):
            assert time.monotonic() < end
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            assert time.monotonic() - began < 10
            answers += 1
            peak = max(peak, service.resident_bytes)
            time.sleep(0.05)
    assert answers > 3
    job = service.poll_classic(job_id)
    peak = max(peak, service.resident_bytes)
    assert job["status"] == "completed", job["stderr"]
    assert peak - before < 50 * MEBIBYTE
    whole = "".join(job["output"])
    assert len(whole) < 1.2 * MEBIBYTE
    if not (service.classic and directive == "flood_line"):  # there the result is the end of that same line
        assert json.loads(job["output"][-1])["result"] == "done"
    assert sum(about.st_size for _, about in stats_below(service.data_dir)) < 200 * MEBIBYTE
    assert service.client.delete(f"/v1/jobs/{job_id}").status_code == 204


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        long("default", "valid events"),
        long("default", "lines that are not JSON"),
        ("default", "one line without end"),
        ("classic", "valid events"),
        long("classic", "lines that are not JSON"),
        long("classic", "one line without end"),
    ],
    indirect=["service"],
)
def test_whatever_a_job_prints_the_memory_stays_where_it_was(service: Service, kind: str) -> None:
    check_flood(service, KINDS[kind], "64M", 90)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_gigabyte_of_anything_leaves_the_memory_where_it_was(service: Service, kind: str) -> None:
    check_flood(service, KINDS[kind], "1G", 170)


def test_many_events_are_all_kept_in_order(default_service: Service, common_dir: Path) -> None:
    said = " ".join(f'say="line {n}"' for n in range(300))
    job = default_service.run_job(f"[[standin: {said}]]")
    texts = [
        event["data"]["text"] for event in default_service.events(job["id"]) if event["type"] == "message"
    ]
    assert texts[:300] == [f"line {n}" for n in range(300)]
