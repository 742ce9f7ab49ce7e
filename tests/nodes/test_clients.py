"""The nodes of a real service on one machine: the routes, the Python clients, the command line and the page."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.cli.command_line import InProcessCommandLine
from tests.service_fixtures import closing_services, make_service_root
from tests.web.page_client import PageClient

from steadyhand import AsyncClient, Client, NotFound, __version__
from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.testing.service import ADMIN_KEY, Service, wait_until

CONFIG = """
[service]
node = "build-1"
labels = ["gpu", "zone=a"]
concurrency = 2

[agents.there]
workspace = "scratch"
labels = ["gpu"]

[agents.elsewhere]
workspace = "scratch"
not_on_nodes = ["build-1"]
"""


@pytest.fixture(scope="module")
def shared_service(reachable_tmp: Path, stand_in: Path) -> Iterator[Service]:
    """One service for all tests here, whose node each leaves undrained."""

    def make(**options: object) -> Service:
        root = make_service_root(reachable_tmp)
        return Service(root, stand_in, env={"STEADYHAND_ISOLATION": "none"}, config=CONFIG, **options)  # type: ignore[arg-type]

    with closing_services(make) as making:
        yield making().start()


@pytest.fixture
def service(shared_service: Service) -> Service:
    """Return the service once its node runs no job: the slot of one that has ended is free a moment later."""

    def is_idle() -> bool:
        (node,) = shared_service.client.get("/v1/nodes").json()["data"]
        return (node["running"], node["waiting"]) == (0, 0)

    wait_until(is_idle)
    return shared_service


def submit(service: Service, **fields: Any) -> str:
    reply = service.client.post("/v1/jobs", json={"prompt": "hello", "workspace": "scratch", **fields})
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


def get(service: Service, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get(f"/v1/jobs/{job_id}").json()
    return found


def test_a_drained_service_accepts_jobs_says_why_they_wait_and_stays_drained_over_its_restart(
    service: Service,
) -> None:
    (node,) = service.client.get("/v1/nodes").json()["data"]
    assert (node["name"], node["state"], node["drained"], node["here"]) == ("build-1", "alive", False, True)
    assert (node["labels"], node["slots"], node["running"]) == (["gpu", "zone=a"], 2, 0)
    assert (node["version"], node["schema"]) == (__version__, NEWEST_REVISION)
    drained = service.client.post("/v1/nodes/build-1/drain")
    assert (drained.status_code, drained.json()["drained"]) == (200, True)
    assert service.terminate() == 0
    service.restart()
    assert service.client.get("/v1/nodes").json()["data"][0]["drained_at"] == drained.json()["drained_at"]
    job_id = submit(service)
    job = get(service, job_id)
    assert (job["state"], job["queue_position"]) == ("queued", 1)
    assert job["queue_reason"] == {
        "code": "drained",
        "detail": "Each node that could take it is drained: build-1.",
    }
    metrics = service.client.get("/metrics").text
    assert 'steadyhand_nodes{state="drained"} 1' in metrics
    assert "steadyhand_node_drained 1" in metrics
    assert service.client.post("/v1/nodes/build-1/undrain").json()["drained"] is False
    ended = service.wait_until_ended(job_id)
    assert (ended["state"], "queue_reason" in ended) == ("completed", False)
    assert service.client.post("/v1/nodes/build-1/drain", json={"until_restart": True}).json()[
        "until_restart"
    ]
    assert service.terminate() == 0
    service.restart()
    assert service.client.get("/v1/nodes").json()["data"][0]["drained"] is False


def test_only_an_admin_drains_and_names_and_bodies_are_checked(service: Service) -> None:
    made = service.client.post(
        "/v1/keys", json={"name": "reader", "scopes": ["submit", "read", "cancel"]}
    ).json()
    with service.new_client(made["secret"]) as reader:
        assert reader.get("/v1/nodes").status_code == 200
        for action in ("drain", "undrain"):
            reply = reader.post(f"/v1/nodes/build-1/{action}")
            assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")
    for name in ("gone", "%3Cb%3E", "..", "a" * 200):
        reply = service.client.post(f"/v1/nodes/{name}/drain")
        assert reply.status_code == 404
    assert service.client.post("/v1/nodes/build-1/drain", json={"until": 1}).status_code == 422
    assert service.client.get("/v1/nodes", params={"x": "1"}).status_code == 422
    assert service.client.get("/v1/nodes").json()["data"][0]["drained"] is False


def test_a_job_that_the_only_node_cannot_take_waits_and_says_so(service: Service) -> None:
    fits = submit(service, agent="there", labels=["zone=a", "zone=a"], not_on_nodes=["build-2"])
    ended = service.wait_until_ended(fits)
    assert (ended["state"], ended["labels"], ended["not_on_nodes"]) == ("completed", ["zone=a"], ["build-2"])
    for fields, needs in (
        ({"labels": ["arm", "gpu"]}, "a node with the labels arm, gpu"),
        ({"agent": "elsewhere"}, "a node other than build-1"),
    ):
        waiting = submit(service, **fields)
        behind = submit(service)
        assert service.wait_until_ended(behind)["state"] == "completed", "it does not block others"
        assert get(service, waiting)["queue_reason"] == {
            "code": "no_node",
            "detail": f"It needs {needs}, and no living node is one.",
        }
        listed = service.client.get("/v1/jobs", params={"state": "queued"}).json()["data"]
        assert [job["queue_reason"] for job in listed] == [get(service, waiting)["queue_reason"]]
        assert service.client.post(f"/v1/jobs/{waiting}/cancel").status_code in {200, 202}
        assert "queue_reason" not in get(service, waiting)
    for wrong in ({"labels": ["a b"]}, {"labels": [""]}, {"labels": ["x"] * 33}, {"not_on_nodes": ["<b>"]}):
        body = {"prompt": "hello", **wrong}
        assert service.client.post("/v1/jobs", json=body).status_code == 422


def test_the_clients_list_drain_and_undrain_with_typed_results(service: Service) -> None:
    with Client(service.url, ADMIN_KEY) as client:
        (node,) = client.list_nodes()
        assert (node.name, node.labels, node.idle, node.drained) == (
            "build-1",
            ("gpu", "zone=a"),
            True,
            False,
        )
        assert (node.here, node.extra) == (True, {})
        drained = client.drain_node("build-1", until_restart=True)
        assert (drained.drained, drained.until_restart) == (True, True)
        assert drained.drained_at is not None
        job = client.submit("hello", workspace="scratch")
        reason = client.get(job).queue_reason
        assert reason is not None
        assert reason.code == "drained"
        assert not client.undrain_node("build-1").drained
        assert client.wait(job).completed
        for name in ("gone", "../jobs", ""):
            with pytest.raises(NotFound):
                client.drain_node(name)

    async def asynchronous() -> None:
        async with AsyncClient(service.url, ADMIN_KEY) as client:
            assert (await client.drain_node("build-1")).drained
            assert not (await client.undrain_node("build-1")).drained
            assert len(await client.list_nodes()) == 1

    asyncio.run(asynchronous())


def test_the_command_line_lists_drains_and_waits_until_the_node_is_idle(
    service: Service, tmp_path: Path
) -> None:
    steadyhand = InProcessCommandLine(tmp_path, service.url, ADMIN_KEY)
    listed = steadyhand("nodes")
    assert listed.code == 0, listed.err
    assert listed.out.splitlines()[1].split()[:4] == ["build-1", "alive", "serve", "0/2"]
    assert json.loads(steadyhand("nodes", "--json").out)["data"][0]["name"] == "build-1"
    drained = steadyhand("nodes", "drain", "build-1")
    assert drained.err.strip() == "build-1 is drained and runs no job."
    assert steadyhand("nodes").out.splitlines()[1].split()[1] == "drained"
    assert steadyhand("nodes", "undrain", "build-1").err.strip() == "build-1 takes new runs and runs no job."
    held = submit(service, prompt="[[standin: sleep=600]]")
    wait_until(lambda: get(service, held)["state"] == "running")
    late = steadyhand("drain", "--wait", "--timeout", "1s", "--json")
    assert late.code == 124
    assert json.loads(late.out)["running"] == 1
    service.client.post(f"/v1/jobs/{held}/cancel")
    idle = steadyhand("drain", "--wait", "--until-restart")
    assert (idle.code, idle.err.strip()) == (0, "build-1 is drained and runs no job.")
    assert get(service, held)["state"] == "cancelled"
    assert steadyhand("nodes", "undrain", "build-1").code == 0
    assert steadyhand("nodes", "drain", "gone").code == 3


def test_the_command_line_and_the_page_send_demands_and_show_why_a_job_waits(
    service: Service, tmp_path: Path
) -> None:
    steadyhand = InProcessCommandLine(tmp_path, service.url, ADMIN_KEY)
    fitting = ("run", "-w", "scratch", "--label", "gpu", "--label", "zone=a", "--not-on-node", "build-2")
    ran = steadyhand(*fitting, "--json", "hello")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["labels"] == ["gpu", "zone=a"]
    assert json.loads(ran.out)["not_on_nodes"] == ["build-2"]
    assert steadyhand("run", "-w", "scratch", "--label", "a b", "hello").code == 2
    waiting = submit(service, labels=["arm"])
    reason = "It needs a node with the label arm, and no living node is one."
    assert reason in " ".join(steadyhand("show", waiting).out.split())
    listed = " ".join(steadyhand("jobs", "--state", "queued").out.split())
    assert f"! {waiting}: no node can take it. {reason}" in listed
    browser = cast("Any", SimpleNamespace(client=service.new_client))
    with PageClient(browser) as page:
        page.sign_in(ADMIN_KEY)
        assert reason in page.get(f"/ui/jobs/{waiting}").text
        for path in ("/ui/jobs?state=queued", "/"):
            assert f'title="{reason}">waits: no node</span>' in page.get(path).text
    assert service.client.post(f"/v1/jobs/{waiting}/cancel").status_code in {200, 202}
    assert "waits" not in steadyhand("show", waiting).out.split()
    demands = ("--label", "gpu", "--not-on-node", "build-2")
    added = steadyhand("schedules", "add", "far", "0 0 1 1 *", "hello", *demands, "--paused", "--json")
    assert added.code == 0, added.err
    job = service.client.get("/v1/schedules/far").json()["job"]
    assert (job["labels"], job["not_on_nodes"]) == (["gpu"], ["build-2"])
    assert steadyhand("schedules", "remove", "far").code == 0


def test_the_page_shows_the_node_and_drains_it(service: Service) -> None:
    other = service.client.post("/v1/keys", json={"name": "looks", "scopes": ["read", "read:all"]}).json()
    browser = cast("Any", SimpleNamespace(client=service.new_client))
    with PageClient(browser) as page, PageClient(browser) as reader:
        page.sign_in(ADMIN_KEY)
        reader.sign_in(other["secret"])
        text = page.get("/ui/service").text
        assert "<bdi>build-1</bdi>" in text
        assert "<bdi>gpu, zone=a</bdi>" in text
        assert "takes runs" in text
        sent = page.send("/ui/nodes/build-1/drain")
        assert (sent.status_code, sent.headers["location"]) == (303, "/ui/service#node-build-1")
        text = page.get("/ui/service").text
        assert '<span class="warning">drained</span>' in text
        assert 'action="/ui/nodes/build-1/undrain"' in text
        # A form without the token of the session does nothing, nor does one of a key that may only read.
        assert page.http.post("/ui/nodes/build-1/undrain", data={"csrf": "x"}).status_code == 403
        assert "/ui/nodes/build-1/undrain" not in reader.get("/ui/service").text
        assert reader.send("/ui/nodes/build-1/undrain").status_code == 403
        assert service.client.get("/v1/nodes").json()["data"][0]["drained"] is True
        assert page.send("/ui/nodes/build-1/undrain").status_code == 303
        for gone in ("/ui/nodes/gone/drain", "/ui/nodes/%3Cb%3E/drain"):
            assert page.send(gone).status_code == 404
