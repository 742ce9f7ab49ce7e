"""A budget is a wall: with each real agent, whatever it believes itself."""

import sqlite3
from pathlib import Path

import httpx2
import pytest
from tests.sandboxed.codex_services import codex_config, counted, usage

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until
from steadyhand.testing.shell import python_command, shell_prompt

TURNS = 50
A_TURN_MICROS = 6_000
"""1,000 tokens in and 1,000 out of a model that costs 1 and 5 dollars a million."""
BUDGET_CALLS = 10
SECONDS_TO_END = 10
"""Within which a run ends after the call that spent its budget."""
AGENT_MODELS = {"claude": "claude-haiku-4-5", "codex": "gpt-5.1-codex"}
SCENARIO = """\
description = "Fifty turns, each with a tool call, that cost the same."
[[turn]]
text = "Again."
[[turn.tool]]
name = "Bash"
input = { command = "echo turn >> turns.txt; wc -l < turns.txt", description = "Count" }
[turn.usage]
input_tokens = 1000
output_tokens = 1000
cache_creation_input_tokens = 0
cache_read_input_tokens = 0
"""
CONFIG = """\
[prices."claude-haiku-4-5"]
input = "1"
output = "5"
"""


@pytest.mark.parametrize(
    ("agent", "isolation"),
    [
        pytest.param(agent, level, marks=[pytest.mark.long] if level == "none" else [])
        for level in ("bwrap", "none")
        for agent in AGENT_MODELS
    ],
)
def test_a_job_of_50_turns_with_a_budget_of_ten_stops_within_one_of_it(
    make_service: MakeService, reachable_tmp: Path, agent: str, isolation: str
) -> None:
    turn = SCENARIO.partition("\n")[2]
    scenario = reachable_tmp / "fifty.toml"
    scenario.write_text(SCENARIO.partition("\n")[0] + "\n" + turn * TURNS, encoding="utf-8")
    with ScriptedModel(scenario) as model:
        service = make_service(
            claude=cli_path(), model=model.url, config=CONFIG, env={"STEADYHAND_ISOLATION": isolation}
        )
        if agent == "codex":
            key = service.root / "openai.key"
            key.write_text("sk-of-codex", encoding="utf-8")
            service.config_path.write_text(codex_config(model.url, key), encoding="utf-8")
        service.start()
        asked = {"agent": agent, "model": AGENT_MODELS[agent]}
        job_id = service.submit("go on", budget_usd=BUDGET_CALLS * A_TURN_MICROS / 1e6, **asked)["id"]
        wait_until(lambda: model.calls >= BUDGET_CALLS, 120)
        job = service.wait_until_ended(job_id, SECONDS_TO_END)
        assert (job["state"], job["outcome"]["type"]) == ("failed", "budget"), (job, service.log[-2000:])
        assert "The budget of this job (0.06 USD) is spent." in job["outcome"]["detail"]
        assert BUDGET_CALLS <= model.calls <= BUDGET_CALLS + 1, model.calls
        # What it did until then was harvested; it may go on with a higher budget, which is a wall again.
        resumed = service.client.post(f"/v1/jobs/{job_id}/resume", json={"budget_usd": 0.12})
        assert resumed.status_code == 202, resumed.text
        wait_until(lambda: model.calls >= 2 * BUDGET_CALLS, 120)
        job = service.wait_until_ended(job_id, SECONDS_TO_END)
        assert job["outcome"]["type"] == "budget"
        assert 2 * BUDGET_CALLS <= model.calls <= 2 * BUDGET_CALLS + 2, model.calls
        assert usage(job) == counted(model)


# gateway/money/test_spending.py and control/test_control.py have both rules, and the test above a resume.
@pytest.mark.long
def test_a_retry_begins_the_budget_anew_and_a_resume_goes_on_with_what_is_left(
    make_service: MakeService, reachable_tmp: Path
) -> None:
    scenario = reachable_tmp / "again.toml"
    head, _, turn = SCENARIO.partition("\n")
    scenario.write_text(f"{head}\n" + turn * TURNS, encoding="utf-8")
    with ScriptedModel(scenario) as model:
        service = make_service(claude=cli_path(), model=model.url, config=CONFIG).start()
        job = service.wait_until_ended(
            service.submit("go on", model="claude-haiku-4-5", budget_usd=0.018)["id"], 90
        )
        assert job["outcome"]["type"] == "budget"
        first = model.calls
        assert service.client.post(f"/v1/jobs/{job['id']}/retry").status_code == 202
        job = service.wait_until_ended(job["id"], 90)
        assert job["outcome"]["type"] == "budget"
        second = model.calls - first
        assert 3 <= min(first, second) <= max(first, second) <= 4
        assert job["cost"]["usd"] == f"{(first + second) * A_TURN_MICROS / 1e6:.6f}"
        spent = f"{second * A_TURN_MICROS / 1e6:.6f}"
        refused = service.client.post(f"/v1/jobs/{job['id']}/resume", json={"budget_usd": 0.018})
        assert refused.status_code == 422
        assert f"has to be above the {spent} that the job has spent" in refused.json()["detail"]
        # Less than both runs came to, and more than the budget has paid for since it began anew.
        resumed = service.client.post(f"/v1/jobs/{job['id']}/resume", json={"budget_usd": 0.030})
        assert resumed.status_code == 202, resumed.text
        assert service.wait_until_ended(job["id"], 90)["outcome"]["type"] == "budget"
        assert model.calls > first + second


# The contract of the ledger has the rule, and blackbox/test_reattach.py a budget over a kill.
@pytest.mark.long
def test_a_call_under_way_when_the_service_is_killed_costs_what_it_had_reserved(
    make_service: MakeService, model: ScriptedModel
) -> None:
    service = make_service(claude=cli_path(), model=model.url, config=CONFIG).start()
    model.clear()
    job_id = service.submit("[[scenario:slow]] go on", model="claude-haiku-4-5")["id"]
    wait_until(lambda: bool(model.requests), 60)
    wait_until(lambda: _open_calls(service) == [(job_id, 0)], 20)
    service.kill()
    service.restart()
    assert _open_calls(service) == []
    with sqlite3.connect(service.data_dir / "steadyhand.db") as database:
        query = "SELECT micros, reserved_micros, complete FROM calls WHERE job_id = ?"
        found = database.execute(query, (job_id,)).fetchall()
    assert found
    assert all(micros == reserved > 4_096 * 5 and complete == 0 for micros, reserved, complete in found)
    job = service.get_job(job_id)
    cost = sum(micros for micros, _, _ in found)
    assert (job["state"], job["cost"]["source"]) == ("interrupted", "ledger")
    assert job["cost"]["usd"] == f"{cost / 1e6:.6f}"
    assert job["usage"]["turns"] == len(found)


SHARED = {
    "agent": "The budget of the agent busy for this day (0.06 USD) is spent.",
    "day": "The budget of this key for this day (0.06 USD) is spent.",
    "month": "The budget of this key for this month (0.06 USD) is spent.",
    "service": "The budget of this service for this day (0.06 USD) is spent.",
}
SHARED_CONFIG = """\
[prices."claude-haiku-4-5"]
input = "2"
output = "10"
[agents.busy]
workspace = "scratch"
model = "claude-haiku-4-5"
{agent}
[agents.other]
workspace = "scratch"
model = "claude-haiku-4-5"
{limits}
"""


# The service's is a wall, also after a restart, in the last test here; those of agents and keys are walls in
# gateway/money/test_spending.py and api/native/test_usage.py.
@pytest.mark.long
@pytest.mark.parametrize("whose", ["service", "month", "agent", "day"])
def test_a_budget_of_many_jobs_is_a_wall_for_each_of_them_also_after_a_restart(
    make_service: MakeService, reachable_tmp: Path, whose: str
) -> None:
    scenario = reachable_tmp / f"many-{whose}.toml"
    head, _, turn = SCENARIO.partition("\n")
    scenario.write_text(f"{head}\n" + turn * 4 + '[[turn]]\ntext = "Done."\n', encoding="utf-8")
    config = SHARED_CONFIG.format(
        agent="budget_per_day_usd = 0.06" if whose == "agent" else "",
        limits="[limits]\nservice_per_day_usd = 0.06" if whose == "service" else "",
    )
    with ScriptedModel(scenario) as model:
        service = make_service(claude=cli_path(), model=model.url, config=config).start()
        limits = {f"budget_usd_per_{whose}": 0.06} if whose in ("day", "month") else None
        key = service.client.post("/v1/keys", json={"name": "one", "limits": limits}).json()
        with service.new_client(key["secret"]) as caller:
            # Four turns of 12,000 micro-dollars and a cheap one; then there is room for one more.
            first = service.wait_until_ended(_asked(caller, "busy"), 90)
            assert first["state"] == "completed", (first, service.log[-2000:])
            # The agent's own figure is by other prices.
            assert [warning["code"] for warning in first["warnings"]] == ["cost_differs"]
            assert first["cost"]["reported_usd"] != first["cost"]["usd"]
            second = service.wait_until_ended(_asked(caller, "busy"), 90)
        assert (second["state"], second["outcome"]["type"]) == ("failed", "budget"), second
        assert SHARED[whose] in second["outcome"]["detail"]
        near = [
            event["data"]
            for job in (first, second)
            for event in service.events(job["id"])
            if event["type"] == "budget.near"
        ]
        scope, period = {"day": ("key", "day"), "month": ("key", "month")}.get(whose, (whose, "day"))
        assert [(each["scope"], each["period"], each["limit_usd"]) for each in near] == [
            (scope, period, "0.06")
        ]
        calls = model.calls
        assert 6 <= calls <= 7, calls
        service.terminate()
        service.restart()
        with service.new_client(key["secret"]) as caller:
            if whose in ("day", "month"):
                refused = caller.post("/v1/jobs", json={"prompt": "go on", "agent": "busy"})
                assert (refused.status_code, refused.json()["code"]) == (429, "budget_exhausted")
                assert int(refused.headers["retry-after"]) > 0
            else:
                third = service.wait_until_ended(_asked(caller, "busy"), 90)
                assert (third["outcome"]["type"], third["cost"]["usd"]) == ("budget", "0.000000")
                assert SHARED[whose] in third["outcome"]["detail"]
        assert model.calls == calls
        # Whom the limit does not hold for works on; the service's holds for everybody.
        state = "failed" if whose == "service" else "completed"
        assert service.run_job("go on", agent="other")["state"] == state


# blackbox/test_real_cli.py holds that each of three turns has its own cost.
@pytest.mark.long
def test_the_cost_of_a_turn_is_its_own_and_not_the_sessions(
    make_service: MakeService, model: ScriptedModel
) -> None:
    # The CLI's total grows over a session, and a fork takes it along.
    service = make_service(claude=cli_path(), model=model.url).start()
    jobs = [service.run_job("[[scenario:echo]] one")]
    for parent in (0, 1, 0):
        answer = service.client.post(
            f"/v1/jobs/{jobs[parent]['id']}/turns", json={"prompt": "[[scenario:echo]] more"}
        )
        assert answer.status_code == 202, answer.text
        jobs.append(service.wait_until_ended(answer.json()["id"], 60))
    for job in jobs:
        assert (job["state"], job["warnings"]) == ("completed", [])
        assert job["cost"]["source"] == "ledger"
        assert job["cost"]["reported_usd"] == job["cost"]["usd"] != "0.000000"


@pytest.mark.long
def test_the_cost_of_a_turn_is_its_own_in_the_classic_profile_too(
    make_service: MakeService, model: ScriptedModel
) -> None:
    service = make_service(claude=cli_path(), model=model.url, classic=True).start()
    for number in range(3):
        body = {"session_id": "kitchen", "message": f"[[scenario:echo]] {number}"}
        answer = service.client.post("/v1/conversational", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
    jobs = service.client.get("/v1/jobs").json()["data"]
    assert len(jobs) == 3
    for job in jobs:
        assert (job["state"], job["warnings"], job["cost"]["source"]) == ("completed", [], "ledger")
        assert job["cost"]["reported_usd"] == job["cost"]["usd"] != "0.000000"


ASK = """
import json, os, urllib.error, urllib.request
body = json.dumps({"model": "claude-haiku-4-5", "max_tokens": 9, "messages": []}).encode()
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "content-type": "application/json"}
asked = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body, headers)
try:
    print(urllib.request.urlopen(asked).status)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def test_what_an_agent_says_of_itself_that_never_asked_the_gateway_counts_at_once_and_later(
    make_service: MakeService, model: ScriptedModel
) -> None:
    config = "[limits]\nservice_per_day_usd = 0.5\n"
    env = {"STEADYHAND_ISOLATION": "none"}
    service = make_service(model=model.url, config=config, env=env).start()
    asking = shell_prompt(python_command(ASK))
    assert service.run_job(asking)["answer"] == "200"
    job = service.run_job("[[standin: cost=0.5 text=done]]")
    assert (job["state"], job["cost"]["source"], job["cost"]["usd"]) == ("completed", "reported", "0.500000")
    for _ in range(2):
        answer = service.run_job(asking)["answer"]
        assert answer.startswith("402 ")
        assert "The budget of this service for this day (0.50 USD) is spent." in answer
        service.terminate()
        service.restart()


def _asked(caller: httpx2.Client, agent: str) -> str:
    answer = caller.post("/v1/jobs", json={"prompt": "go on", "agent": agent})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _open_calls(service: Service) -> list[tuple[str, int]]:
    """Give the calls in the ledger on the disk that have not ended: whose, and what they cost so far."""
    with sqlite3.connect(service.data_dir / "steadyhand.db") as database:
        return list(database.execute("SELECT job_id, micros FROM calls WHERE settled = 0"))
