"""The error body and the table of errors (docs/http-api.md#errors)."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.blackbox.conftest import LONG_CLASSIC, LONG_DEFAULT, long
from tests.protected_routes import protected_routes

from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, MakeService, Service, wait_until

CHAT = {"model": "claude", "messages": [{"role": "user", "content": "hi"}]}
FIELDS = {"type", "title", "status", "detail", "code", "request_id", "errors", "error"}


def check_body(
    answer: httpx2.Response, status: int, code: str, *, native: bool = False, listed: bool = False
) -> dict[str, Any]:
    """Every error has this one body; gives it. With `listed` its detail is the earlier service's list of a 422."""
    assert answer.status_code == status, answer.text
    kind = "application/problem+json" if native else "application/json"
    assert answer.headers["content-type"].partition(";")[0] == kind
    body: dict[str, Any] = answer.json()
    assert set(body) == FIELDS
    assert (body["type"], body["status"], body["code"]) == ("about:blank", status, code)
    if listed:
        assert all(set(each) == {"type", "loc", "msg", "input"} for each in body["detail"])
        assert [each["loc"][0] for each in body["detail"]] == ["body"] * len(body["errors"])
    else:
        assert body["detail"] == body["error"]["message"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["code"] == code
    for leak in ("Traceback", "/tmp/", "site-packages", ADMIN_KEY, CLASSIC_KEY, 'File "'):  # noqa: S108  # looked for, not used
        assert leak not in answer.text
    return body


BAD_KEYS = {
    "no header": None,
    "not a Bearer header": f"Basic {ADMIN_KEY}",
    "a bare token": ADMIN_KEY,
    "a wrong token": "Bearer wrong",
    "an empty token": "Bearer",
    "a token that is not ASCII": "Bearer schlüssel",
    "a good token with more after it": f"Bearer {ADMIN_KEY} x",
}


KINDS_OF_EACH_PROFILE = {"default": ("no header", "a token that is not ASCII"), "classic": ("a bare token",)}


@pytest.mark.parametrize(
    ("service", "kind"),
    [
        (profile, kind) if kind in kinds else long(profile, kind)
        for profile, kinds in KINDS_OF_EACH_PROFILE.items()
        for kind in BAD_KEYS
    ],
    indirect=["service"],
)
def test_without_a_good_key_every_route_is_401_before_it_looks_at_the_body(
    service: Service, kind: str
) -> None:
    given = BAD_KEYS[kind]
    headers = [] if given is None else [(b"authorization", given.encode("utf-8"))]
    with service.new_client(None) as anyone:
        for method, path in protected_routes(anyone.get("/openapi.json").json()):
            answer = anyone.request(
                method, path, content=b"not json" if method == "POST" else None, headers=headers
            )
            native = path.startswith(
                (
                    *("/v1/jobs", "/v1/agents", "/v1/workspaces", "/v1/keys", "/v1/usage"),
                    *("/v1/forecast", "/v1/tools", "/v1/callbacks", "/v1/schedules", "/v1/nodes"),
                )
            )
            check_body(answer, 401, "unauthenticated", native=native)
            assert answer.headers["www-authenticate"].startswith("Bearer"), (method, path)


def test_models_need_a_key_in_the_default_profile(default_service: Service) -> None:
    with default_service.new_client(None) as anyone:
        check_body(anyone.get("/v1/models"), 401, "unauthenticated")


@pytest.mark.long  # as in `tests/api/transport/test_auth`
@pytest.mark.parametrize("profile", ["default", "classic"])
def test_a_service_with_no_key_configured_lets_nobody_in_by_an_empty_token(
    make_service: MakeService, profile: str
) -> None:
    env = {"API_BEARER_TOKEN": "", "STEADYHAND_API_KEY": None}
    service = make_service(classic=profile == "classic", env=env).start()
    for header in ("Bearer", "", "Bearer None", "Bearer null"):
        with service.new_client(None) as anyone:
            answer = anyone.post(
                "/execute", json={"prompt": "hi", "agent": "claude"}, headers={"authorization": header}
            )
        check_body(answer, 401, "unauthenticated")


class Bad(NamedTuple):
    body: Any
    pointer: str
    code: str = "invalid_field"


GOOD = {"prompt": "p", "agent": "claude"}
BAD_EXECUTES = {
    "no prompt": Bad({"agent": "claude"}, "/prompt"),
    "no agent": Bad({"prompt": "p"}, "/agent"),
    "a prompt that is a number": Bad({**GOOD, "prompt": 1}, "/prompt"),
    "a prompt that is null": Bad({**GOOD, "prompt": None}, "/prompt"),
    "an empty prompt": Bad({**GOOD, "prompt": ""}, "/prompt"),
    "a prompt of spaces": Bad({**GOOD, "prompt": " \n"}, "/prompt"),
    "a NUL in the prompt": Bad({**GOOD, "prompt": "a\0b"}, "/prompt"),
    "half a surrogate pair in the prompt": Bad(b'{"prompt": "a\\ud800b", "agent": "claude"}', "/prompt"),
    "a NUL deep in the metadata": Bad({**GOOD, "metadata": {"a": [{"b": "\0"}]}}, "/metadata/a/0/b"),
    "half a surrogate pair in a key of the metadata": Bad(
        b'{"prompt": "p", "agent": "claude", "metadata": {"\\udfff": 1}}', "/metadata"
    ),
    "a budget that is text": Bad({**GOOD, "max_budget_usd": "5"}, "/max_budget_usd"),
    "a budget that is true": Bad({**GOOD, "max_budget_usd": True}, "/max_budget_usd"),
    "a budget of zero": Bad({**GOOD, "max_budget_usd": 0}, "/max_budget_usd"),
    "a budget below zero": Bad({**GOOD, "max_budget_usd": -1}, "/max_budget_usd"),
    "a budget that is NaN": Bad(
        b'{"prompt": "p", "agent": "claude", "max_budget_usd": NaN}', "/max_budget_usd"
    ),
    "an endless budget": Bad(
        b'{"prompt": "p", "agent": "claude", "max_budget_usd": Infinity}', "/max_budget_usd"
    ),
    "a budget that overflows": Bad(
        b'{"prompt": "p", "agent": "claude", "max_budget_usd": 1e999}', "/max_budget_usd"
    ),
    "a timeout that is a fraction": Bad({**GOOD, "timeout_seconds": 1.5}, "/timeout_seconds"),
    "a timeout of zero": Bad({**GOOD, "timeout_seconds": 0}, "/timeout_seconds"),
    "a timeout below zero": Bad({**GOOD, "timeout_seconds": -5}, "/timeout_seconds"),
    "a timeout that is text": Bad({**GOOD, "timeout_seconds": "60"}, "/timeout_seconds"),
    "metadata that is a list": Bad({**GOOD, "metadata": []}, "/metadata"),
    "metadata that is text": Bad({**GOOD, "metadata": "x"}, "/metadata"),
    "a body that is a list": Bad([GOOD], ""),
    "a body that is null": Bad(b"null", ""),
    "an agent that is empty": Bad({**GOOD, "agent": ""}, "/agent"),
    "an agent of dots": Bad({**GOOD, "agent": ".."}, "/agent"),
    "an agent path that ends in dots": Bad({**GOOD, "agent": "agents/.."}, "/agent"),
    "an agent that is an option": Bad({**GOOD, "agent": "--version"}, "/agent"),
    "an agent with a newline": Bad({**GOOD, "agent": "claude\n"}, "/agent"),
    "an agent with a NUL": Bad({**GOOD, "agent": "cla\0ude"}, "/agent"),
    "an agent with a space": Bad({**GOOD, "agent": "my agent"}, "/agent"),
    "an agent with a look-alike letter": Bad({**GOOD, "agent": "cl\u0430ude"}, "/agent"),
    "an agent of 65 letters": Bad({**GOOD, "agent": "a" * 65}, "/agent"),
    "an agent that is only .md": Bad({**GOOD, "agent": ".md"}, "/agent"),
}


def check_422(service: Service, path: str, body: bytes) -> dict[str, Any]:
    native = path == "/v1/jobs"
    listed = service.classic and not native
    return check_body(post(service, path, body), 422, "invalid_field", native=native, listed=listed)


def post(service: Service, path: str, body: Any) -> httpx2.Response:
    if isinstance(body, bytes):
        return service.client.post(path, content=body, headers={"content-type": "application/json"})
    return service.client.post(path, json=body)


@pytest.mark.parametrize("case", BAD_EXECUTES)
def test_bad_input_on_execute_is_422_names_the_field_and_stores_nothing(service: Service, case: str) -> None:
    bad = BAD_EXECUTES[case]
    before = service.client.get("/v1/jobs", params={"limit": 1}).json()["data"]
    body = check_body(post(service, "/execute", bad.body), 422, bad.code, listed=service.classic)
    pointers = [fault["pointer"] for fault in body["errors"]]
    assert any(pointer.startswith(bad.pointer) for pointer in pointers), pointers
    if bad.pointer:
        assert bad.pointer.strip("/").split("/")[0] in body["error"]["message"]
    assert service.client.get("/v1/jobs", params={"limit": 1}).json()["data"] == before


def test_a_422_names_each_field_that_is_wrong_in_one_string(service: Service) -> None:
    body = check_body(
        post(service, "/execute", {"max_budget_usd": -1}), 422, "invalid_field", listed=service.classic
    )
    for field in ("prompt", "agent", "max_budget_usd"):
        assert field in body["error"]["message"]
        assert f"/{field}" in [fault["pointer"] for fault in body["errors"]]


BAD_JOBS = {
    "no prompt": Bad({}, "/prompt"),
    "an empty prompt": Bad({"prompt": ""}, "/prompt"),
    "a prompt of spaces": Bad({"prompt": " \n"}, "/prompt"),
    "a prompt that is a number": Bad({"prompt": 1}, "/prompt"),
    "a budget that is text": Bad({"prompt": "p", "budget_usd": "5"}, "/budget_usd"),
    "a budget that is true": Bad({"prompt": "p", "budget_usd": True}, "/budget_usd"),
    "an agent with a newline": Bad({"prompt": "p", "agent": "claude\n"}, "/agent"),
    "an agent of 65 letters": Bad({"prompt": "p", "agent": "a" * 65}, "/agent"),
    "an agent with a look-alike letter": Bad({"prompt": "p", "agent": "cl\u0430ude"}, "/agent"),
    "an unknown field": Bad({"prompt": "p", "promt": "x"}, "/promt", "unknown_field"),
    "a session that is none": Bad({"prompt": "p", "session": "abc"}, "/session"),
    "a session of nobody": Bad(
        {"prompt": "p", "session": "00000000-0000-4000-8000-000000000000"}, "/session"
    ),
    "a word that is none": Bad({"prompt": "p", "on_interrupt": "go on"}, "/on_interrupt"),
    "an unknown agent": Bad({"prompt": "p", "agent": "isue-responder"}, "/agent", "unknown_agent"),
    "a built-in agent of the CLI": Bad({"prompt": "p", "agent": "Explore"}, "/agent", "unknown_agent"),
    "an unknown workspace": Bad({"prompt": "p", "workspace": "infra"}, "/workspace", "unknown_workspace"),
    "an agent given by its path": Bad({"prompt": "p", "agent": ".claude/agents/x.md"}, "/agent"),
    "a model that is an option": Bad({"prompt": "p", "model": "--version"}, "/model"),
    "a ref that is an option": Bad({"prompt": "p", "ref": "--upload-pack=x"}, "/ref"),
    "a budget of zero": Bad({"prompt": "p", "budget_usd": 0}, "/budget_usd"),
    "a timeout below zero": Bad({"prompt": "p", "timeout_seconds": -1}, "/timeout_seconds"),
    "an idle timeout that is text": Bad(
        {"prompt": "p", "idle_timeout_seconds": "1"}, "/idle_timeout_seconds"
    ),
    "a priority that is a fraction": Bad({"prompt": "p", "priority": 1.5}, "/priority"),
    "metadata above 16 KiB": Bad({"prompt": "p", "metadata": {"a": "x" * 17_000}}, "/metadata"),
    "metadata that is a list": Bad({"prompt": "p", "metadata": []}, "/metadata"),
    "a schema that is text": Bad({"prompt": "p", "output_schema": "x"}, "/output_schema"),
    "an effort that is not one": Bad({"prompt": "p", "effort": "huge"}, "/effort"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
@LONG_CLASSIC
def test_bad_input_on_the_native_route_is_422_and_stores_nothing(service: Service, case: str) -> None:
    bad = BAD_JOBS[case]
    before = service.client.get("/v1/jobs", params={"limit": 1}).json()["data"]
    body = check_body(post(service, "/v1/jobs", bad.body), 422, bad.code, native=True)
    assert [fault["pointer"] for fault in body["errors"]] == [bad.pointer]
    assert service.client.get("/v1/jobs", params={"limit": 1}).json()["data"] == before


NO_NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "0", "-1", "-0.0")


@pytest.mark.parametrize("written", NO_NUMBERS)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/execute", "max_budget_usd"),
        ("/execute", "timeout_seconds"),
        ("/v1/jobs", "budget_usd"),
        ("/v1/jobs", "timeout_seconds"),
        ("/v1/jobs", "idle_timeout_seconds"),
        ("/v1/jobs", "expires_in_seconds"),
    ],
)
@LONG_CLASSIC
def test_an_amount_or_a_time_that_is_not_finite_or_not_above_nothing_is_422(
    service: Service, path: str, field: str, written: str
) -> None:
    raw = f'{{"prompt": "p", "agent": "claude", "{field}": {written}}}'
    before = service.client.get("/v1/jobs", params={"limit": 1}).json()["data"]
    body = check_422(service, path, raw.encode())
    assert [fault["pointer"] for fault in body["errors"]] == [f"/{field}"]
    assert service.client.get("/v1/jobs", params={"limit": 1}).json()["data"] == before


HOLDS_TEXT = {
    **{f"/execute {name}": ("/execute", name) for name in ("prompt", "agent")},
    **{
        f"/v1/jobs {name}": ("/v1/jobs", name)
        for name in (
            "prompt",
            "agent",
            "model",
            "workspace",
            "ref",
            "title",
            "append_system_prompt",
            "session",
        )
    },
    "/v1/chat/completions model": ("/v1/chat/completions", "model"),
}
NO_TEXTS = ("a\\u0000b", "a\\ud800b", "a\\udfffb")


@pytest.mark.parametrize("written", NO_TEXTS)
@pytest.mark.parametrize("case", HOLDS_TEXT)
@LONG_CLASSIC
def test_a_nul_or_half_a_surrogate_pair_in_any_string_is_422(
    service: Service, case: str, written: str
) -> None:
    path, field = HOLDS_TEXT[case]
    good = CHAT if path == "/v1/chat/completions" else GOOD
    raw = json.dumps({**good, field: "HERE"}).replace("HERE", written)
    before = service.client.get("/v1/jobs", params={"limit": 1}).json()["data"]
    body = check_422(service, path, raw.encode())
    assert [fault["pointer"] for fault in body["errors"]] == [f"/{field}"]
    assert service.client.get("/v1/jobs", params={"limit": 1}).json()["data"] == before


@pytest.mark.parametrize("written", NO_TEXTS)
@pytest.mark.parametrize(
    ("path", "raw", "pointer"),
    [
        ("/v1/jobs", '{"prompt": "p", "metadata": {"a": [{"b": "HERE"}]}}', "/metadata/a/0/b"),
        ("/v1/jobs", '{"prompt": "p", "metadata": {"HERE": 1}}', "/metadata"),
        ("/v1/jobs", '{"prompt": "p", "output_schema": {"title": "HERE"}}', "/output_schema/title"),
        (
            "/v1/chat/completions",
            '{"model": "claude", "messages": [{"role": "user", "content": "HERE"}]}',
            "/messages/0/content",
        ),
        (
            "/v1/chat/completions",
            '{"model": "claude", "messages": [{"role": "user", "content": [{"type": "text", "text": "HERE"}]}]}',
            "/messages/0/content/0/text",
        ),
    ],
)
@LONG_CLASSIC
def test_a_nul_or_half_a_surrogate_pair_is_found_however_deep_it_lies(
    service: Service, path: str, raw: str, pointer: str, written: str
) -> None:
    body = check_422(service, path, raw.replace("HERE", written).encode())
    assert [fault["pointer"] for fault in body["errors"]] == [pointer]


def test_an_unknown_field_comes_with_the_nearest_name(service: Service) -> None:
    answer = post(service, "/v1/jobs", {"prompt": "p", "budget": 1})
    assert "budget_usd" in check_body(answer, 422, "unknown_field", native=True)["detail"]


@pytest.mark.parametrize(
    ("path", "native"), [("/execute", False), ("/v1/jobs", True), ("/v1/chat/completions", False)]
)
def test_a_body_that_is_no_json_is_400(service: Service, path: str, *, native: bool) -> None:
    for raw in (b"", b"{", b"{'prompt': 1}", b'{"prompt": "\xff"}'):
        answer = service.client.post(path, content=raw, headers={"content-type": "application/json"})
        check_body(answer, 400, "malformed_json", native=native)


@pytest.mark.parametrize(
    ("path", "native"), [("/nowhere", True), ("/v1/nothing", True), ("/jobs/", False), ("/execute/x", True)]
)
def test_a_route_that_is_not_there_is_404(service: Service, path: str, *, native: bool) -> None:
    check_body(service.client.get(path), 404, "not_found", native=native)


@pytest.mark.parametrize(
    ("method", "path", "native"),
    [
        ("GET", "/execute", False),
        ("POST", "/health", False),
        ("DELETE", "/jobs/000000000000", False),
        ("PUT", "/v1/jobs", True),
        ("GET", "/v1/chat/completions", False),
    ],
)
def test_a_method_that_a_route_does_not_take_is_405(
    service: Service, method: str, path: str, *, native: bool
) -> None:
    answer = service.client.request(method, path)
    check_body(answer, 405, "method_not_allowed", native=native)
    assert answer.headers["allow"]


@LONG_CLASSIC
def test_events_in_a_form_that_is_not_to_be_had_are_406(service: Service) -> None:
    job_id = service.run_job("hello")["id"]
    answer = service.client.get(f"/v1/jobs/{job_id}/events", headers={"accept": "text/html"})
    check_body(answer, 406, "not_acceptable", native=True)


@pytest.mark.parametrize(("path", "native"), [("/execute", False), ("/v1/jobs", True)])
@LONG_CLASSIC
def test_a_body_above_eight_mebibytes_is_413(service: Service, path: str, *, native: bool) -> None:
    answer = post(service, path, {"prompt": "x" * (8 * 1024 * 1024), "agent": "claude"})
    check_body(answer, 413, "body_too_large", native=native)


@LONG_CLASSIC
def test_a_body_above_32_mebibytes_is_413_on_the_openai_routes(service: Service) -> None:
    big = {**CHAT, "messages": [{"role": "user", "content": "x" * (32 * 1024 * 1024)}]}
    check_body(post(service, "/v1/chat/completions", big), 413, "body_too_large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_the_native_routes_take_json_only(service: Service, kind: str) -> None:
    answer = service.client.post("/v1/jobs", content=b'{"prompt": "p"}', headers={"content-type": kind})
    check_body(answer, 415, "unsupported_media_type", native=True)


def test_a_full_queue_is_429_on_the_native_route_and_409_on_execute_and_stores_nothing(
    make_service: MakeService, common_dir: Path
) -> None:
    service = make_service(env={"STEADYHAND_CONCURRENCY": "1", "STEADYHAND_SERVICE__MAX_QUEUED": "1"}).start()
    go = common_dir / "go"
    ids = [service.submit(f"[[standin: wait_for={go}]]")["id"] for _ in range(2)]
    try:
        answer = post(service, "/v1/jobs", {"prompt": "p"})
        body = check_body(answer, 429, "queue_full", native=True)
        assert body["error"]["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
        answer = post(service, "/execute", GOOD)
        assert check_body(answer, 409, "queue_full")["detail"] == "Agent is busy"
        assert int(answer.headers["retry-after"]) >= 1
        answer = post(service, "/v1/chat/completions", CHAT)
        check_body(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert len(service.client.get("/v1/jobs").json()["data"]) == 2
    finally:
        go.touch()
    assert [service.wait_until_ended(one)["state"] for one in ids] == ["completed", "completed"]


def test_a_key_without_a_scope_is_403_with_its_name(service: Service) -> None:
    with service.new_client(CLASSIC_KEY) as caller:
        answer = caller.post("/v1/jobs", json={"prompt": "p", "workspace": "/etc"})
    body = check_body(answer, 403, "workspace_not_allowed", native=True)
    assert "workspace:any" in body["detail"]


@LONG_CLASSIC
def test_another_callers_job_is_404_on_every_route(service: Service) -> None:
    job_id = service.run_job("hello")["id"]
    with service.new_client(CLASSIC_KEY) as caller:
        check_body(caller.get(f"/jobs/{job_id}"), 404, "not_found")
        for tail in ("", "/events", "/diff", "/transcript", "/bundle"):
            check_body(caller.get(f"/v1/jobs/{job_id}{tail}"), 404, "not_found", native=True)
        for tail in ("/cancel", "/retry"):
            check_body(caller.post(f"/v1/jobs/{job_id}{tail}"), 404, "not_found", native=True)
        check_body(caller.delete(f"/v1/jobs/{job_id}"), 404, "not_found", native=True)
        assert job_id not in caller.get("/v1/jobs", params={"limit": 200}).text


@LONG_CLASSIC
def test_what_a_job_is_in_no_state_for_is_409(service: Service, common_dir: Path) -> None:
    job_id = service.submit(f"[[standin: touch={common_dir}/on wait_for={common_dir}/go]]")["id"]
    wait_until((common_dir / "on").exists)
    for tail in ("/diff", "/transcript", "/bundle"):
        check_body(service.client.get(f"/v1/jobs/{job_id}{tail}"), 409, "not_ready", native=True)
    check_body(service.client.post(f"/v1/jobs/{job_id}/retry"), 409, "invalid_state", native=True)
    check_body(service.client.delete(f"/v1/jobs/{job_id}"), 409, "invalid_state", native=True)
    (common_dir / "go").touch()
    assert service.wait_until_ended(job_id)["state"] == "completed"


@pytest.mark.long  # as in `tests/api/native/test_jobs`
def test_what_is_above_the_services_limits_is_422(make_service: MakeService) -> None:
    limits = "[limits]\nmax_budget_usd = 1.0\nmax_timeout_seconds = 60\n"
    limits += "[defaults]\nbudget_usd = 1.0\ntimeout_seconds = 60\n"
    service = make_service(config=limits).start()
    for field, value in (("budget_usd", 1.01), ("timeout_seconds", 61)):
        answer = post(service, "/v1/jobs", {"prompt": "p", field: value})
        body = check_body(answer, 422, "limit_exceeded", native=True)
        assert [fault["pointer"] for fault in body["errors"]] == [f"/{field}"]
    assert service.run_job("p", budget_usd=1.0, timeout_seconds=60)["state"] == "completed"


@LONG_CLASSIC
def test_a_cursor_that_is_none_of_ours_is_422(service: Service) -> None:
    check_body(service.client.get("/v1/jobs", params={"cursor": "x!"}), 422, "bad_cursor", native=True)
    job_id = service.run_job("hello")["id"]
    for after in ("-1", "x", "99999"):
        answer = service.client.get(f"/v1/jobs/{job_id}/events", params={"after": after})
        check_body(answer, 422, "bad_cursor", native=True)


def test_a_foreign_host_or_origin_is_refused_on_the_native_routes(service: Service) -> None:
    for headers in ({"host": "evil.example.org"}, {"origin": "https://evil.example.org"}):
        answer = service.client.get("/v1/jobs", headers=headers)
        assert answer.status_code == 403
        check_body(answer, 403, answer.json()["code"], native=True)
    assert service.client.get("/v1/jobs", headers={"origin": "http://localhost:1"}).status_code == 200


@LONG_DEFAULT
def test_unknown_fields_on_execute_are_passed_over_as_they_always_were(service: Service) -> None:
    job_id = service.execute_classic("hello", extra_field=1)["job_id"]
    assert service.poll_classic(job_id)["status"] == "completed"


def test_an_error_never_repeats_the_prompt(service: Service) -> None:
    secret = "the-prompt-is-nobodys-business"
    answer = post(service, "/execute", {"prompt": secret, "agent": 1})
    body = check_body(answer, 422, "invalid_field", listed=service.classic)
    assert not re.search(secret, str(body))
