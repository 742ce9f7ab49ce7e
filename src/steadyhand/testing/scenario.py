"""Scenarios: the answers of the scripted model, turn by turn, read from small TOML files.

A scenario is a list of turns. The choice of the turn depends only on the request: the number of assistant
messages since the last prompt, so jobs that run side by side never disturb each other. Text and tool inputs
may hold ``{cwd}``, ``{prompt}``, ``{last_result}`` and ``{model}``, which are filled in from the request.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadyhand.errors import ConfigError
from steadyhand.testing.request import SCENARIO_MARKER, ModelRequest

FOLDER = Path(__file__).parent / "scenarios"
STRUCTURED_OUTPUT = "StructuredOutput"


class ScenarioError(ConfigError):
    """A scenario that does not exist or is invalid."""


@dataclass(frozen=True, slots=True)
class ModelToolCall:
    """One tool call of the model; ``input`` is the tool's own object."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """An HTTP error instead of an answer, in the form of the real API.

    The same request is refused ``times`` times before it is answered; 0 means always. With ``once`` only the first
    request
    of a conversation that gets here is refused, and no other, also after a resumption.
    """

    status: int
    type: str = "api_error"
    message: str = "scripted failure"
    retry_after: str | None = None
    should_retry: bool | None = None
    times: int = 0
    once: bool = False


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Tokens that the turn reports; ``None`` for output means one token for four characters.

    Of the cache writes ``ephemeral_1h_input_tokens`` are reported as kept for an hour, the others for five minutes.
    """

    input_tokens: int = 10
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelTurn:
    """One answer of the model: thinking, then text, then tool calls, in this order.

    ``delay_seconds`` passes before the first byte, ``pace_ms`` between two deltas of ``chunk_chars`` characters.
    ``cut_after`` breaks the connection after that many deltas, for the first ``cut_times`` tries of a request (0: for
    all). ``endless`` ("thinking" or "text") repeats its
    text until the client goes away, for at most ``endless_seconds``.
    """

    text: str = ""
    thinking: str = ""
    tool: tuple[ModelToolCall, ...] = ()
    delay_seconds: float = 0.0
    pace_ms: float = 0.0
    chunk_chars: int = 12
    cut_after: int | None = None
    cut_times: int = 0
    endless: str | None = None
    endless_seconds: float = 60.0
    stop_reason: str | None = None
    usage: ModelUsage = field(default_factory=ModelUsage)
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named list of turns; with ``repeat`` the last one is played again when there are no more.

    Without ``structured`` a turn stays as it is if an object is asked for.
    """

    name: str
    description: str
    turn: tuple[ModelTurn, ...]
    repeat: bool = False
    structured: bool = True

    def turn_for(self, index: int) -> ModelTurn:
        """Return the turn with this index, counted from 0; past the end a short closing word, or the last again."""
        if index < len(self.turn):
            return self.turn[index]
        return self.turn[-1] if self.repeat else ModelTurn(text="Done.")


def load(name: str | Path) -> Scenario:
    """Read a scenario by its name in the shipped folder, or from a TOML file by its path.

    Raise `ScenarioError` if there is no such scenario or it has an unknown key.
    """
    path = name if isinstance(name, Path) else FOLDER / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ScenarioError(f"there is no scenario {str(name)!r}") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path.name}: {error}") from error
    return parse(path.stem, table)


def names() -> list[str]:
    """Return the names of the shipped scenarios, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def parse(name: str, table: dict[str, Any]) -> Scenario:
    """Create a scenario from its parsed TOML table; raise `ScenarioError` for an unknown key."""
    values = _checked_table(Scenario, table, where=name, leave_out={"name"})
    turns = tuple(_turn(turn, where=f"{name}: turn {n}") for n, turn in enumerate(values.pop("turn", []), 1))
    if not turns:
        raise ScenarioError(f"{name}: a scenario needs at least one turn")
    return Scenario(name=name, description=values.pop("description", ""), turn=turns, **values)


def scenario_name(request: ModelRequest) -> str | None:
    """Return the scenario that a prompt names by ``[[scenario:NAME]]``, if it does."""
    match = SCENARIO_MARKER.search(request.prompt)
    return match[1] if match else None


def fill_variables(value: Any, request: ModelRequest) -> Any:
    """Return the value with the variables in its strings, at any depth, replaced from the request."""
    if isinstance(value, str):
        variables = {
            "{cwd}": request.cwd or "",
            "{prompt}": request.prompt,
            "{last_result}": request.last_result,
            "{model}": request.model,
        }
        for variable, text in variables.items():
            value = value.replace(variable, text)
        return value
    if isinstance(value, dict):
        return {key: fill_variables(item, request) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_variables(item, request) for item in value]
    return value


def with_structured_output(request: ModelRequest, turn: ModelTurn) -> ModelTurn:
    """Return the turn, or a call of StructuredOutput instead if the request wants one and the turn has none.

    By OpenAI's wires the object is the answer's text. It is the smallest one that the schema allows, so that any
    schema gets an answer.
    """
    is_words = not (turn.tool or turn.error or turn.endless)
    if request.output_schema is not None and is_words:
        return dataclasses.replace(turn, text=json.dumps(sample_value(request.output_schema)))
    schema = request.tool_schema(STRUCTURED_OUTPUT)
    if schema is None or not is_words or request.has_called(STRUCTURED_OUTPUT):
        return turn
    return dataclasses.replace(turn, tool=(ModelToolCall(STRUCTURED_OUTPUT, sample_value(schema)),))


def sample_value(schema: dict[str, Any]) -> Any:
    """Return a small value that satisfies a plain JSON schema: const, enum, anyOf, and the seven types."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return sample_value(schema[choice][0])
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties", {})
        return {
            name: sample_value(properties.get(name, {"type": "string"}))
            for name in schema.get("required", properties)
        }
    if kind == "array":
        return [sample_value(schema.get("items", {"type": "string"}))] * max(1, schema.get("minItems", 1))
    if kind == "string":
        return "x" * schema["minLength"] if schema.get("minLength", 0) > len("scripted") else "scripted"
    return {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 1), "boolean": True}.get(
        kind
    )


def _turn(table: dict[str, Any], where: str) -> ModelTurn:
    values = _checked_table(ModelTurn, table, where)
    if "tool" in values:
        values["tool"] = tuple(
            ModelToolCall(**_checked_table(ModelToolCall, tool, where)) for tool in values["tool"]
        )
    if "usage" in values:
        values["usage"] = ModelUsage(**_checked_table(ModelUsage, values["usage"], where))
    if "error" in values:
        values["error"] = Failure(**_checked_table(Failure, values["error"], where))
    return ModelTurn(**values)


def _checked_table(
    kind: type[Scenario | ModelTurn | ModelToolCall | ModelUsage | Failure],
    table: dict[str, Any],
    where: str,
    leave_out: set[str] | None = None,
) -> dict[str, Any]:
    allowed = {item.name for item in dataclasses.fields(kind)} - (leave_out or set())
    unknown = sorted(set(table) - allowed)
    if unknown:
        raise ScenarioError(
            f"{where}: {', '.join(unknown)} means nothing here; known are {', '.join(sorted(allowed))}"
        )
    return dict(table)
