"""Images and files from base64 become blocks, larger ones files; what is not what it says is refused by name."""

import base64
from typing import Any

import pytest

from steadyhand.api.openai import content_parts
from steadyhand.api.openai.content_parts import ContentPartParser
from steadyhand.api.openai.input_messages import ConversationMessage, split_conversation
from steadyhand.errors import InvalidRequest

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 8
GIF = b"GIF89a" + b"\0" * 8
WEBP = b"RIFF\x10\0\0\0WEBPVP8 "
PDF = b"%PDF-1.7\n"


def url(kind: str, raw: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def image(kind: str, raw: bytes, *, responses: bool = False) -> dict[str, Any]:
    if responses:
        return {"type": "input_image", "image_url": url(kind, raw), "detail": "auto"}
    return {"type": "image_url", "image_url": {"url": url(kind, raw)}}


def file(name: str, data: str, *, responses: bool = False) -> dict[str, Any]:
    if responses:
        return {"type": "input_file", "filename": name, "file_data": data}
    return {"type": "file", "file": {"filename": name, "file_data": data}}


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize(
    ("kind", "raw"), [("image/png", PNG), ("image/jpeg", JPEG), ("image/gif", GIF), ("image/webp", WEBP)]
)
def test_an_image_becomes_a_block_of_its_true_type(kind: str, raw: bytes, *, responses: bool) -> None:
    (block,) = ContentPartParser().parse([image(kind, raw, responses=responses)], "c")
    assert block["type"] == "image"
    assert block["source"]["media_type"] == kind
    assert base64.b64decode(block["source"]["data"]) == raw


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize(
    ("declared", "raw", "kind"),
    [
        ("image/png", JPEG, "image/jpeg"),
        ("image/jpeg", PNG, "image/png"),
        ("image/jpg", WEBP, "image/webp"),
        ("image/svg+xml", GIF, "image/gif"),
        ("application/octet-stream", PNG, "image/png"),
        ("text/plain", PNG, "image/png"),
    ],
)
def test_an_image_is_taken_by_its_bytes_whatever_its_label(
    declared: str, raw: bytes, kind: str, *, responses: bool
) -> None:
    (block,) = ContentPartParser().parse([image(declared, raw, responses=responses)], "c")
    assert (block["type"], block["source"]["media_type"]) == ("image", kind)


def test_a_pdf_is_taken_by_its_bytes_whatever_its_label() -> None:
    (block,) = ContentPartParser().parse([file("a.pdf", url("application/x-pdf", PDF))], "c")
    assert (block["type"], block["source"]["media_type"]) == ("document", "application/pdf")


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r\n  ", "\t"])
def test_base64_with_line_breaks_is_taken_and_passed_on_without(line_break: str) -> None:
    raw = PNG + bytes(range(256))
    lines = base64.encodebytes(raw).decode().replace("\n", line_break)
    for part in (
        {"type": "input_image", "image_url": f"data:image/png;base64,{line_break}{lines}"},
        {"type": "image_url", "image_url": {"url": lines}},
    ):
        (block,) = ContentPartParser().parse([part], "c")
        assert block["source"]["data"] == base64.b64encode(raw).decode()
    text = base64.encodebytes(b"words " * 40).decode().replace("\n", line_break)
    (block,) = ContentPartParser().parse([file("a.txt", f"data:text/plain;base64,{text}")], "c")
    assert block["source"]["data"] == "words " * 40


@pytest.mark.parametrize("responses", [False, True])
def test_a_pdf_and_a_text_become_documents(*, responses: bool) -> None:
    pdf, text, bare = ContentPartParser().parse(
        [
            file("a.pdf", url("application/pdf", PDF), responses=responses),
            file("notes.md", url("text/markdown", "Grüße".encode()), responses=responses),
            file("", base64.b64encode(b"a,b\n").decode(), responses=responses),
        ],
        "c",
    )
    assert (pdf["type"], pdf["title"], pdf["source"]["media_type"]) == (
        "document",
        "a.pdf",
        "application/pdf",
    )
    assert (text["source"]["type"], text["source"]["data"], text["title"]) == ("text", "Grüße", "notes.md")
    assert (bare["source"]["data"], bare["title"]) == ("a,b\n", "file-3")


def test_what_is_large_becomes_a_file_with_a_harmless_name() -> None:
    large = ContentPartParser().parse(
        [
            image("image/png", PNG + b"\0" * content_parts.MAX_IMAGE_BYTES),
            file("../../etc/pass wd\n.txt", url("text/plain", b"x" * (content_parts.MAX_TEXT_BYTES + 1))),
        ],
        "c",
    )
    assert [(block["type"], block["name"]) for block in large] == [
        ("file", "image-1.png"),
        ("file", "pass_wd_.txt"),
    ]
    assert base64.b64decode(large[1]["data"]) == b"x" * (content_parts.MAX_TEXT_BYTES + 1)


@pytest.mark.parametrize(
    ("part", "pointer", "why"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "/c/0/image_url", "URL"),
        ({"type": "input_image", "image_url": "http://127.0.0.1/a.png"}, "/c/0/image_url", "URL"),
        ({"type": "input_image", "image_url": "file:///etc/passwd"}, "/c/0/image_url", "URL"),
        ({"type": "input_image", "file_id": "file-1"}, "/c/0/image_url", "data URL"),
        ({"type": "input_file", "file_id": "file-1"}, "/c/0", "come with the request"),
        ({"type": "input_file", "file_url": "https://example.org/a.pdf"}, "/c/0", "come with the request"),
        ({"type": "file", "file": {}}, "/c/0/file/file_data", "base64"),
        (image("image/png", b"<svg/>"), "/c/0/image_url", "no png"),
        (image("image/png", PDF), "/c/0/image_url", "no png"),
        (file("a.txt", url("text/plain", b"\0\xff")), "/c/0/file/file_data", "neither"),
        (file("a.txt", url("text/plain", PNG)), "/c/0/file/file_data", "neither"),
        (file("a.pdf", url("application/pdf", b"text")), "/c/0/file/file_data", "neither"),
        (file("a.txt", "data:text/plain;base64,!!!"), "/c/0/file/file_data", "not base64"),
        (file("a.txt", "data:text/plain,hello"), "/c/0/file/file_data", "data URL"),
        (file("a.txt", "data:text/plain;base64,"), "/c/0/file/file_data", "empty"),
        ({"type": "input_audio", "input_audio": {}}, "/c/0", "only text"),
        ({"type": "text"}, "/c/0", "no text"),
        ({}, "/c/0", "only text"),
    ],
)
def test_what_is_not_taken_is_refused_with_its_place_and_the_reason(
    part: dict[str, Any], pointer: str, why: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ContentPartParser().parse([part], "c")
    assert caught.value.field_errors[0].pointer == pointer
    assert why in caught.value.detail


def test_all_messages_together_have_one_bound() -> None:
    reading = ContentPartParser()
    half = [file("a.txt", url("text/plain", b"x" * (content_parts.MAX_TOTAL_BYTES // 2 + 1)))]
    reading.parse(half, "c")
    with pytest.raises(InvalidRequest, match="20 MiB"):
        reading.parse(half, "c")
    many = ContentPartParser()
    with pytest.raises(InvalidRequest, match="100 images"):
        many.parse([image("image/png", PNG)] * (content_parts.MAX_PARTS + 1), "c")


def test_the_asked_turn_keeps_its_blocks_in_order_and_earlier_turns_theirs() -> None:
    reading = ContentPartParser()
    asked = reading.parse(
        [{"type": "text", "text": "What is"}, image("image/png", PNG), {"type": "text", "text": "this?"}], "c"
    )
    earlier = reading.parse([image("image/gif", GIF)], "c")
    spoken = [
        ConversationMessage("user", earlier),
        ConversationMessage("assistant", reading.parse("A gif.", "c")),
        ConversationMessage("user", asked),
    ]
    found = split_conversation(spoken)
    assert found.prompt == "What is\nthis?"
    assert [block["type"] for block in found.content] == ["text", "image", "text"]
    assert found.history[0].content == (earlier[0],)
    assert found.history[1].content == "A gif."
    alone = split_conversation([ConversationMessage("user", earlier)])
    assert (alone.prompt, len(alone.content)) == ("(no text)", 1)
