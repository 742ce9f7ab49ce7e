"""`steadyhand keys`: what is asked of the service, what is printed where, and a whole life of a key on a real one."""

import json
from typing import Any

import pytest
from tests.cli.command_line import CommandLine, RealService, ScriptedAnswer, ScriptedService

from steadyhand.api.examples import examples
from steadyhand.client import Client
from steadyhand.errors import NotFound

SECRET = "sh_k_7h2m4q9x1z_" + "a" * 43
LIMITS: dict[str, Any] = {
    "agents": None,
    "workspaces": None,
    "requests_per_minute": None,
    "running_jobs": None,
    "queued_jobs": None,
    "budget_usd_per_day": None,
    "budget_usd_per_month": None,
    "max_budget_usd": None,
    "max_timeout_seconds": None,
    "models": None,
}


def a_key(**changes: Any) -> dict[str, Any]:
    key = {
        "object": "api_key",
        "id": "k_7h2m4q9x1z",
        "name": "ci",
        "origin": "service",
        "scopes": ["submit", "read", "cancel"],
        "limits": LIMITS,
        "created_at": "2026-01-01T00:00:00Z",
        "revoked_at": None,
        "former_secret_until": None,
    }
    return {**key, **changes}


def a_list(*keys: dict[str, Any]) -> ScriptedAnswer:
    return ScriptedAnswer.of({"object": "list", "data": keys, "has_more": False, "next_cursor": None})


def test_the_secret_alone_is_on_stdout(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("POST", "/v1/keys", ScriptedAnswer.of(a_key(secret=SECRET), 201))
    ran = steadyhand("keys", "create", "ci")
    assert (ran.code, ran.out) == (0, SECRET + "\n")
    assert "k_7h2m4q9x1z (ci)" in ran.err
    assert "not shown again" in ran.err
    assert service.requests[-1].body == {"name": "ci", "strict": True}


def test_every_option_of_create_reaches_the_service(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("POST", "/v1/keys", ScriptedAnswer.of(a_key(secret=SECRET), 201))
    options = (
        "--scope submit --scope read --agent a --agent b --workspace w --per-minute 3 --running 2 --queued 0"
    )
    ran = steadyhand(
        "keys",
        "create",
        "n",
        *options.split(),
        "--budget-per-day",
        "1.5",
        "--budget-per-month",
        "20",
        *["--max-budget", "2.5", "--max-timeout", "90", "--model", "haiku", "--model", "sonnet", "--force"],
        "--json",
    )
    assert ran.code == 0
    assert json.loads(ran.out)["secret"] == SECRET
    assert service.requests[-1].body == {
        "name": "n",
        "scopes": ["submit", "read"],
        "limits": {
            "agents": ["a", "b"],
            "workspaces": ["w"],
            "requests_per_minute": 3,
            "running_jobs": 2,
            "queued_jobs": 0,
            "budget_usd_per_day": 1.5,
            "budget_usd_per_month": 20,
            "max_budget_usd": 2.5,
            "max_timeout_seconds": 90,
            "models": ["haiku", "sonnet"],
        },
    }


def test_the_table_names_limits_that_are_there_and_leaves_out_revoked_keys(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    limits = LIMITS | {
        "running_jobs": 2,
        "queued_jobs": 0,
        "requests_per_minute": 30,
        "budget_usd_per_day": "5.000000",
        "agents": ["a", "b"],
        "max_budget_usd": "2.000000",
        "max_timeout_seconds": 90,
        "models": ["haiku"],
    }
    service.respond(
        "GET",
        "/v1/keys",
        a_list(
            a_key(id="k_admin", name="STEADYHAND_API_KEY", origin="environment"),
            a_key(limits=limits),
            a_key(id="k_gone", revoked_at="2026-01-02T00:00:00Z"),
        ),
    )
    table = steadyhand("keys", "list").out.splitlines()
    assert len(table) == 3
    assert table[1].endswith("fixed")
    assert (
        "2 running, 0 queued, 30/min, $5.0000/day, $2.0000/job, 90 s/job, agents: a b, models: haiku"
        in table[2]
    )
    assert steadyhand("keys", "list", "--all").out.splitlines()[3].endswith("revoked")
    assert len(json.loads(steadyhand("keys", "list", "--json").out)["data"]) == 2


def test_hostile_names_do_not_reach_the_terminal(steadyhand: CommandLine, service: ScriptedService) -> None:
    key = a_key(name="\x1b[2Jx\nk_fake", scopes=["\x1b]0;t\x07"], limits=LIMITS | {"agents": ["\x9b1A"]})
    service.respond("GET", "/v1/keys", a_list(key))
    service.respond("POST", "/v1/keys", ScriptedAnswer.of({**key, "secret": "\x1b[31m"}, 201))
    for arguments in (("list",), ("create", "x"), ("revoke", "none")):
        ran = steadyhand("keys", *arguments)
        assert not set("\x1b\x07\x9b") & set(ran.out + ran.err)
    assert len(steadyhand("keys", "list").out.splitlines()) == 2


@pytest.mark.parametrize("given", ["k_7h2m4q9x1z", "k_7h", "7h2", "ci"])
def test_a_key_is_found_by_its_id_a_beginning_or_its_name(
    steadyhand: CommandLine, service: ScriptedService, given: str
) -> None:
    gone = a_key(id="k_7hgone", revoked_at="2026-01-02T00:00:00Z")
    service.respond("GET", "/v1/keys", a_list(a_key(id="k_cixxx", name="other"), gone, a_key()))
    revoked = a_key(revoked_at="2026-01-03T00:00:00Z")
    service.respond("DELETE", "/v1/keys/k_7h2m4q9x1z", ScriptedAnswer.of(revoked))
    ran = steadyhand("keys", "revoke", given)
    assert (ran.code, ran.out, ran.err) == (0, "", "k_7h2m4q9x1z (ci) is revoked.\n")
    assert json.loads(steadyhand("keys", "revoke", given, "--json").out) == revoked


@pytest.mark.parametrize(("given", "code"), [("k_", 3), ("", 3), ("nobody", 3), ("k_7", 2), ("twin", 2)])
def test_a_key_that_is_not_there_or_not_the_only_one_changes_nothing(
    steadyhand: CommandLine, service: ScriptedService, given: str, code: int
) -> None:
    service.respond("GET", "/v1/keys", a_list(a_key(name="twin"), a_key(id="k_7other", name="twin")))
    for command in ("revoke", "rotate"):
        ran = steadyhand("keys", command, given)
        assert (ran.code, ran.out) == (code, "")
        assert ran.err.startswith("steadyhand: ")
    assert {asked.method for asked in service.requests} == {"GET"}


def test_a_refusal_has_its_exit_code(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", "/v1/keys", a_list(a_key()))
    for status, code, exit_code in (
        (403, "scope_missing", 4),
        (409, "invalid_state", 1),
        (422, "invalid_field", 2),
    ):
        problem = ScriptedAnswer.problem(status, code, "It is refused.")
        service.respond("POST", "/v1/keys", problem).respond("DELETE", "/v1/keys/k_7h2m4q9x1z", problem)
        for arguments in (("create", "x"), ("revoke", "ci")):
            ran = steadyhand("keys", *arguments)
            assert (ran.code, ran.out) == (exit_code, "")
            assert "It is refused." in ran.err


def test_a_wrong_use_is_2(steadyhand: CommandLine) -> None:
    for arguments in (
        ("create",),
        ("create", "x", "--running", "many"),
        ("rotate", "x", "--grace", "-1"),
        ("x",),
    ):
        assert steadyhand("keys", *arguments).code == 2


def test_an_id_that_is_none_never_becomes_part_of_a_path(service: ScriptedService) -> None:
    with Client(service.url) as client:
        for key_id in ("../jobs", "k_1/rotate", "k_1?x", "", "k_ä"):
            with pytest.raises(NotFound):
                client.revoke_key(key_id)
    assert service.requests == []


def a_usage_row(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = examples()["USAGE"]["data"][0]
    return {**row, **changes}


def test_usage_is_asked_by_day_and_printed_as_a_table(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    guessed = {"usd": "0.000003", "priced": False, "complete": False}
    service.respond("GET", "/v1/usage", a_list(a_usage_row(), a_usage_row(day="\x1b[2J", cost=guessed)))
    ran = steadyhand("usage", "--since", "2026-01-01", "--agent", "a b")
    assert ran.code == 0
    assert service.requests[-1].path == "/v1/usage?by=day&limit=1000&since=2026-01-01T00%3A00%3A00Z&agent=a+b"
    head, first, second = ran.out.splitlines()
    assert head.split() == ["DAY", "CALLS", "IN", "OUT", "CACHE", "READ", "CACHE", "WRITTEN", "COST"]
    assert first.split() == ["2026-01-01", "41", "33.3k", "13.9k", "623.6k", "82.2k", "$1.6892"]
    assert second.endswith("$0.000003  unpriced, incomplete")
    assert "\x1b" not in ran.out


def test_usage_goes_through_all_pages_and_groups_as_told(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    first = {"object": "list", "data": [a_usage_row(calls=1)], "has_more": True, "next_cursor": "1000"}
    service.respond("GET", "/v1/usage", ScriptedAnswer.of(first), a_list(a_usage_row(calls=2)))
    ran = steadyhand("usage", "--by", "api_key", "--by", "model", "--json")
    assert [row["calls"] for row in json.loads(ran.out)["data"]] == [1, 2]
    assert service.requests[-1].path == "/v1/usage?by=api_key&by=model&limit=1000&cursor=1000"
    service.respond("GET", "/v1/usage", a_list())
    assert steadyhand("usage").err == "Nothing was spent.\n"


@pytest.mark.long  # `docs/test_how_to.py` has its commands, and `api/native/test_keys.py` what they come to
def test_a_key_s_life_on_a_real_service(live: CommandLine, real_service: RealService) -> None:
    made = live("keys", "create", "night", "--per-minute", "1", "--scope", "submit", "--scope", "read")
    assert (made.code, made.err.count("\n")) == (0, 1)
    first = made.out.strip()
    assert live("run", "-q", "-w", "scratch", "hello", STEADYHAND_TOKEN=first).code == 0
    refused = live("run", "-q", "-w", "scratch", "hello", STEADYHAND_TOKEN=first)
    assert refused.code == 75
    assert "1 time a minute" in refused.err
    assert live("keys", "list", STEADYHAND_TOKEN=first).code == 4
    assert "night" in live("keys", "list").out
    rotated = live("keys", "rotate", "night", "--grace", "600")
    assert "is valid until" in rotated.err
    second = rotated.out.strip()
    assert [live("jobs", STEADYHAND_TOKEN=each).code for each in (first, second)] == [0, 0]
    assert live("keys", "revoke", "night").code == 0
    assert [live("jobs", STEADYHAND_TOKEN=each).code for each in (first, second)] == [4, 4]
    fixed = live("keys", "revoke", "admin.key")
    assert (fixed.code, "change it there" in fixed.err) == (1, True)


def test_a_key_for_an_unknown_agent_and_a_second_key_of_a_name_need_force(
    live: CommandLine, real_service: RealService
) -> None:
    unknown = live("keys", "create", "weekly", "--agent", "claud")
    assert unknown.code == 2
    assert "did you mean 'claude'? (with --force" in unknown.err
    assert "weekly" not in live("keys", "list").out
    assert live("keys", "create", "weekly", "--agent", "claude").code == 0
    second = live("keys", "create", "weekly")
    assert second.code == 2
    assert "is a valid key of this name" in second.err
    assert "--force" in second.err
    assert live("keys", "create", "weekly", "--agent", "claud", "--force").code == 0
    assert live("keys", "list").out.count("weekly") == 2
