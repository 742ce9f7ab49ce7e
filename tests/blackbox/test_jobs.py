"""The native routes for jobs (docs/http-api.md#native-routes), end to end with the stand-in."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.blackbox.conftest import LONG_CLASSIC, UNSANDBOXED, long

from steadyhand.testing.live_folders import paths_below
from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service, wait_until
from steadyhand.testing.shell import shell_prompt

KEYS = {
    *("object", "id", "state", "outcome", "title", "prompt", "agent", "runner", "model", "workspace", "ref"),
    *("commit", "priority", "metadata", "api_key_id", "origin", "session_id", "parent_job_id", "budget_usd"),
    *("timeout_seconds", "idle_timeout_seconds", "on_interrupt", "publish", "created_at", "started_at"),
    *("finished_at", "parked_until", "queue_position", "run", "runs", "answer", "structured_output", "usage"),
    *("cost", "changes", "warnings", "error", "last_event", "links", "prompt_start"),
    "will_run_again",
}
LEFT_OUT = {"prompt", "answer", "structured_output", "runs"}
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_a_job_is_accepted_with_its_place_and_every_key(service: Service) -> None:
    answer = service.client.post("/v1/jobs", json={"prompt": "hello", "workspace": "scratch"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert set(job) == KEYS
    assert (job["object"], job["state"], job["run"], job["agent"]) == ("job", "queued", 0, "claude")
    assert (job["budget_usd"], job["timeout_seconds"], job["idle_timeout_seconds"]) == ("5.000000", 2700, 600)
    # The classic command line names no session before its end, so nothing goes on by itself there.
    wish = "fail" if service.classic else "auto"
    assert (job["priority"], job["on_interrupt"], job["publish"], job["origin"]) == (0, wish, "none", "api")
    assert UTC.fullmatch(job["created_at"])
    assert service.wait_until_ended(job["id"])["state"] == "completed"


def test_a_completed_job_has_answer_usage_cost_run_and_session(service: Service) -> None:
    job = service.run_job(
        '[[standin: text="done" cost=0.0409 input=5 output=7 cache_read=11 cache_creation=13 turns=2]]',
        title="A title",
        metadata={"ticket": "A-1"},
        priority=3,
    )
    assert set(job) == KEYS
    assert (job["state"], job["outcome"], job["error"]) == (
        "completed",
        {"type": "success", "detail": None},
        None,
    )
    assert (job["answer"], job["title"], job["metadata"], job["priority"]) == (
        "done",
        "A title",
        {"ticket": "A-1"},
        3,
    )
    assert job["usage"] == {
        "input_tokens": 5,
        "output_tokens": 7,
        "cache_read_input_tokens": 11,
        "cache_creation_input_tokens": 13,
        "turns": 2,
    }
    assert job["cost"] == {
        "usd": "0.040900",
        "source": "reported",
        "priced": True,
        "reported_usd": "0.040900",
    }
    (run,) = job["runs"]
    assert (run["number"], run["state"], run["exit_code"]) == (1, "completed", 0)
    assert str(uuid.UUID(job["session_id"])) == job["session_id"]
    for name in ("created_at", "started_at", "finished_at"):
        assert UTC.fullmatch(job[name])
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert set(job["links"]) == {"self", "events", "diff", "transcript", "bundle"}


@pytest.mark.parametrize(
    ("prompt", "state", "outcome"),
    [
        long("[[standin: result=error]]", "failed", "agent_error"),
        ("[[standin: api_error=402]]", "failed", "budget"),
        ("[[standin: api_error=429]]", "failed", "rate_limited"),
        long("[[standin: api_error=401]]", "failed", "unauthorized"),
        long("[[standin: api_error=500]]", "failed", "model_error"),
        ("[[standin: result=empty]]", "failed", "empty"),
        ("[[standin: result=none]]", "failed", "no_result"),
        ("[[standin: result=truncated]]", "failed", "no_result"),
        long("[[standin: result=refusal]]", "failed", "refused"),
        ("[[standin: result=max_turns]]", "failed", "max_turns"),
        long("[[standin: result=max_budget]]", "failed", "budget"),
        ("[[standin: die=KILL]]", "failed", "killed"),
        long("[[standin: die=SEGV]]", "failed", "killed"),
        ("[[standin: exit_now=9]]", "failed", "agent_error"),
        ("[[standin: bad_utf8]]", "completed", "success"),
    ],
)
@LONG_CLASSIC
def test_what_a_run_came_to_is_judged_from_all_evidence(
    service: Service, prompt: str, state: str, outcome: str
) -> None:
    job = service.run_job(prompt)
    assert (job["state"], job["outcome"]["type"]) == (state, outcome)
    if state == "failed":
        assert set(job["error"]) == {"code", "message", "retryable"}
        assert job["error"]["code"] == outcome


def test_a_silent_agent_has_stalled_unless_its_profile_prints_only_at_the_end(service: Service) -> None:
    job = service.run_job("[[standin: sleep=3]]", idle_timeout_seconds=1)
    expected = ("completed", "success") if service.classic else ("timeout", "stalled")
    assert (job["state"], job["outcome"]["type"]) == expected


@pytest.fixture(scope="module")
def one_slot(make_service_in: MakeService) -> Iterator[Service]:
    """A service that runs one job at a time, which may share a folder with the test."""
    with make_service_in(env=UNSANDBOXED | {"STEADYHAND_CONCURRENCY": "1"}) as started:
        yield started


def test_a_job_that_waited_too_long_in_the_queue_ends_as_error(one_slot: Service, common_dir: Path) -> None:
    service = one_slot
    first = service.submit(f"[[standin: wait_for={common_dir}/go]]")["id"]
    job = service.wait_until_ended(service.submit("hello", expires_in_seconds=1)["id"])
    assert (job["state"], job["outcome"]["type"], job["run"]) == ("error", "expired", 0)
    (common_dir / "go").touch()
    assert service.wait_until_ended(first)["state"] == "completed"


@LONG_CLASSIC
def test_prefer_wait_answers_with_the_ended_job(service: Service) -> None:
    answer = service.client.post(
        "/v1/jobs", json={"prompt": "hello", "workspace": "scratch"}, headers={"prefer": "wait=30"}
    )
    assert answer.status_code == 200
    assert answer.headers["preference-applied"].startswith("wait")
    assert answer.json()["state"] == "completed"


@LONG_CLASSIC
def test_prefer_wait_gives_202_when_the_time_is_over_and_a_get_waits_too(
    service: Service, common_dir: Path
) -> None:
    answer = service.client.post(
        "/v1/jobs",
        json={"prompt": f"[[standin: wait_for={common_dir}/go]]", "workspace": "scratch"},
        headers={"prefer": "wait=1"},
    )
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    path = f"/v1/jobs/{answer.json()['id']}"
    waited = service.client.get(path, headers={"prefer": "wait=1"})
    assert waited.json()["state"] in ("queued", "running")
    assert waited.headers["preference-applied"] == "wait=1"
    (common_dir / "go").touch()
    ended = service.client.get(path, headers={"prefer": "wait=30"})
    assert ended.json()["state"] == "completed"
    assert ended.headers["etag"] != waited.headers["etag"]


@LONG_CLASSIC
def test_an_etag_that_still_holds_is_304(service: Service) -> None:
    path = f"/v1/jobs/{service.run_job('hello')['id']}"
    etag = service.client.get(path).headers["etag"]
    assert service.client.get(path, headers={"if-none-match": etag}).status_code == 304
    assert service.client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


@LONG_CLASSIC
def test_the_same_idempotency_key_and_body_give_the_same_job(service: Service) -> None:
    headers = {"idempotency-key": uuid.uuid4().hex}
    body = {"prompt": "once", "workspace": "scratch", "metadata": {"a": 1, "b": 2}}
    first = service.client.post("/v1/jobs", json=body, headers=headers)
    # Compared as parsed JSON: neither the order of keys nor spaces count.
    again = service.client.post(
        "/v1/jobs",
        content=b'{ "metadata":{"b":2, "a":1},"workspace":"scratch",   "prompt":"once"}',
        headers={**headers, "content-type": "application/json"},
    )
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = service.client.post("/v1/jobs", json={**body, "prompt": "twice"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert service.wait_until_ended(first.json()["id"])["run"] == 1
    with service.new_client(CLASSIC_KEY) as caller:  # keys of idempotency belong to an API key
        theirs = caller.post("/v1/jobs", json=body, headers=headers)
    assert theirs.json()["id"] != first.json()["id"]
    service.wait_until_ended(theirs.json()["id"])


@LONG_CLASSIC
def test_an_idempotency_key_may_have_255_characters_and_no_more(service: Service) -> None:
    body = {"prompt": "p", "workspace": "scratch"}
    key = uuid.uuid4().hex.ljust(255, "k")
    answer = service.client.post("/v1/jobs", json=body, headers={"idempotency-key": key})
    assert answer.status_code == 202
    service.wait_until_ended(answer.json()["id"])
    refused = service.client.post("/v1/jobs", json=body, headers={"idempotency-key": key + "k"})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_field")


@LONG_CLASSIC
def test_a_list_is_newest_first_filtered_and_paged_without_a_gap(service: Service) -> None:
    mark = uuid.uuid4().hex
    ids = [service.run_job("hello", metadata={"mark": mark, "odd": str(n % 2)})["id"] for n in range(5)]

    def listed(**params: Any) -> dict[str, Any]:
        answer = service.client.get("/v1/jobs", params={"metadata.mark": mark, **params})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    whole = listed()
    assert [job["id"] for job in whole["data"]] == ids[::-1]
    assert (whole["object"], whole["has_more"], whole["next_cursor"]) == ("list", False, None)
    assert all(set(job) == KEYS - LEFT_OUT for job in whole["data"])
    assert [job["id"] for job in listed(**{"metadata.odd": "1"})["data"]] == [ids[3], ids[1]]
    assert len(listed(state=["completed", "failed"])["data"]) == 5
    assert listed(state="failed")["data"] == []
    assert listed(agent="nobody")["data"] == []
    assert listed(api_key="k_nobody")["data"] == []
    created = [job["created_at"] for job in whole["data"]]
    assert len(listed(created_after=created[-1])["data"]) in (4, 5)
    assert listed(created_before=created[-1])["data"] in ([], whole["data"][-1:])
    pages: list[str] = []
    cursor: str | None = None
    for _ in range(5):
        page = listed(limit=2, **({"cursor": cursor} if cursor else {}))
        pages += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        assert page["has_more"] is (cursor is not None)
        if cursor is None:
            break
    assert pages == ids[::-1]


@LONG_CLASSIC
def test_a_running_job_is_cancelled_and_an_ended_one_stays_as_it_is(
    service: Service, common_dir: Path
) -> None:
    job_id = service.submit(f"[[standin: touch={common_dir}/on sleep=60]]")["id"]
    wait_until((common_dir / "on").exists)
    assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    job = service.wait_until_ended(job_id, 5)
    assert (job["state"], job["outcome"]["type"]) == ("cancelled", "cancelled")
    again = service.client.post(f"/v1/jobs/{job_id}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")


def test_a_queued_job_is_cancelled_at_once_and_never_runs(one_slot: Service, common_dir: Path) -> None:
    service = one_slot
    first = service.submit(f"[[standin: wait_for={common_dir}/go]]")["id"]
    second = service.submit(f"[[standin: touch={common_dir}/started]]")["id"]
    wait_until(lambda: service.get_job(second)["queue_position"] == 1)  # another node may take the first
    answer = service.client.post(f"/v1/jobs/{second}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    (common_dir / "go").touch()
    assert service.wait_until_ended(first)["state"] == "completed"
    assert service.run_job("hello")["state"] == "completed"
    assert not (common_dir / "started").exists()
    assert service.get_job(second)["runs"] == []


@LONG_CLASSIC
def test_a_retry_is_a_new_run_of_the_same_job_and_a_repeat_of_it_is_harmless(service: Service) -> None:
    job_id = service.run_job("[[standin: result=error]]")["id"]
    for _ in range(3):
        answer = service.client.post(f"/v1/jobs/{job_id}/retry", json={"after_run": 1})
        assert answer.status_code == 202
    wait_until(lambda: service.get_job(job_id)["run"] == 2)
    job = service.wait_until_ended(job_id)
    assert [run["number"] for run in job["runs"]] == [1, 2]
    seqs = [event["seq"] for event in service.events(job_id)]
    assert seqs == list(range(1, job["last_event"] + 1))


@LONG_CLASSIC
def test_a_deleted_job_is_gone_with_all_that_was_kept_of_it(service: Service) -> None:
    job_id = service.run_job("hello")["id"]
    assert service.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events", f"/jobs/{job_id}"):
        assert service.client.get(path).status_code == 404
    wait_until(lambda: not paths_below(service.data_dir, f"*{job_id}*"))


def test_what_an_agent_changed_and_committed_is_in_the_diff_and_in_changes(
    default_service: Service, common_dir: Path
) -> None:
    service = default_service
    repository = service.root / "workspace"
    job = service.run_job(
        '[[standin: write="greeting.txt:good bye\n" commit="Say good bye" write="new.txt:new\n"]]',
        workspace="default",
    )
    assert job["state"] == "completed", job
    assert job["commit"] == job["changes"]["base"]
    assert job["changes"]["head"] != job["changes"]["base"]
    assert (job["changes"]["files"], job["changes"]["insertions"], job["changes"]["deletions"]) == (2, 2, 1)
    answer = service.client.get(f"/v1/jobs/{job['id']}/diff")
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/x-diff")
    git_copy = common_dir / "copy"
    from steadyhand.testing.service import run_git  # noqa: PLC0415  # used by this test alone

    run_git(common_dir, "clone", "-q", str(repository), str(git_copy))
    (common_dir / "changes.diff").write_bytes(answer.content)
    run_git(git_copy, "apply", "--index", str(common_dir / "changes.diff"))
    assert (git_copy / "greeting.txt").read_text() == "good bye\n"
    assert (git_copy / "new.txt").read_text() == "new\n"
    # The repository that it came from is as it was.
    assert (repository / "greeting.txt").read_text() == "hello\n"
    assert run_git(repository, "status", "--porcelain") == ""


def test_the_agents_own_record_is_given_line_by_line(service: Service) -> None:
    job = service.run_job('[[standin: say="one" text="two"]]')
    answer = service.client.get(f"/v1/jobs/{job['id']}/transcript")
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert {"user", "assistant"} <= {line["type"] for line in lines}


def test_an_output_schema_gives_an_object(service: Service) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    job = service.run_job("hello", output_schema=schema)  # the stand-in makes one when it is told the schema
    assert (job["state"], job["structured_output"]) == ("completed", {"n": 1})


@pytest.mark.parametrize(
    ("service", "workspace"),
    [
        long("default", "scratch"),
        ("default", "default"),
        ("classic", "scratch"),
        long("classic", "default"),
    ],
    indirect=["service"],
)
def test_model_turns_effort_and_system_prompt_reach_the_agent(service: Service, workspace: str) -> None:
    fields: dict[str, Any] = {"model": "haiku", "max_turns": 7, "effort": "low", "workspace": workspace}
    job = service.run_job("[[standin: report]]", append_system_prompt="Be brief.", **fields)
    report = json.loads(job["answer"])
    argv = report["argv"]
    assert argv[argv.index("--max-turns") + 1] == "7"
    assert argv[argv.index("--effort") + 1] == "low"
    assert "haiku" in report["model"]
    assert job["model"] == "haiku"
    file = argv[argv.index("--append-system-prompt-file") + 1]
    words = "tr '\\0' '\\n' < /proc/$PPID/cmdline"
    read = service.run_job(
        shell_prompt(f"cat $({words} | grep ^/.*append-system-prompt-)"),
        append_system_prompt="Be brief.",
        **fields,
    )
    assert (read["answer"], Path(file).suffix) == ("Be brief.", ".md")


@LONG_CLASSIC
def test_the_built_in_chat_has_no_tools(service: Service) -> None:
    argv = json.loads(service.run_job("[[standin: report]]", agent="chat")["answer"])["argv"]
    assert argv[argv.index("--tools") + 1] == ""
    assert "--agent" not in argv


def test_the_agents_that_can_be_asked_for_are_listed_with_their_limits(service: Service) -> None:
    answer = service.client.get("/v1/agents")
    assert answer.status_code == 200
    agents = {agent["name"]: agent for agent in answer.json()["data"]}
    assert {"claude", "chat", "issue-responder", "recruiter-triage"} <= set(agents)
    assert not {"Explore", "Plan", "general-purpose"} & set(agents)
    assert agents["issue-responder"]["budget_usd"] == "5.000000"
    assert agents["chat"]["budget_usd"] == "0.250000"


def test_the_workspaces_are_listed(service: Service) -> None:
    answer = service.client.get("/v1/workspaces")
    assert answer.status_code == 200
    (workspace,) = answer.json()["data"]
    assert (workspace["name"], workspace["mode"]) == (
        "default",
        "in_place" if service.classic else "checkout",
    )


@LONG_CLASSIC
def test_the_callers_key_may_submit_read_and_cancel(service: Service) -> None:
    with service.new_client(CLASSIC_KEY) as caller:
        job = caller.post(
            "/v1/jobs", json={"prompt": "hello", "workspace": "scratch"}, headers={"prefer": "wait=30"}
        ).json()
        assert job["state"] == "completed"
        assert caller.get(f"/v1/jobs/{job['id']}").status_code == 200
        assert caller.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
        assert {one["api_key_id"] for one in caller.get("/v1/jobs").json()["data"]} == {job["api_key_id"]}


def test_without_any_key_the_first_start_writes_one_and_says_where(make_service: MakeService) -> None:
    service = make_service(env={"API_BEARER_TOKEN": None, "STEADYHAND_API_KEY": None}).start()
    path = service.data_dir / "admin.key"
    assert path.stat().st_mode & 0o777 == 0o600
    key = path.read_text().strip()
    assert str(path) in service.log
    assert key not in service.log
    with service.new_client(key) as admin:
        assert admin.get("/v1/jobs").status_code == 200
    service.terminate()
    service.restart()
    assert path.read_text().strip() == key
