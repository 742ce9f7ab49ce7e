"""`steadyhand run --estimate`: what a job is likely to cost and to last; nothing runs."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cli.command_line import CommandLine, RealService, ScriptedAnswer, ScriptedService

from steadyhand.client import Client

BURN = {"usd_per_day": "1.302857", "since": "2026-01-01T00:00:00Z", "priced": True}


def budget(scope: str, **fields: Any) -> dict[str, Any]:
    return {
        "scope": scope,
        "name": "",
        "period": "day",
        "limit_usd": "10.000000",
        "spent_usd": "4.000000",
        "exhausted": False,
        "resets_at": "2026-01-10T00:00:00Z",
        "burn": BURN,
        "runs_out_at": None,
    } | fields


def forecast(**fields: Any) -> dict[str, Any]:
    return {
        "object": "forecast",
        "agent": "claude",
        "workspace": None,
        "model": None,
        "api_key_id": None,
        "days": 30,
        "since": "2025-12-10T00:00:00Z",
        "jobs": 182,
        "least_jobs": 5,
        "cost": {"p50_usd": "0.041200", "p90_usd": "0.310500", "jobs": 180},
        "duration": {"p50_seconds": 40.93, "p90_seconds": 312, "jobs": 182},
        "burn": BURN,
        "budgets": [],
    } | fields


NOTHING = {"cost": None, "duration": None, "burn": None, "jobs": 2}


def asked(service: ScriptedService) -> list[dict[str, list[str]]]:
    assert {(request.method, request.path.partition("?")[0]) for request in service.requests} == {
        ("GET", "/v1/forecast")
    }
    return [parse_qs(urlsplit(request.path).query) for request in service.requests]


def test_cost_time_spending_and_budgets_are_told_and_nothing_is_submitted(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    budgets = [
        budget("key", name="k_7", runs_out_at="2026-01-09T14:30:00Z"),
        budget("agent", name="claude", exhausted=True),
        budget("service"),
        budget("key", name="k_7", period="month", burn=None),
    ]
    service.respond("GET", "/v1/forecast", ScriptedAnswer.of(forecast(budgets=budgets)))
    ran = steadyhand("run", "--estimate", "--agent", "claude", "--budget", "0.2")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [
        "agent claude: 182 jobs of the last 30 days",
        "cost      half at most $0.0412, nine of ten at most $0.3105 (180 jobs)",
        "duration  half at most 40.9s, nine of ten at most 5m 12s (182 jobs)",
        "spending  $1.3029 a day",
        "budget    key k_7, day: $4.0000 of $10.0000 spent; at $1.3029 a day it runs out 2026-01-09 14:30 UTC",
        "budget    agent claude, day: $4.0000 of $10.0000 spent; nothing is left until 2026-01-10 00:00 UTC",
        "budget    service, day: $4.0000 of $10.0000 spent; at this rate it lasts until 2026-01-10 00:00 UTC",
        "budget    key k_7, month: $4.0000 of $10.0000 spent; nothing was spent lately",
    ]
    assert "below the cost of one in ten such jobs" in ran.err
    assert asked(service) == [{"agent": ["claude"]}]


def test_what_is_not_known_is_said_and_is_never_zero(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    unpriced = BURN | {"priced": False}
    service.respond("GET", "/v1/forecast", ScriptedAnswer.of(forecast(**NOTHING | {"burn": unpriced})))
    ran = steadyhand("run", "--estimate", "--budget", "0.1")
    assert ran.out.splitlines() == [
        "agent claude: 2 jobs of the last 30 days",
        "cost      not known: fewer than 5 jobs with a known cost",
        "duration  not known: fewer than 5 jobs",
        "spending  $1.3029 a day at most (a model has no price)",
    ]
    assert ran.err == ""
    assert asked(service) == [{}]


def test_with_too_few_jobs_in_the_workspace_those_of_the_agent_are_told(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    narrow = forecast(**NOTHING, workspace="infra", model="opus")
    service.respond("GET", "/v1/forecast", ScriptedAnswer.of(narrow), ScriptedAnswer.of(forecast()))
    ran = steadyhand("run", "--estimate", "-w", "infra", "-m", "opus", "-a", "claude")
    assert ran.out.startswith(
        "agent claude: 182 jobs of the last 30 days, of any workspace and model: too few of that one\n"
    )
    assert asked(service) == [
        {"agent": ["claude"], "workspace": ["infra"], "model": ["opus"]},
        {"agent": ["claude"]},
    ]


def test_json_is_the_forecast_itself(steadyhand: CommandLine, service: ScriptedService) -> None:
    narrow = forecast(workspace="infra\x1b[31m")
    service.respond("GET", "/v1/forecast", ScriptedAnswer.of(narrow))
    assert json.loads(steadyhand("run", "--estimate", "-w", "infra", "--json").out) == narrow
    ran = steadyhand("run", "--estimate", "-w", "infra")
    assert ran.out.startswith("agent claude, workspace infra")
    assert "\x1b" not in ran.out


def test_a_real_service_estimates_from_its_jobs_and_tells_the_budget_of_the_key(
    live: CommandLine, real_service: RealService
) -> None:
    secret = json.loads(live("keys", "create", "estimated", "--budget-per-day", "2", "--json").out)["secret"]
    prompt = '[[standin: text="Done." cost=0.01]]'
    with Client(real_service.url, secret) as client:
        jobs = [client.submit(prompt) for _ in range(5)]
        assert {client.wait(job, timeout_seconds=60).state for job in jobs} == {"completed"}
    ran = live("run", "--estimate", "--json", STEADYHAND_TOKEN=secret)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["jobs"] == 5
    assert found["cost"] == {"p50_usd": "0.010000", "p90_usd": "0.010000", "jobs": 5}
    assert found["duration"]["p90_seconds"] > 0
    (day,) = found["budgets"]
    assert (day["scope"], day["period"], day["limit_usd"]) == ("key", "day", "2.000000")
    assert day["spent_usd"] == "0.050000"
    assert found["burn"]["usd_per_day"] != "0.000000"
