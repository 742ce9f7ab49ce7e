"""What a run comes to when it never got under way, or when its answer does not fit; both doors say it."""

import asyncio
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.blackbox.conftest import long

from steadyhand.store import open_store
from steadyhand.testing.live_folders import paths_below
from steadyhand.testing.service import MakeService, Service, wait_until

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def seen_by_both_doors(service: Service, job: dict[str, Any], outcome: str) -> dict[str, Any]:
    """Check a job that ended as `error`; gives it as the classic route shows it."""
    assert (job["state"], job["outcome"]["type"], job["error"]["code"]) == ("error", outcome, outcome)
    assert (job["runs"][-1]["state"], job["runs"][-1]["outcome"]["type"]) == ("error", outcome)
    shown: dict[str, Any] = service.client.get(f"/jobs/{job['id']}").json()
    assert (shown["status"], shown["state"], shown["exit_code"]) == ("error", "error", None)
    assert (shown["output"], shown["stderr"]) == ([], "")
    assert shown["error"]
    assert "\n" not in shown["error"]
    assert datetime.fromisoformat(shown["finished_at"]).utcoffset() is not None
    assert [
        event["data"]["to"] for event in service.events(job["id"]) if event["type"] == "state.changed"
    ] == [
        "queued",
        "running",
        "error",
    ]
    return shown


def test_a_repository_that_cannot_be_reached_ends_the_job_as_error(service: Service) -> None:
    job = service.run_job("hello", workspace="https://127.0.0.1:9/no/such.git")
    seen_by_both_doors(service, job, "workspace")
    assert job["commit"] is None
    assert job["usage"]["output_tokens"] == 0


def test_a_ref_that_is_not_there_ends_the_job_as_error(default_service: Service) -> None:
    job = default_service.run_job("hello", workspace="default", ref="no-such-branch")
    shown = seen_by_both_doors(default_service, job, "workspace")
    assert "no-such-branch" in shown["error"]


@pytest.mark.parametrize("profile", ["default", long("classic")])
def test_an_agent_that_cannot_be_started_ends_the_job_as_error(
    make_service: MakeService, common_dir: Path, stand_in: Path, profile: str
) -> None:
    folder = common_dir / "bin"
    shutil.copytree(stand_in.parent, folder, symlinks=True)
    folder.chmod(0o755)
    service = make_service(classic=profile == "classic", claude=folder / stand_in.name).start()
    assert service.run_job("hello")["state"] == "completed"
    (folder / stand_in.name).unlink()
    job = service.run_job("hello")
    seen_by_both_doors(service, job, "not_started")
    assert job["error"]["retryable"] is True


def test_an_answer_that_does_not_fit_its_schema_is_a_failure_that_says_where(service: Service) -> None:
    job = service.run_job('[[standin: structured=\'{"n": "four"}\']]', output_schema=SCHEMA)
    assert (job["state"], job["outcome"]["type"]) == ("failed", "invalid_output")
    assert "/n" in job["outcome"]["detail"]


@pytest.mark.parametrize("profile", [long("default"), "classic"])
def test_a_job_that_the_service_died_under_says_error_with_one_line_of_why(
    make_service: MakeService, common_dir: Path, profile: str
) -> None:
    service = make_service(classic=profile == "classic").start()
    job_id = service.execute_classic(f"[[standin: touch={common_dir}/on sleep=60]]")["job_id"]
    wait_until((common_dir / "on").exists)
    service.kill()
    service.restart()
    shown = service.poll_classic(job_id)
    assert (shown["status"], shown["state"]) == ("error", "interrupted")
    assert shown["error"]
    assert "\n" not in shown["error"]
    assert isinstance(shown["output"], list)


def test_jobs_are_forgotten_with_all_that_was_kept_when_their_time_is_over(make_service: MakeService) -> None:
    config = '[retention]\njobs = "5s"\n'
    service = make_service(config=config).start()
    job_id = service.run_job('[[standin: write="new.txt:new\n"]]', workspace="default")["id"]
    assert service.client.get(f"/v1/jobs/{job_id}/diff").status_code == 200
    ended = datetime.fromisoformat(service.get_job(job_id)["finished_at"])
    wait_until(lambda: (datetime.now().astimezone() - ended).total_seconds() > 5)
    service.terminate()
    service.restart()  # which looks at once, and then now and again
    wait_until(lambda: service.client.get(f"/v1/jobs/{job_id}").status_code == 404)
    for path in ("/diff", "/events", "/transcript", "/bundle"):
        assert service.client.get(f"/v1/jobs/{job_id}{path}").status_code == 404
    wait_until(lambda: not paths_below(service.data_dir, f"*{job_id}*"))
    assert service.run_job("hello")["state"] == "completed"


@pytest.mark.long  # as in `tests/worker/test_job_retention`
def test_a_service_removes_the_files_of_a_job_whose_deletion_the_one_before_did_not_survive(
    make_service: MakeService,
) -> None:
    service = make_service().start()
    job_id = service.run_job("hello")["id"]
    other_id = service.run_job("hello")["id"]
    service.kill()
    asyncio.run(delete_in_store(service, job_id))
    assert list(service.data_dir.glob(f"jobs/{job_id}"))
    service.restart()
    wait_until(lambda: not paths_below(service.data_dir, f"*{job_id}*"))
    assert service.client.get(f"/v1/jobs/{other_id}/transcript").status_code == 200


async def delete_in_store(service: Service, job_id: str) -> None:
    """Delete a job in the store alone, as a service that is killed right after it."""
    sqlite = f"sqlite:///{service.data_dir / 'steadyhand.db'}"
    store = await open_store(service.environment().get("STEADYHAND_DATABASE_URL", sqlite))
    try:
        assert await store.delete(job_id)
    finally:
        await store.close()


def test_transcripts_may_be_kept_for_a_shorter_time_than_their_jobs(make_service: MakeService) -> None:
    service = make_service(config='[retention]\ntranscripts = "1s"\n').start()
    job_id = service.run_job("hello")["id"]
    path = f"/v1/jobs/{job_id}/transcript"
    assert service.client.get(path).status_code == 200
    ended = datetime.fromisoformat(service.get_job(job_id)["finished_at"])
    wait_until(lambda: (datetime.now().astimezone() - ended).total_seconds() > 1)
    service.terminate()
    service.restart()
    wait_until(lambda: service.client.get(path).status_code == 404)
    assert service.get_job(job_id)["answer"].startswith("ok: hello")
