"""Draw the PNG icons of the operations page from its SVG, with the Chromium of the browser tests.

Usage: `.venv/bin/python -m tools.icons`. Run it after a change of icon.svg: a test compares the digest in
the PNG files.
"""

import hashlib
import re
import struct
import zlib
from pathlib import Path

from playwright.sync_api import Page
from tests.web.browser_fixtures import chromium

STATIC = Path(__file__).parents[1] / "src/steadyhand/web/static"
SOURCE = STATIC / "icon.svg"
ICONS = (
    ("icon-192.png", 192, "rounded"),
    ("icon-512.png", 512, "rounded"),
    ("icon-maskable-512.png", 512, "maskable"),
    ("apple-touch-icon.png", 180, "square"),
)
"""The files, their pixels, and their form. Platforms cut a maskable icon: its drawing is within the middle 80 %."""
_SAFE_SHARE = 0.8


def main() -> None:
    """Write all icons."""
    svg = SOURCE.read_text("utf-8")
    digest = hashlib.sha256(svg.encode()).hexdigest()
    with chromium() as browser:
        page = browser.new_page()
        for name, size, form in ICONS:
            (STATIC / name).write_bytes(with_source(_draw(page, shaped(svg, form), size), digest))
            print(STATIC / name)  # noqa: T201


def shaped(svg: str, form: str) -> str:
    """Return the drawing in this form: with its round corners, or to the edges."""
    if form == "rounded":
        return svg
    svg = re.sub(r' rx="\d+"', "", svg)
    if form == "square":
        return svg
    head, ground, drawing = re.fullmatch(r"(<svg[^>]*>)(<rect[^>]*/>)(.*)</svg>\s*", svg, re.DOTALL).groups()  # type: ignore[union-attr]  # our own file
    move = 16 * (1 - _SAFE_SHARE)
    return f'{head}{ground}<g transform="translate({move} {move}) scale({_SAFE_SHARE})">{drawing}</g></svg>'


def _draw(page: Page, svg: str, size: int) -> bytes:
    page.set_viewport_size({"width": size, "height": size})
    page.set_content(
        f"<style>body {{ margin: 0 }} svg {{ display: block; width: {size}px; height: {size}px }}</style>{svg}"
    )
    return page.screenshot(omit_background=True)


def with_source(png: bytes, digest: str) -> bytes:
    """Return a PNG with the digest of its source as a text."""
    text = b"Source\0" + digest.encode("ascii")
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    end_of_header = 8 + 25
    return png[:end_of_header] + chunk + png[end_of_header:]


if __name__ == "__main__":
    main()
