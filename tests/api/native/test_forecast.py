"""`GET /v1/forecast`, from jobs and calls in the real store."""

from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from tests.api.api_service import LIMITED, SUBMITTER, RunningService, run_job

from steadyhand.api.schemas import forecast_bodies


def forecast(client: httpx2.Client, **query: Any) -> dict[str, Any]:
    reply = client.get("/v1/forecast", params=query)
    assert reply.status_code == 200, reply.text
    document = client.get("/openapi.json").json()
    schema = {"$ref": "#/components/schemas/Forecast", "components": document["components"]}
    Draft202012Validator(schema).validate(reply.json())
    found: dict[str, Any] = reply.json()
    return found


def test_what_jobs_cost_and_how_long_they_ran_is_told_and_null_before_there_are_enough(
    service: RunningService,
) -> None:
    with service.client(LIMITED) as client:
        for _ in range(4):
            run_job(client, "say x")
        few = forecast(client)
        assert set(few) == set(forecast_bodies.Forecast.__annotations__)
        assert (few["jobs"], few["least_jobs"], few["cost"], few["duration"]) == (4, 5, None, None)
        run_job(client, "fail x")
        found = forecast(client)
        assert (found["agent"], found["workspace"], found["model"], found["days"]) == (
            "claude",
            None,
            None,
            30,
        )
        assert found["cost"] == {"p50_usd": "0.041200", "p90_usd": "0.041200", "jobs": 5}
        assert found["duration"]["jobs"] == 5
        assert 0 < found["duration"]["p50_seconds"] <= found["duration"]["p90_seconds"]
        assert found["api_key_id"] == "k_limit"
        assert forecast(client, agent="dear")["jobs"] == 0
        assert forecast(client, workspace="infra", days=1)["cost"] is None


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"days": 0}, "invalid_field"),
        ({"days": 366}, "invalid_field"),
        ({"budgets": "some"}, "invalid_field"),
        ({"agents": "x"}, "unknown_field"),
        ({"agent": "a\0b"}, "invalid_field"),
    ],
)
def test_a_wrong_parameter_is_refused(client: httpx2.Client, query: dict[str, Any], code: str) -> None:
    reply = client.get("/v1/forecast", params=query)
    assert (reply.status_code, reply.json()["code"]) == (422, code)


def test_it_needs_the_scope_read(service: RunningService) -> None:
    with service.client(SUBMITTER) as client:
        assert client.get("/v1/forecast").json()["code"] == "scope_missing"
