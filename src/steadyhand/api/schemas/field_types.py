"""Types of the fields of request bodies, with the rules that a type alone does not state and their schemas."""

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from steadyhand.agents import NAME_PATTERN, NAME_RULE, parse_agent_name
from steadyhand.errors import InvalidRequest
from steadyhand.money import to_micros
from steadyhand.placement import LABEL_PATTERN, MAX_LABELS, NODE_NAME_PATTERN

Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
_KIBIBYTE = 1024
MAX_SECONDS = 7 * 24 * 3600
MAX_DOLLARS = 1_000_000
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]+-]{0,199}")
_INVALID_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(/|$)")
_SESSION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COMMAND_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_LABEL_PATTERN = r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


def invalid_field(text: str) -> PydanticCustomError:
    """Return the error of a field; `text` is what is wrong with its value."""
    # The template is a constant of ours; what the caller sent is never part of it.
    return PydanticCustomError("invalid_field", text)


def validate_not_blank(text: str) -> str:
    """Return a text that is more than white space."""
    if not text.strip():
        raise invalid_field("is empty")
    return text


def is_model_name(text: str) -> bool:
    """Return true for a text that can be a model's name; one that looks like an option cannot."""
    return _MODEL_NAME.fullmatch(text) is not None


def _validate_model_name(text: str) -> str:
    if not is_model_name(text):
        raise invalid_field("is not a model's name")
    return text


def _validate_agent_name(text: str) -> str:
    if NAME_PATTERN.fullmatch(text) is None:
        raise invalid_field(f"is not an agent's name: {NAME_RULE}")
    return text


def _validate_agent_name_or_path(text: str) -> str:
    try:
        return parse_agent_name(text)
    except InvalidRequest as error:
        raise invalid_field(f"is not an agent's name: {NAME_RULE}") from error


def _validate_git_ref(text: str) -> str:
    if not text or text[0] in "-/." or text[-1] in "/." or _INVALID_REF.search(text):
        raise invalid_field("is not a git ref or commit")
    if text.startswith("refs/steadyhand/"):
        raise invalid_field("is a ref of the service's own")
    return text


def _validate_workspace(text: str) -> str:
    if not text.strip() or text.startswith("-") or _CONTROL_CHARACTERS.search(text):
        raise invalid_field("is not a workspace's name, path or URL")
    return text


def _validate_label(text: str) -> str:
    if _CONTROL_CHARACTERS.search(text):
        raise invalid_field("holds a control character")
    return validate_not_blank(text)


def parse_time(text: str) -> datetime:
    """Return a time with its zone (RFC 3339) in UTC; raise `ValueError` or `OverflowError` for another text."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment.astimezone(UTC)


def _validate_time(value: Any) -> datetime:
    try:
        if isinstance(value, str):
            return parse_time(value)
    except (ValueError, OverflowError):
        pass  # as any other value that is no time
    raise invalid_field("is not an RFC 3339 time with its zone")


def _validate_size(kibibytes: int, value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > kibibytes * _KIBIBYTE:
        raise invalid_field(f"is larger than {kibibytes} KiB")
    return value


def _validate_command_name(text: str) -> str:
    if _COMMAND_NAME.fullmatch(text) is None:
        raise invalid_field("is not a command's name; it stands without its slash")
    return text


def _validate_session_id(value: str) -> str:
    if _SESSION_ID.fullmatch(value) is None:
        raise PydanticCustomError("session_id", "is not a session's id")
    return value


def _validate_commit(text: str) -> str:
    if _COMMIT.fullmatch(text) is None:
        raise invalid_field("is not the whole id of a commit")
    return text


def _validate_base64(text: str) -> str:
    if not text.isascii() or _BASE64.fullmatch(text) is None or len(text) % 4:
        raise invalid_field("is not base64")
    return text


def _string_schema(**keywords: Any) -> WithJsonSchema:
    """Return the schema of a string that a validator here checks, as far as a schema can describe the rule."""
    return WithJsonSchema({"type": "string", "minLength": 1, **keywords})


def to_positive_micros(dollars: float) -> int:
    """Return an amount in whole micro-dollars; an amount above 0 is never rounded to 0."""
    return max(1, to_micros(Decimal(str(dollars))))


CallbackUrlText = Annotated[
    str, Field(max_length=2048), _string_schema(maxLength=2048, pattern="^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$")
]
"""The URL of a callback; the operation checks it."""
EndpointNameText = Annotated[str, Field(pattern=rf"^{NAME_PATTERN.pattern}$", max_length=64)]
EndpointAgents = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=100)]
NodeLabel = Annotated[str, Field(pattern=rf"^{LABEL_PATTERN.pattern}$")]
NodeName = Annotated[str, Field(pattern=rf"^{NODE_NAME_PATTERN.pattern}$")]
NodeLabels = Annotated[list[NodeLabel], Field(max_length=MAX_LABELS)]
NodeNames = Annotated[list[NodeName], Field(max_length=MAX_LABELS)]
Prompt = Annotated[str, AfterValidator(validate_not_blank), _string_schema(pattern=r"\S")]
Dollars = Annotated[float, Field(gt=0, le=MAX_DOLLARS, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
WholeSeconds = Annotated[int, Field(gt=0, le=MAX_SECONDS)]
Time = Annotated[
    datetime, BeforeValidator(_validate_time), WithJsonSchema({"type": "string", "format": "date-time"})
]
Metadata = Annotated[dict[str, JsonValue], AfterValidator(lambda value: _validate_size(16, value))]
JsonSchema = Annotated[dict[str, JsonValue], AfterValidator(lambda value: _validate_size(64, value))]
StringMetadata = Annotated[dict[str, str], AfterValidator(lambda value: _validate_size(16, value))]
ModelName = Annotated[
    str, AfterValidator(_validate_model_name), _string_schema(pattern=f"^{_MODEL_NAME.pattern}$")
]
AgentName = Annotated[
    str, AfterValidator(_validate_agent_name), _string_schema(pattern=f"^{NAME_PATTERN.pattern}$")
]
WorkspaceName = Annotated[
    str,
    AfterValidator(_validate_workspace),
    Field(max_length=2048),
    _string_schema(maxLength=2048, pattern=r"^(?!-)[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
]
AgentNameOrPath = Annotated[str, AfterValidator(_validate_agent_name_or_path), _string_schema()]
CommandName = Annotated[
    str, AfterValidator(_validate_command_name), _string_schema(pattern=f"^{_COMMAND_NAME.pattern}$")
]
GitRef = Annotated[
    str, AfterValidator(_validate_git_ref), Field(max_length=255), _string_schema(maxLength=255)
]
CommitId = Annotated[str, AfterValidator(_validate_commit), _string_schema(pattern=f"^({_COMMIT.pattern})$")]
Base64 = Annotated[str, AfterValidator(_validate_base64), _string_schema(contentEncoding="base64")]
SessionId = Annotated[
    str, AfterValidator(_validate_session_id), _string_schema(pattern=f"^{_SESSION_ID.pattern}$")
]
KeyName = Annotated[
    str,
    AfterValidator(_validate_label),
    Field(max_length=100),
    _string_schema(maxLength=100, pattern=_LABEL_PATTERN),
]
SessionName = Annotated[
    str,
    AfterValidator(_validate_label),
    Field(max_length=128),
    _string_schema(maxLength=128, pattern=_LABEL_PATTERN),
]
