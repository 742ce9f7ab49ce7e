"""Request bodies: read within a limit, parsed as JSON, checked, and validated by a model."""

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from steadyhand.errors import FieldError, InputError, InvalidRequest
from steadyhand.suggest import closest_name

ModelT = TypeVar("ModelT", bound=BaseModel)

READ_SECONDS = 120.0
"""The longest time in which a whole body may arrive."""
MAX_DEPTH = 100
"""The most levels of nested objects and arrays."""
_FORM_MEDIA_TYPE = "application/x-www-form-urlencoded"
_DECODER = json.JSONDecoder()
_NEEDS_CHECK = re.compile(rb"\\u|NaN|Infinity|[0-9][eE]\+?[0-9]{2}|[0-9]{300}")
_MAX_FIELD_ERRORS = 20
_NOT_AN_OBJECT = "Input should be a valid dictionary or object to extract fields from"
_MAX_NAME_LENGTH = 64


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes. Raise `InvalidRequest` (`body_too_large`, `request_timeout`)."""
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise _too_large_error(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                part: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                size += len(part)
                if size > limit:
                    raise _too_large_error(limit)
                parts.append(part)
    except TimeoutError as error:
        raise InvalidRequest("The body did not arrive in time.", code="request_timeout") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large_error(limit: int) -> InvalidRequest:
    return InvalidRequest(f"The body is larger than {limit} bytes.", code="body_too_large")


def require_json_content_type(request: Request, *, lenient: bool = False, form: bool = False) -> None:
    """Raise `InvalidRequest` (`unsupported_media_type`) unless the headers declare JSON in UTF-8.

    `lenient` accepts a body without `Content-Type`, as the classic routes always did; `form` accepts the type of a form
    as well, which `curl -d` sends.
    """
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    content_type = headers.get(b"content-type")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidRequest("A body may not be compressed.", code="unsupported_media_type")
    if content_type == b"application/json" or (content_type is None and lenient):
        return
    media_type, _, parameters = (content_type or b"").decode("latin-1").lower().partition(";")
    media_type = media_type.strip()
    if form and media_type == _FORM_MEDIA_TYPE:
        return
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise InvalidRequest("The body has to be application/json.", code="unsupported_media_type")
    _, separator, charset = parameters.partition("charset=")
    if separator and charset.split(";")[0].strip(' "') not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidRequest("The body has to be in UTF-8.", code="unsupported_media_type")


def parse_json(body: bytes) -> Any:
    """Parse JSON. Raise `InvalidRequest`: `malformed_json`, or `invalid_field` with the place of a forbidden value.

    Forbidden are numbers that are not finite, NUL and lone surrogates in any string or key, and too many nested levels.
    """
    try:
        text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise _too_deep_error("") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("The body is not valid JSON.", code="malformed_json") from error
    except ValueError as error:  # an integer with thousands of digits
        raise InvalidRequest("The body has a number that is out of range.") from error
    # Only an escape brings in a NUL or half a surrogate pair, only these words, an exponent of two digits or some
    # hundred digits a number that is not finite: most bodies need no second look.
    if _NEEDS_CHECK.search(body) or body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_tree(value)
    return value


def _too_deep_error(pointer: str) -> InvalidRequest:
    return InvalidRequest.at(pointer, f"has more than {MAX_DEPTH} levels")


def _check_tree(root: Any) -> None:
    # Depth first with one open iterator per level: a wide body costs no memory of its own.
    path: list[str | int] = []
    levels = [_check_value(root, path)]
    while levels:
        child = next(levels[-1], None)
        if child is None:
            levels.pop()
            continue
        del path[len(levels) - 1 :]
        path.append(child[0])
        if len(path) > MAX_DEPTH:
            raise _too_deep_error(json_pointer(path[:3]))
        levels.append(_check_value(child[1], path))


def _check_value(value: Any, path: Sequence[str | int]) -> Iterator[tuple[str | int, Any]]:
    """Check one value and its keys; return an iterator over its children."""
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest.at(json_pointer(path), "has to be a finite number")
    elif isinstance(value, dict):
        for key in value:
            _check_text(key, path)
        return iter(value.items())
    elif isinstance(value, list):
        return enumerate(value)
    return iter(())


def _check_text(text: str, location: Sequence[str | int]) -> None:
    if "\0" in text:
        raise InvalidRequest.at(json_pointer(location), "holds a NUL character")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequest.at(json_pointer(location), "holds half a surrogate pair") from error


def json_pointer(location: Sequence[str | int]) -> str:
    """Return a JSON pointer (RFC 6901); long names are cut."""
    return "".join(
        "/" + str(part)[:_MAX_NAME_LENGTH].replace("~", "~0").replace("/", "~1") for part in location
    )


async def parse_body(
    request: Request, model: type[ModelT], limit: int, *, lenient: bool = False, form: bool = False
) -> tuple[ModelT, Any]:
    """Return a request's body as a model, and as parsed JSON.

    A model with `extra="forbid"` refuses unknown fields by name. `lenient` is for the classic and OpenAI routes,
    `form` for `/execute`.
    """
    require_json_content_type(request, lenient=lenient, form=form)
    raw_body = await read_body(request, limit)
    try:
        value = parse_json(raw_body)
    except InvalidRequest as error:
        if form and error.code == "malformed_json":
            require_json_content_type(request, lenient=lenient)  # a form that is one
        raise
    return validate_body(model, value), value


async def parse_optional_body(request: Request, model: type[ModelT], limit: int) -> ModelT:
    """Return a request's body as a model; a missing body counts as an empty object."""
    raw_body = await read_body(request, limit)
    if not raw_body:
        return validate_body(model, {})
    require_json_content_type(request)
    return validate_body(model, parse_json(raw_body))


def validate_body(model: type[ModelT], value: Any) -> ModelT:
    """Return parsed JSON as a model; raise `InvalidRequest` that names every invalid field."""
    if not isinstance(value, dict):
        raise InvalidRequest(
            "The body has to be a JSON object.",
            field_errors=(FieldError("", "has to be an object"),),
            input_errors=(InputError("model_attributes_type", ("body",), _NOT_AN_OBJECT, value),),
        )
    field_errors: list[tuple[str, FieldError]] = []
    input_errors: tuple[InputError, ...] = ()
    fields = model.model_fields
    if model.model_config.get("extra") == "forbid" and (unknown := value.keys() - fields.keys()):
        field_errors = [
            ("unknown_field", _unknown_field_error(name, fields))
            for name in sorted(unknown)[:_MAX_FIELD_ERRORS]
        ]
        value = {name: value[name] for name in fields if name in value}
    try:
        validated = model.model_validate(value, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)[:_MAX_FIELD_ERRORS]
        input_errors = tuple(
            InputError(details["type"], ("body", *details["loc"]), details["msg"], details["input"])
            for details in errors
        )
        field_errors += [_field_error(model, error_details) for error_details in errors]
    else:
        if not field_errors:
            return validated
    codes = {code for code, _ in field_errors}
    code = next(
        candidate
        for candidate in ("unknown_field", "unsupported_parameter", "invalid_field")
        if candidate in codes
    )
    raise InvalidRequest(
        "; ".join(_error_sentence(field_error) for _, field_error in field_errors),
        code=code,
        field_errors=tuple(field_error for _, field_error in field_errors),
        input_errors=input_errors,
    )


def _error_sentence(field_error: FieldError) -> str:
    name = field_error.pointer.lstrip("/").replace("/", ".")
    return f"{name}: {field_error.detail}" if name else field_error.detail


def _unknown_field_error(name: str, known_fields: Mapping[str, Any]) -> FieldError:
    return FieldError(json_pointer((name,)), f"is not a known field{did_you_mean(name, known_fields)}")


def did_you_mean(name: str, known_names: Mapping[str, Any] | frozenset[str]) -> str:
    """Return `; did you mean 'x'?` if a known name is similar, else an empty string."""
    closest = closest_name(name[:_MAX_NAME_LENGTH], known_names)
    return f"; did you mean {closest!r}?" if closest else ""


def _nested_fields(model: type[BaseModel], location: Sequence[str | int]) -> Mapping[str, Any]:
    """Return the fields of the model nested at this location; empty if the location goes through a list."""
    for part in location:
        annotation = model.model_fields[part].annotation if isinstance(part, str) else None
        types = (annotation, *get_args(annotation))
        nested_model = next(
            (type_ for type_ in types if isinstance(type_, type) and issubclass(type_, BaseModel)), None
        )
        if nested_model is None:
            return {}
        model = nested_model
    return model.model_fields


def _field_error(model: type[BaseModel], error_details: Mapping[str, Any]) -> tuple[str, FieldError]:
    error_type: str = error_details["type"]
    if error_type == "extra_forbidden":
        *outer, name = error_details["loc"]
        hint = did_you_mean(str(name), _nested_fields(model, outer))
        return "unknown_field", FieldError(json_pointer(error_details["loc"]), f"is not a known field{hint}")
    code = error_type if error_type == "unsupported_parameter" else "invalid_field"
    message: str = error_details["msg"]
    if error_type == "missing":
        message = "is required"
    return code, FieldError(json_pointer(error_details["loc"]), message[:1].lower() + message[1:])


def fingerprint(value: Any) -> str:
    """Return the SHA-256 (hex) of a parsed body; order of keys and spacing do not change it."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()
