"""Whatever comes, no answer is a 5xx and every refusal has the one body."""

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.api_service import RunningService
from tests.example_counts import examples

from steadyhand.api.schemas.requests import JobRequest
from steadyhand.api.transport.body import fingerprint, parse_json
from steadyhand.errors import InvalidRequest

FAST = settings(
    max_examples=examples(60, quick=20),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=12)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
# `prompt` says nothing that the test's agent would hold on to.
FIELDS = st.dictionaries(
    st.sampled_from([*JobRequest.model_fields, "nope", "max_budget_usd"]), VALUES, max_size=6
)
HEADERS = {"content-type": "application/json"}


def judged(reply: httpx2.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        body = reply.json()
        assert body["status"] == reply.status_code
        assert body["error"]["message"] == body["detail"]
        assert body["request_id"] == reply.headers["x-request-id"]


@FAST
@given(FIELDS, st.sampled_from(["/v1/jobs", "/execute"]))
def test_bodies_of_any_values(client: httpx2.Client, fields: dict[str, Any], path: str) -> None:
    if fields.get("prompt", "").__class__ is str and "prompt" in fields:
        fields["prompt"] = "say " + fields["prompt"]
    judged(client.post(path, content=json.dumps(fields).encode(), headers=HEADERS))


@FAST
@given(VALUES, st.sampled_from(["/v1/jobs", "/execute", "/v1/chat/completions"]))
def test_bodies_that_are_any_value(client: httpx2.Client, value: Any, path: str) -> None:
    judged(client.post(path, content=json.dumps(value).encode(), headers=HEADERS))


@FAST
@given(st.binary(max_size=60), st.sampled_from(["/v1/jobs", "/execute", "/v1/chat/completions"]))
def test_bodies_of_any_bytes(client: httpx2.Client, raw: bytes, path: str) -> None:
    reply = client.post(path, content=raw, headers=HEADERS)
    judged(reply)
    assert reply.status_code in (400, 422)


@FAST
@given(
    st.dictionaries(
        st.sampled_from(
            ["messages", "stream", "n", "tools", "response_format", "metadata", "user", "modalities"]
        ),
        VALUES,
    )
)
def test_chats_of_any_values(client: httpx2.Client, fields: dict[str, Any]) -> None:
    judged(
        client.post(
            "/v1/chat/completions", content=json.dumps({"model": "x", **fields}).encode(), headers=HEADERS
        )
    )


@FAST
@given(st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_queries_of_any_text(client: httpx2.Client, name: str, value: str) -> None:
    judged(client.get("/v1/jobs", params={name: value}))
    judged(client.get("/v1/jobs", params={"cursor": value, "limit": "5"}))
    judged(client.get("/v1/jobs", params={f"metadata.{name}": value}))


@FAST
@given(st.binary(max_size=40).filter(lambda raw: 127 not in raw and min(raw, default=32) >= 32))
def test_headers_of_any_bytes_that_a_server_lets_through(client: httpx2.Client, raw: bytes) -> None:
    raw = raw.strip(b" \t")
    for name in (b"prefer", b"if-none-match", b"last-event-id", b"accept", b"origin", b"idempotency-key"):
        judged(client.get("/v1/jobs/000000000000", headers={name: raw}))
        judged(client.get("/v1/jobs", headers={name: raw}))


@FAST
@given(VALUES)
def test_a_value_that_parses_has_nothing_that_no_field_may_hold(value: Any) -> None:
    try:
        parsed = parse_json(json.dumps(value).encode())
    except InvalidRequest:
        return
    text = json.dumps(parsed, allow_nan=False, ensure_ascii=False)
    assert "\0" not in str(parsed)
    text.encode("utf-8")
    assert len(fingerprint(parsed)) == 64


@pytest.mark.parametrize("number", ["1e400", "-1E+999", "9" * 400 + ".5"])
def test_a_number_that_overflows_is_noticed(number: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(f'{{"a": [{number}]}}'.encode())


def test_a_wide_body_is_looked_through_in_its_own_memory(service: RunningService) -> None:
    with service.client() as client:
        raw = b'{"prompt":"say x","metadata":{"a":[' + b"[]," * 200_000 + b'"\\u0041"]}}'
        judged(client.post("/v1/jobs", content=raw, headers=HEADERS))
        many = {f"k{number}": 1 for number in range(50_000)}
        reply = client.post("/v1/jobs", json={"prompt": "say x", **many})
        assert reply.json()["code"] == "unknown_field"
        assert len(reply.content) < 10_000
