"""The composer, costs, agents, keys and the manifest."""

import hashlib
import html
import re
import struct
from datetime import UTC, datetime

import pytest
from tests.api.api_service import LIMITED, RunningService, run_job, wait_until
from tests.web.page_client import PageClient, check_headers
from tools import icons

from steadyhand.ports import TokenCounts, UsageRow, UsageTotal
from steadyhand.web.cost_page import cached_share, day_bars


def test_a_job_is_started_with_its_settings_and_once(service: RunningService, page: PageClient) -> None:
    form = {
        "prompt": "say composed\r\nin two lines",
        "agent": "dear",
        "budget_usd": "1,5",
        "once": "token",
        "ref": "",
    }
    answers = [page.send("/ui/jobs", **form) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    with service.client() as client:
        job = client.get(f"/v1/jobs/{answers[0].headers['location'].rpartition('/')[2]}").json()
    assert (job["agent"], job["budget_usd"], job["prompt"]) == (
        "dear",
        "1.500000",
        "say composed\nin two lines",
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "is required"),
        ({"prompt": "say x", "agent": "nobody"}, "is not known"),
        ({"prompt": "say x", "budget_usd": "1000000000"}, "budget_usd"),
        ({"prompt": "say x", "workspace": "/etc"}, "workspace"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_started(
    service: RunningService, fields: dict[str, str], says: str
) -> None:
    before = service.count()
    with PageClient(service) as client:
        client.sign_in(LIMITED)
        answer = client.send("/ui/jobs", **fields)
    assert answer.status_code in (403, 422)
    assert says in html.unescape(answer.text)
    assert service.count() == before


def test_limits_of_a_key_hold_for_the_page(service: RunningService) -> None:
    with service.client() as admin:
        limits = {"agents": ["dear"], "max_budget_usd": 1}
        secret = admin.post("/v1/keys", json={"name": "narrow", "limits": limits}).json()["secret"]
    with PageClient(service) as client:
        client.sign_in(secret)
        assert client.send("/ui/jobs", prompt="say x", agent="claude").status_code == 403
        refused = client.send("/ui/jobs", prompt="say x", agent="dear", budget_usd="2")
        assert refused.status_code == 422
        assert client.send("/ui/jobs", prompt="say x", agent="dear").status_code == 303
        agents = client.get("/ui/agents").text
        assert "<bdi>dear</bdi>" in agents
        assert "<bdi>claude</bdi>" not in agents  # as an agent; it is the runner of the other


def test_agents_and_workspaces_are_listed_without_credentials(page: PageClient) -> None:
    text = page.get("/ui/agents").text
    for shown in (">dear<", "$7.00", ">helper<", ">infra<", "https://git.example.org/infra.git"):
        assert shown in text
    assert "secret" not in text


def test_the_health_of_an_agent_and_a_workspace_is_how_their_newest_jobs_ended(
    service: RunningService,
) -> None:
    with service.client() as admin:
        secret = admin.post("/v1/keys", json={"name": "own jobs", "scopes": ["submit", "read"]}).json()[
            "secret"
        ]
    with PageClient(service) as page, service.client(secret) as client:
        page.sign_in(secret)

        def health_of(name: str) -> str:
            row = page.get("/ui/agents").text.partition(f"<bdi>{name}</bdi></b>")[2].partition("</tr>")[0]
            return " ".join(re.sub(r"<[^>]+>", " ", row.rpartition("<td>")[2]).split())

        assert (health_of("helper"), health_of("infra")) == ("none Tools", "none")
        run_job(client, "say fine", agent="helper", workspace="infra")
        run_job(client, "fail it broke", agent="helper", workspace="infra")
        expected = "1 of 2 completed the newest failed 1 failed , last"
        assert health_of("helper").startswith(expected)
        assert health_of("infra").startswith(expected)
        link = re.search(r'href="(/ui/jobs\?[^"]*agent=helper[^"]*)"', page.get("/ui/agents").text)
        assert link is not None
        listed = page.get(html.unescape(link[1])).text
        assert "fail it broke" in listed
        assert "say fine" not in listed
        run_job(client, "say fine", agent="helper")
        assert health_of("helper").startswith("2 of 3 completed 1 failed , last")


def test_keys_are_created_rotated_and_revoked(service: RunningService, page: PageClient) -> None:
    created = page.send("/ui/keys", **{"name": "made <here>", "scope-read": "1", "budget_usd_per_day": "2"})
    assert created.status_code == 200
    secret = re.search(r'<code class="secret">(sh_(k_\w+?)_\w{43})</code>', created.text)
    assert secret is not None
    assert created.headers["cache-control"] == "no-store"
    with service.client(secret[1]) as client:
        assert client.get("/v1/jobs").status_code == 200
        assert client.post("/v1/jobs", json={"prompt": "say x"}).status_code == 403
    text = page.get("/ui/keys").text
    assert secret[1] not in text
    assert "made &lt;here&gt;" in text
    assert "$2.00 a day" in text
    rotated = page.send(f"/ui/keys/{secret[2]}/rotate")
    newer = re.search(r'<code class="secret">(\w+)</code>', rotated.text)
    assert newer is not None
    with service.client(secret[1]) as client:
        assert client.get("/v1/jobs").status_code == 401
    assert page.send(f"/ui/keys/{secret[2]}/revoke").status_code == 303
    with service.client(newer[1]) as client:
        assert client.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"scope-read": "1"}, "name"),
        ({"name": "x", "scope-read": "1", "budget_usd_per_day": "-1"}, "budget_usd_per_day"),
        ({"name": "x"}, "scopes"),
    ],
)
def test_a_wrong_key_is_not_created(page: PageClient, fields: dict[str, str], says: str) -> None:
    answer = page.send("/ui/keys", **fields)
    assert answer.status_code == 422
    assert says in answer.text


def test_keys_need_the_scope_admin(service: RunningService) -> None:
    with PageClient(service) as client:
        client.sign_in(LIMITED)
        assert "/ui/keys" not in client.get("/").text
        assert client.get("/ui/keys").status_code == 403
        for path in ("/ui/keys", "/ui/keys/k_admin/rotate", "/ui/keys/k_admin/revoke"):
            assert client.send(path, name="x").status_code == 403


def test_a_key_that_is_set_outside_is_not_changed(page: PageClient) -> None:
    assert page.send("/ui/keys/k_other/revoke").status_code == 409
    assert page.send("/ui/keys/k_unknown/rotate").status_code == 404


def test_costs_are_there_without_and_with_calls(service: RunningService, page: PageClient) -> None:
    with service.client() as client:
        run_job(client, "say x")
    wait_until(lambda: page.get("/ui/costs").status_code == 200)
    for days in ("7", "30", "90", "1000", "x"):
        answer = page.get(f"/ui/costs?days={days}")
        assert answer.status_code == 200
        assert answer.text.count('aria-current="true"') == 1


def test_a_chart_has_a_bar_for_each_day_and_shows_small_ones() -> None:
    since = datetime(2026, 2, 27, tzinfo=UTC)
    rows = [
        UsageRow({"day": "2026-02-28"}, UsageTotal(3, TokenCounts(), 1)),
        UsageRow({"day": "2026-03-01"}, UsageTotal(1, TokenCounts(), 1_000_000)),
    ]
    bars = day_bars(rows, since, 4)
    assert [(bar.day, bar.height) for bar in bars] == [
        ("2026-02-27", 0),
        ("2026-02-28", 2),
        ("2026-03-01", 120),
        ("2026-03-02", 0),
    ]
    assert [bar.height for bar in day_bars([], since, 2)] == [0, 0]


def test_the_share_of_the_cache_is_that_of_all_input() -> None:
    assert cached_share(UsageTotal(1, TokenCounts(input=10, cache_read=80, cache_write_5m=10))) == 80
    assert cached_share(UsageTotal(1, TokenCounts(output=10))) is None


def test_the_manifest_needs_no_session_and_its_icons_are_there(stranger: PageClient) -> None:
    answer = stranger.http.get("/ui/app.webmanifest")
    check_headers(answer)
    assert answer.headers["content-type"] == "application/manifest+json"
    manifest = answer.json()
    assert (manifest["start_url"], manifest["display"]) == ("/", "standalone")
    for icon in manifest["icons"]:
        found = stranger.http.get(icon["src"])
        assert found.headers["content-type"] == icon["type"]
        if icon["type"] == "image/png":
            assert png_size(found.content) == icon["sizes"]
    assert {(icon["sizes"], icon["purpose"]) for icon in manifest["icons"]} >= {
        ("192x192", "any"),
        ("512x512", "any"),
        ("512x512", "maskable"),
    }
    link = re.search(r'rel="apple-touch-icon" href="([^"]+)"', stranger.get("/ui/sign-in").text)
    assert link is not None
    assert png_size(stranger.http.get(link[1]).content) == "180x180"


def png_size(content: bytes) -> str:
    """Return the size in the header of a PNG."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return f"{width}x{height}"


def test_the_icons_are_drawn_from_the_svg_that_is_there() -> None:
    svg = icons.SOURCE.read_text("utf-8")
    source = b"tEXtSource\0" + hashlib.sha256(svg.encode()).hexdigest().encode()
    for name, size, _ in icons.ICONS:
        content = (icons.STATIC / name).read_bytes()
        assert source in content, f"{name}: run `python -m tools.icons`"
        assert png_size(content) == f"{size}x{size}"


def test_a_maskable_icon_fills_its_square_and_has_its_drawing_in_the_middle() -> None:
    svg = icons.SOURCE.read_text("utf-8")
    assert icons.shaped(svg, "rounded") == svg
    assert " rx=" not in icons.shaped(svg, "square")
    maskable = icons.shaped(svg, "maskable")
    assert " rx=" not in maskable
    assert 'scale(0.8)"><path' in maskable
