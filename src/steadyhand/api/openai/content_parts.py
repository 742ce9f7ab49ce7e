"""The parts of a message as content blocks: text, images and files, each checked before it is used.

The bytes say what an image or a PDF is; the type that the client declares may be wrong.

A block has the form of the model's API (`text`, `image`, `document`), or is a `file`: a name and base64 of data that is
too large for the prompt and becomes a file beside the agent's work instead.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.transport.errors import unsupported_parameter
from steadyhand.errors import InvalidRequest

ContentBlock = Mapping[str, Any]

MAX_TOTAL_BYTES = 20 * 1024 * 1024
"""The most bytes of all images and files of one request, decoded."""
MAX_PARTS = 100
MAX_IMAGE_BYTES = 3 * 1024 * 1024 + 768 * 1024
"""The largest image in a prompt: the model's API accepts 5 MB of base64."""
MAX_PDF_BYTES = 8 * 1024 * 1024
MAX_TEXT_BYTES = 256 * 1024

_TEXT_PART_TYPES = frozenset({"text", "input_text", "output_text"})
_IMAGE_PART_TYPES = frozenset({"image_url", "input_image"})
_FILE_PART_TYPES = frozenset({"file", "input_file"})
_MAGIC_NUMBERS: Sequence[tuple[str, re.Pattern[bytes]]] = (
    ("image/png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", re.compile(rb"\xff\xd8\xff")),
    ("image/gif", re.compile(rb"GIF8[79]a")),
    ("image/webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("application/pdf", re.compile(rb"%PDF-")),
)
_EXTENSIONS = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp"}
_WITHOUT_LINE_BREAKS = {ord(character): None for character in "\r\n\t "}
"""Encoders break base64 into lines of 64 or 76 characters."""
_DATA_URL = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)?(?:;[a-z0-9=._-]+)*?;base64,", re.IGNORECASE)
_UNSAFE_NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]+")
_TEXT_MEDIA_TYPES = re.compile(r"text/.+|application/(.+\+)?(json|xml|yaml|toml|x-yaml|javascript|csv|sql)")


class ContentPartParser:
    """Parses the parts of all messages of one request, within bounds for all of them together."""

    def __init__(self) -> None:
        self._total_bytes = 0
        self._count = 0

    def parse(self, content: str | Sequence[Mapping[str, Any]] | None, location: str) -> list[ContentBlock]:
        """Return a message's blocks; raise `InvalidRequest` that names the part. `location` is the content's place."""
        if content is None:
            return []
        if isinstance(content, str):
            return [_text_block(content)]
        return [self._parse_part(part, f"{location}/{index}") for index, part in enumerate(content)]

    def _parse_part(self, part: Mapping[str, Any], location: str) -> ContentBlock:
        part_type = part.get("type")
        if part_type in _TEXT_PART_TYPES or part_type == "refusal":
            text = part.get("refusal" if part_type == "refusal" else "text")
            if not isinstance(text, str):
                raise InvalidRequest.at(f"/{location}", "has no text")
            return _text_block(text)
        if part_type in _IMAGE_PART_TYPES:
            return self._parse_image(part, location)
        if part_type in _FILE_PART_TYPES:
            return self._parse_file(part, location)
        raise unsupported_parameter(location, "only text, images and files can be parts")

    def _parse_image(self, part: Mapping[str, Any], location: str) -> ContentBlock:
        image_url = part.get("image_url")
        url = image_url.get("url") if isinstance(image_url, Mapping) else image_url
        if not isinstance(url, str):
            raise InvalidRequest.at(
                f"/{location}/image_url", "has to be a data URL with base64; files are not kept"
            )
        _, data, raw = self._decode_data(url, f"{location}/image_url")
        detected_type = _sniff_media_type(raw)
        if detected_type is None or not detected_type.startswith("image/"):
            raise InvalidRequest.at(f"/{location}/image_url", "is no png, jpeg, gif or webp image")
        if len(raw) > MAX_IMAGE_BYTES:
            return _file_block(f"image-{self._count}{_EXTENSIONS[detected_type]}", data)
        return {"type": "image", "source": {"type": "base64", "media_type": detected_type, "data": data}}

    def _parse_file(self, part: Mapping[str, Any], location: str) -> ContentBlock:
        file_object = part.get("file")
        fields, fields_location = (
            (file_object, f"{location}/file") if isinstance(file_object, Mapping) else (part, location)
        )
        url, name = fields.get("file_data"), fields.get("filename")
        if not isinstance(url, str):
            if fields.get("file_id") or fields.get("file_url"):
                reason = "only files that come with the request are taken: put base64 into file_data"
                raise unsupported_parameter(fields_location, reason)
            raise InvalidRequest.at(f"/{fields_location}/file_data", "has to be base64 of the file")
        declared_type, data, raw = self._decode_data(url, f"{fields_location}/file_data")
        file_name = _safe_file_name(name, self._count)
        detected_type = _sniff_media_type(raw)
        if detected_type == "application/pdf":
            if len(raw) > MAX_PDF_BYTES:
                return _file_block(file_name, data)
            source = {"type": "base64", "media_type": detected_type, "data": data}
            return {"type": "document", "source": source, "title": file_name}
        text = _decode_text(raw)
        if (
            text is None
            or detected_type is not None
            or (declared_type and not _TEXT_MEDIA_TYPES.fullmatch(declared_type))
        ):
            raise InvalidRequest.at(
                f"/{fields_location}/file_data", "is neither a PDF nor text in UTF-8, or not what it says"
            )
        if len(raw) > MAX_TEXT_BYTES:
            return _file_block(file_name, data)
        source = {"type": "text", "media_type": "text/plain", "data": text}
        return {"type": "document", "source": source, "title": file_name}

    def _decode_data(self, url: str, location: str) -> tuple[str | None, str, bytes]:
        """Return the declared type, plain base64, and the bytes."""
        if re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
            raise unsupported_parameter(
                location, "nothing is fetched from a URL: put the bytes into a data URL with base64"
            )
        prefix = _DATA_URL.match(url)
        if prefix is None and url.startswith("data:"):
            raise InvalidRequest.at(f"/{location}", "has to be a data URL with base64")
        data = (url[prefix.end() :] if prefix else url).translate(_WITHOUT_LINE_BREAKS)
        self._count += 1
        self._total_bytes += len(data) * 3 // 4
        if self._count > MAX_PARTS or self._total_bytes > MAX_TOTAL_BYTES:
            limits = f"{MAX_PARTS} images and files, {MAX_TOTAL_BYTES // 1024**2} MiB in all"
            raise InvalidRequest.at(f"/{location}", f"is more than a request may bring: {limits}")
        try:
            raw = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest.at(f"/{location}", "is not base64") from error
        if not raw:
            raise InvalidRequest.at(f"/{location}", "is empty")
        declared_type = prefix.group(1).lower() if prefix and prefix.group(1) else None
        return declared_type, data, raw


def _text_block(text: str) -> ContentBlock:
    return {"type": "text", "text": text}


def _file_block(name: str, data: str) -> ContentBlock:
    return {"type": "file", "name": name, "data": data}


def _sniff_media_type(raw: bytes) -> str | None:
    return next((media_type for media_type, magic in _MAGIC_NUMBERS if magic.match(raw)), None)


def _decode_text(raw: bytes) -> str | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _safe_file_name(name: Any, count: int) -> str:
    """Return a safe name: letters, digits, dots and dashes, without any path."""
    safe_name = (
        _UNSAFE_NAME_CHARACTERS.sub("_", str(name).replace("\\", "/").rsplit("/", 1)[-1])[:100]
        if isinstance(name, str)
        else ""
    )
    safe_name = safe_name.lstrip(".-")
    return safe_name or f"file-{count}"
