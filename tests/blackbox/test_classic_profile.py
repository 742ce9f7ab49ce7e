"""The classic profile: the earlier service's observable behaviour to the letter (docs/http-api.md)."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.blackbox.conftest import long

from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, MakeService, Service, run_git, wait_until


def report(service: Service, agent: str = "issue-responder", **fields: Any) -> dict[str, Any]:
    """What the agent found itself to be."""
    job = service.poll_classic(service.execute_classic("[[standin: report]]", agent, **fields)["job_id"])
    assert job["status"] == "completed", job
    return dict(json.loads(json.loads(job["output"][-1])["result"]))


def chat(service: Service, *messages: dict[str, Any], **fields: Any) -> httpx2.Response:
    return service.client.post(
        "/v1/chat/completions", json={"model": "claude-haiku-4-5", "messages": messages, **fields}
    )


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def plain_report(classic_service: Service) -> dict[str, Any]:
    """What an agent found itself to be that was asked for with nothing but what is required."""
    return report(classic_service)


@pytest.fixture(scope="module")
def customized(make_service_in: MakeService) -> Iterator[Service]:
    """A service whose profile comes from the command line, with a variable and a setting of its own."""
    with make_service_in(
        classic=True,
        env={"STEADYHAND_PROFILE": None, "TEAM_SETTING": "from the service", "STEADYHAND_CONCURRENCY": "1"},
        arguments=["--classic"],
        config='[openai]\ndefault_agent = "issue-responder"\n',
    ) as started:
        yield started


@pytest.fixture(scope="module")
def own_remote(make_service_in: MakeService) -> Iterator[Service]:
    """A service whose workspace and remote may be changed, as long as the next pull succeeds."""
    with make_service_in(classic=True) as started:
        yield started


# --- the command ---------------------------------------------------------------------------------


def test_the_command_line_is_the_earlier_services_to_the_letter(classic_service: Service) -> None:
    argv = report(classic_service, max_budget_usd=1.5)["argv"]
    assert Path(argv[0]).name == "claude"
    assert argv[1:] == [
        "-p",
        "--agent",
        "issue-responder",
        "--dangerously-skip-permissions",
        "--max-budget-usd",
        "1.5",
        "--output-format",
        "json",
    ]


def test_the_default_budget_is_on_the_command_line(plain_report: dict[str, Any]) -> None:
    argv = plain_report["argv"]
    assert float(argv[argv.index("--max-budget-usd") + 1]) == 5.0


@pytest.mark.long  # as in `tests/runner/claude/test_plain`
def test_a_model_is_added_when_a_job_names_one(classic_service: Service) -> None:
    job = classic_service.run_job(
        "[[standin: report]]", agent="issue-responder", workspace="default", model="haiku"
    )
    argv = json.loads(job["answer"])["argv"]
    assert argv[argv.index("--model") + 1] == "haiku"


def test_the_agent_inherits_the_services_environment_but_for_its_keys(customized: Service) -> None:
    service = customized
    environment = report(service)["environment"]
    assert environment["TEAM_SETTING"] == "from the service"
    key = service.environment()["ANTHROPIC_API_KEY"]
    assert (
        environment["ANTHROPIC_API_KEY"] == "[redacted]"
    )  # it is told to nobody, so its digest is asked for
    asked = service.execute_classic(
        '[[standin: run="printf %s $ANTHROPIC_API_KEY | sha256sum" text="{last}"]]'
    )
    output = json.loads(service.poll_classic(asked["job_id"])["output"][-1])
    assert output["result"].split()[0] == hashlib.sha256(key.encode()).hexdigest()
    assert "API_BEARER_TOKEN" not in environment
    assert not [name for name in environment if name.startswith("STEADYHAND_")]
    assert ADMIN_KEY not in environment.values()
    assert CLASSIC_KEY not in environment.values()
    assert [name for name, value in environment.items() if "[redacted]" in value] == ["ANTHROPIC_API_KEY"]


def test_the_agent_has_the_services_home_and_works_in_the_workspace_itself(
    classic_service: Service, plain_report: dict[str, Any]
) -> None:
    assert plain_report["environment"]["HOME"] == str(classic_service.home)
    assert plain_report["cwd"] == str(classic_service.root / "workspace")
    assert "greeting.txt" in plain_report["files"]


def test_the_agent_runs_as_an_unprivileged_user(
    classic_service: Service, plain_report: dict[str, Any], root_only: None
) -> None:
    assert plain_report["uid"] == plain_report["gid"] == classic_service.uid_base
    assert plain_report["groups"] in ([], [classic_service.uid_base])


def test_what_the_agent_writes_stays_in_the_workspace(own_remote: Service) -> None:
    service = own_remote
    job = service.poll_classic(service.execute_classic('[[standin: write="left.txt:here"]]')["job_id"])
    assert job["status"] == "completed"
    assert (service.root / "workspace" / "left.txt").read_text() == "here"


def test_the_profile_can_be_asked_for_on_the_command_line(customized: Service) -> None:
    service = customized
    assert service.client.get("/health").json()["capacity"] == 1
    assert report(service)["argv"][1:4] == ["-p", "--agent", "issue-responder"]


# --- the pull --------------------------------------------------------------------------------------


def push_from_elsewhere(service: Service, name: str) -> None:
    other = service.root / f"other-{name}"
    other.mkdir()
    service.give_to_agent(other)
    run_git(other, "clone", "-q", str(service.root / "remote.git"), ".")
    (other / name).write_text("new\n")
    run_git(other, "add", "-A")
    run_git(other, "commit", "-q", "-m", name)
    run_git(other, "push", "-q", "origin", "main")


def test_the_workspace_is_brought_up_to_date_by_a_rebasing_pull(own_remote: Service) -> None:
    service = own_remote
    workspace = service.root / "workspace"
    (workspace / "local.txt").write_text("local\n")
    run_git(workspace, "add", "-A")
    run_git(workspace, "commit", "-q", "-m", "local work")
    push_from_elsewhere(service, "pushed.txt")
    assert {"pushed.txt", "local.txt"} <= set(report(service)["files"])
    log = run_git(workspace, "log", "--format=%s").splitlines()
    assert log[:2] == ["local work", "pushed.txt"]  # rebased, not merged


def test_a_pull_that_fails_does_not_stop_the_run(own_remote: Service) -> None:
    service = own_remote
    gone = (service.root / "remote.git").rename(service.root / "gone.git")
    job_id = service.execute_classic("hello", "issue-responder")["job_id"]
    assert service.poll_classic(job_id)["status"] == "completed"
    gone.rename(service.root / "remote.git")
    assert "pull_failed" in [warning["code"] for warning in service.get_job(job_id)["warnings"]]


def test_a_pull_that_conflicts_leaves_the_workspace_as_it_was(make_service: MakeService) -> None:
    service = make_service(classic=True).start()
    workspace = service.root / "workspace"
    (workspace / "pushed.txt").write_text("ours\n")
    run_git(workspace, "add", "-A")
    run_git(workspace, "commit", "-q", "-m", "ours")
    push_from_elsewhere(service, "pushed.txt")
    job = service.poll_classic(
        service.execute_classic('[[standin: run="cat pushed.txt" text={last}]]')["job_id"]
    )
    assert json.loads(job["output"][-1])["result"] == "ours"
    assert run_git(workspace, "status", "--porcelain") == ""


# --- one at a time -----------------------------------------------------------------------------


def test_a_second_execute_is_409_and_a_second_chat_call_503_while_one_runs(
    classic_service: Service, common_dir: Path
) -> None:
    service = classic_service
    go = common_dir / "go"
    job_id = service.execute_classic(f"[[standin: wait_for={go}]]")["job_id"]
    try:
        health = service.client.get("/health").json()
        assert (health["busy"], health["capacity"]) == (True, 1)
        second = service.client.post("/execute", json={"prompt": "p", "agent": "claude"})
        assert second.status_code == 409
        assert second.json()["detail"] == "Agent is busy"
        assert int(second.headers["retry-after"]) >= 1
        third = chat(service, user("hi"))
        assert third.status_code == 503
        assert third.json() == {"error": "execution failed", "detail": "agent is busy"}
    finally:
        go.touch()
    assert service.poll_classic(job_id)["status"] == "completed"


def test_a_cron_job_that_starts_work_only_when_busy_is_false_always_gets_in(classic_service: Service) -> None:
    for _ in range(5):
        wait_until(lambda: not classic_service.client.get("/health").json()["busy"])
        answer = classic_service.client.post("/execute", json={"prompt": "hello", "agent": "claude"})
        assert answer.status_code == 202
        assert classic_service.poll_classic(answer.json()["job_id"])["status"] == "completed"


@pytest.mark.parametrize("times", [3, long(8), long(20)])
def test_a_caller_that_asks_again_as_soon_as_its_job_has_ended_gets_in(
    classic_service: Service, times: int
) -> None:
    wait_until(lambda: not classic_service.client.get("/health").json()["busy"])
    for _ in range(times):
        assert (
            classic_service.poll_classic(classic_service.execute_classic("hello")["job_id"])["status"]
            == "completed"
        )


def test_what_was_refused_while_busy_was_not_stored(classic_service: Service, common_dir: Path) -> None:
    service = classic_service
    job_id = service.execute_classic(f"[[standin: wait_for={common_dir}/go]]")["job_id"]
    before = service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]
    assert service.client.post("/execute", json={"prompt": "p", "agent": "claude"}).status_code == 409
    after = service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]
    assert [job["id"] for job in before] == [job["id"] for job in after]
    (common_dir / "go").touch()
    service.poll_classic(job_id)


# --- chat --------------------------------------------------------------------------------------


@pytest.mark.long  # as in `tests/api/classic/test_chat`
def test_chat_takes_every_models_name_and_gives_it_back(classic_service: Service) -> None:
    for name in ("claude-haiku-4-5", "gpt-4o", "anything at all"):
        answer = chat(classic_service, user('[[standin: text="yes"]]'), model=name)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name
        assert answer.json()["choices"][0]["message"]["content"] == "yes"


def test_chat_runs_recruiter_triage_with_2_dollars_and_900_seconds(classic_service: Service) -> None:
    answer = chat(classic_service, user("[[standin: report]]"))
    argv = json.loads(answer.json()["choices"][0]["message"]["content"])["argv"]
    assert argv[argv.index("--agent") + 1] == "recruiter-triage"
    assert float(argv[argv.index("--max-budget-usd") + 1]) == 2.0
    job = classic_service.client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]
    assert (job["agent"], job["budget_usd"], job["timeout_seconds"]) == ("recruiter-triage", "2.000000", 900)


def test_chat_runs_the_configured_agent(customized: Service) -> None:
    answer = chat(customized, user("[[standin: report]]"))
    argv = json.loads(answer.json()["choices"][0]["message"]["content"])["argv"]
    assert argv[argv.index("--agent") + 1] == "issue-responder"


def test_chat_makes_one_prompt_of_system_and_user_messages_in_order(classic_service: Service) -> None:
    answer = chat(
        classic_service,
        {"role": "system", "content": "one"},
        user("first"),
        {"role": "assistant", "content": "left out"},
        {"role": "system", "content": "two"},
        user("[[standin: history]]"),
    )
    ((role, prompt),) = json.loads(answer.json()["choices"][0]["message"]["content"])
    assert role == "user"
    lines = [line for line in prompt.splitlines() if line]
    assert lines == [
        "System instructions:",
        "one",
        "two",
        "---",
        "Request:",
        "first",
        "[[standin: history]]",
    ]
    assert "one\n\ntwo" in prompt
    assert "first\n\n[[standin" in prompt


def test_chat_refuses_to_stream(classic_service: Service) -> None:
    answer = chat(classic_service, user("hi"), stream=True)
    assert answer.status_code == 400
    body = answer.json()
    assert set(body) == {"error", "detail"}
    assert body["error"] == "streaming not supported"


@pytest.mark.parametrize(
    "prompt",
    [
        long("[[standin: result=error]]"),
        "[[standin: result=none exit=3 stderr=broken]]",
        long("[[standin: die=KILL]]"),
    ],
)
def test_a_failed_chat_run_is_503_with_one_short_line(classic_service: Service, prompt: str) -> None:
    answer = chat(classic_service, user(prompt))
    assert answer.status_code == 503
    body = answer.json()
    assert set(body) == {"error", "detail"}
    assert body["error"] == "execution failed"
    assert 0 < len(body["detail"]) <= 200
    assert "\n" not in body["detail"]


def test_a_chat_answer_that_is_no_json_is_the_raw_text(classic_service: Service) -> None:
    # A command that prints something else than a result object and ends well has still answered.
    answer = chat(classic_service, user("[[standin: flood_raw=4K result=none]]"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].startswith("this line is not JSON")


def test_of_an_object_the_first_text_among_result_content_text_is_the_answer(
    make_service: MakeService, common_dir: Path
) -> None:
    other = common_dir / "bin" / "claude"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\nsed 1d\n")  # prints the prompt without its first line, which is `Request:`
    other.chmod(0o755)
    service = make_service(classic=True, claude=other).start()
    for printed, answer in (
        ({"content": "from content", "text": "t"}, "from content"),
        ({"result": "", "content": 3, "text": "from text"}, "from text"),
        ({"result": "from result", "content": "c"}, "from result"),
    ):
        body = chat(service, user(json.dumps(printed))).json()
        assert body["choices"][0]["message"]["content"] == answer
    assert chat(service, user('{"other": "text"}')).status_code == 503


def test_the_planner_with_the_official_client_gets_its_answer_and_real_usage(
    classic_service: Service,
) -> None:
    with openai.OpenAI(base_url=f"{classic_service.url}/v1", api_key=CLASSIC_KEY, max_retries=0) as client:
        completion = client.chat.completions.create(
            model="claude-haiku-4-5",
            messages=[{"role": "user", "content": '[[standin: text="planned" input=3 output=4]]'}],
        )
    assert completion.choices[0].message.content == "planned"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 4)


# --- what it does better -----------------------------------------------------------------------


def test_jobs_survive_a_restart(own_remote: Service) -> None:
    service = own_remote
    job_id = service.execute_classic("hello")["job_id"]
    before = service.poll_classic(job_id)
    service.terminate()
    service.restart()
    assert service.client.get(f"/jobs/{job_id}").json() == before


def test_a_service_that_stops_takes_nothing_more_and_says_so_in_each_routes_words(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(classic=True, env={"STEADYHAND_SERVICE__DRAIN_SECONDS": "20"}).start()
    job_id = service.execute_classic(f"[[standin: touch={common_dir}/on wait_for={common_dir}/go]]")["job_id"]
    wait_until((common_dir / "on").exists)
    with service.new_client() as client:
        service.process.terminate()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        for path, body in (("/execute", {"prompt": "p", "agent": "claude"}), ("/v1/jobs", {"prompt": "p"})):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) >= 1
        answer = client.post(
            "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "p"}]}
        )
        assert (answer.status_code, answer.json()["error"]) == (503, "execution failed")
        assert set(answer.json()) == {"error", "detail"}
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").json()["busy"] is True
        (common_dir / "go").touch()  # what runs has its grace period
    assert service.process.wait(30) == 0
    service.restart()
    assert service.client.get(f"/jobs/{job_id}").json()["status"] == "completed"
    assert len(service.client.get("/v1/jobs").json()["data"]) == 1


def test_the_start_warns_that_agents_are_not_sealed_off(classic_service: Service) -> None:
    assert "isolation.none" in classic_service.log


def test_callers_of_many_threads_run_one_at_a_time(classic_service: Service, common_dir: Path) -> None:
    times = common_dir / "times"
    prompt = f'[[standin: run="echo + >> {times}; sleep 0.2; echo - >> {times}"]]'
    codes: list[int] = []

    def call() -> None:
        with classic_service.new_client() as client:
            codes.append(client.post("/execute", json={"prompt": prompt, "agent": "claude"}).status_code)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    wait_until(lambda: not classic_service.client.get("/health").json()["busy"])
    assert set(codes) <= {202, 409}
    assert 202 in codes
    marks = times.read_text().split()
    assert marks == ["+", "-"] * codes.count(202)
    assert os.access(times, os.R_OK)
