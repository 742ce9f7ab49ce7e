"""`POST /execute` and `GET /jobs/{job_id}`: what the earlier service's callers rely on, in both profiles."""

import hashlib
import json
import re
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.blackbox.conftest import LONG_CLASSIC, LONG_DEFAULT, long

from steadyhand.testing.service import CLASSIC_KEY, Service, wait_until

ENDED: dict[str, tuple[str, int | None, str]] = {
    "completed": ("", 0, "completed"),
    "failed by its exit code": ("[[standin: result=none exit=7 stderr=broken]]", 7, "failed"),
    "failed by an error result": ("[[standin: result=error]]", 1, "failed"),
    "failed by an empty answer": ("[[standin: result=empty]]", 0, "failed"),
    "failed by a success that exits 1": ("[[standin: api_error=402]]", 1, "failed"),
    "failed by exit 0 with an error result": ("[[standin: is_error exit=0]]", 0, "failed"),
    "failed by exit 0 without a result": ("[[standin: result=none]]", 0, "failed"),
    "failed by a signal, which leaves no exit code": ("[[standin: die=KILL]]", None, "failed"),
    "failed by spending its budget": ("[[standin: result=max_budget]]", 1, "failed"),
}
MORE_ENDS = {
    "failed by an error result",
    "failed by an empty answer",
    "failed by exit 0 without a result",
    "failed by spending its budget",
}
"""Ends that `test_jobs` judges, too."""


@cache
def ended_hello(service: Service) -> str:
    """Return a job that ended well and was asked for with nothing but what is required; one for all tests."""
    job_id: str = service.execute_classic("hello")["job_id"]
    assert service.poll_classic(job_id)["status"] == "completed"
    return job_id


def test_a_job_is_accepted_with_202_an_id_of_12_hex_digits_and_the_word_running(service: Service) -> None:
    answer = service.client.post("/execute", json={"prompt": "hello", "agent": "claude"})
    assert answer.status_code == 202
    body = answer.json()
    assert re.fullmatch(r"[0-9a-f]{12}", body["job_id"])
    assert body == {"job_id": body["job_id"], "status": "running"}
    assert service.poll_classic(body["job_id"])["status"] == "completed"


def test_the_native_route_knows_the_job_by_the_same_id(service: Service) -> None:
    job_id = ended_hello(service)
    job = service.get_job(job_id)
    assert (job["id"], job["origin"], job["prompt"]) == (job_id, "classic", "hello")


@LONG_DEFAULT
def test_the_key_that_callers_have_always_had_is_enough(service: Service) -> None:
    with service.new_client(CLASSIC_KEY) as caller:
        job_id = caller.post("/execute", json={"prompt": "hello", "agent": "claude"}).json()["job_id"]
        wait_until(lambda: caller.get(f"/jobs/{job_id}").json()["status"] != "running")
        assert caller.get(f"/jobs/{job_id}").json()["status"] == "completed"


def test_budget_and_timeout_have_the_defaults_of_the_earlier_service(service: Service) -> None:
    job = service.get_job(ended_hello(service))
    assert (job["budget_usd"], job["timeout_seconds"]) == ("5.000000", 2700)


@LONG_DEFAULT
def test_budget_and_timeout_are_taken_as_asked(service: Service) -> None:
    job_id = service.execute_classic("hello", max_budget_usd=0.25, timeout_seconds=60)["job_id"]
    service.poll_classic(job_id)
    job = service.get_job(job_id)
    assert (job["budget_usd"], job["timeout_seconds"]) == ("0.250000", 60)


@pytest.mark.parametrize("metadata", [long(None), long({}), {"a": {"b": [1, 2.5, None, "ü"]}, "z": ""}])
@LONG_DEFAULT
def test_metadata_comes_back_as_it_came(service: Service, metadata: Any) -> None:
    job_id = service.execute_classic("hello", metadata=metadata)["job_id"]
    assert service.poll_classic(job_id)["metadata"] == metadata


def test_metadata_that_was_left_out_is_null(service: Service) -> None:
    assert service.poll_classic(ended_hello(service))["metadata"] is None


@pytest.mark.parametrize(
    "asked",
    [long("issue-responder"), long(".claude/agents/issue-responder"), ".claude/agents/issue-responder.md"],
)
@LONG_DEFAULT
def test_an_agent_may_be_named_by_its_path(service: Service, asked: str) -> None:
    job_id = service.execute_classic("[[standin: report]]", asked)["job_id"]
    job = service.poll_classic(job_id)
    assert (job["status"], job["agent"]) == ("completed", "issue-responder")
    argv = json.loads(json.loads(job["output"][-1])["result"])["argv"]
    assert argv[argv.index("--agent") + 1] == "issue-responder"


@LONG_DEFAULT
def test_an_agent_that_nobody_defined_ends_as_failed_with_the_names_there_are(service: Service) -> None:
    body = service.execute_classic("hello", "nobody")
    assert body["status"] == "running"
    job = service.poll_classic(body["job_id"])
    assert (job["status"], job["exit_code"]) == ("failed", 1)
    found = re.search(r"--agent 'nobody' not found\. Available agents: (.+)", job["stderr"])
    assert found is not None
    assert "issue-responder" in found[1]
    # No model call: nothing was spent.
    assert service.get_job(body["job_id"])["usage"]["output_tokens"] == 0


@LONG_DEFAULT
def test_while_it_runs_a_job_says_running_and_nothing_of_its_end(service: Service, common_dir: Path) -> None:
    go = common_dir / "go"
    job_id = service.execute_classic(f"[[standin: wait_for={go}]]", metadata={"k": 1})["job_id"]
    try:
        wait_until(lambda: service.client.get(f"/jobs/{job_id}").json()["state"] == "running")
        job = service.client.get(f"/jobs/{job_id}").json()
        assert job["status"] == "running"
        assert {"prompt", "agent", "metadata", "started_at"} <= set(job)
        assert not {"finished_at", "exit_code", "output", "stderr", "error"} & set(job)
        assert datetime.fromisoformat(job["started_at"]).utcoffset() is not None
    finally:
        go.touch()
    assert service.poll_classic(job_id)["status"] == "completed"


@pytest.mark.parametrize("case", [long(case) if case in MORE_ENDS else case for case in ENDED])
@LONG_DEFAULT
def test_an_ended_job_has_its_status_exit_code_output_and_stderr(service: Service, case: str) -> None:
    prompt, exit_code, status = ENDED[case]
    job = service.poll_classic(service.execute_classic(prompt or "hello")["job_id"])
    assert (job["status"], job["exit_code"]) == (status, exit_code)
    assert isinstance(job["output"], list)
    assert all(isinstance(line, str) for line in job["output"])
    assert isinstance(job["stderr"], str)
    assert datetime.fromisoformat(job["finished_at"]) >= datetime.fromisoformat(job["started_at"])
    assert datetime.fromisoformat(job["finished_at"]).utcoffset() == timedelta(0)
    assert "error" not in job


@LONG_DEFAULT
def test_what_the_agent_wrote_to_stderr_is_in_stderr(service: Service) -> None:
    job = service.poll_classic(
        service.execute_classic('[[standin: result=none exit=3 stderr="it broke"]]')["job_id"]
    )
    assert "it broke" in job["stderr"]


def test_output_joined_parses_as_the_result_that_the_cli_prints(service: Service) -> None:
    prompt = '[[standin: text="forty-two" cost=0.02 input=11 output=7]]'
    job = service.poll_classic(service.execute_classic(prompt)["job_id"])
    result = json.loads("".join(job["output"]))
    assert result["type"] == "result"
    assert (result["subtype"], result["is_error"], result["result"]) == ("success", False, "forty-two")
    assert result["total_cost_usd"] == pytest.approx(0.02)
    assert (result["usage"]["input_tokens"], result["usage"]["output_tokens"]) == (11, 7)
    assert result["session_id"]
    assert job["output"][-1].endswith("\n")
    assert len(job["output"]) == 1


@LONG_DEFAULT
def test_lines_that_are_no_protocol_are_kept_before_the_result(service: Service) -> None:
    job = service.poll_classic(service.execute_classic("[[standin: flood_raw=8K]]")["job_id"])
    *before, last = job["output"]
    assert len(before) == 2
    assert all(line.startswith("this line is not JSON") and line.endswith("\n") for line in before)
    assert json.loads(last)["type"] == "result"


@LONG_DEFAULT
def test_output_above_a_mebibyte_keeps_its_ends_and_says_what_was_left_out(service: Service) -> None:
    job = service.poll_classic(service.execute_classic("[[standin: flood_raw=3M]]")["job_id"])
    assert job["status"] == "completed"
    *printed, result = job["output"]
    (note,) = [at for at, line in enumerate(printed) if re.fullmatch(r"\[\d+ bytes left out\]\n", line)]
    head, tail = "".join(printed[:note]), "".join(printed[note + 1 :])
    assert 0 <= len(head) - 256 * 1024 <= 1  # a line that was cut ends all the same
    assert len(tail) == 768 * 1024
    assert int(re.findall(r"\d+", printed[note])[0]) == 3 * 1024 * 1024 - 1024 * 1024
    assert json.loads(result)["type"] == "result"


@LONG_CLASSIC
def test_a_result_of_three_mebibytes_is_never_cut(service: Service) -> None:
    prompt = "x" * 3_000_000
    job = service.poll_classic(service.execute_classic(f"[[standin: history chunk=65536]]{prompt}")["job_id"])
    result = json.loads(job["output"][-1])
    assert prompt in result["result"]


@pytest.mark.parametrize(
    "prompt",
    [
        long("--version"),
        "--mcp-config=/etc/passwd",
        long("-p"),
        long("--dangerously-skip-permissions"),
        "$(id)",
        long("@file"),
        "/clear",
    ],
)
@LONG_DEFAULT
def test_a_prompt_that_looks_like_an_option_reaches_the_agent_as_text(service: Service, prompt: str) -> None:
    job = service.poll_classic(service.execute_classic(prompt)["job_id"])
    assert json.loads(job["output"][-1])["result"] == f"ok: {prompt}"


@LONG_DEFAULT
def test_a_prompt_of_two_megabytes_reaches_the_agent_whole(service: Service) -> None:
    prompt = "[[standin: digest]]" + "0123456789abcdef" * 125_000
    job = service.poll_classic(service.execute_classic(prompt)["job_id"])
    told = json.loads(json.loads(job["output"][-1])["result"])
    assert told == {"length": len(prompt), "sha256": hashlib.sha256(prompt.encode()).hexdigest()}


@LONG_DEFAULT
def test_a_prompt_with_every_kind_of_character_comes_back_as_it_came(service: Service) -> None:
    prompt = "ü 漢字 🦜 \u200b \u2028 \t\r\n 'quotes\" \\ end"
    job_id = service.execute_classic(prompt)["job_id"]
    assert service.poll_classic(job_id)["prompt"] == prompt


def test_an_unknown_job_is_404_with_job_not_found(service: Service) -> None:
    for job_id in ("000000000000", "nothing", "%2e%2e", "0" * 300):
        answer = service.client.get(f"/jobs/{job_id}")
        assert (answer.status_code, answer.json()["detail"]) == (404, "Job not found")


@LONG_DEFAULT
def test_a_timeout_says_timeout_and_its_output_is_a_list(service: Service) -> None:
    job = service.poll_classic(service.execute_classic("[[standin: sleep=30]]", timeout_seconds=1)["job_id"])
    assert job["status"] == "timeout"
    assert isinstance(job["output"], list)


@LONG_DEFAULT
def test_a_cancelled_job_says_error_with_one_line_of_why(service: Service, common_dir: Path) -> None:
    job_id = service.execute_classic(f"[[standin: touch={common_dir}/on sleep=30]]")["job_id"]
    wait_until((common_dir / "on").exists)
    assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202)
    job = service.poll_classic(job_id)
    assert (job["status"], job["state"]) == ("error", "cancelled")
    assert job["error"]
    assert "\n" not in job["error"]


def test_a_queued_job_says_running_with_its_acceptance_as_start(
    default_service: Service, common_dir: Path
) -> None:
    service = default_service
    go = common_dir / "go"
    ids = [service.submit(f"[[standin: wait_for={go}]]")["id"] for _ in range(4)]
    try:
        wait_until(lambda: service.client.get("/health").json()["active"] == 4)
        job_id = service.execute_classic("hello")["job_id"]
        job = service.client.get(f"/jobs/{job_id}").json()
        assert (job["status"], job["state"]) == ("running", "queued")
        accepted = datetime.fromisoformat(job["started_at"])
        assert accepted == datetime.fromisoformat(service.get_job(job_id)["created_at"])
    finally:
        go.touch()
    assert datetime.fromisoformat(service.poll_classic(job_id)["started_at"]) > accepted
    for one in ids:
        service.wait_until_ended(one)
