"""No secret comes out of the redactor, however it is written and wherever the pieces are cut."""

import base64
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import example_counts

from steadyhand.events import Message, TextDelta, ToolStarted, WarningEvent
from steadyhand.job_warnings import WarningCode
from steadyhand.redact import LINE_LIMIT, NO_REDACTION, Redactor

KEY = "sk-ant-api03-fVq8_Zk2-canary-Xw41TtR9bLm6"
PASSWORD = 'p%41ss\\w/"ord 7!'
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nx1==\n-----END KEY-----"
LONG = "github_pat_11AAXY7/+<&>_" + "".join(f"{n:02d}Qz/" for n in range(16))
SECRETS = (KEY, PASSWORD, PEM, "zażółć-gęślą-🔑-jaźń", "correct horse battery staple", LONG)
CUT_SECRETS = (PASSWORD, "zażółć-gęślą-🔑-jaźń")
"""Those that `make test` cuts at each byte: one whose characters are escaped, and one with characters of many bytes."""
GONE = "[redacted]"
RUN_TOKEN = "Zk3vR8mQ-2yT5nWc_7LxB9pHd4sFg6jKa1eUo0iYtVr"
KNOWING = Redactor(SECRETS)


def wrapped(text: str, width: int = 76) -> str:
    return "\n".join(text[at : at + width] for at in range(0, len(text), width))


def nested(text: str, depth: int, *, ensure_ascii: bool = False) -> str:
    for _ in range(depth):
        text = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
    return text


def base64_after(before: bytes, encode: Callable[[bytes], bytes] = base64.b64encode) -> Callable[[str], str]:
    return lambda s: encode(before + s.encode() + b"tail").decode()


WRITTEN: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "percent": lambda s: quote(s, safe=""),
    "percent in small letters": lambda s: re.sub("%..", lambda code: code[0].lower(), quote(s, safe="")),
    "percent, all of it": lambda s: "".join(f"%{byte:02x}" for byte in s.encode()),
    "PERCENT, all of it": lambda s: "".join(f"%{byte:02X}" for byte in s.encode()),
    "percent of a path": quote,
    "percent of a URI component": lambda s: quote(s, safe="!'()*"),
    "percent of a URI": lambda s: quote(s, safe=";/?:@&=+$,#!'()*"),
    "as a form": quote_plus,
    **{f"json, {depth} deep": functools.partial(nested, depth=depth) for depth in range(1, 6)},
    **{
        f"json in ASCII, {depth} deep": functools.partial(nested, depth=depth, ensure_ascii=True)
        for depth in range(1, 6)
    },
    "json in ASCII in capitals": lambda s: re.sub(
        r"(?<=\\u)\w{4}", lambda code: code[0].upper(), nested(s, 1, ensure_ascii=True)
    ),
    "json in ASCII in json": lambda s: nested(nested(nested(s, 2), 1, ensure_ascii=True), 1),
    "json with slashes": lambda s: nested(s, 1).replace("/", "\\/"),
    "json with slashes in json": lambda s: nested(nested(s, 1).replace("/", "\\/"), 2),
    "json for HTML": lambda s: nested(s, 1).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
    "percent over json": lambda s: quote(nested(s, 1), safe=""),
    "percent over json in ASCII": lambda s: quote(nested(s, 1, ensure_ascii=True)),
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
    "hex in lines": lambda s: wrapped(s.encode().hex(), 60),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64 after one byte": base64_after(b"x"),
    "base64 for URLs after one byte": base64_after(b"x", base64.urlsafe_b64encode),
    "base64 after two bytes": base64_after(b"xy"),
    "base64 for URLs after two bytes": base64_after(b"xy", base64.urlsafe_b64encode),
    "basic authentication": lambda s: base64.b64encode(b"a-user:" + s.encode()).decode(),
    "base64 for URLs, percent": lambda s: quote(base64.b64encode(b"u:" + s.encode()).decode(), safe=""),
    "base64 in json": lambda s: json.dumps(base64.b64encode(s.encode()).decode()).replace("/", "\\/"),
    "base64 in lines": lambda s: wrapped(base64.b64encode(s.encode()).decode()),
    "base64 in lines of 64": lambda s: wrapped(base64.b64encode(s.encode()).decode(), 64),
    "base64 in lines in json": lambda s: nested(wrapped(base64.b64encode(s.encode()).decode()), 3),
}  # fmt: skip

WITHOUT_BASE64 = [how for how in WRITTEN if "base64" not in how and "basic" not in how]
"""The encodings whose digits do not hold bits of what stands beside the secret."""


def core(secret: str, how: str) -> bytes:
    """Give what of a spelling must not come out: of base64 without the ends, which hold other bits too."""
    text = WRITTEN[how](secret).strip('"\\')
    return (text[4:-8] if "base64" in how or "basic" in how else text).encode()


def assert_same_at_any_cut(redactor: Redactor, data: bytes, whole: bytes) -> None:
    """Assert that a stream returns the same for two chunks, wherever they are cut."""
    for cut in range(len(data) + 1):
        stream = redactor.bytes_stream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.end() == whole, cut


def assert_live(out: str, whole: str) -> None:
    """Assert that live text is the whole text, but for up to two characters of a secret before its replacement."""
    pattern = r".{0,2}\[redacted\]".join(map(re.escape, whole.split(GONE)))
    assert re.fullmatch(pattern, out, re.DOTALL), (out, whole)


def assert_live_at_any_cut(redactor: Redactor, text: str) -> None:
    """Assert the same of live text in two pieces, wherever it is cut, and of single characters."""
    whole = redactor.text(text)
    for pieces in [[text[:cut], text[cut:]] for cut in range(len(text) + 1)] + [list(text)]:
        stream = redactor.text_stream()
        assert_live("".join(map(stream.feed, pieces)) + stream.end(), whole)


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_however_it_is_written(secret: str, how: str) -> None:
    told = f'<a href="x?{WRITTEN[how](secret)}&y=%20">\\n'
    clean = KNOWING.text(told)
    assert GONE in clean
    assert secret not in clean
    assert core(secret, how).decode() not in clean
    assert clean.startswith('<a href="x?')
    assert clean.endswith('&y=%20">\\n')
    assert len(clean) < len('<a href="x?&y=%20">\\n') + 20 * len(GONE)


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize(
    "secret",
    [each if each in CUT_SECRETS else pytest.param(each, marks=pytest.mark.long) for each in SECRETS],
)
def test_a_secret_is_found_wherever_the_pieces_are_cut(secret: str, how: str) -> None:
    redactor = KNOWING
    told = f"some text {WRITTEN[how](secret)} and more".encode()
    whole = redactor.data(told)
    assert whole != told
    assert_same_at_any_cut(redactor, told, whole)
    stream = redactor.bytes_stream()
    assert b"".join(stream.feed(told[at : at + 1]) for at in range(len(told))) + stream.end() == whole
    assert_live_at_any_cut(redactor, told.decode())
    assert_live_at_any_cut(Redactor([secret]), f"{WRITTEN[how](secret)}{secret}{WRITTEN[how](secret)}")


@pytest.mark.parametrize(
    "secret",
    [
        "begins\\\\goes on",
        "begins\\\\\\goes on",
        "ends in a row\\\\",
        "\\\\begins in a row",
        "a percent % sign",
        "ends in percent%%",
    ],
)
def test_a_row_of_backslashes_or_a_percent_sign_may_be_cut_anywhere(secret: str) -> None:
    redactor = Redactor([secret])
    for how in WITHOUT_BASE64:
        for before in ("", "x ", secret):
            data = f"{before}{WRITTEN[how](secret)}".encode()
            whole = redactor.data(data)
            assert whole == (before.replace(secret, GONE) + GONE).encode(), (how, before)
            assert_same_at_any_cut(redactor, data, whole)


@pytest.mark.parametrize("before", ["\\", "\\\\", "%", "%0", "%2", "\\u", "\\u0", "\\u00", "\\u004"])
@pytest.mark.parametrize("secret", ["abcdefgh12/x", "0a1b2c3d", "u0041bcdefgh", KEY])
def test_an_escape_that_begins_before_a_secret_does_not_hide_it(secret: str, before: str) -> None:
    redactor = Redactor([secret])
    for how in WITHOUT_BASE64:
        data = f"{before}{WRITTEN[how](secret)}".encode()
        whole = redactor.data(data)
        assert whole == f"{before}{GONE}".encode(), how
        assert_same_at_any_cut(redactor, data, whole)


@pytest.mark.parametrize("text", ["%0000000000", "x%000000000000", "\\u0000000000", "00000000%0000000000"])
def test_a_secret_that_goes_on_with_its_own_characters_may_be_cut_anywhere(text: str) -> None:
    redactor = Redactor(["00000000"])
    whole = redactor.data(text.encode())
    assert b"0" not in whole
    assert_same_at_any_cut(redactor, text.encode(), whole)


def test_rows_of_backslashes_and_of_percent_signs_are_done_with_in_time() -> None:
    redactor = Redactor(["begins" + "\\" * 4 + "goes on", "%" * 20 + "ends", "\\" * 40])
    for row in ((b"\\" * 7 + b"u005c") * 100_000, b"%25" * 200_000, b"\\" * 39 + b"%"):
        data = b"begins" + row + b" goes elsewhere"
        assert redactor.truncated(data) in (data, b"begins" + GONE.encode() + b" goes elsewhere")


# --- fuzz ----------------------------------------------------------------------------------------

printable = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
secrets = st.one_of(
    st.text(st.sampled_from("abcdefABCDEF0123456789-_"), min_size=8, max_size=60),
    st.text(printable, min_size=8, max_size=40).map(str.strip).filter(lambda s: len(s) >= 8),
    st.text(st.sampled_from('ab\\%/"nu041 \n'), min_size=8, max_size=20).map(str.strip).filter(lambda s: len(s) >= 8),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=8, max_size=20)
    .map(str.strip)
    .filter(lambda s: len(s) >= 8),
)  # fmt: skip
context = st.text(st.one_of(printable, st.sampled_from("\n\t%\\é🔑")), max_size=30)


ENCODED: Mapping[str, st.SearchStrategy[Any]] = {
    "many": st.lists(secrets, min_size=1, max_size=3),
    "how": st.sampled_from(sorted(WRITTEN)),
    "before": context,
    "after": context,
    "data": st.data(),
}


def check_encoding(many: list[str], how: str, before: str, after: str, data: st.DataObject) -> None:
    many = [each for each in many if each not in GONE]
    redactor = Redactor(many)
    text = before + after.join(WRITTEN[how](each) for each in many) + after
    whole = redactor.data(text.encode())
    assert GONE.encode() in whole or not many
    for secret in many:
        assert len(core(secret, how)) < 6 or core(secret, how) not in whole
    assert redactor.text(text).encode() == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stream, texts = redactor.bytes_stream(), redactor.text_stream()
    assert b"".join(map(stream.feed, (piece.encode() for piece in pieces))) + stream.end() == whole
    live = "".join(map(texts.feed, pieces)) + texts.end()
    assert_live(live, whole.decode())
    for secret in many:
        assert len(core(secret, how)) < 8 or core(secret, how)[2:].decode("utf-8", "ignore") not in live


@pytest.mark.parametrize("examples", [80, pytest.param(400, marks=pytest.mark.long)])
def test_every_encoding_is_found_amid_other_text_at_any_cut(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(**ENCODED)(check_encoding))()


@given(
    st.lists(st.binary(min_size=8, max_size=700), min_size=1, max_size=4), st.binary(max_size=40), st.data()
)
@settings(max_examples=example_counts.examples(80, quick=30), deadline=None)
def test_no_bytes_come_out_at_any_cut(many: list[bytes], around: bytes, data: st.DataObject) -> None:
    many = [each for each in many if each not in GONE.encode()]
    redactor = Redactor(many)
    ways: list[Callable[[bytes], bytes]] = [bytes, base64.b64encode, lambda each: each.hex().encode()]
    told = around.join(data.draw(st.sampled_from(ways))(each) for each in [*many, b"", *many])
    whole = redactor.data(told)
    assert all(secret not in whole for secret in many)
    assert all(secret.hex().encode() not in whole for secret in many)
    cut = data.draw(st.integers(0, len(told)))
    stream = redactor.bytes_stream()
    assert stream.feed(told[:cut]) + stream.feed(told[cut:]) + stream.end() == whole


@given(st.text(st.characters(), max_size=200))
@settings(deadline=None)
def test_text_without_a_secret_comes_out_unchanged(text: str) -> None:
    redactor = KNOWING
    assert redactor.text(text) is text
    stream = redactor.text_stream()
    assert "".join(stream.feed(each) for each in text) + stream.end() == text
    data = text.encode("utf-8", "surrogatepass")
    assert redactor.data(data) is data


leaves = st.none() | st.booleans() | st.integers() | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@pytest.mark.parametrize("examples", [25, pytest.param(100, marks=pytest.mark.long)])
def test_a_value_without_a_secret_comes_out_unchanged(examples: int) -> None:
    def check(value: object) -> None:
        assert KNOWING.value(value) == value

    settings(max_examples=examples, deadline=None)(given(values)(check))()


# --- streams -------------------------------------------------------------------------------------


def test_live_text_is_held_back_only_where_a_secret_may_begin() -> None:
    stream = Redactor([KEY]).text_stream()
    assert stream.feed("Hello!") == "Hello!"
    assert stream.feed(" the key: sk-a") == " the key: "
    assert stream.feed("nt-api03 is how they begin") == "sk-ant-api03 is how they begin"
    assert stream.feed(f"and this is one: {KEY[:20]}") == "and this is one: "
    assert stream.feed(KEY[20:]) == GONE
    assert stream.feed(".") == "."
    assert stream.feed("100%") == "100%"
    assert stream.feed("73") == ""
    assert stream.feed(" sure") == "73 sure"
    assert stream.feed(KEY[:-1]) == ""
    assert stream.end() == KEY[:-1]


def test_live_text_is_held_back_at_hardly_any_english_word() -> None:
    words = re.findall(r" ?[A-Za-z']+[,.]?", (Path(__file__).parents[2] / "docs/architecture.md").read_text())
    redactor = Redactor([*SECRETS, *(f"tok_{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in range(20))])
    with redactor.lent([RUN_TOKEN]):
        held = [word for word in words if redactor.text_stream().feed(word) != word]
        held_exactly = [
            word for word in words if redactor.bytes_stream().feed(word.encode()) != word.encode()
        ]
    assert len(words) > 2000
    assert len(held) < len(words) / 100, set(held)
    assert len(held_exactly) > len(words) / 3


@pytest.mark.parametrize("secret", ["abcdefgh", "abcdefghijklmno", "abcdefghijklmnop", RUN_TOKEN])
def test_at_most_two_bytes_and_an_eighth_of_a_secret_are_sent_before_it_is_known(secret: str) -> None:
    early = min(2, len(secret) // 8)
    for lend in (False, True):
        redactor = Redactor(() if lend else [secret])
        with redactor.lent([secret] if lend else ()):
            for first in range(1, len(secret)):
                stream = redactor.text_stream()
                sent = stream.feed(secret[:first])
                assert sent == (secret[:first] if first <= early else "")
                assert stream.feed(secret[first:]) + stream.feed(".") == f"{GONE}."
            stream = redactor.text_stream()
            assert "".join(map(stream.feed, secret * 2)) == 2 * (secret[:early] + GONE)


def test_what_is_held_back_has_a_bound() -> None:
    redactor = Redactor(["abababab", "babababa", KEY, "a" * 300])
    for piece in (b"ab", b"\\", b"%", b"\n", b"a", b"%61", KEY[:9].encode()):
        stream = redactor.bytes_stream()
        assert sum(len(stream.feed(piece * 100)) for _ in range(500)) > 0
        assert len(stream.end()) < 1000


def test_lines_of_json_stay_lines_of_json() -> None:
    redactor = Redactor([*SECRETS, 'x","b":["y'])
    values = [
        {"text": f"it is {PASSWORD}!", "more": [KEY, {KEY: 1}], "whole": PEM},
        {"text": json.dumps({"deep": json.dumps(PEM)})},
        {"text": "nothing to see", "n": 12345678901234567890, "f": 0.1},
        {"type": "odd", "a": "x", "b": ["y"]},
    ]
    lines = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in values).encode() + b"torn {"
    for size in (1, 7, 1000):
        stream = redactor.line_stream()
        out = b"".join(stream.feed(lines[at : at + size]) for at in range(0, len(lines), size)) + stream.end()
        told = out.split(b"\n")
        assert [type(json.loads(line)) for line in told[:-1]] == [dict] * 4
        assert told[-1] == b"torn {"
        assert json.loads(told[0]) == {
            "text": f"it is {GONE}!",
            "more": [GONE, {GONE: 1}],
            "whole": GONE,
        }
        assert json.loads(told[2]) == values[2]
        assert json.loads(told[3]) == {"type": "odd", "redacted": GONE}
        for secret in SECRETS:
            assert secret not in out.decode()
            assert json.dumps(secret)[1:-1] not in out.decode()


def test_a_line_beyond_the_limit_is_clean_too() -> None:
    redactor = Redactor([KEY])
    line = json.dumps({"text": "x" * LINE_LIMIT + KEY + "y" * LINE_LIMIT}).encode() + b"\n"
    after = json.dumps([KEY]).encode() + b"\n"
    stream = redactor.line_stream()
    whole = line + after
    out = b"".join(stream.feed(whole[at : at + 65_536]) for at in range(0, len(whole), 65_536)) + stream.end()
    assert out == whole.replace(KEY.encode(), GONE.encode()).replace(b'[ "', b'["')


# --- the rest ------------------------------------------------------------------------------------


def test_bodies_of_events_and_values_are_clean_all_through() -> None:
    redactor = Redactor([KEY, "1234567890123"])
    assert redactor.body(Message("assistant", f"a {KEY}")) == Message("assistant", f"a {GONE}")
    assert redactor.body(TextDelta("m", KEY)) == TextDelta("m", GONE)
    started = ToolStarted("t", "Bash", {"command": f"echo {KEY}", "many": [{"n": 1234567890123, "m": 12}]})
    cleaned = redactor.body(started)
    assert cleaned.input == {"command": f"echo {GONE}", "many": [{"n": GONE, "m": 12}]}
    same = WarningEvent(WarningCode.COMPACTED, "message")
    assert redactor.body(same) is same


def test_a_short_secret_is_not_looked_for_and_the_replacement_stays_as_it_is() -> None:
    redactor = Redactor(["1234567", "redacted", "", b"short"])
    assert redactor.text("1234567 [redacted] short") == "1234567 [redacted] short"


def test_the_redactor_of_nothing_takes_no_secret() -> None:
    assert NO_REDACTION.text(KEY) == KEY
    NO_REDACTION.add([])
    with pytest.raises(TypeError):
        NO_REDACTION.add([KEY])
    with pytest.raises(TypeError), NO_REDACTION.lent([KEY]):
        pass
    with NO_REDACTION.lent([]):
        assert NO_REDACTION.text(KEY) == KEY


def test_secrets_are_taken_in_while_it_is_in_use() -> None:
    redactor = Redactor()
    stream = redactor.bytes_stream()
    assert stream.feed(KEY.encode()) == KEY.encode()
    redactor.add([KEY])
    assert stream.feed(KEY.encode()) + stream.end() == GONE.encode()


def test_a_secret_that_is_lent_is_looked_for_beside_the_others_and_then_no_more() -> None:
    lent = "run-4711-XyZ/0815"
    redactor = Redactor([KEY])
    stream, lines = redactor.text_stream(), redactor.line_stream()
    whole = f"{KEY} {lent} {quote(lent, safe='')} {lent}{KEY}"
    with redactor.lent([lent]):
        assert redactor.text(whole) == f"{GONE} {GONE} {GONE} {GONE}{GONE}"
        assert redactor.body(WarningEvent(WarningCode.COMPACTED, lent)) == WarningEvent(
            WarningCode.COMPACTED, GONE
        )
        with redactor.lent([lent, "another-one"]):
            assert redactor.text(f"{lent} another-one") == f"{GONE} {GONE}"
        assert redactor.text(f"{lent} another-one") == f"{GONE} another-one"
        said = "".join(stream.feed(letter) for letter in whole) + stream.end()
        assert_live(said, f"{GONE} {GONE} {GONE} {GONE}{GONE}")
        line = json.dumps({"a": lent, "b": [KEY]}).encode() + b"\n"
        assert json.loads(lines.feed(line)) == {"a": GONE, "b": [GONE]}
        overlapping = lent + KEY[:4]
        with redactor.lent([lent[-6:] + KEY[:4]]):
            assert redactor.text(overlapping) == GONE
        redactor.add(["one-that-stays"])
        assert redactor.text(f"{lent} one-that-stays") == f"{GONE} {GONE}"
    assert redactor.text(whole) == f"{GONE} {lent} {quote(lent, safe='')} {lent}{GONE}"
    assert redactor.text("one-that-stays") == GONE


def test_a_long_secret_is_found_in_pieces_and_nothing_is_left_between() -> None:
    secret = "".join(f"{n:05d}-Key/" for n in range(1000))
    redactor = Redactor([secret])
    assert redactor.text(f"<{secret}>") == f"<{GONE}>"
    assert redactor.text(f"<{quote(secret, safe='')}>") == f"<{GONE}>"
    for shift in range(3):
        told = base64.b64encode(b"x" * shift + secret.encode()).decode()
        assert len(redactor.text(told)) <= len(GONE) + 8
    assert len(redactor.text(secret[100:2000])) < 2 * 516 + len(GONE)
    for written in (secret, secret.encode().hex(), quote(secret, safe="")):
        for size in (1, 500, 5000):
            stream = redactor.text_stream()
            pieces = [stream.feed(f"<{written}>"[at : at + size]) for at in range(0, len(written) + 2, size)]
            assert_live("".join(pieces) + stream.end(), f"<{GONE}>")


def test_a_long_secret_with_characters_of_many_bytes_is_found_in_live_text() -> None:
    secret = "".join(f"zażółć-{n}-🔑" for n in range(300))
    redactor = Redactor([secret])
    for written in (secret, nested(secret, 2), nested(secret, 1, ensure_ascii=True)):
        stream = redactor.text_stream()
        assert_live("".join(map(stream.feed, f"ż{written}ż")) + stream.end(), f"ż{GONE}ż")
        assert GONE in redactor.text(written[600:])  # a part of it, cut where a piece does not begin


def test_many_secrets_are_told_apart() -> None:
    many = [f"tok_{n:04d}_{'%016x' % (n * 0x9E3779B97F4A7C15 % 2**64)}" for n in range(60)]
    redactor = Redactor(many)
    told = " ".join([*many, *(quote(each, safe="") for each in many), many[0][:-1]])
    assert redactor.text(told) == " ".join([GONE] * 120 + [many[0][:-1]])
