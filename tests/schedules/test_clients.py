"""The Python client, the command line and the page manage the schedules of a real service."""

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.cli.command_line import InProcessCommandLine
from tests.service_fixtures import closing_services, make_service_root
from tests.web.page_client import PageClient

from steadyhand import AsyncClient, Client, Conflict, InvalidRequest, NotFound
from steadyhand.client.decoding import ServiceObject
from steadyhand.testing.service import ADMIN_KEY, Service, wait_until

JOB = {"prompt": "Hello at {{ tick.time }}.", "workspace": "scratch"}


@pytest.fixture(scope="module")
def service(reachable_tmp: Path, stand_in: Path) -> Iterator[Service]:
    """One service for the clients and the command line."""

    def make(**options: object) -> Service:
        env = {"STEADYHAND_ISOLATION": "none"}
        return Service(make_service_root(reachable_tmp), stand_in, env=env, **options)  # type: ignore[arg-type]

    with closing_services(make) as making:
        yield making().start()


def unknown_fields(value: object) -> list[str]:
    """Return the fields of a result that the client does not know, at any depth."""
    if not isinstance(value, ServiceObject):
        return []
    own = [name for name in type(value).__dataclass_fields__ if name not in ("extra", "document")]
    return [*value.extra, *(name for each in own for name in unknown_fields(getattr(value, each)))]


def test_the_client_manages_schedules_with_typed_results(service: Service) -> None:
    with Client(service.url, ADMIN_KEY) as client:
        made = client.create_schedule(
            "typed", cron="@yearly", job=JOB, max_usd=5, max_failures=2, paused=True
        )
        assert (made.name, made.cron, made.max_failures) == ("typed", "@yearly", 2)
        assert made.paused is not None
        assert made.paused.reason == "request"
        ran = client.run_schedule("typed")
        assert client.wait(ran).completed
        wait_until(lambda: [each for each in client.schedule_history("typed").data if each.outcome])
        schedule = client.resume_schedule("typed")
        assert schedule.next_at is not None
        assert schedule.next_at > datetime.now(UTC)
        assert unknown_fields(schedule) == []
        (tick,) = client.schedule_history("typed").data
        assert (tick.job_id, tick.outcome, tick.kind, tick.extra) == (ran.id, "success", "manual", {})
        assert client.change_schedule("typed", max_usd=0, timezone="Asia/Tokyo").max_usd is None
        assert client.pause_schedule("typed").next_at is None
        assert [each.name for each in client.list_schedules()] == ["typed"]
        with pytest.raises(Conflict):
            client.create_schedule("typed", cron="@yearly", job=JOB)
        with pytest.raises(InvalidRequest, match="cron"):
            client.change_schedule("typed", cron="x")
        for name in ("../jobs", "gone", ""):
            with pytest.raises(NotFound):
                client.schedule(name)
        client.remove_schedule("typed")

    async def asynchronous() -> None:
        async with AsyncClient(service.url, ADMIN_KEY) as client:
            await client.create_schedule("a", cron="@daily", job=JOB)
            assert (await client.schedule("a")).next_at is not None
            assert (await client.pause_schedule("a")).paused is not None
            assert (await client.resume_schedule("a")).paused is None
            assert (await client.change_schedule("a", max_runs=1)).max_runs == 1
            await client.run_schedule("a")
            assert len((await client.schedule_history("a")).data) == 1
            assert len(await client.list_schedules()) == 1
            await client.remove_schedule("a")

    asyncio.run(asynchronous())


def test_the_command_line_manages_schedules(service: Service, tmp_path: Path) -> None:
    steadyhand = InProcessCommandLine(tmp_path, service.url, ADMIN_KEY)
    options = (
        "-w",
        "scratch",
        "--budget",
        "1",
        "--timeout",
        "15m",
        "--metadata",
        "team=shop",
        "--max-runs",
        "9",
    )
    added = steadyhand(
        "schedules", "add", "night", "30 2 * * *", "Look.", "--timezone", "Europe/Berlin", *options
    )
    assert added.code == 0, added.err
    assert re.search(r"night: in \d+[hms]$", added.err.strip())
    listed = steadyhand("schedules", "list")
    assert listed.out.splitlines()[1].split()[:3] == ["night", "30", "2"]
    shown = json.loads(steadyhand("schedules", "show", "night", "--json").out)
    assert shown["job"]["metadata"] == {"team": "shop"}
    assert (shown["job"]["budget_usd"], shown["job"]["timeout_seconds"], shown["max_runs"]) == (
        "1.000000",
        900,
        9,
    )
    ran = steadyhand("schedules", "run", "night")
    assert service.wait_until_ended(ran.out.strip())["state"] == "completed"
    history = steadyhand("schedules", "history", "night")
    assert "manual" in history.out
    assert ran.out.strip() in history.out
    assert "paused: request" in steadyhand("schedules", "pause", "night").err
    text = steadyhand("schedules", "show", "night").out
    assert "paused: Somebody paused it." in text
    assert text.rstrip().endswith("Look.")
    assert "in " in steadyhand("schedules", "resume", "night").err
    changed = steadyhand("schedules", "change", "night", "--max-runs", "0", "--cron", "@hourly", "--json")
    assert (json.loads(changed.out)["max_runs"], json.loads(changed.out)["cron"]) == (None, "@hourly")
    assert steadyhand("schedules", "change", "night").code == 2
    wrong = steadyhand("schedules", "add", "x", "99 * * * *", "Look.")
    assert (wrong.code, "cron: is not a cron expression" in wrong.err) == (2, True)
    assert steadyhand("schedules", "remove", "night").code == 0
    gone = steadyhand("schedules", "show", "night")
    assert gone.code != 0
    assert "Schedule not found" in gone.err
    assert "No schedules." in steadyhand("schedules", "list").err


def test_the_page_shows_schedules_and_pauses_resumes_and_runs_them(service: Service) -> None:
    client = service.client
    body = {
        "name": "paged",
        "cron": "0 0 1 1 *",
        "job": {"prompt": "<b>Look</b> {{ tick.date }}", "agent": "chat"},
    }
    client.post("/v1/schedules", json=body)
    other = client.post("/v1/keys", json={"name": "reader", "scopes": ["read", "read:all"]}).json()["secret"]
    browser = cast("Any", SimpleNamespace(client=service.new_client))
    with PageClient(browser) as page, PageClient(browser) as reader:
        page.sign_in(ADMIN_KEY)
        reader.sign_in(other)
        text = page.get("/ui/service").text
        assert 'href="/ui/schedules/paged"' in text
        assert 'action="/ui/schedules/paged/pause"' in text
        assert "&lt;b&gt;Look&lt;/b&gt; {{ tick.date }}" in page.get("/ui/schedules/paged").text
        assert page.send("/ui/schedules/paged/pause").headers["location"] == "/ui/schedules/paged"
        assert "Somebody paused it." in page.get("/ui/schedules/paged").text
        ran = page.send("/ui/schedules/paged/run").headers["location"]
        assert ran.startswith("/ui/jobs/")
        service.wait_until_ended(ran.rpartition("/")[2])
        assert page.send("/ui/schedules/paged/resume").status_code == 303
        shown = page.get("/ui/schedules/paged").text
        assert ran in shown
        assert 'action="/ui/schedules/paged/pause"' in shown
        # A form without the token of the session does nothing, nor does one of a key that may only read.
        assert page.http.post("/ui/schedules/paged/pause", data={"csrf": "x"}).status_code == 403
        assert "/ui/schedules/paged/pause" not in reader.get("/ui/service").text
        for action in ("pause", "resume", "run"):
            assert reader.send(f"/ui/schedules/paged/{action}").status_code == 403
        assert client.get("/v1/schedules/paged").json()["paused"] is None
        for gone in ("/ui/schedules/nothing", "/ui/schedules/%3Cb%3E"):
            assert page.get(gone).status_code == 404
    client.delete("/v1/schedules/paged")
