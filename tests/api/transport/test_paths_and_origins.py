"""Paths with too many slashes, and pages of other origins."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.api.api_service import ADMIN, RunningService, running_service

from steadyhand.api import ApiOptions

PAGE = "https://chat.example.org"
OTHER_PAGE = "https://other.example.org"
CHAT = {"model": "claude", "messages": [{"role": "user", "content": "say x"}]}


@pytest.fixture(scope="module")
def with_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that pages of one origin may call."""
    with running_service(tmp_path_factory.mktemp("pages"), options=ApiOptions(cors_origins=(PAGE,))) as found:
        yield found


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "//v1/models", "//v1///models//"])
def test_slashes_too_many_under_v1_make_no_difference(service: RunningService, path: str) -> None:
    with service.client() as client:
        reply = client.get(f"{service.url}{path}")
        assert reply.status_code == 200, reply.text
        assert reply.json() == client.get("/v1/models").json()


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1//chat/completions"])
def test_slashes_too_many_make_no_difference_to_a_chat(service: RunningService, path: str) -> None:
    with service.client() as client:
        reply = client.post(f"{service.url}{path}", json=CHAT)
        assert reply.status_code == 200, reply.text
        assert client.post(f"{service.url}/v1//jobs/", json={"prompt": "say x"}).status_code == 202


def test_slashes_too_many_keep_the_check_of_the_host(client: httpx2.Client) -> None:
    reply = client.get("/v1//jobs/", headers={"host": "evil.example.org"})
    assert (reply.status_code, reply.json()["code"]) == (403, "forbidden_host")


@pytest.mark.parametrize("path", ["/execute/", "//execute", "/jobs//x", "/V1/models/"])
def test_slashes_too_many_elsewhere_name_no_route(service: RunningService, path: str) -> None:
    with service.client() as client:
        assert client.get(f"{service.url}{path}").status_code == 404


def preflight(client: httpx2.Client, path: str, origin: str) -> httpx2.Response:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-a"}
    return client.options(path, headers={"origin": origin, **asked})


def test_without_the_setting_no_page_may_call(service: RunningService) -> None:
    with service.client() as client:
        reply = preflight(client, "/v1/chat/completions", PAGE)
        assert reply.status_code == 405
        answered = client.get("/v1/models", headers={"origin": PAGE})
        assert "access-control-allow-origin" not in {**reply.headers, **answered.headers}
        assert client.get("/v1/jobs", headers={"origin": PAGE}).json()["code"] == "forbidden_origin"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/jobs", "/execute"])
def test_a_page_of_the_setting_may_call(with_pages: RunningService, path: str) -> None:
    with with_pages.client(None) as client:
        reply = preflight(client, path, PAGE)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert "POST" in reply.headers["access-control-allow-methods"]
        assert reply.headers["access-control-allow-headers"] == "authorization, x-a"
        assert "access-control-allow-credentials" not in reply.headers
        refused = client.post(path, json={}, headers={"origin": PAGE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
        key = {"authorization": f"Bearer {ADMIN}", "origin": PAGE}
        wrong = client.post(path, json={}, headers=key)
        assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (422, PAGE)
        assert "x-request-id" in wrong.headers["access-control-expose-headers"]


def test_a_page_of_another_origin_may_not_call(with_pages: RunningService) -> None:
    with with_pages.client() as client:
        reply = preflight(client, "/v1/chat/completions", OTHER_PAGE)
        assert reply.status_code == 400
        answered = client.get("/v1/models", headers={"origin": OTHER_PAGE})
        assert "access-control-allow-origin" not in {**reply.headers, **answered.headers}
        native = client.get("/v1/jobs", headers={"origin": OTHER_PAGE})
        assert (native.status_code, native.json()["code"]) == (403, "forbidden_origin")


def test_any_page_may_call_if_the_setting_is_a_star(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=ApiOptions(cors_origins=("*",))) as service,
        service.client() as client,
    ):
        reply = client.get("/v1/jobs", headers={"origin": OTHER_PAGE})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "*")
