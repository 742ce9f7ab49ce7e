"""The scopes on the page of the HTTP API are those that each route asks for."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from tests.docs.pages import by_name, names_in, table, text_of

from steadyhand.job import CallbackEvent
from steadyhand.ports import ALL_SCOPES
from steadyhand.ports.outbox import DeliveryState
from steadyhand.testing.service import MakeService

PAGE = text_of("http-api.md")
ROUTE = re.compile(r"^\| `(GET|POST|PATCH|DELETE) (/[^`]+)` \| ([^|]+) \|", re.MULTILINE)
ROUTES = {(method, path): set(names_in(scopes)) for method, path, scopes in ROUTE.findall(PAGE)}

MESSAGES = [{"role": "user", "content": "Hello."}]
BODIES: Mapping[str, Any] = {
    "/v1/jobs": {"prompt": "Hello.", "workspace": "scratch"},
    "/v1/jobs/{job_id}/turns": {"prompt": "Hello."},
    "/v1/jobs/cancel": {"all": True, "dry_run": True},
    "/v1/jobs/retry": {"all": True, "dry_run": True},
    "/v1/jobs/resume": {"all": True, "dry_run": True},
    "/v1/keys": {"name": "made"},
    "/v1/schedules": {"name": "made", "cron": "@daily", "job": {"prompt": "Hello.", "workspace": "scratch"}},
    "/v1/chat/completions": {"model": "chat", "messages": MESSAGES},
    "/v1/responses": {"model": "chat", "input": "Hello."},
    "/execute": {"prompt": "Hello.", "agent": "claude"},
    "/v1/conversational": {"message": "Hello."},
}
"""A valid body for each route that asks for one."""
IDS = {"delivery_id": f"msg_{'0' * 32}", "model_id": "chat"}
"""Ids of the right form; those of jobs are others."""


def test_the_page_has_each_scope_and_no_other() -> None:
    assert set(by_name(table(PAGE, "| scope | the key may |"))) == ALL_SCOPES


def test_the_page_has_each_event_and_each_state_of_a_callback() -> None:
    assert set(by_name(table(PAGE, "| event | when |"))) == set(get_args(CallbackEvent))
    sentence = PAGE.partition("The states are ")[2].partition(".")[0]
    assert set(names_in(sentence)) == set(get_args(DeliveryState))


def test_each_route_asks_for_the_scopes_that_the_page_names(make_service: MakeService) -> None:
    service = make_service(config="[service]\nconcurrency = 8\n").start()
    secrets: dict[frozenset[str], str] = {}
    running = {"model": "chat", "input": "[[standin: sleep=600]] wait", "background": True}
    response = service.client.post("/v1/responses", json=running).json()
    ids = {**IDS, "response_id": response["id"]}

    def is_refused(method: str, path: str, scopes: set[str]) -> bool:
        if frozenset(scopes) not in secrets:
            body = {"name": "-".join(sorted(scopes)).replace(":", "-"), "scopes": sorted(scopes)}
            answer = service.client.post("/v1/keys", json=body)
            assert answer.status_code == 201, answer.text
            secrets[frozenset(scopes)] = answer.json()["secret"]
        headers = {"authorization": f"Bearer {secrets[frozenset(scopes)]}"}
        url = re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], "0" * 12), path)
        sent = None if method == "GET" else BODIES.get(path, {})
        answer = service.client.request(method, url, headers=headers, json=sent)
        return answer.status_code == 403 and answer.json()["code"] == "scope_missing"

    assert len(ROUTES) > 30
    for (method, path), needed in ROUTES.items():
        if not needed:
            continue
        assert not is_refused(method, path, needed), f"{method} {path} needs more than {sorted(needed)}"
        for scope in needed:
            others = ALL_SCOPES - {"admin", scope}
            assert is_refused(method, path, set(others)), f"{method} {path} does not need {scope}"
    service.client.post(f"/v1/responses/{response['id']}/cancel").raise_for_status()
