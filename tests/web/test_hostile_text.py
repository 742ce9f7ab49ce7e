"""Hostile text of agents and callers stands on the page as text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.api_service import RunningService, run_job
from tests.web.hostile_strings import KINDS
from tests.web.page_client import PageClient, parsed

from steadyhand.events import EgressRefused, Message, Thinking, ToolFinished, ToolStarted
from steadyhand.ports import Emit
from steadyhand.web.plain_text import visible_text
from steadyhand.web.safe_markdown import MAX_LENGTH, markdown_html, parsed_markdown_html

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<hx-partial hx-target='body' hx-swap='innerHTML'>gone</hx-partial>",
    "<div hx-get='/ui/sign-out' hx-trigger='load'></div>",
    "[x](javascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](JaVaScRiPt&#58;alert(1))",
    "![x](http://127.0.0.1:9/pixel.png)",
    "<http://ok.example/><javascript:alert(1)>",
    "[a]: javascript:alert(1)\n\n[a]",
    "```html\n<script>alert(1)</script>\n```",
    "<!-- --><style>body{display:none}</style>",
    "{{ 7 * 7 }}{% raw %}",
    "data: x\n\nevent: changed\ndata: y\n\n",
    "\r\rdata: x\r\r",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m",
    "\u202egnp.exe \u2066x\u2069 \u200f",
    "\u0430pple.com \u200b zero",
    "a" + "\u0301" * 5000,
    "x" * 200_000,
    "\ud800 half",
    "\0 nul",
    "*" * 3000 + "_" * 3000,
    "[" * 3000,
    "> " * 3000,
    "`" * 3000,
    "|a" * 500 + "\n" + "|-" * 500 + "\n",
)
ALLOWED = {
    *("p", "br", "hr", "strong", "em", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


def check_markup(markup: str) -> None:
    found = parsed(markup)
    assert found.tags <= ALLOWED
    for name, value in found.attributes:
        assert name in ("href", "rel", "start", "class")
        if name == "href":
            assert re.match(r"https?://|mailto:", value or "", re.IGNORECASE) is not None
        if name == "class":
            assert value in ("md-heading", "plain")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_has_no_tag_or_address_that_does_anything(text: str) -> None:
    check_markup(markdown_html(visible_text(text)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_hostile_text_is_markup(kind: str) -> None:
    for text in KINDS[kind]:
        check_markup(markdown_html(visible_text(text)))


@given(st.text(max_size=200))
def test_any_text_is_harmless_markdown(text: str) -> None:
    check_markup(markdown_html(visible_text(text)))


@given(st.lists(st.sampled_from(HOSTILE[:17]), max_size=6).map("".join))
def test_pieces_of_hostile_text_are_harmless_together(text: str) -> None:
    check_markup(markdown_html(visible_text(text)))


_NEARLY_PLAIN = st.text("aZ9 ,.;:'()?/%=+-_*`\"&<>!|~[]#\\\n\u00e9\t", max_size=40)


@given(st.one_of(_NEARLY_PLAIN, _NEARLY_PLAIN.map(lambda text: f"I say: {text.strip()} 1. - a")))
def test_a_plain_line_is_the_same_without_the_parser(text: str) -> None:
    assert markdown_html(text) == parsed_markdown_html(text)


@pytest.mark.parametrize("mark", [chr(code) for code in range(0x20, 0x7F)])
def test_no_mark_is_taken_for_plain_text(mark: str) -> None:
    for text in (
        mark,
        f"a{mark}",
        f"{mark}a",
        f"a {mark} b",
        f"a {mark}b{mark} c",
        f"{mark} a",
        f"1{mark} a",
    ):
        assert markdown_html(text) == parsed_markdown_html(text)
        assert markdown_html(f"a\n{text}") == parsed_markdown_html(f"a\n{text}")


@given(st.text(st.characters(max_codepoint=0x7F), max_size=60))
def test_ascii_is_made_visible_as_other_text_is(text: str) -> None:
    assert visible_text(f"{text}\u00e9") == f"{visible_text(text)}\u00e9"


def test_a_very_long_text_is_not_parsed() -> None:
    markup = markdown_html("*x* " * MAX_LENGTH)
    assert markup.startswith('<pre class="plain">')
    assert "<em>" not in markup


@given(st.text(max_size=300))
def test_visible_text_has_nothing_that_is_invisible_or_changes_direction(text: str) -> None:
    shown = visible_text(text)
    assert (
        re.search(
            "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown
        )
        is None
    )
    assert visible_text(shown) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("a\r\nb\tc\rd", "a\nb\tc␍d"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("👩‍💻 ✔️ e\u0301", "👩‍💻 ✔️ e\u0301"),
    ],
)
def test_visible_text_writes_out_what_cannot_be_seen(text: str, shown: str) -> None:
    assert visible_text(text) == shown


def test_a_hostile_transcript_is_text_on_the_page(service: RunningService, page: PageClient) -> None:
    async def play(emit: Emit) -> None:
        for number, text in enumerate(HOSTILE):
            await emit(Message("assistant", text))
            await emit(Thinking(text))
            await emit(ToolStarted(text, text, {text[:300]: text, "command": text}))
            await emit(ToolFinished(text, is_error=False, output=text, truncated=False, duration_ms=number))
            await emit(EgressRefused(text))

    service.runner.play = play
    with service.client() as client:
        job = run_job(client, f"play {HOSTILE[0]}", title=HOSTILE[1])
    for path in (
        f"/ui/jobs/{job['id']}",
        "/ui/jobs",
        "/",
        f"/ui/jobs/{job['id']}/head",
        f"/ui/jobs/{job['id']}/diff",
    ):
        text = page.get(path).text
        found = parsed(text)
        assert found.tags.isdisjoint({"iframe", "style", "object", "embed", "base", "hx-partial"}), path
        pictures = [attributes["class"] for tag, attributes in found.elements if tag == "svg"]
        assert pictures in ([], ["timeline"])
        assert {value for name, value in found.attributes if name == "hx-get"} <= {
            "/",
            "/ui/jobs",
            "/ui/jobs?",
            "/ui/estimate",
            f"/ui/jobs/{job['id']}/head",
            f"/ui/jobs/{job['id']}/overview",
        }
        assert not [name for name, _ in found.attributes if name.startswith("on")]
        assert {value for name, value in found.attributes if name == "src"} <= set(
            re.findall(r"/ui/static/[\w./-]+", text)
        )
