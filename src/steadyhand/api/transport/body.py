"""Request bodies: read within a limit, parsed as JSON, looked through, then checked against a model."""

import asyncio
import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from steadyhand.errors import FieldFault, InvalidRequest

M = TypeVar("M", bound=BaseModel)

READ_SECONDS = 120.0
"""How long a whole body may take to arrive."""
DEEPEST = 100
"""How many objects and arrays may lie within each other."""
_DECODER = json.JSONDecoder()
_SUSPECT = re.compile(rb"\\u|NaN|Infinity|[0-9][eE]\+?[0-9]{3}|[0-9]{300}")
_MOST_FAULTS = 20
_LONGEST_NAME = 64


async def read(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes. Raises `InvalidRequest` (`body_too_large`, `request_timeout`)."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(piece)
                if size > limit:
                    raise _too_large(limit)
                pieces.append(piece)
    except TimeoutError as error:
        raise InvalidRequest("The body did not arrive in time.", code="request_timeout") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest(f"The body is larger than {limit} bytes.", code="body_too_large")


def require_json(request: Request, *, lenient: bool = False) -> None:
    """Raise `InvalidRequest` (`unsupported_media_type`) unless the body says it is JSON in UTF-8.

    `lenient` lets a body pass that does not say what it is, as the classic routes always did.
    """
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    stated = headers.get(b"content-type")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidRequest("A body may not be compressed.", code="unsupported_media_type")
    if stated == b"application/json" or (stated is None and lenient):
        return
    kind, _, rest = (stated or b"").decode("latin-1").lower().partition(";")
    kind = kind.strip()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise InvalidRequest("The body has to be application/json.", code="unsupported_media_type")
    _, found, charset = rest.partition("charset=")
    if found and charset.split(";")[0].strip(' "') not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest("The body has to be in UTF-8.", code="unsupported_media_type")


def parse(raw: bytes) -> Any:
    """Parse JSON. Raises `InvalidRequest`: `malformed_json`, or `invalid_field` naming what no field may hold.

    That is: numbers that are not finite, NUL and lone surrogates in any string or key, and bombs of nesting.
    """
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep("") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("The body is not valid JSON.", code="malformed_json") from error
    except ValueError as error:  # an integer with thousands of digits
        raise InvalidRequest("The body has a number that is out of range.") from error
    # Only an escape brings in a NUL or half a surrogate pair, only these words and a big exponent a number that
    # is not finite: most bodies need no second look.
    if _SUSPECT.search(raw) or raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _look_through(value)
    return value


def _too_deep(pointer: str) -> InvalidRequest:
    return InvalidRequest.at(pointer, f"has more than {DEEPEST} levels")


def _look_through(root: Any) -> None:
    # Depth first with one open iterator per level: a wide body costs no memory of its own.
    path: list[str | int] = []
    levels = [_children(root, path)]
    while levels:
        step = next(levels[-1], None)
        if step is None:
            levels.pop()
            continue
        del path[len(levels) - 1 :]
        path.append(step[0])
        if len(path) > DEEPEST:
            raise _too_deep(pointer_of(path[:3]))
        levels.append(_children(step[1], path))


def _children(value: Any, path: Sequence[str | int]) -> Iterator[tuple[str | int, Any]]:
    """Check one value and its keys; give what lies in it."""
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest.at(pointer_of(path), "has to be a finite number")
    elif isinstance(value, dict):
        for key in value:
            _check_text(key, path)
        return iter(value.items())
    elif isinstance(value, list):
        return enumerate(value)
    return iter(())


def _check_text(text: str, where: Sequence[str | int]) -> None:
    if "\0" in text:
        raise InvalidRequest.at(pointer_of(where), "holds a NUL character")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequest.at(pointer_of(where), "holds half a surrogate pair") from error


def pointer_of(where: Sequence[str | int]) -> str:
    """Give a JSON pointer (RFC 6901); long names are cut."""
    return "".join("/" + str(part)[:_LONGEST_NAME].replace("~", "~0").replace("/", "~1") for part in where)


async def body_of(request: Request, model: type[M], limit: int, *, lenient: bool = False) -> tuple[M, Any]:
    """Give a request's body as a model, and as it was parsed.

    A model with `extra="forbid"` refuses unknown fields by name. `lenient` is for the classic and OpenAI routes.
    """
    require_json(request, lenient=lenient)
    value = parse(await read(request, limit))
    return checked(model, value), value


async def optional_body_of(request: Request, model: type[M], limit: int) -> M:
    """Give a request's body as a model; no body at all is an empty object."""
    raw = await read(request, limit)
    if not raw:
        return checked(model, {})
    require_json(request)
    return checked(model, parse(raw))


def checked(model: type[M], value: Any) -> M:
    """Give a parsed value as a model; raises `InvalidRequest` that names every wrong field."""
    if not isinstance(value, dict):
        raise InvalidRequest(
            "The body has to be a JSON object.", faults=(FieldFault("", "has to be an object"),)
        )
    faults: list[tuple[str, FieldFault]] = []
    fields = model.model_fields
    if model.model_config.get("extra") == "forbid" and (unknown := value.keys() - fields.keys()):
        faults = [("unknown_field", _unknown(name, fields)) for name in sorted(unknown)[:_MOST_FAULTS]]
        value = {name: value[name] for name in fields if name in value}
    try:
        made = model.model_validate(value, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[:_MOST_FAULTS]
        faults += [_fault(model, each) for each in found]
    else:
        if not faults:
            return made
    codes = {code for code, _ in faults}
    code = next(c for c in ("unknown_field", "unsupported_parameter", "invalid_field") if c in codes)
    raise InvalidRequest(
        "; ".join(_sentence(fault) for _, fault in faults),
        code=code,
        faults=tuple(fault for _, fault in faults),
    )


def _sentence(fault: FieldFault) -> str:
    name = fault.pointer.lstrip("/").replace("/", ".")
    return f"{name}: {fault.detail}" if name else fault.detail


def _unknown(name: str, known: Mapping[str, Any]) -> FieldFault:
    return FieldFault(pointer_of((name,)), f"is not a known field{nearest(name, known)}")


def nearest(name: str, known: Mapping[str, Any] | frozenset[str]) -> str:
    """Give `; did you mean 'x'?` when a known name is near, else nothing."""
    close = difflib.get_close_matches(name[:_LONGEST_NAME], list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields_at(model: type[BaseModel], where: Sequence[str | int]) -> Mapping[str, Any]:
    """Give the fields of the model that lies there in another; none where a list is on the way."""
    for part in where:
        annotation = model.model_fields[part].annotation if isinstance(part, str) else None
        kinds = (annotation, *get_args(annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            return {}
        model = inner
    return model.model_fields


def _fault(model: type[BaseModel], found: Mapping[str, Any]) -> tuple[str, FieldFault]:
    kind: str = found["type"]
    if kind == "extra_forbidden":
        *outer, name = found["loc"]
        hint = nearest(str(name), _fields_at(model, outer))
        return "unknown_field", FieldFault(pointer_of(found["loc"]), f"is not a known field{hint}")
    code = kind if kind == "unsupported_parameter" else "invalid_field"
    text: str = found["msg"]
    if kind == "missing":
        text = "is required"
    return code, FieldFault(pointer_of(found["loc"]), text[:1].lower() + text[1:])


def fingerprint(value: Any) -> str:
    """Give the SHA-256 (hex) of a parsed body, whatever order and spacing it came in."""
    plain = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(plain.encode("utf-8")).hexdigest()
