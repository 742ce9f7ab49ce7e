"""Markdown of agents as HTML that can do nothing: no HTML of its own, no images, no scripts, links to the web alone.

The parser escapes HTML. What it made is then reduced to a list of tags by nh3, as a second wall.
"""

import html
import re
from functools import cache, lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt

MAX_LENGTH, MAX_LINES = 16_000, 600
"""The characters and lines of a text; a longer one is shown as it is, since parsing would take long."""
_CACHED_TEXTS = 256
_TAGS = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
_HEADING = "md-heading"
_PLAIN = re.compile(r"[A-Za-z](?:[A-Za-z0-9,.;:'()?/%=+ -]*[A-Za-z0-9,.;:'()?/%=+-])?")
"""One line in which nothing is a mark of Markdown or HTML: most of the short texts of agents."""
_ADDRESS = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)


@cache
def _parser() -> Any:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False})
    parser.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline"])

    def heading(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        del renderer, options, env
        return f'<p class="{_HEADING}">' if tokens[index].nesting == 1 else "</p>\n"

    # A heading of an agent is not one of the page.
    parser.add_render_rule("heading_open", heading)
    parser.add_render_rule("heading_close", heading)
    return parser


def _without_other_links(tag: str, name: str, value: str) -> str | None:
    """Return None for an address that is not one of the web: a relative one would be of this page."""
    del tag
    if name in ("title", "lang"):  # which nh3 lets through everywhere
        return None
    return value if name != "href" or _ADDRESS.match(value) else None


@lru_cache(_CACHED_TEXTS)
def markdown_html(text: str) -> str:
    """Return Markdown as safe HTML. `text` is already `visible_text`."""
    if len(text) <= MAX_LENGTH and _PLAIN.fullmatch(text):
        return f"<p>{text}</p>\n"
    return parsed_markdown_html(text)


def parsed_markdown_html(text: str) -> str:
    """Return the same by the parser, which `markdown_html` leaves out for a plain line."""
    if len(text) > MAX_LENGTH or text.count("\n") > MAX_LINES:
        return f'<pre class="plain">{html.escape(text)}</pre>'
    return str(
        nh3.clean(
            _parser().render(text),
            tags=_TAGS,
            attributes={"a": {"href"}, "ol": {"start"}},
            attribute_filter=_without_other_links,
            allowed_classes={"p": {_HEADING}},
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )
