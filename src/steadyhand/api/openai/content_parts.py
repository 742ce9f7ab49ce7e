"""The parts of a message as content blocks: text, images and files, each looked at before it is believed.

A block is as the model's API has it (`text`, `image`, `document`), or `file`: a name and base64 of what is too large to
be told and is laid beside the agent's work instead.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.transport.errors import unsupported
from steadyhand.errors import InvalidRequest

Block = Mapping[str, Any]

MOST_BYTES = 20 * 1024 * 1024
"""What the images and files of one request may come to, decoded."""
MOST_PARTS = 100
IMAGE_BYTES = 3 * 1024 * 1024 + 768 * 1024
"""The largest image that is told: the model's API takes 5 MB of base64."""
PDF_BYTES = 8 * 1024 * 1024
TEXT_BYTES = 256 * 1024

_TEXTS = frozenset({"text", "input_text", "output_text"})
_IMAGES = frozenset({"image_url", "input_image"})
_FILES = frozenset({"file", "input_file"})
_MAGIC: Sequence[tuple[str, re.Pattern[bytes]]] = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("application/pdf", re.compile(rb"%PDF-")),
)
_ENDINGS = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp"}
_DATA_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)?(?:;[a-z0-9=._-]+)*?;base64,", re.IGNORECASE)
_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_TEXT_TYPES = re.compile(r"text/.+|application/(.+\+)?(json|xml|yaml|toml|x-yaml|javascript|csv|sql)")


class Parts:
    """Reads the parts of all messages of one request, within bounds for all of them together."""

    def __init__(self) -> None:
        self._bytes = 0
        self._count = 0

    def blocks(self, content: str | Sequence[Mapping[str, Any]] | None, where: str) -> list[Block]:
        """Give a message's blocks; raises `InvalidRequest` that names the part. `where` is the content's place."""
        if content is None:
            return []
        if isinstance(content, str):
            return [_text(content)]
        return [self._block(part, f"{where}/{place}") for place, part in enumerate(content)]

    def _block(self, part: Mapping[str, Any], where: str) -> Block:
        kind = part.get("type")
        if kind in _TEXTS or kind == "refusal":
            said = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(said, str):
                raise InvalidRequest.at(f"/{where}", "has no text")
            return _text(said)
        if kind in _IMAGES:
            return self._image(part, where)
        if kind in _FILES:
            return self._file(part, where)
        raise unsupported(where, "only text, images and files can be parts")

    def _image(self, part: Mapping[str, Any], where: str) -> Block:
        named = part.get("image_url")
        url = named.get("url") if isinstance(named, Mapping) else named
        if not isinstance(url, str):
            raise InvalidRequest.at(
                f"/{where}/image_url", "has to be a data URL with base64; files are not kept"
            )
        declared, data, raw = self._decoded(url, f"{where}/image_url")
        found = _sniffed(raw)
        if found is None or not found.startswith("image/"):
            raise InvalidRequest.at(f"/{where}/image_url", "is no png, jpeg, gif or webp image")
        _agree(declared, found, f"{where}/image_url")
        if len(raw) > IMAGE_BYTES:
            return _laid(f"image-{self._count}{_ENDINGS[found]}", data)
        return {"type": "image", "source": {"type": "base64", "media_type": found, "data": data}}

    def _file(self, part: Mapping[str, Any], where: str) -> Block:
        inner = part.get("file")
        given, below = (inner, f"{where}/file") if isinstance(inner, Mapping) else (part, where)
        url, name = given.get("file_data"), given.get("filename")
        if not isinstance(url, str):
            if given.get("file_id") or given.get("file_url"):
                why = "only files that come with the request are taken: put base64 into file_data"
                raise unsupported(below, why)
            raise InvalidRequest.at(f"/{below}/file_data", "has to be base64 of the file")
        declared, data, raw = self._decoded(url, f"{below}/file_data")
        called = _file_name(name, self._count)
        found = _sniffed(raw)
        if found == "application/pdf":
            _agree(declared, found, f"{below}/file_data")
            if len(raw) > PDF_BYTES:
                return _laid(called, data)
            source = {"type": "base64", "media_type": found, "data": data}
            return {"type": "document", "source": source, "title": called}
        text = _as_text(raw)
        if text is None or found is not None or (declared and not _TEXT_TYPES.fullmatch(declared)):
            raise InvalidRequest.at(
                f"/{below}/file_data", "is neither a PDF nor text in UTF-8, or not what it says"
            )
        if len(raw) > TEXT_BYTES:
            return _laid(called, data)
        source = {"type": "text", "media_type": "text/plain", "data": text}
        return {"type": "document", "source": source, "title": called}

    def _decoded(self, url: str, where: str) -> tuple[str | None, str, bytes]:
        """Give the declared type, plain base64, and the bytes."""
        if re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
            raise unsupported(
                where, "nothing is fetched from a URL: put the bytes into a data URL with base64"
            )
        head = _DATA_URL.match(url)
        if head is None and url.startswith("data:"):
            raise InvalidRequest.at(f"/{where}", "has to be a data URL with base64")
        data = url[head.end() :] if head else url
        self._count += 1
        self._bytes += len(data) * 3 // 4
        if self._count > MOST_PARTS or self._bytes > MOST_BYTES:
            most = f"{MOST_PARTS} images and files, {MOST_BYTES // 1024**2} MiB in all"
            raise InvalidRequest.at(f"/{where}", f"is more than a request may bring: {most}")
        try:
            raw = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest.at(f"/{where}", "is not base64") from error
        if not raw:
            raise InvalidRequest.at(f"/{where}", "is empty")
        declared = head.group(1).lower() if head and head.group(1) else None
        return declared, data, raw


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _laid(name: str, data: str) -> Block:
    return {"type": "file", "name": name, "data": data}


def _sniffed(raw: bytes) -> str | None:
    return next((kind for kind, magic in _MAGIC if magic.match(raw)), None)


def _agree(declared: str | None, found: str, where: str) -> None:
    same = {"image/jpg": "image/jpeg", "application/octet-stream": found}
    if declared is not None and same.get(declared, declared) != found:
        raise InvalidRequest.at(f"/{where}", f"says that it is {declared[:60]} and is {found}")


def _as_text(raw: bytes) -> str | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _file_name(name: Any, count: int) -> str:
    """Give a harmless name: letters, digits, dots and dashes, with nothing of a path."""
    plain = (
        _NAME.sub("_", str(name).replace("\\", "/").rsplit("/", 1)[-1])[:100] if isinstance(name, str) else ""
    )
    plain = plain.lstrip(".-")
    return plain or f"file-{count}"
