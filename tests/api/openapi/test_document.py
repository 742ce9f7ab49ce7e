"""The OpenAPI document: whole, valid, and true to what the routes do."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import pytest
from jsonschema import Draft202012Validator
from tests.api.api_service import RunningService, run_job

from steadyhand.api import ApiOptions, create_app
from steadyhand.api.examples import examples
from steadyhand.runner.claude.tool_names import TOOL_NAMES

ROUTES = {
    ("get", "/v1/nodes"),
    ("post", "/v1/nodes/{name}/drain"),
    ("post", "/v1/nodes/{name}/undrain"),
    ("get", "/v1/schedules"),
    ("post", "/v1/schedules"),
    ("get", "/v1/schedules/{name}"),
    ("patch", "/v1/schedules/{name}"),
    ("delete", "/v1/schedules/{name}"),
    ("post", "/v1/schedules/{name}/pause"),
    ("post", "/v1/schedules/{name}/resume"),
    ("post", "/v1/schedules/{name}/run"),
    ("get", "/v1/schedules/{name}/history"),
    ("get", "/health"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("post", "/execute"),
    ("get", "/jobs/{job_id}"),
    ("post", "/v1/jobs"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{job_id}"),
    ("delete", "/v1/jobs/{job_id}"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("get", "/v1/jobs/{job_id}/diff"),
    ("get", "/v1/jobs/{job_id}/transcript"),
    ("get", "/v1/jobs/{job_id}/bundle"),
    ("post", "/v1/jobs/cancel"),
    ("post", "/v1/jobs/retry"),
    ("post", "/v1/jobs/resume"),
    ("post", "/v1/jobs/{job_id}/cancel"),
    ("post", "/v1/jobs/{job_id}/retry"),
    ("post", "/v1/jobs/{job_id}/resume"),
    ("post", "/v1/jobs/{job_id}/steer"),
    ("post", "/v1/jobs/{job_id}/turns"),
    ("get", "/v1/agents"),
    ("get", "/v1/workspaces"),
    ("get", "/v1/usage"),
    ("get", "/v1/tools"),
    ("get", "/v1/forecast"),
    ("get", "/v1/callbacks/deliveries"),
    ("get", "/v1/callbacks/deliveries/{delivery_id}"),
    ("post", "/v1/callbacks/deliveries/{delivery_id}/replay"),
    ("get", "/v1/callbacks/secret"),
    ("get", "/v1/callbacks/endpoints"),
    ("post", "/v1/callbacks/endpoints"),
    ("get", "/v1/callbacks/endpoints/{name}"),
    ("patch", "/v1/callbacks/endpoints/{name}"),
    ("delete", "/v1/callbacks/endpoints/{name}"),
    ("get", "/v1/keys"),
    ("post", "/v1/keys"),
    ("get", "/v1/keys/{key_id}"),
    ("delete", "/v1/keys/{key_id}"),
    ("post", "/v1/keys/{key_id}/rotate"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model_id}"),
    ("post", "/v1/chat/completions"),
    ("post", "/v1/conversational"),
    ("post", "/v1/responses"),
    ("get", "/v1/responses/{response_id}"),
    ("delete", "/v1/responses/{response_id}"),
    ("post", "/v1/responses/{response_id}/cancel"),
    ("get", "/v1/responses/{response_id}/input_items"),
}
OPEN = {"/health", "/livez", "/readyz"}


@pytest.fixture
def document(client: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(document: dict[str, Any], reference: str) -> Any:
    value: Any = document
    for part in reference.removeprefix("#/").split("/"):
        value = value[part]
    return value


def fits(document: dict[str, Any], name: str, value: Any) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    Draft202012Validator(schema).validate(value)


def fit_each(document: dict[str, Any], schema: dict[str, Any], stream: str) -> None:
    """Check each event of a stream, and what its data holds, which a validator leaves alone."""
    for written in stream.strip().split("\n\n"):
        event = dict(line.split(": ", 1) for line in written.split("\n"))
        Draft202012Validator(schema).validate(event)
        data = schema["properties"]["data"]
        if event["data"] != data.get("anyOf", [{}])[0].get("const"):
            inner = data["anyOf"][1] if "anyOf" in data else data
            whole = {**inner["contentSchema"], "components": document["components"]}
            Draft202012Validator(whole).validate(json.loads(event["data"]))


def test_every_route_is_there_with_id_summary_tags_and_key(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == ROUTES
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for _, path, operation in operations(document):
        assert re.fullmatch("[a-z][A-Za-z]+", operation["operationId"])
        assert operation["summary"]
        assert operation["description"]
        assert operation["tags"]
        assert operation["security"] == ([] if path in OPEN else [{"bearer": []}])
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert document["openapi"].startswith("3.1")


def test_every_answer_and_body_has_a_schema_and_an_example(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert answer["description"], (method, path, status)
            assert "x-request-id" in answer["headers"]
            if status in ("204", "304"):
                assert "content" not in answer
                continue
            for content in answer["content"].values():
                assert content.get("schema") or content["itemSchema"], (method, path, status)
                assert content["examples"], (method, path, status)
        if method == "post":
            content = operation["requestBody"]["content"]["application/json"]
            assert content["schema"]["$ref"]
            assert content["examples"]
        names = [(parameter["name"], parameter["in"]) for parameter in operation.get("parameters", [])]
        assert len(set(names)) == len(names)
        assert {name for name, where in names if where == "path"} == set(re.findall(r"{(\w+)}", path))


def test_every_error_is_the_one_body_in_its_media_type(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert "500" in operation["responses"]
        if path not in OPEN:
            assert {"401", "403"} <= set(operation["responses"]), path
        native = path.startswith(
            (
                *("/v1/jobs", "/v1/agents", "/v1/workspaces", "/v1/keys", "/v1/usage", "/v1/forecast"),
                *("/v1/tools", "/v1/callbacks", "/v1/schedules", "/v1/nodes", "/livez", "/readyz"),
            )
        )
        media = "application/problem+json" if native else "application/json"
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                content = answer["content"][media]
                assert content["schema"]["$ref"].endswith("/Problem"), (method, path, status)


def test_references_resolve_and_schemas_are_valid(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        assert resolve(document, reference) is not None
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    used: set[str] = set()
    for _, _, operation in operations(document):
        bodies = [answer.get("content", {}) for answer in operation["responses"].values()]
        bodies.append(operation.get("requestBody", {}).get("content", {}))
        for content in (each for body in bodies for each in body.values()):
            for name, reference in content["examples"].items():
                used.add(name)
                value = resolve(document, reference["$ref"])["value"]
                if "itemSchema" in content:
                    fit_each(document, content["itemSchema"], value)
                    continue
                schema = {**content["schema"], "components": document["components"]}
                Draft202012Validator(schema).validate(value)
    assert used <= set(examples())


def test_real_answers_fit_their_schemas(
    document: dict[str, Any], client: httpx2.Client, service: RunningService
) -> None:
    job = run_job(client, "tell x", workspace="infra")
    fits(document, "Job", job)
    fits(document, "Job", run_job(client, "broken x"))
    fits(document, "JobList", client.get("/v1/jobs").json())
    page = client.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "application/json"})
    fits(document, "EventList", page.json())
    fits(document, "ClassicJob", client.get(f"/jobs/{job['id']}").json())
    fits(document, "Health", client.get("/health").json())
    fits(document, "AgentList", client.get("/v1/agents").json())
    fits(document, "WorkspaceList", client.get("/v1/workspaces").json())
    fits(document, "NewKey", client.post("/v1/keys", json={"name": "ci"}).json())
    fits(document, "KeyList", client.get("/v1/keys").json())
    fits(document, "Key", client.get("/v1/keys/k_admin").json())
    fits(document, "ModelList", client.get("/v1/models").json())
    fits(document, "Problem", client.get("/v1/jobs/0").json())
    chat = {"model": "claude", "messages": [{"role": "user", "content": "say x"}]}
    fits(document, "Completion", client.post("/v1/chat/completions", json=chat).json())


def test_what_is_streamed_is_as_the_document_says(
    document: dict[str, Any], client: httpx2.Client, service: RunningService
) -> None:
    chat = {"model": "claude", "messages": [{"role": "user", "content": "tell x"}], "stream": True}
    respond = {"model": "claude", "input": "tell x", "stream": True}
    streams = {
        "/v1/chat/completions": client.post("/v1/chat/completions", json=chat),
        "/v1/responses": client.post("/v1/responses", json=respond),
        "/v1/jobs/{job_id}/events": client.get(f"/v1/jobs/{run_job(client, 'tell x')['id']}/events"),
    }
    for path, answer in streams.items():
        text = re.sub("(?m)^:.*\n\n", "", answer.text)
        assert text.count("data: ") > 3
        method = "post" if answer.request.method == "POST" else "get"
        content = document["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"]
        fit_each(document, content["itemSchema"], text)
        with pytest.raises(jsonschema.ValidationError):
            fit_each(document, content["itemSchema"], 'data: {"not": "it"}')


def test_links_lead_to_operations_and_name_their_parameters(document: dict[str, Any]) -> None:
    known = {operation["operationId"]: operation for _, _, operation in operations(document)}
    found = 0
    for _, _, operation in operations(document):
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                names = {parameter["name"] for parameter in known[link["operationId"]]["parameters"]}
                assert set(link["parameters"]) <= names
                found += 1
    assert found > 20


def test_there_are_no_pages_that_load_scripts_from_elsewhere(client: httpx2.Client) -> None:
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404


def test_the_classic_profile_documents_its_own_chat(service: RunningService) -> None:
    options = ApiOptions(profile="classic", version="9.8.7")
    app = create_app(control=service.control, keyring=service.keyring, options=options, tool_names=TOOL_NAMES)
    document = app.openapi()
    assert document["info"]["version"] == "9.8.7"
    chat = document["paths"]["/v1/chat/completions"]["post"]
    kinds = chat["responses"]["503"]["content"]["application/json"]["schema"]["anyOf"]
    assert [kind["$ref"].rpartition("/")[2] for kind in kinds] == ["ClassicFailure", "Problem"]


def test_agents_and_workspaces_say_what_can_be_asked_for(client: httpx2.Client) -> None:
    agents = {agent["name"]: agent for agent in client.get("/v1/agents").json()["data"]}
    assert {"claude", "chat", "dear", "helper"} == set(agents)
    assert agents["dear"]["budget_usd"] == "7.000000"
    assert agents["chat"]["tools"] == []
    assert agents["claude"]["limits"] == {
        "max_budget_usd": "100.000000",
        "max_timeout_seconds": 86400,
        "models": None,
    }
    body = client.get("/v1/workspaces").json()
    assert body["data"][0]["repository"] == "https://git.example.org/infra.git"
    assert "secret" not in str(body)
    assert client.get("/v1/agents", params={"limit": 1}).json()["code"] == "unknown_field"
