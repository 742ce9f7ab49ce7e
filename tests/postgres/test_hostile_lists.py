"""Hostile texts in requests: a service on Postgres answers as one on SQLite."""

import itertools
from typing import Any
from urllib.parse import quote

import pytest

from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService

TEXTS = (
    "a'b", "'; DROP TABLE jobs; --", "%", "_", "\\", "$1", ":name", "?", "a & b", "!a", "a:*", "a <-> b", "(", '"',
    "NEAR(a b)", "a OR b", "\x00", "nul\x00in", "\ue000", "\ue0000000", "\u0301", "İ", "ß", "漢字", "ไทย", "😀",
    "x" * 10_000, "漢" * 2_000,
    "9" * 30, "-1", "9223372036854775808", "1e400", "NaN", "2026-01-01T00:00:00+99:99",
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "2026-03-29T02:30:00+14:00", "",
)  # fmt: skip
LISTS = {
    "/v1/jobs": ("q", "agent", "workspace", "session", "session_name", "id", "id_prefix", "state", "api_key", "key",
                 "metadata.k", "metadata", "created_after", "created_before", "cursor", "limit", "conversation"),
    "/v1/usage": ("by", "api_key", "agent", "model", "workspace", "provider", "since", "until", "from", "to", "cursor",
                  "limit"),
    "/v1/callbacks/deliveries": ("state", "endpoint", "job", "cursor", "limit"),
    "/v1/schedules": ("api_key", "cursor"),
    "/v1/keys": ("cursor",),
    "/v1/saved/views": ("cursor",),
}  # fmt: skip
PATHS = (
    "/v1/jobs/{}",
    "/v1/jobs/{}/events",
    "/v1/schedules/{}",
    "/v1/schedules/{}/history",
    "/v1/keys/{}",
    "/v1/responses/{}",
)


def bodies() -> list[tuple[str, dict[str, Any]]]:
    job = {"workspace": "scratch"}
    found: list[tuple[str, dict[str, Any]]] = []
    for text in TEXTS:
        found += [
            ("/v1/jobs", {**job, "prompt": text}),
            ("/v1/jobs", {**job, "prompt": "x", "title": text}),
            ("/v1/jobs", {**job, "prompt": "x", "metadata": {text: text}}),
            ("/v1/jobs", {**job, "prompt": "x", "session_name": text}),
            ("/v1/jobs", {"prompt": "x", "workspace": text}),
            ("/v1/jobs", {**job, "prompt": "x", "agent": text}),
            ("/v1/jobs", {**job, "prompt": "x", "model": text}),
            ("/v1/keys", {"name": text}),
            ("/v1/schedules", {"name": text, "cron": text, "job": {"prompt": "x"}}),
            ("/v1/schedules", {"name": "s", "cron": text, "timezone": text, "job": {"prompt": text}}),
            ("/v1/schedules", {"name": "s", "cron": "0 0 29 2 *", "timezone": text, "job": {"prompt": text}}),
        ]
    for number in (2**31, 2**53, 2**63, 2**64, -1, 1e308, 10**30):
        for name in ("budget_usd", "timeout_seconds", "priority", "max_turns", "expires_in_seconds"):
            found.append(("/v1/jobs", {**job, "prompt": "x", name: number}))
        for name in ("max_usd", "max_runs", "max_failures"):
            found.append(
                (
                    "/v1/schedules",
                    {"name": f"n{number}", "cron": "0 0 29 2 *", name: number, "job": {**job, "prompt": "x"}},
                )
            )
    found.append(("/v1/jobs", {**job, "prompt": "x", "metadata": {"k": "v" * 1_000_000}}))
    found.append(("/v1/jobs", {**job, "prompt": "x", "metadata": {str(at): "v" for at in range(5000)}}))
    return found


@pytest.mark.long
def test_hostile_requests_have_the_same_answers_on_both_databases(
    postgres: Postgres, make_service: MakeService
) -> None:
    url = postgres.url(postgres.create_database())
    different = []
    with (
        make_service(env={"STEADYHAND_DATABASE_URL": url}) as one,
        make_service(env={"STEADYHAND_DATABASE_URL": ""}) as other,
    ):

        def ask(method: str, path: str, **options: Any) -> None:
            answers = [each.client.request(method, path, **options).status_code for each in (one, other)]
            if answers[0] != answers[1] or answers[0] >= 500:
                different.append((method, path, ascii(options)[:200], answers))

        for path, body in bodies():
            ask("POST", path, json=body)
        for path, names in LISTS.items():
            for name, text in itertools.product(names, TEXTS):
                ask("GET", path, params={name: text[:3000]})
        for path, text in itertools.product(PATHS, TEXTS):
            ask("GET", path.format(quote(text[:3000], safe="")))
        assert different == []
        for service in (one, other):
            assert "Traceback" not in service.log
