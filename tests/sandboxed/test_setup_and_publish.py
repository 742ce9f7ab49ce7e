"""What comes before the agents of a workspace and after them, in a running service: its setup, and its branch."""

from collections.abc import Iterator

import pytest
from tests.sandboxed.conftest import FILES
from tests.sandboxed.recording_server import RecordingServer
from tests.service_fixtures import make_repository

from steadyhand.testing.service import MakeService, Service, run_git
from steadyhand.testing.shell import shell_prompt

SECRET = "canary-of-the-setup-88d1"


@pytest.fixture(scope="module")
def service(make_service_in: MakeService, listener: RecordingServer) -> Iterator[Service]:
    made = make_service_in()
    secret = made.root / "setup-key"
    secret.write_text(SECRET, encoding="utf-8")
    secret.chmod(0o600)
    fetch = f"curl -sSf -m 5 --noproxy '' http://127.0.0.1:{listener.port}"
    made.config_path.write_text(
        f"""
[workspaces.prepared]
repository = "{made.root}/workspace"
setup = ["{fetch}/package > package", "sha256sum < {secret} > unlocked"]
setup_egress = ["127.0.0.1:{listener.port}"]
setup_secrets = ["{secret}"]
[workspaces.reaching]
repository = "{made.root}/workspace"
setup = ["{fetch}/not-listed > package"]
setup_egress = ["listed.example"]
[workspaces.offline]
repository = "{made.root}/workspace"
setup = ["{fetch}/not-listed > package"]
[workspaces.refusing]
repository = "{made.root}/refusing"
publish = "branch"
""",
        encoding="utf-8",
    )
    make_repository(made.root / "refusing", FILES)
    # Where this branch stands no branch of a name below it can be: a push is refused.
    run_git(made.root / "refusing", "branch", "steadyhand")
    with made:
        yield made


def test_setup_runs_once_for_all_jobs_of_a_commit_with_its_own_hosts_and_secrets_which_no_job_has(
    service: Service, listener: RecordingServer
) -> None:
    listener.requests.clear()
    look = "cat package; test -s unlocked && echo unlocked; cat ../setup-key " + str(
        service.root / "setup-key"
    )
    reach = f"curl -sS -m 3 --noproxy '' http://127.0.0.1:{listener.port}/stolen; true"
    ids = [
        service.submit(shell_prompt(f"({look}) 2>/dev/null; {reach}"), workspace="prepared")["id"]
        for _ in range(3)
    ]
    jobs = [service.wait_until_ended(job_id) for job_id in ids]
    for job in jobs:
        assert job["state"] == "completed", job["error"]
        assert job["answer"].startswith("okunlocked")
        assert SECRET not in job["answer"]
        assert "[redacted]" not in job["answer"]  # nor was there anything to take out
        assert job["changes"] is None  # what setup made is no job's work
        refused = [each["data"] for each in service.events(job["id"]) if each["type"] == "egress.refused"]
        assert refused == [{"host": f"127.0.0.1:{listener.port}"}]
    assert listener.requests == ["/package"]


def test_a_setup_reaches_no_host_that_is_not_on_its_list(service: Service, listener: RecordingServer) -> None:
    listener.requests.clear()
    job = service.run_job(shell_prompt("echo never"), workspace="reaching")
    assert (job["state"], job["outcome"]["type"]) == ("error", "workspace")
    assert "The setup command" in job["error"]["message"]
    assert "setup reaches only listed.example, by the workspace's setup_egress" in job["error"]["message"]
    job = service.run_job(shell_prompt("echo never"), workspace="offline")
    assert "list the hosts that it needs in the workspace's setup_egress" in job["error"]["message"]
    assert listener.requests == []


def test_a_push_that_fails_leaves_the_job_completed_with_a_warning_and_its_commits(service: Service) -> None:
    job = service.run_job(
        shell_prompt("echo more >> greeting.txt; git commit -qam Mine; echo done"), workspace="refusing"
    )
    assert (job["state"], job["answer"]) == ("completed", "done")
    assert job["changes"]["published"] is False
    assert [warning["code"] for warning in job["warnings"]] == ["publish_failed"]
    told = [event["data"] for event in service.events(job["id"]) if event["type"] == "warning"]
    assert told == job["warnings"]
    assert str(service.root) not in told[0]["message"]
    # The commits are to be had all the same.
    bundle = service.root / "kept.bundle"
    bundle.write_bytes(service.client.get(f"/v1/jobs/{job['id']}/bundle").content)
    run_git(service.root, "clone", "-q", str(service.root / "refusing"), str(service.root / "taken"))
    run_git(service.root / "taken", "fetch", "-q", str(bundle), f"steadyhand/{job['id']}")
    taken = run_git(service.root / "taken", "log", "-1", "--format=%s %H", "FETCH_HEAD")
    assert taken == f"Mine {job['changes']['head']}"
