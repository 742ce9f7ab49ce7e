"""Saved views and saved prompts: they belong to a key, survive, can be deleted, and hostile names are text."""

import html
import re
from urllib.parse import quote

import pytest
from tests.api.api_service import LIMITED, OTHER, RunningService, run_job
from tests.web.page_client import PageClient, parsed
from tests.web.test_hostile_text import HOSTILE

from steadyhand.control import saved_items

_VIEW = re.compile(r'<li><a href="/ui/jobs\?([^"]*)"( aria-current="true")?><bdi>(.*?)</bdi></a>', re.DOTALL)
PROMPT = {"prompt": "Fix <it>.\nThen test.", "agent": "dear", "budget_usd": "2.5", "workspace": "infra"}


def views(page: PageClient, query: str = "") -> dict[str, str]:
    """Return the queries of the views that the list shows, by the names."""
    text = page.get(f"/ui/jobs?{query}").text
    return {html.unescape(name): html.unescape(found) for found, _, name in _VIEW.findall(text)}


@pytest.fixture
def guest(service: RunningService) -> PageClient:
    """A browser with a key of its own, that has saved nothing."""
    with service.client() as admin:
        secret = admin.post("/v1/keys", json={"name": "guest"}).json()["secret"]
    client = PageClient(service)
    client.sign_in(secret)
    return client


def test_a_view_is_saved_chosen_replaced_and_deleted(service: RunningService, guest: PageClient) -> None:
    with service.client() as client:
        run_job(client, "fail marmot")
    link = '<a href="/ui/saved/views/new?state=failed&amp;q=%3Cb%3E">Save this view'
    assert link in guest.get("/ui/jobs?q=<b>&state=failed").text
    assert 'value="state failed, words &lt;b&gt;"' in guest.get("/ui/saved/views/new?state=failed&q=<b>").text
    assert "Save this view" not in guest.get("/ui/jobs").text  # there is nothing to save
    query = "state=failed&agent=claude&q=two+words"
    saved = guest.send("/ui/saved/views", name="  Failed \r\n ones ", query=query + "&cursor=x&evil=1")
    assert (saved.status_code, saved.headers["location"]) == (303, f"/ui/jobs?{query}")
    assert views(guest) == {"Failed ones": query}
    assert 'aria-current="true"' in guest.get(f"/ui/jobs?{query}").text.partition("Saved views")[2][:300]
    guest.send("/ui/saved/views", name="Failed ones", query="state=error")
    assert views(guest) == {"Failed ones": "state=error"}
    gone = guest.send("/ui/saved/views/delete", name="Failed ones", query="q=marmot")
    assert (gone.status_code, gone.headers["location"]) == (303, "/ui/jobs?q=marmot")
    assert views(guest) == {}
    assert guest.send("/ui/saved/views/delete", name="Failed ones").status_code == 404


def test_views_and_prompts_belong_to_their_key(service: RunningService) -> None:
    with PageClient(service) as one, PageClient(service) as other:
        one.sign_in(LIMITED)
        other.sign_in(OTHER)
        one.send("/ui/saved/views", name="mine", query="state=failed")
        one.send("/ui/saved/prompts", name="mine", **PROMPT)
        assert views(one) == {"mine": "state=failed"}
        assert views(other) == {}
        assert "Saved prompts" not in other.get("/").text
        assert "Fix &lt;it&gt;" not in other.get("/?saved=mine").text
        assert other.send("/ui/saved/views/delete", name="mine").status_code == 404
        assert other.send("/ui/saved/prompts/delete", name="mine").status_code == 404
        with PageClient(service) as phone:  # another browser with the same key
            phone.sign_in(LIMITED)
            assert views(phone) == {"mine": "state=failed"}


def test_a_prompt_is_saved_with_its_settings_and_fills_the_composer(guest: PageClient) -> None:
    asked = guest.send("/ui/saved/prompts/new", **PROMPT)
    assert asked.status_code == 200
    assert 'value="Fix &lt;it&gt;. Then test."' in asked.text
    saved = guest.send("/ui/saved/prompts", name="Fix & test", **PROMPT)
    assert (saved.status_code, saved.headers["location"]) == (303, "/?saved=Fix%20%26%20test")
    text = guest.get(saved.headers["location"]).text
    composer = text.partition('id="composer"')[2].partition("</form>")[0]
    assert "\nFix &lt;it&gt;.\nThen test.</textarea>" in composer
    for name in ("agent", "budget_usd", "workspace"):
        assert f'value="{PROMPT[name]}"' in composer
    assert "<bdi>Fix &amp; test</bdi>" in text
    assert guest.send("/ui/saved/prompts/delete", name="Fix & test").status_code == 303
    assert "Saved prompts" not in guest.get("/").text


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_name_or_prompt_is_text_and_can_be_deleted(guest: PageClient, number: int) -> None:
    hostile = HOSTILE[number].encode("utf-8", "replace").decode().replace("\0", "")  # as a browser sends it
    name = " ".join(hostile.split())[:80].strip() or "x"
    for path, fields in (
        ("/ui/saved/views", {"query": f"q={quote(hostile[:400])}"}),
        ("/ui/saved/prompts", {"prompt": hostile[:5000] or "x"}),
    ):
        answer = guest.http.post(
            path,
            content="&".join(
                f"{key}={quote(value, safe='')}"
                for key, value in {"csrf": guest.csrf(), "name": name, **fields}.items()
            ),
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code in (303, 422), answer.text
        if answer.status_code == 422:
            continue
        page = guest.get("/ui/jobs" if "views" in path else "/")  # `get` looks for scripts and handlers
        assert not {"iframe", "object", "embed", "svg"} & parsed(page.text).tags
        form = page.text.rpartition(f'action="{path}/delete"')[2]
        found = re.search(r'name="name" value="([^"]*)"', form)
        assert found is not None
        assert guest.send(f"{path}/delete", name=html.unescape(found[1])).status_code == 303
    assert views(guest) == {}


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("/ui/saved/views", {"name": " ", "query": "state=failed"}, "1 to 80 characters"),
        ("/ui/saved/views", {"name": "x" * 81, "query": "state=failed"}, "1 to 80 characters"),
        ("/ui/saved/views", {"name": "x", "query": "&".join("a=b" for _ in range(300))}, "too many parts"),
        ("/ui/saved/prompts", {"name": "x", "prompt": "  "}, "is required"),
        ("/ui/saved/prompts", {"name": "x", "prompt": "y" * 70_000}, "too long"),
        ("/ui/saved/prompts", {"name": "x", "prompt": "y", "agent": "z" * 501}, "at most 500"),
        ("/ui/saved/prompts/new", {"prompt": ""}, "is required"),
    ],
)
def test_what_cannot_be_saved_says_why(
    guest: PageClient, path: str, fields: dict[str, str], says: str
) -> None:
    answer = guest.send(path, **fields)
    assert answer.status_code == 422
    assert says in answer.text
    assert views(guest) == {}


def test_a_key_saves_so_many_and_no_more(guest: PageClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_items, "MAX_SAVED", 2)
    answers = [guest.send("/ui/saved/views", name=f"n{number}", query="state=error") for number in range(3)]
    assert [answer.status_code for answer in answers] == [303, 303, 409]
    assert "delete one first" in answers[2].text
    assert len(views(guest)) == 2


def test_saving_needs_the_token_of_the_session_and_the_scope(service: RunningService) -> None:
    with service.client() as admin:
        secret = admin.post("/v1/keys", json={"name": "reader", "scopes": ["read"]}).json()["secret"]
    with PageClient(service) as client:
        client.sign_in(secret)
        assert client.http.post("/ui/saved/views", data={"name": "x", "csrf": "y"}).status_code == 403
        assert client.send("/ui/saved/views", name="x", query="state=error").status_code == 303
        assert client.send("/ui/saved/prompts", name="x", **PROMPT).status_code == 403
        assert "Saved prompts" not in client.get("/").text
