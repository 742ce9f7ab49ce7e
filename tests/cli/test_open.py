"""`steadyhand open` prints a link to the page that signs a browser in."""

import json
import re
import stat
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.cli.command_line import CommandLine, RealService, ScriptedAnswer, ScriptedService

from steadyhand.cli.open_page import open_in_browser
from steadyhand.testing.service import PLAIN_HTTP

LINK = {"object": "sign_in_link", "url": "/ui/open#secret", "expires_in": 60}


def test_the_link_alone_is_on_stdout(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("POST", "/ui/links", ScriptedAnswer.of(LINK, 201))
    ran = steadyhand("open")
    assert (ran.code, ran.out) == (0, f"{service.url}/ui/open#secret\n")
    asked = json.loads(steadyhand("open", "--json").out)
    assert asked == {"object": "sign_in_link", "url": f"{service.url}/ui/open#secret"}


def test_a_public_url_is_printed_as_it_is(steadyhand: CommandLine, service: ScriptedService) -> None:
    answer = ScriptedAnswer.of({**LINK, "url": "https://agents.example.org/ui/open#secret"}, 201)
    service.respond("POST", "/ui/links", answer)
    assert steadyhand("open").out == "https://agents.example.org/ui/open#secret\n"


def test_a_link_of_a_real_service_opens_its_page_once_and_is_not_in_the_log(
    live: CommandLine, real_service: RealService
) -> None:
    link = urlsplit(live("open").out.strip())
    assert f"{link.scheme}://{link.netloc}" == real_service.url
    with httpx2.Client(base_url=real_service.url, verify=PLAIN_HTTP) as browser:
        assert browser.get("/").status_code == 303
        assert browser.get(link.path).status_code == 200
        assert browser.post(link.path, data={"secret": link.fragment}).status_code == 303
        page = browser.get("/")
        assert page.status_code == 200
        assert "Under way" in page.text
        assert browser.post(link.path, data={"secret": link.fragment}).status_code == 401


def test_the_arguments_of_the_browser_have_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    def record(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", record)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert open_in_browser("http://127.0.0.1:8080/ui/open#secret")
    (file,) = tmp_path.iterdir()
    assert opened == [file.as_uri()]
    assert "secret" not in opened[0]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert 'url=http://127.0.0.1:8080/ui/open#secret"' in file.read_text("utf-8")


def test_the_doctor_of_the_page_runs_the_checks_of_the_command(
    live: CommandLine, real_service: RealService
) -> None:
    link = urlsplit(live("open").out.strip())
    with httpx2.Client(base_url=real_service.url, verify=PLAIN_HTTP, timeout=90) as browser:
        browser.post(link.path, data={"secret": link.fragment})
        csrf = re.search(r'name="csrf" value="([^"]+)"', browser.get("/ui/doctor").text)
        assert csrf is not None
        assert browser.post("/ui/doctor", data={"csrf": csrf[1]}).status_code == 303
        text = browser.get("/ui/doctor").text
    shown = set(re.findall(r"<p><b><bdi>([^<]+)</bdi></b></p>", text))
    assert {"config", "credential", "disk", "database", "cli", "cli runs", "git", "isolation"} <= shown
    assert "stand-in" in text or "as user" in text  # its program was started
