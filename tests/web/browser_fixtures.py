"""A real Chromium that reaches loopback alone, and pages that keep all that the browser complains of."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

AXE = Path(__file__).parents[2] / "build/clients/axe/node_modules/axe-core/axe.min.js"
ARGUMENTS = (
    "--no-sandbox",  # root has none
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""
DESKTOP: Mapping[str, int] = {"width": 1280, "height": 800}
PHONE: Mapping[str, int] = {"width": 390, "height": 844}
WAIT_MILLISECONDS = 60_000
expect.set_options(timeout=WAIT_MILLISECONDS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium for the length of the block."""
    path = shutil.which("chromium")
    assert path is not None, "chromium is missing: run tools/setup.sh .venv tests"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


class WatchedContext:
    """A browser's profile that collects the errors of its pages and the hosts that they ask."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        options.setdefault("viewport", DESKTOP)
        options.setdefault(
            "reduced_motion", "reduce"
        )  # what moves is drawn again and again, by the processor
        self.context: BrowserContext = browser.new_context(**options)
        self.context.set_default_timeout(WAIT_MILLISECONDS)
        self.context.add_init_script(_REPORT_VIOLATIONS)
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.expected: tuple[str, ...] = ()
        """Parts of messages that a test provokes."""
        self.context.on("console", lambda message: self._note(message.type, message.text))
        self.context.on("weberror", lambda error: self.problems.append(f"exception: {error.error}"))
        self.context.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(part in text for part in self.expected):
            self.problems.append(f"{kind}: {text}")

    def page(self, path: str = "") -> Page:
        """Open a tab."""
        page = self.context.new_page()
        if path:
            page.goto(self.url + path)
        return page

    def sign_in(self, key: str) -> Page:
        """Sign in by the form."""
        page = self.page("/ui/sign-in")
        page.get_by_label("Key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(self.url + "/")
        return page

    def check(self) -> None:
        """See that no page complained and none asked another host."""
        assert self.problems == []
        assert self.hosts <= {"127.0.0.1"}


def axe_violations(page: Page) -> list[str]:
    """Return what axe finds on a page, all of its rules included."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text("utf-8"))
    found = page.evaluate("async () => (await axe.run(document, { resultTypes: ['violations'] })).violations")
    return [
        f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]
    ]


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
