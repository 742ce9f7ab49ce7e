"""The deliveries of callbacks on the command line: the requests, the tables, the exit codes."""

import io
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console
from tests.cli.command_line import JOB_ID, CommandLine, ScriptedAnswer, ScriptedService, event_json, job_json

import steadyhand.cli.callbacks  # noqa: F401  # adds its commands to the program
from steadyhand.api.examples import examples
from steadyhand.cli.tables import deliveries_table, endpoints_table

DELIVERY: dict[str, Any] = examples()["DELIVERY"]
PATH = f"/v1/callbacks/deliveries/{DELIVERY['id']}"


def delivery(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in DELIVERY.items() if name != "body"} | changes


def page(*rows: dict[str, Any]) -> ScriptedAnswer:
    return ScriptedAnswer.of({"object": "list", "data": rows, "has_more": False, "next_cursor": None})


def test_options_become_the_filter_of_the_list(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", "/v1/callbacks/deliveries", page(delivery()))
    options = ("--state", "failed", "--job", JOB_ID, "--endpoint", "hook", "-n", "5")
    ran = steadyhand("callbacks", "list", *options, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["data"] == [delivery()]
    query = parse_qs(urlsplit(service.requests[0].path).query)
    assert query == {"state": ["failed"], "job": [JOB_ID], "endpoint": ["hook"], "limit": ["5"]}


def test_a_list_without_deliveries_says_so_on_stderr(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", "/v1/callbacks/deliveries", page())
    ran = steadyhand("callbacks", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "No deliveries." in ran.err


@pytest.mark.parametrize("width", [200, 120, 80])
def test_ids_and_states_of_deliveries_are_whole_at_any_width(width: int) -> None:
    rows = [
        delivery(state="cancelled", error="The endpoint was removed. " * 9, endpoint="a-name" * 9),
        delivery(type="job.needs_results", state="delivered", receiver="https://example.org" * 5),
    ]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(deliveries_table(rows), crop=False)
    assert isinstance(console.file, io.StringIO)
    head, *lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert len(lines) == 2
    assert {"ID", "JOB", "STATE", "TRIES"} <= set(head.split())
    for line, state in zip(lines, ("cancelled", "delivered"), strict=True):
        assert len(line) <= width
        assert {DELIVERY["id"], DELIVERY["job_id"], state} <= set(line.split())


def test_a_receivers_text_cannot_move_the_cursor(steadyhand: CommandLine, service: ScriptedService) -> None:
    hostile = delivery(error="a\x1b[2Jb\nc", receiver="https://\u202eexample.org")
    service.respond("GET", "/v1/callbacks/deliveries", page(hostile))
    service.respond("GET", PATH, ScriptedAnswer.of(hostile | {"body": "x\x1b[2Jy"}))
    for command in (("list",), ("show", DELIVERY["id"])):
        ran = steadyhand("callbacks", *command)
        assert ran.code == 0, ran.err
        assert not {"\x1b", "\u202e"} & set(ran.out)


def test_a_delivery_is_shown_with_the_text_that_is_signed(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("GET", PATH, ScriptedAnswer.of(DELIVERY))
    ran = steadyhand("callbacks", "show", DELIVERY["id"])
    assert ran.code == 0, ran.err
    assert "state: delivered" in ran.out
    assert ran.out.endswith(f"\n\n{DELIVERY['body']}\n")
    assert json.loads(steadyhand("callbacks", "show", DELIVERY["id"], "--json").out) == DELIVERY


def test_a_replay_is_sent_once_and_not_again_if_its_answer_is_lost(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    replayed = delivery(state="pending", attempts=0)
    service.respond("POST", f"{PATH}/replay", ScriptedAnswer.of(replayed, 202))
    ran = steadyhand("callbacks", "replay", DELIVERY["id"])
    assert (ran.code, ran.out) == (0, "")
    assert f"{DELIVERY['id']} is sent once more." in ran.err
    service.respond("POST", f"{PATH}/replay", ScriptedAnswer(202, b"{", cut=True))
    before = len(service.requests)
    assert steadyhand("callbacks", "replay", DELIVERY["id"]).code == 9
    assert len(service.requests) == before + 1


@pytest.mark.parametrize("wrong", ["../jobs", "msg_x/replay", "é", ""])
def test_an_id_that_is_none_is_not_asked_for(
    steadyhand: CommandLine, service: ScriptedService, wrong: str
) -> None:
    for command in ("show", "replay"):
        assert steadyhand("callbacks", command, wrong).code == 3
    assert service.requests == []


def test_the_secret_goes_to_stdout_alone(steadyhand: CommandLine, service: ScriptedService) -> None:
    secret = examples()["CALLBACK_SECRET"]
    service.respond("GET", "/v1/callbacks/secret", ScriptedAnswer.of(secret))
    ran = steadyhand("callbacks", "secret")
    assert (ran.code, ran.out, ran.err) == (0, f"{secret['secret']}\n", "")
    assert json.loads(steadyhand("callbacks", "secret", "--json").out) == secret


ENDPOINTS = "/v1/callbacks/endpoints"


def test_an_endpoint_is_made_and_its_secret_goes_to_stdout_alone(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    made = examples()["NEW_ENDPOINT"]
    service.respond("POST", ENDPOINTS, ScriptedAnswer.of(made, 201))
    url = "https://n8n.example.org/webhook/7"
    ran = steadyhand("callbacks", "endpoints", "create", "n8n", url, "--agent", "triage", "--body", "full")
    assert (ran.code, ran.out) == (0, f"{made['secret']}\n")
    assert service.requests[0].body == {"name": "n8n", "url": url, "agents": ["triage"], "body": "full"}
    assert made["secret"] not in ran.err


def test_an_endpoint_is_changed_by_what_is_named_and_removed(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    service.respond("PATCH", f"{ENDPOINTS}/n8n", ScriptedAnswer.of(examples()["ENDPOINT"]))
    service.respond("DELETE", f"{ENDPOINTS}/n8n", ScriptedAnswer(204))
    command = ("callbacks", "endpoints")
    assert steadyhand(*command, "change", "n8n", "--event", "job.parked", "--all-agents").code == 0
    assert steadyhand(*command, "change", "n8n", "--rotate-secret").code == 0
    assert [request.body for request in service.requests] == [
        {"events": ["job.parked"], "agents": []},
        {"rotate_secret": True},
    ]
    ran = steadyhand(*command, "remove", "n8n")
    assert (ran.code, ran.out) == (0, "")
    assert "The endpoint n8n is removed." in ran.err


def test_endpoints_fit_80_columns(steadyhand: CommandLine, service: ScriptedService) -> None:
    long = examples()["ENDPOINT"] | {"receiver": "https://example.org" * 6, "agents": ["a-name" * 5] * 3}
    service.respond("GET", ENDPOINTS, ScriptedAnswer.of(examples()["ENDPOINTS"] | {"data": [long]}))
    ran = steadyhand("callbacks", "endpoints", "list")
    assert ran.code == 0, ran.err
    assert "n8n" in ran.out
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(endpoints_table([long]), crop=False)
    assert isinstance(console.file, io.StringIO)
    assert max(len(line.rstrip()) for line in console.file.getvalue().splitlines()) <= 80


def test_a_budget_that_is_nearly_spent_is_a_line_of_the_log(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    budget = {
        "scope": "agent",
        "name": "triage\x1b[31m",
        "period": "day",
        "limit_usd": "10.00",
        "spent_usd": "8.10",
    }
    ended = event_json(2, "state.changed", **{"from": "running", "to": "completed"})
    events = [event_json(1, "budget.near", **budget), ended]
    service.respond("GET", f"/v1/jobs/{JOB_ID}/events", ScriptedAnswer.stream(*events))
    service.respond("GET", f"/v1/jobs/{JOB_ID}", ScriptedAnswer.of(job_json(state="running")))
    ran = steadyhand("logs", "-f", JOB_ID)
    assert "! The budget of the agent triage" in ran.out + ran.err
    assert "for this day is nearly spent: 8.10 of 10.00 USD." in ran.out + ran.err
    assert "\x1b" not in ran.out + ran.err
