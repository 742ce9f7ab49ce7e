"""An answer that the real CLI continues after a limit of tokens is whole by every door, each part once."""

import json

import pytest

from steadyhand.testing.service import Service

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
PROMPT = "[[scenario:cut-answer]] Tell."
WHOLE = "The first half,\n\nand the second half."


@pytest.fixture
def real(real_default: Service) -> Service:
    return real_default


@pytest.mark.long  # the chat below has it in one piece, too
def test_a_job_has_the_whole_answer(real: Service) -> None:
    job = real.run_job(PROMPT, agent="chat")
    assert (job["state"], job["answer"]) == ("completed", WHOLE)


def test_a_chat_has_the_whole_answer_in_one_piece_and_streamed(real: Service) -> None:
    body = {"model": "chat", "messages": [{"role": "user", "content": PROMPT}]}
    reply = real.client.post(CHAT, json=body, timeout=60).json()
    assert reply["choices"][0]["message"]["content"] == WHOLE
    streamed = real.client.post(CHAT, json={**body, "stream": True}, timeout=60).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == WHOLE


def test_a_response_has_both_parts_once(real: Service) -> None:
    reply = real.client.post(RESPONSES, json={"model": "chat", "input": PROMPT}, timeout=60).json()
    texts = [item["content"][0]["text"] for item in reply["output"] if item["type"] == "message"]
    assert texts == WHOLE.split("\n\n")


ERRORS = (
    ("bad-request", 400, "invalid_request_error"),
    ("no-such-model", 404, "not_found_error"),
    ("forbidden", 403, "permission_error"),
    ("no-credit", 402, "invalid_request_error"),
)
QUICK = {
    ("bad-request", False, CHAT),
    ("no-such-model", False, RESPONSES),
    ("forbidden", False, CHAT),
    ("forbidden", True, CHAT),
    ("no-credit", False, RESPONSES),
}
"""The cases of `make test`: each error once, and one of them in a stream, too."""


@pytest.mark.parametrize(
    ("scenario", "status", "kind", "stream", "route"),
    [
        pytest.param(
            *case, stream, route, marks=() if (case[0], stream, route) in QUICK else pytest.mark.long
        )
        for case in ERRORS
        for stream in (False, True)
        for route in (CHAT, RESPONSES)
    ],
)
def test_an_error_of_the_model_for_good_has_its_own_status_and_is_not_to_be_retried(
    real: Service, route: str, scenario: str, status: int, kind: str, *, stream: bool
) -> None:
    prompt = f"[[scenario:{scenario}]] Tell."
    given = {"messages": [{"role": "user", "content": prompt}]} if route == CHAT else {"input": prompt}
    reply = real.client.post(route, json={"model": "chat", "stream": stream, **given}, timeout=60)
    if not stream:
        assert (reply.status_code, reply.headers["x-should-retry"]) == (status, "false"), reply.text
        error = reply.json()["error"]
        assert (error["code"], error["type"]) == ("execution_failed", kind)
    elif route == CHAT:
        error = json.loads(reply.text.strip().splitlines()[-1].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("execution_failed", kind)
    job = real.get_job(reply.headers["x-steadyhand-job-id"])
    assert job["error"]["retryable"] is False
