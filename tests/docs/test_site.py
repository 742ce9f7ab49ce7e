"""The documentation is built as by `make docs`: no broken link, nothing from another host, each page in the nav."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tests.docs.pages import PROJECT
from tests.web.browser_fixtures import WatchedContext, chromium
from tools.check_site import faults_of_site

CONFIG = tomllib.loads((PROJECT / "zensical.toml").read_text("utf-8"))["project"]


def build(project: Path) -> tuple[Path, str]:
    """Build a project's site strictly; return it and the faults that the builder printed, none if it is good."""
    assert find_spec("zensical"), "the builder of the documentation is missing: run `make setup`"
    done = subprocess.run(
        [str(Path(sys.executable).parent / "zensical"), "build", "--strict", "--clean"],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "HOME": str(project), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert (done.returncode == 0) == ("No issues found" in printed), printed
    return project / "build" / "site", "" if done.returncode == 0 else printed


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the site is made of."""
    copy = tmp_path_factory.mktemp("site")
    shutil.copytree(PROJECT / "docs", copy / "docs")
    shutil.copy(PROJECT / "zensical.toml", copy)
    return copy


@pytest.fixture(scope="module")
def site(project: Path) -> Path:
    built, faults = build(project)
    assert faults == ""
    return built


def pages_in(nav: Any) -> Iterator[str]:
    """Yield the pages of the navigation, with those of its sections."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for each in nav.values():
            yield from pages_in(each)
    else:
        for each in nav:
            yield from pages_in(each)


def test_each_page_is_in_the_navigation_once() -> None:
    pages = {path.relative_to(PROJECT / "docs").as_posix() for path in (PROJECT / "docs").rglob("*.md")}
    listed = list(pages_in(CONFIG["nav"]))
    assert pages - set(listed) == set(), "add these pages to `nav` in zensical.toml"
    assert sorted(listed) == sorted(pages)
    assert [name for section in CONFIG["nav"] for name in section] == [
        "Start",
        "How-to",
        "Reference",
        "Understand",
    ]


def test_the_pages_are_built_and_no_link_is_broken(site: Path) -> None:
    assert faults_of_site(site) == []
    for page in pages_in(CONFIG["nav"]):
        assert (site / page).with_suffix(".html").is_file()


@pytest.mark.long  # `test_pages.py` finds such links, too
def test_a_broken_link_fails_the_build(site: Path, project: Path) -> None:
    page = project / "docs" / "index.md"
    text = page.read_text("utf-8")
    try:
        page.write_text(f"{text}\n[a](architecture.md#nowhere) [b](lost.md)\n", "utf-8")
        _, printed = build(project)
    finally:
        page.write_text(text, "utf-8")
    assert "anchor does not exist" in printed
    assert "page does not exist" in printed


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<a href="gone.html">x</a>', "index.html: gone.html leads nowhere"),
        ('<a href="cli.html#nowhere">x</a>', "index.html: cli.html#nowhere: the page has no such heading"),
        ('<a href="../secret.html">x</a>', "index.html: ../secret.html leads nowhere"),
        ('<img src="images/no.png">', "index.html: images/no.png is missing"),
        (
            '<script src="https://cdn.example.org/x.js"></script>',
            "index.html: https://cdn.example.org/x.js is loaded from another host",
        ),
        (
            '<link rel="stylesheet" href="//cdn.example.org/x.css">',
            "index.html: //cdn.example.org/x.css is loaded from another host",
        ),
        (
            '<pre class="mermaid"></pre>',
            "index.html: mermaid: its script comes from another host",
        ),
    ],
)
def test_a_fault_of_the_built_site_is_found(added: str, fault: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "secret.html").write_text("not of the site", "utf-8")
    (site / "cli.html").write_text('<h2 id="exit-codes">Exit codes</h2>', "utf-8")
    good = '<a href="cli.html#exit-codes">x</a><a href="https://example.org">y</a><img src="data:image/png;base64,">'
    (site / "index.html").write_text(good, "utf-8")
    assert faults_of_site(site) == []
    (site / "index.html").write_text(good + added, "utf-8")
    assert faults_of_site(site) == [fault]
    (site / "index.html").write_text(good, "utf-8")
    (site / "x.css").write_text("a { background: url(https://fonts.example.org/a.woff2) }", "utf-8")
    assert faults_of_site(site) == ["x.css: https://fonts.example.org/a.woff2 is loaded from another host"]


class QuietHandler(SimpleHTTPRequestHandler):
    """Files of a directory, without a line on stderr for each."""

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002  # the name of the base class
        pass


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """Serve the site on a port of loopback for the length of the block, and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_browser_reads_and_searches_the_site_and_asks_no_other_host(site: Path) -> None:
    with serving(site) as url, chromium() as browser:
        context = WatchedContext(browser, url)
        page = context.page("/http-api.html")
        page.get_by_role("heading", name="The HTTP API").wait_for()
        page.keyboard.press("/")
        page.keyboard.type("deadline")
        page.get_by_role("link", name="Architecture").first.wait_for()
        context.check()
        assert context.hosts == {"127.0.0.1"}
