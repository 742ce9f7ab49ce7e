"""Forms with files (`multipart/form-data`), and files as content blocks of a prompt, within the limits of the API."""

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from steadyhand.api.openai.content_parts import MAX_PARTS, MAX_TOTAL_BYTES, ContentPartParser
from steadyhand.errors import InvalidRequest

MEDIA_TYPE = "multipart/form-data"
MAX_BODY_BYTES = MAX_TOTAL_BYTES + (2 << 20)
_MAX_FIELDS = 200
_MAX_FIELD_BYTES = 2 << 20
_CHUNK_BYTES = 64 << 10
_BOUNDARY = re.compile(r"""boundary="?([A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-])"?(?:;|$)""")
_IMAGE_TYPES = re.compile(r"image/(png|jpeg|gif|webp)")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form. Its name and its type are those that the browser says."""

    name: str
    media_type: str
    data: bytes


class _Parser(MultiPartParser):
    spool_max_size = MAX_BODY_BYTES + 1  # never on the disk


async def parse_upload_form(
    content_type: str, body: bytes
) -> tuple[Sequence[tuple[str, str]], Sequence[Upload]]:
    """Return the fields and the files of a form; an empty file, as of an empty file input, is left out."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise InvalidRequest("The form has no boundary.", code="malformed_json")
    headers = Headers(
        {"content-type": f'{MEDIA_TYPE}; boundary="{boundary[1]}"'}
    )  # in UTF-8, whatever it says
    parser = _Parser(
        headers,
        _chunks(body),
        max_files=MAX_PARTS + 1,  # one more is named by the parser of the content
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form is not valid: {error.message}", code="malformed_json") from error
    fields: list[tuple[str, str]] = []
    uploads: list[Upload] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            data = await value.read()
            if value.filename or data:
                uploads.append(Upload(value.filename or "", value.content_type or "", data))
        else:
            fields.append((name, value))
    await form.close()
    return fields, uploads


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    for at in range(0, len(body), _CHUNK_BYTES):
        yield body[at : at + _CHUNK_BYTES]
        await asyncio.sleep(0)  # others of the service have their turn


def content_blocks(prompt: str, uploads: Sequence[Upload]) -> tuple[Mapping[str, Any], ...]:
    """Return the content of a prompt with files: images, PDF and text, as in the OpenAI routes."""
    if not uploads:
        return ()
    parts: list[Mapping[str, Any]] = [{"type": "input_text", "text": prompt}]
    for upload in uploads:
        data = base64.b64encode(upload.data).decode("ascii")
        if _IMAGE_TYPES.fullmatch(upload.media_type):
            parts.append({"type": "input_image", "image_url": f"data:{upload.media_type};base64,{data}"})
        else:
            parts.append({"type": "input_file", "filename": upload.name, "file_data": data})
    try:
        return tuple(ContentPartParser().parse(parts, "files"))
    except InvalidRequest as error:
        raise _named(error, uploads) from error


def _named(error: InvalidRequest, uploads: Sequence[Upload]) -> InvalidRequest:
    """Return the error with the name of the file in place of its number."""
    for field_error in error.field_errors:
        number = re.match(r"/files/(\d+)", field_error.pointer)
        if number is not None and 0 < int(number[1]) <= len(uploads):
            name = uploads[int(number[1]) - 1].name[:100]
            return InvalidRequest(f"The file {name!r} {field_error.detail}.", code=error.code)
    return error
