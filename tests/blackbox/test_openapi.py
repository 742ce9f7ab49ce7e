"""The served document describes every route, and what is served is as it says."""

import json
from typing import Any

import jsonschema
import pytest
from tests.blackbox.conftest import LONG_CLASSIC

from steadyhand.testing.service import Service

ROUTES = {
    "/health": {"get"},
    "/livez": {"get"},
    "/readyz": {"get"},
    "/execute": {"post"},
    "/jobs/{job_id}": {"get"},
    "/v1/jobs": {"get", "post"},
    "/v1/jobs/{job_id}": {"get", "delete"},
    "/v1/jobs/{job_id}/events": {"get"},
    "/v1/jobs/{job_id}/diff": {"get"},
    "/v1/jobs/{job_id}/transcript": {"get"},
    "/v1/jobs/{job_id}/bundle": {"get"},
    "/v1/jobs/{job_id}/cancel": {"post"},
    "/v1/jobs/{job_id}/retry": {"post"},
    "/v1/jobs/{job_id}/resume": {"post"},
    "/v1/jobs/{job_id}/turns": {"post"},
    "/v1/agents": {"get"},
    "/v1/workspaces": {"get"},
    "/v1/callbacks/deliveries": {"get"},
    "/v1/callbacks/deliveries/{delivery_id}": {"get"},
    "/v1/callbacks/deliveries/{delivery_id}/replay": {"post"},
    "/v1/callbacks/secret": {"get"},
    "/v1/callbacks/endpoints": {"get", "post"},
    "/v1/callbacks/endpoints/{name}": {"get", "patch", "delete"},
    "/v1/usage": {"get"},
    "/v1/forecast": {"get"},
    "/v1/tools": {"get"},
    "/v1/jobs/cancel": {"post"},
    "/v1/jobs/retry": {"post"},
    "/v1/jobs/resume": {"post"},
    "/v1/keys": {"get", "post"},
    "/v1/keys/{key_id}": {"get", "delete"},
    "/v1/keys/{key_id}/rotate": {"post"},
    "/v1/chat/completions": {"post"},
}
OPEN = {"/health", "/livez", "/readyz"}


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    answer = service.client.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, one) for path, methods in document["paths"].items() for method, one in methods.items()
    ]


def test_the_document_has_every_route_of_the_contract(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    for path, methods in ROUTES.items():
        assert methods <= set(document["paths"][path]), path


def test_every_operation_has_an_id_of_its_own_a_summary_and_answers(document: dict[str, Any]) -> None:
    ids = [one["operationId"] for _, _, one in operations(document)]
    assert len(ids) == len(set(ids))
    for path, method, one in operations(document):
        assert one["summary"], (method, path)
        assert any(code.startswith("2") for code in one["responses"])


def test_every_route_but_the_open_ones_says_that_it_needs_a_key_and_what_a_401_is(
    document: dict[str, Any],
) -> None:
    for path, method, one in operations(document):
        security = one.get("security", document.get("security", []))
        assert bool(security) is (path not in OPEN), (method, path)
        if path not in OPEN:
            assert "401" in one["responses"], (method, path)


def test_every_reference_in_the_document_leads_somewhere(document: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found: Any = document
                for part in value["$ref"].removeprefix("#/").split("/"):
                    found = found[part.replace("~1", "/").replace("~0", "~")]
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document["paths"])
    walk(document["components"])


def conforms(document: dict[str, Any], path: str, method: str, answer: Any) -> None:
    """Check a response against the schema that the document gives for its status and content type."""
    response = document["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = response["content"][kind]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    # A schema that takes anything would prove nothing.
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
            {"not": "it"}
        )


@LONG_CLASSIC
def test_what_is_served_is_as_the_document_says(service: Service, document: dict[str, Any]) -> None:
    http = service.client
    job = service.run_job('[[standin: run="true" text=done]]', metadata={"a": [1, None]}, title="t")
    failed = service.run_job("[[standin: result=error]]")
    for one in (job, failed):
        conforms(document, "/v1/jobs/{job_id}", "get", http.get(f"/v1/jobs/{one['id']}"))
        conforms(document, "/jobs/{job_id}", "get", http.get(f"/jobs/{one['id']}"))
    conforms(document, "/health", "get", http.get("/health"))
    conforms(document, "/v1/jobs", "get", http.get("/v1/jobs"))
    conforms(document, "/v1/agents", "get", http.get("/v1/agents"))
    conforms(document, "/v1/workspaces", "get", http.get("/v1/workspaces"))
    made = http.post("/v1/keys", json={"name": "ci", "limits": {"agents": ["claude"], "queued_jobs": 0}})
    conforms(document, "/v1/usage", "get", http.get("/v1/usage"))
    for path in ("/v1/forecast", "/v1/tools"):
        conforms(document, path, "get", http.get(path))
    for operation in ("cancel", "retry", "resume"):
        path = f"/v1/jobs/{operation}"
        conforms(document, path, "post", http.post(path, json={"agent": "of-no-job"}))
    conforms(document, "/v1/keys", "post", made)
    conforms(document, "/v1/keys", "get", http.get("/v1/keys"))
    key = f"/v1/keys/{made.json()['id']}"
    conforms(document, "/v1/keys/{key_id}", "get", http.get(key))
    conforms(document, "/v1/keys/{key_id}/rotate", "post", http.post(f"{key}/rotate"))
    conforms(document, "/v1/keys/{key_id}", "delete", http.delete(key))
    conforms(document, "/v1/keys/{key_id}/rotate", "post", http.post(f"{key}/rotate"))
    conforms(document, "/v1/keys/{key_id}", "delete", http.delete("/v1/keys/k_admin"))
    events = http.get(f"/v1/jobs/{job['id']}/events", headers={"accept": "application/json"})
    conforms(document, "/v1/jobs/{job_id}/events", "get", events)
    conforms(document, "/v1/jobs/{job_id}/cancel", "post", http.post(f"/v1/jobs/{job['id']}/cancel"))
    accepted = http.post("/v1/jobs", json={"prompt": "p", "workspace": "scratch"})
    conforms(document, "/v1/jobs", "post", accepted)
    service.wait_until_ended(accepted.json()["id"])
    accepted = http.post("/execute", json={"prompt": "p", "agent": "claude"})
    conforms(document, "/execute", "post", accepted)
    service.poll_classic(accepted.json()["job_id"])
    chat = {"model": "claude", "messages": [{"role": "user", "content": "hi"}]}
    conforms(document, "/v1/chat/completions", "post", http.post("/v1/chat/completions", json=chat))


def test_errors_are_as_the_document_says(service: Service, document: dict[str, Any]) -> None:
    http = service.client
    conforms(document, "/v1/jobs", "post", http.post("/v1/jobs", json={"promt": "p"}))
    conforms(document, "/execute", "post", http.post("/execute", json={}))
    conforms(document, "/jobs/{job_id}", "get", http.get("/jobs/000000000000"))
    conforms(document, "/v1/jobs/{job_id}", "get", http.get("/v1/jobs/000000000000"))
    with service.new_client(None) as anyone:
        conforms(document, "/v1/jobs", "get", anyone.get("/v1/jobs"))


def test_the_examples_in_the_document_fit_its_schemas(document: dict[str, Any]) -> None:
    seen = 0
    for _, _, one in operations(document):
        bodies = [one.get("requestBody", {}), *one["responses"].values()]
        for media in (media for body in bodies for media in body.get("content", {}).values()):
            if "schema" not in media:
                continue
            for example in media.get("examples", {}).values():
                value = example
                if "$ref" in example:
                    value = document["components"]["examples"][example["$ref"].rpartition("/")[2]]
                if isinstance(value["value"], str):
                    continue
                schema = {**media["schema"], "components": document["components"]}
                jsonschema.Draft202012Validator(schema).validate(value["value"])
                seen += 1
    assert seen > 10, json.dumps(seen)
