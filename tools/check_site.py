"""Check the built documentation: each link leads somewhere, and no page loads anything from another host.

`zensical build --strict` checks the links between the sources. This reads what it made, with its images and scripts:

    python tools/check_site.py build/site
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINKS = ("href", "src", "poster", "data", "action")
_CSS_URL = re.compile(r"url\(\s*[\"']?([^)\"']+)|@import\s+[\"']([^\"']+)")
_LATE_LOADS = {
    "mermaid": "its script comes from another host",
    "glightbox": "its script comes from another host",
}
"""Classes of elements for which the theme loads a script from another host, once the page is open."""
_REPOSITORY = ("data-md-component", "source")
"""An attribute of the element for which the theme asks a code host for figures."""


class _Page(HTMLParser):
    """The ids of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.late: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        for name in _LINKS:
            if name in values:
                (self.links if tag == "a" else self.loads).append(values[name])
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.late += [
            f"{name}: {_LATE_LOADS[name]}" for name in values.get("class", "").split() if name in _LATE_LOADS
        ]
        if values.get(_REPOSITORY[0]) == _REPOSITORY[1]:
            self.late.append("the theme asks the code host for figures of the repository")


def faults_of_site(site: Path) -> list[str]:
    """Return each link that leads nowhere and each file that is loaded from elsewhere, with its page."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site}: has no page"]
    found = [
        f"{path.relative_to(site)}: {fault}"
        for path, page in pages.items()
        for fault in (
            *page.late,
            *(fault for link in page.links for fault in _faults_of_link(site, path, link, pages)),
            *(fault for load in page.loads for fault in _faults_of_load(site, path, load)),
        )
    ]
    for path in sorted(site.rglob("*.css")):
        for match in _CSS_URL.finditer(path.read_text("utf-8")):
            load = match[1] or match[2]
            if not load.startswith(("data:", "#")):
                found += [f"{path.relative_to(site)}: {fault}" for fault in _faults_of_load(site, path, load)]
    return found


def _faults_of_link(site: Path, page: Path, link: str, pages: dict[Path, _Page]) -> Iterator[str]:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return
    target = _target(site, page, parts.path)
    if target is None:
        yield f"{link} leads nowhere"
    elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
        yield f"{link}: the page has no such heading"


def _faults_of_load(site: Path, page: Path, load: str) -> Iterator[str]:
    parts = urlsplit(load)
    if parts.scheme == "data":
        return
    if parts.scheme or parts.netloc:
        yield f"{load} is loaded from another host"
    elif _target(site, page, parts.path) is None:
        yield f"{load} is missing"


def _target(site: Path, page: Path, name: str) -> Path | None:
    """Return the file of a relative address, or None if the site has none."""
    if not name:
        return page
    start = site if name.startswith("/") else page.parent
    path = (start / unquote(name).lstrip("/")).resolve()
    path = path / "index.html" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(site.resolve()) else None


if __name__ == "__main__":
    faults = faults_of_site(Path(sys.argv[1]).resolve())
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    sys.exit(1 if faults else 0)
