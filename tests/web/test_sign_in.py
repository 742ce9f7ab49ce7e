"""Signing in and out of the page: with a key, with a link, within bounds, and until the key ends."""

import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.api.api_service import ADMIN, OTHER, SUBMITTER, RunningService, running_service
from tests.web.page_client import PageClient, check_headers

from steadyhand.api import ApiOptions
from steadyhand.web import browser_sessions, create_routes
from steadyhand.web.browser_sessions import BrowserSessions, SignInFailures, SignInLinks

PAGES = ("/", "/ui/jobs", "/ui/jobs/0123456789ab", "/ui/jobs/0123456789ab/diff", "/ui/stream?on=jobs")


@pytest.fixture
def fresh_service(tmp_path: Path) -> Iterator[RunningService]:
    """A service in which no sign-in has failed yet."""
    with running_service(tmp_path, more_routes=create_routes()) as found:
        yield found


def make_key(service: RunningService, **fields: object) -> dict[str, str]:
    with service.client() as client:
        made: dict[str, str] = client.post("/v1/keys", json={"name": "page", **fields}).json()
        return made


def link_secret(service: RunningService, token: str = ADMIN) -> str:
    with service.client(token) as client:
        answer = client.post("/ui/links")
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store"), answer.text
    document = answer.json()
    assert (document["object"], document["expires_in"]) == ("sign_in_link", 60)
    path, _, secret = document["url"].partition("#")
    assert path == "/ui/open"
    assert len(secret) >= 43
    return str(secret)


@pytest.mark.parametrize("path", PAGES)
def test_a_browser_without_a_session_is_sent_to_the_form_and_back(stranger: PageClient, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code == 303
    target = urllib.parse.urlsplit(answer.headers["location"])
    assert target.path == "/ui/sign-in"
    assert urllib.parse.parse_qs(target.query) == ({} if path == "/" else {"next": [path]})
    form = stranger.get(answer.headers["location"])
    assert form.status_code == 200
    assert '<form class="stack panel" method="post" action="/ui/sign-in">' in form.text
    signed = stranger.http.post("/ui/sign-in", data={"key": ADMIN, "next": path})
    assert (signed.status_code, signed.headers["location"]) == (303, path)


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(stranger: PageClient) -> None:
    answer = stranger.http.post("/ui/sign-in", data={"key": ADMIN})
    name, _, rest = answer.headers["set-cookie"].partition("=")
    port = urllib.parse.urlsplit(str(stranger.http.base_url)).port
    assert name == f"steadyhand_session_{port}"  # two services of one machine do not sign each other out
    attributes = {part.strip().lower() for part in rest.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= attributes
    assert "secure" not in attributes  # a browser would not send it back without TLS
    assert ADMIN not in rest


@pytest.mark.parametrize("how", ["public_url", "proxy"])
def test_behind_tls_the_cookie_is_secure(tmp_path: Path, how: str) -> None:
    options = ApiOptions(public_url="https://agents.example.org" if how == "public_url" else None)
    with (
        running_service(tmp_path, options=options, more_routes=create_routes(), worker=False) as service,
        PageClient(service) as client,
    ):
        headers = {"x-forwarded-proto": "https"} if how == "proxy" else {}
        answer = client.http.post("/ui/sign-in", data={"key": ADMIN}, headers=headers)
        assert answer.headers["set-cookie"].startswith("__Host-steadyhand_session")
        assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "/v1/jobs",
        "/ui/\nx",
    ],
)
def test_nobody_is_sent_to_another_site_after_signing_in(stranger: PageClient, target: str) -> None:
    answer = stranger.http.post("/ui/sign-in", data={"key": ADMIN, "next": target})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_wrong_key_is_refused_and_not_repeated_on_the_page(fresh_service: RunningService) -> None:
    with PageClient(fresh_service) as client:
        answer = client.http.post("/ui/sign-in", data={"key": "sh_k_wrong_secret"})
        check_headers(answer)
        assert answer.status_code == 401
        assert "This key is not known here." in answer.text
        assert "sh_k_wrong_secret" not in answer.text
        assert "set-cookie" not in answer.headers


def test_an_address_that_fails_ten_times_is_refused_also_with_a_right_key(
    fresh_service: RunningService,
) -> None:
    with PageClient(fresh_service) as client:
        for number in range(browser_sessions.MAX_FAILURES):
            # Links count as well: their secrets could be guessed at the same route.
            path, field = ("/ui/open", "secret") if number % 2 else ("/ui/sign-in", "key")
            assert client.http.post(path, data={field: f"wrong {number}"}).status_code == 401
        answer = client.http.post("/ui/sign-in", data={"key": ADMIN})
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= browser_sessions.FAILURE_SECONDS + 1
        # Who has the command line comes in all the same: a link cannot be guessed.
        assert client.http.post("/ui/open", data={"secret": link_secret(fresh_service)}).status_code == 303


def test_a_form_from_another_site_is_refused(page: PageClient) -> None:
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},  # another port of this machine is another site
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        for path in ("/ui/sign-in", "/ui/open", "/ui/sign-out", "/ui/jobs/0123456789ab/cancel"):
            answer = page.http.post(path, data={"csrf": page.csrf(), "key": ADMIN}, headers=headers)
            assert answer.status_code == 403, (path, headers)
    assert page.get("/").status_code == 200  # and nobody was signed out


@pytest.mark.parametrize(
    "path",
    ["/ui/sign-out", *(f"/ui/jobs/0123456789ab/{each}" for each in ("cancel", "retry", "resume", "turn"))],
)
def test_a_form_without_the_token_of_its_session_changes_nothing(
    service: RunningService, page: PageClient, path: str
) -> None:
    with PageClient(service) as other:
        other.sign_in()
        for token in ({"other": "x"}, {"csrf": ""}, {"csrf": "x" * 43}, {"csrf": other.csrf()}):
            answer = page.http.post(path, data=token)
            assert answer.status_code == 403, token
            assert "load the page again" in answer.text
    assert page.get("/").status_code == 200


def test_signing_out_ends_the_session_for_every_copy_of_its_cookie(
    service: RunningService, page: PageClient
) -> None:
    with service.client(None) as copy:
        copy.cookies = page.http.cookies
        assert copy.get("/").status_code == 200
        answer = page.send("/ui/sign-out")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/sign-in")
        assert copy.get("/").status_code == 303


@pytest.mark.parametrize("end", ["revoke", "rotate"])
def test_a_session_and_its_stream_end_with_the_key(service: RunningService, end: str) -> None:
    key = make_key(service, scopes=["read", "submit"])
    with PageClient(service) as client, service.client() as admin:
        client.sign_in(key["secret"])
        with client.http.stream("GET", "/ui/stream?on=jobs") as stream:
            lines = stream.iter_lines()
            assert next(lines) == ": following"
            if end == "revoke":
                assert admin.delete(f"/v1/keys/{key['id']}").status_code == 200
            else:
                assert admin.post(f"/v1/keys/{key['id']}/rotate").status_code == 200
            admin.post("/v1/jobs", json={"prompt": "say x"})  # not its own job: it learns nothing of it
            with service.client(OTHER) as other:
                other.post("/v1/jobs", json={"prompt": "say x"})
        assert client.get("/").status_code == 303


def test_a_rotated_key_with_grace_keeps_its_session_until_then(service: RunningService) -> None:
    key = make_key(service)
    with PageClient(service) as client, service.client() as admin:
        client.sign_in(key["secret"])
        assert admin.post(f"/v1/keys/{key['id']}/rotate", json={"grace_seconds": 60}).status_code == 200
        assert client.get("/").status_code == 200


def test_a_link_signs_in_once(service: RunningService, stranger: PageClient) -> None:
    secret = link_secret(service)
    form = stranger.get("/ui/open")
    assert secret not in form.text
    assert "data-auto" in form.text
    answer = stranger.http.post("/ui/open", data={"secret": secret})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert stranger.get("/").status_code == 200
    with PageClient(service) as second:
        again = second.http.post("/ui/open", data={"secret": secret})
        assert again.status_code == 401
        assert "was used" in again.text
        assert second.get("/").status_code == 303


def test_a_link_of_a_revoked_key_opens_nothing(service: RunningService, stranger: PageClient) -> None:
    key = make_key(service)
    secret = link_secret(service, key["secret"])
    with service.client() as admin:
        admin.delete(f"/v1/keys/{key['id']}")
    assert stranger.http.post("/ui/open", data={"secret": secret}).status_code == 401


def test_a_browser_that_is_signed_in_is_asked_before_a_link_replaces_its_session(page: PageClient) -> None:
    form = page.get("/ui/open")
    assert "data-auto" not in form.text
    assert "is signed in with the key" in form.text


def test_a_link_needs_a_key(service: RunningService) -> None:
    with service.client(None) as nobody:
        assert nobody.post("/ui/links").status_code == 401
    with service.client("not-a-key") as nobody:
        assert nobody.post("/ui/links").status_code == 401
    with PageClient(service) as client:
        client.sign_in()
        assert client.http.post("/ui/links").status_code == 401  # a session makes no links


def test_a_link_is_at_the_public_url(tmp_path: Path) -> None:
    options = ApiOptions(public_url="https://agents.example.org/")
    with (
        running_service(tmp_path, options=options, more_routes=create_routes(), worker=False) as service,
        service.client() as client,
    ):
        assert client.post("/ui/links").json()["url"].startswith("https://agents.example.org/ui/open#")


def test_links_end_after_a_minute_and_the_oldest_first() -> None:
    now = 0.0
    links = SignInLinks(clock=lambda: now)
    first = links.create("digest")
    now = browser_sessions.LINK_SECONDS
    assert links.redeem(first) is None
    secrets = [links.create(f"digest {number}") for number in range(browser_sessions.MAX_LINKS + 1)]
    assert links.redeem(secrets[0]) is None
    assert links.redeem(secrets[-1]) == f"digest {browser_sessions.MAX_LINKS}"
    assert links.redeem("") is None


def test_sessions_end_without_use_at_their_age_and_the_least_used_first() -> None:
    now = 0.0
    sessions = BrowserSessions(clock=lambda: now)
    token = sessions.begin("digest")
    while now < browser_sessions.LONGEST_SECONDS:
        session = sessions.find(token)
        assert session is not None
        assert session.is_open
        now += browser_sessions.IDLE_SECONDS
    now = browser_sessions.LONGEST_SECONDS + 1
    assert sessions.find(token) is None
    assert session is not None
    assert not session.is_open
    idle = sessions.begin("digest")
    now += browser_sessions.IDLE_SECONDS + 1
    assert sessions.find(idle) is None
    tokens = [sessions.begin("digest")]
    for _ in range(browser_sessions.MAX_SESSIONS):
        assert sessions.find(tokens[0]) is not None
        tokens.append(sessions.begin("digest"))
    assert sessions.find(tokens[0]) is not None
    assert sessions.find(tokens[1]) is None


def test_failures_are_forgotten_after_a_while_and_counted_by_network() -> None:
    now = 0.0
    failures = SignInFailures(clock=lambda: now)
    for number in range(browser_sessions.MAX_FAILURES):
        failures.check("2001:db8::1")
        failures.add(f"2001:db8::{number}")
    with pytest.raises(Exception, match="Too many sign-ins"):
        failures.check("2001:db8::ffff")
    failures.check("2001:db8:1::1")
    failures.check("192.0.2.1")
    now = browser_sessions.FAILURE_SECONDS + 1
    failures.check("2001:db8::1")


def test_a_key_without_read_is_told_so(service: RunningService) -> None:
    with PageClient(service) as client:
        client.sign_in(SUBMITTER)
        answer = client.get("/")
        assert answer.status_code == 403
        assert "lacks the scope" in answer.text


def test_the_page_is_not_served_under_a_name_that_is_not_its_own(service: RunningService) -> None:
    with service.client(None) as client:
        answer = client.get("/ui/sign-in", headers={"host": "evil.example"})
    assert answer.status_code == 403


def test_nothing_of_a_form_or_a_link_is_logged(
    service: RunningService, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = link_secret(service)
    with PageClient(service) as client:
        client.http.post("/ui/open", data={"secret": secret})
        client.http.post("/ui/sign-in", data={"key": "sh_k_some_secret_of_a_form"})
        client.get("/ui/jobs?q=some-word-of-a-search")
    out, err = capfd.readouterr()
    assert "/ui/open" in out + err
    for hidden in (secret, ADMIN, "sh_k_some_secret_of_a_form", "some-word-of-a-search"):
        assert hidden not in out + err


def test_a_body_that_is_no_form_is_refused(page: PageClient) -> None:
    for body, headers in (
        (b"{}", {"content-type": "application/json"}),
        (b"key=%ff", {"content-type": "application/x-www-form-urlencoded"}),
        (b"key=%00", {"content-type": "application/x-www-form-urlencoded"}),
        (b"&".join(b"a=1" for _ in range(1000)), {"content-type": "application/x-www-form-urlencoded"}),
        (b"a" * (3 << 20), {"content-type": "application/x-www-form-urlencoded"}),
    ):
        answer = page.http.post("/ui/sign-in", content=body, headers=headers)
        assert answer.status_code in (400, 413, 415, 422)


def test_static_files_are_cached_for_good_by_their_content(stranger: PageClient) -> None:
    urls = set(re.findall(r'"(/ui/static/[^"]+)"', stranger.get("/ui/sign-in").text))
    assert len(urls) >= 6
    for url in urls:
        answer = stranger.http.get(url)
        check_headers(answer)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        old = re.sub(r"static/\w{16}/", "static/0123456789abcdef/", url)
        assert old != url
        missing = stranger.http.get(old)
        assert missing.status_code == 404
        assert "immutable" not in missing.headers.get("cache-control", "")
    assert stranger.http.get("/ui/static/0123456789abcdef/../templates/base.html").status_code == 404
