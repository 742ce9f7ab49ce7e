"""A conversation that comes back whole goes on in the session that it belongs to, and in no other."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from tests.blackbox.conftest import long

from steadyhand.testing.service import CLASSIC_KEY, MakeService, Service

Messages = list[dict[str, str]]
HISTORY = "[[standin: history]]"


@pytest.fixture(scope="module")
def service(make_service_in: MakeService) -> Any:
    with make_service_in(
        env={
            "STEADYHAND_ISOLATION": "none",
            "STEADYHAND_CONCURRENCY": "4",
            "STEADYHAND_SERVICE__MAX_QUEUED": "200",
        }
    ) as made:
        yield made


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def chat(
    service: Service, messages: Messages, client: httpx2.Client | None = None, **more: Any
) -> tuple[str, str]:
    """Ask, and give the answer and the job's id; `messages` gets the answer at its end, as clients keep it."""
    headers = more.pop("headers", {})
    body = {"model": "claude", "messages": messages, **more}
    answer = (client or service.client).post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    if more.get("stream"):
        text = "".join(
            choice["delta"].get("content") or ""
            for line in answer.text.splitlines()
            if line.startswith("data: {")
            for choice in json.loads(line.removeprefix("data: "))["choices"]
        )
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    messages.append({"role": "assistant", "content": text})
    return text, answer.headers["x-steadyhand-job-id"]


def responded(service: Service, said: list[Any], **more: Any) -> tuple[str, str]:
    """The same as `chat` by the Responses API: `said` gets the items of the answer at its end."""
    output, job_id = respond(service, said, **more)
    said += output
    text: str = output[-1]["content"][0]["text"]
    return text, job_id


def answered_by(route: str) -> Callable[..., tuple[str, str]]:
    return chat if route == "chat" else responded


@pytest.mark.parametrize("stream", [long(False), True])
def test_a_conversation_that_comes_back_goes_on_in_its_session(service: Service, *, stream: bool) -> None:
    said = [user(f"[[standin: say=thinking text=one-{stream}]]")]
    _, first = chat(service, said, stream=stream)
    said.append(user(HISTORY))
    answer, second = chat(service, said, stream=stream)
    job = service.get_job(second)
    assert job["parent_job_id"] == first
    assert job["session_id"] == service.get_job(first)["session_id"]
    assert answer.rstrip("]").endswith(f'["user", "{HISTORY}"')
    said.append(user(HISTORY))
    _, third = chat(service, said, stream=stream)
    assert service.get_job(third)["parent_job_id"] == second


def test_a_letter_changed_another_model_or_another_key_is_another_conversation(service: Service) -> None:
    said = [user("[[standin: text=unique-beginning]]")]
    chat(service, said)
    said.append(user(HISTORY))
    changed = [*said]
    changed[1] = {"role": "assistant", "content": "unique-beginninG"}
    assert service.get_job(chat(service, changed)[1])["parent_job_id"] is None
    with_system = [{"role": "system", "content": "Be brief."}, *said]
    assert service.get_job(chat(service, with_system)[1])["parent_job_id"] is None
    with service.new_client(CLASSIC_KEY) as other:
        assert service.get_job(chat(service, [*said], other)[1])["parent_job_id"] is None
    # What was said is known all the same: the turns that came back are the agent's history.
    answer, job_id = chat(service, changed[:3])
    assert service.get_job(job_id)["parent_job_id"] is None
    assert [role for role, _ in json.loads(answer)] == ["user", "assistant", "user"]


@pytest.mark.parametrize("route", ["chat", long("responses")])
def test_two_chats_that_begin_alike_never_share_a_session(service: Service, route: str) -> None:
    chat = answered_by(route)
    chats = [[user(f"[[standin: text=hello-{route}]]")] for _ in range(2)]
    firsts = [chat(service, said)[1] for said in chats]
    assert len({service.get_job(job_id)["session_id"] for job_id in firsts}) == 2
    seconds = []
    for word, said in zip(("left", "right"), chats, strict=True):
        said.append(user(f"[[standin: text={word}]]"))
        seconds.append(chat(service, said)[1])
    for word, said in zip(("left", "right"), chats, strict=True):
        said.append(user(HISTORY))
        answer, _ = chat(service, said)
        assert word in answer
        assert ("right" if word == "left" else "left") not in answer
    sessions = {service.get_job(job_id)["session_id"] for job_id in seconds}
    assert len(sessions) == 2


@pytest.mark.parametrize("count", [6, long(12), long(50)])
def test_interleaved_conversations_never_mix(service: Service, count: int) -> None:
    talks = [[user(f"[[standin: text=talk-{number}-of-{count}-begins]]")] for number in range(count)]

    def ask(number: int) -> tuple[str, str]:
        # By either route, streamed or not.
        return answered_by("chat" if number % 2 else "responses")(
            service, talks[number], stream=number % 4 > 1
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(count)))
        for said in talks:
            said.append(user(HISTORY))
        answers = list(pool.map(ask, range(count)))
    for number, (answer, job_id) in enumerate(answers):
        assert service.get_job(job_id)["parent_job_id"] is not None
        told = [text for _, text in json.loads(answer)]
        begin = f"talk-{number}-of-{count}-begins"
        assert told == [f"[[standin: text={begin}]]", begin, HISTORY]


def test_a_caller_names_its_conversation_by_a_header(service: Service) -> None:
    headers = {"x-session-id": "front-end/42"}
    answer = service.client.post(
        "/v1/chat/completions",
        json={"model": "claude", "messages": [user("[[standin: text=one]]")]},
        headers=headers,
    )
    assert answer.headers["x-session-id"] == "front-end/42"
    text, second = chat(service, [user(HISTORY)], headers=headers)
    assert [said for _, said in json.loads(text)] == ["[[standin: text=one]]", "one", HISTORY]
    assert service.get_job(second)["parent_job_id"] == answer.headers["x-steadyhand-job-id"]
    unnamed = service.client.post(
        "/v1/chat/completions", json={"model": "claude", "messages": [user("[[standin: text=told]]")]}
    )
    text, _ = chat(service, [user(HISTORY)], headers={"x-session-id": unnamed.headers["x-session-id"]})
    assert [said for _, said in json.loads(text)][:2] == ["[[standin: text=told]]", "told"]
    refused = service.client.post(
        "/v1/chat/completions",
        json={"model": "claude", "messages": [user("x")]},
        headers={"x-session-id": "two words"},
    )
    assert refused.status_code == 422


def test_a_response_goes_on_with_the_one_before(service: Service) -> None:
    body = {"model": "claude", "input": "[[standin: text=first-response]]"}
    first = service.client.post("/v1/responses", json=body).json()
    body = {"model": "claude", "input": HISTORY, "previous_response_id": first["id"]}
    second = service.client.post("/v1/responses", json=body)
    assert second.status_code == 200, second.text
    assert second.json()["previous_response_id"] == first["id"]
    text = second.json()["output"][-1]["content"][0]["text"]
    assert [said for _, said in json.loads(text)] == [
        "[[standin: text=first-response]]",
        "first-response",
        HISTORY,
    ]
    for wrong in ("resp_000000000000", "nonsense"):
        refused = service.client.post("/v1/responses", json={**body, "previous_response_id": wrong})
        assert (refused.status_code, refused.json()["code"]) == (400, "previous_response_not_found")
        assert refused.json()["error"]["param"] == "previous_response_id"


def respond(service: Service, items: list[Any], **more: Any) -> tuple[list[dict[str, Any]], str]:
    """Ask for a response, and give its output and the job's id."""
    answer = service.client.post("/v1/responses", json={"model": "claude", "input": items, **more})
    assert answer.status_code == 200, answer.text
    if more.get("stream"):
        events = [
            line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")
        ]
        response = json.loads(events[-1])["response"]
    else:
        response = answer.json()
    return response["output"], answer.headers["x-steadyhand-job-id"]


@pytest.mark.parametrize(
    ("refer", "stream"), [long(False, False), (True, True), long(False, True), long(True, False)]
)
def test_responses_go_on_in_the_session_of_what_comes_back(
    service: Service, *, refer: bool, stream: bool
) -> None:
    said: list[Any] = [user(f"[[standin: say=thinking run=true text=response-{refer}-{stream}]]")]
    output, first = respond(service, said, stream=stream)
    assert [item["type"] for item in output] == ["message", "mcp_call", "message"]
    said += [{"type": "item_reference", "id": item["id"]} if refer else item for item in output]
    said.append(user(HISTORY))
    output, second = respond(service, said, stream=stream)
    job = service.get_job(second)
    assert job["parent_job_id"] == first
    assert job["session_id"] == service.get_job(first)["session_id"]
    assert json.loads(output[-1]["content"][0]["text"])[0] == ["user", said[0]["content"]]
    told_otherwise = respond(service, said, instructions="Be brief.")[1]
    assert service.get_job(told_otherwise)["parent_job_id"] is None
