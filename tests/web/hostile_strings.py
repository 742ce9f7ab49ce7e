"""Hostile texts by kind, for all places of a page that show text of agents, repositories and callers.

Each tries to run `ran(KIND)`, to load something, to change the page or its layout, or to take very long.
"""

from collections.abc import Iterator, Mapping, Sequence

RUN = "window.ran=1"
EVENTS = (
    "onload",
    "onerror",
    "onclick",
    "onmouseover",
    "onfocus",
    "ontoggle",
    "onanimationstart",
    "onpointerenter",
)
SCHEMES = ("javascript:", "JaVaScRiPt:", "java\tscript:", "java\nscript:", " javascript:", "\x01javascript:",
           "vbscript:", "data:text/html,", "data:text/html;base64,", "blob:", "file:///", "//127.0.0.1:9/")  # fmt: skip
BLOCKS = (
    "p",
    "div",
    "li",
    "td",
    "pre",
    "details",
    "svg",
    "math",
    "template",
    "noscript",
    "textarea",
    "title",
)


def _html() -> Iterator[str]:
    yield from (
        f"<script>{RUN}</script>",
        f"<SCRIPT SRC=http://127.0.0.1:9/x.js></SCRIPT><script>{RUN}",
        f"<scr<script>ipt>{RUN}</scr</script>ipt>",
        f"<script\x00>{RUN}</script>",
        f"<script/x>{RUN}</script>",
        f"</script><script>{RUN}</script>",
        f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
        "<iframe src=/ui/sign-out></iframe>",
        "<object data=/ui/keys></object><embed src=/ui/keys>",
        "<base href=http://127.0.0.1:9/>",
        "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
        "<form action=/ui/sign-out method=post><button autofocus>x</button></form>",
        "<link rel=stylesheet href=http://127.0.0.1:9/x.css>",
        "<dialog open>over all</dialog>",
        "<marquee>moves</marquee><blink>x</blink><center><font size=99>big</font></center>",
        "<plaintext>",
        "<!--",
        "<![CDATA[",
        "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]>&a;",
        "<table><tr><td></table></main></body></html>",
        "<input type=hidden name=csrf value=x><input type=password autofocus>",
        "<audio controls src=http://127.0.0.1:9/><video src=http://127.0.0.1:9/ autoplay>",
    )
    for event in EVENTS:
        yield f"<img src=x {event}={RUN}>"
        yield f'"{event}="{RUN}" autofocus tabindex=1 x="'
        yield f"' {event}='{RUN}' x='"
    for block in BLOCKS:
        yield f"</{block}><img src=x onerror={RUN}>"
        yield f"<{block} style='position:fixed;inset:0' onclick={RUN}>x"


def _svg() -> Iterator[str]:
    for inner in (
        f"<script>{RUN}</script>",
        f"<a xlink:href='javascript:{RUN}'><text y=20>x</text></a>",
        f"<animate onbegin={RUN} attributeName=x dur=1s>",
        f"<foreignObject><iframe srcdoc='<script>{RUN}</script>'></foreignObject>",
        "<use href='data:image/svg+xml,<svg id=x onload=alert(1)/>#x'/>",
        "<style>*{display:none}</style>",
        "<image href=http://127.0.0.1:9/x.png />",
        f"<set attributeName=onmouseover to={RUN}>",
    ):
        yield f"<svg onload={RUN} width=9999 height=9999>{inner}</svg>"
        yield f"<svg><desc>{inner}</desc></svg><math><mtext>{inner}</mtext></math>"


def _markdown_links() -> Iterator[str]:
    for scheme in SCHEMES:
        yield f"[x]({scheme}{RUN})"
        yield f"<{scheme}{RUN}> and [a]: {scheme}{RUN}\n\n[a]"
        yield f'![x]({scheme}{RUN} "t\' onerror={RUN}")'
    yield from (
        "[x](javascript&colon;alert(1))",
        "[x](&#106;avascript:alert(1))",
        "[x](<javascript:alert(1)>)",
        "[x]( javascript:alert(1) '\"><img src=x onerror=window.ran=1>')",
        "[![x](http://127.0.0.1:9/a.png)](http://127.0.0.1:9/)",
        '[x](http://a.example/"onclick=window.ran=1)',
        "[a](https://example.org) <https://example.org/?a=<script>>",
    )


def _terminal() -> Iterator[str]:
    for sequence in (
        "\x1b[31m", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;javascript:alert(1)\x07x\x1b]8;;\x07", "\x1b[?1049h",
        "\x1bP$q\x1b\\", "\x1b]52;c;cm0gLXJm\x07", "\x9b31m", "\x1b[" + "1;" * 400 + "m", "\x07\x08\x08\x08",
        "\r\r\n\r",
        "\x1b[38;2;1;2;3mx\x1b[0m", "\x0e\x0f", "\x7f" * 40,
    ):  # fmt: skip
        yield f"{sequence}text{sequence}"


def _characters() -> Iterator[str]:
    for character in (
        "\u202e", "\u202d", "\u2066", "\u2067", "\u2068", "\u2069", "\u200f", "\u061c", "\u200b", "\u200c", "\u2060",
        "\ufeff", "\u00ad", "\u180e", "\u3164", "\u115f", "\ufff9", "\U000e0041", "\u2028", "\u2029", "\x85", "\x00",
        "\ud800", "\udfff", "\uffff", "\ufdd0", "\ufe0f", "\u200d", "\U0001f468\u200d", "\u0301" * 300, "\u0489" * 300,
        "\u20dd" * 99, "\ufdfd", "\U00012031", "\u1d0b", "\u2e3b",
    ):  # fmt: skip
        yield f"a{character}gnp.exe{character}b"
    yield from (
        "\u0430pple.com \u0440aypal.com \u0261oogle.com",
        "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
        "\u05d0\u05d1\u05d2 abc \u0627\u0644\u0644\u0647 123",
        "Z\u0351\u036b\u0343" * 200,
        "\U0001f3f4\U000e0067\U000e0062\U000e007f" * 30,
    )


def _sizes() -> Iterator[str]:
    for piece in ("x", "W", "-", ".", "/", "\u4e00", "\u00a0", "0", "&", "<", '"', "\t"):
        yield piece * 15_000  # Markdown, as it is short enough
        yield piece * 70_000
    yield "\n" * 50_000
    yield ("y" * 300 + "\n") * 500
    yield "x" * 10_000_000


def _bombs() -> Iterator[str]:
    for piece in (
        "> ", "* ", "- ", "1. ", "[", "![", "](", "`", "``` ", "*", "_", "**a", "*a_", "~~", "|", "|a", "<", "<a ",
        "&amp;",
        "\\", "#", "+ ", "  ", "[a](", "<!--", "$", "^", "[^1]", "=", "_a*",
    ):  # fmt: skip
        yield piece * (6_000 // len(piece))
    yield "|a" * 500 + "\n" + "|-" * 500 + "\n" + ("|x" * 500 + "\n") * 9
    yield "".join("  " * depth + "- x\n" for depth in range(90))
    yield "".join(f"[a{number}]: http://example.org/{number}\n" for number in range(500)) + "[a1][a2]" * 500
    yield "[a]: <b>\n" * 500 + "[a]" * 2_000
    yield "\n".join("> " * depth + "x" for depth in range(90))


def _styles() -> Iterator[str]:
    yield from (
        "<style>body{display:none}</style>",
        "<style>@import 'http://127.0.0.1:9/x.css';*{position:fixed}</style>",
        "<div style='position:fixed;inset:0;background:red;z-index:9999'>over</div>",
        "<p style='margin-left:-9999px;width:99999px'>wide</p>",
        "<p class='bar hidden danger primary' id=head>imitates</p>",
        "<div id=events><li class=item id=e1>imitates</li></div>",
        "expression(alert(1)) url(javascript:alert(1)) behavior:url(x)",
        "</style><script>window.ran=1</script>",
        "}*{display:none!important}/*",
        "`-moz-binding:url(//127.0.0.1:9/x#y)`",
    )


def _htmx() -> Iterator[str]:
    for name, value in (
        ("hx-get", "/ui/keys"), ("hx-post", "/ui/sign-out"), ("hx-delete", "/v1/jobs/x"), ("hx-on:load", RUN),
        ("hx-on::before-request", RUN), ("hx-sse:connect", "/ui/stream?on=jobs"), ("hx-vals", f"js:{RUN}"),
        ("hx-swap-oob", "true"), ("hx-target", "body"), ("hx-boost", "true"), ("hx-ext", "x"), ("hx-trigger", "load"),
        ("data-hx-get", "/ui/keys"), ("hx-include", "*"), ("hx-nonce", "x"), ("hx-config", "{}"),
    ):  # fmt: skip
        yield f"<div {name}=\"{value}\" hx-trigger='load' id=main>x</div>"
    yield from (
        "<hx-partial hx-target='body' hx-swap='innerHTML'>gone</hx-partial>",
        "<template hx type=partial hx-target=body hx-swap=innerHTML>gone</template>",
        "</hx-partial><hx-partial hx-target='#main'>gone",
        "</span></hx-partial>\n\nevent: changed\ndata: x\n\n",
        "data: x\n\nid: jobs 0\nevent: changed\ndata: y\n\n",
        "id: 000000000000 999999\n\n",
        ": comment\nretry: 1\n\n",
        "\r\rdata: x\r\r",
    )


def _templates() -> Iterator[str]:
    yield from (
        "{{ 7 * 7 }}", "{% raw %}", "{% endmacro %}{{ config }}", "{{ ''.__class__.__mro__ }}", "${7*7}", "#{7*7}",
        "<%= 7*7 %>", "{{constructor.constructor('window.ran=1')()}}", "[[7*7]]", "%s %d %(x)s {0} {x!r}", "{#", "#}",
        "{%",
        "}}", "$(touch x)", "`touch x`", "'; DROP TABLE jobs; --", "../../etc/passwd", "%0d%0aset-cookie: x=y",
        "=cmd|' /C calc'!A0",
    )  # fmt: skip


def _entities() -> Iterator[str]:
    yield from (
        "&lt;script&gt;window.ran=1&lt;/script&gt;", "&#60;script&#62;window.ran=1&#60;/script&#62;",
        "&#x3c;img src=x onerror=window.ran=1&#x3e;", "&#0;&#xD800;&#x110000;", "&amp;lt;script&amp;gt;",
        "&quot;&apos;&nbsp;",
        "&NotEqualTilde;&fjlig;", "\\u003cscript\\u003ewindow.ran=1", "%3Cscript%3Ewindow.ran=1",
        "+ADw-script+AD4-window.ran=1",
        "&lt", "&#", "&#x",
    )  # fmt: skip


KINDS: Mapping[str, Sequence[str]] = {
    "html": tuple(_html()),
    "svg": tuple(_svg()),
    "markdown links": tuple(_markdown_links()),
    "terminal": tuple(_terminal()),
    "characters": tuple(_characters()),
    "sizes": tuple(_sizes()),
    "bombs": tuple(_bombs()),
    "styles": tuple(_styles()),
    "htmx": tuple(_htmx()),
    "templates": tuple(_templates()),
    "entities": tuple(_entities()),
}
HOSTILE: Sequence[str] = tuple(text for texts in KINDS.values() for text in texts)
