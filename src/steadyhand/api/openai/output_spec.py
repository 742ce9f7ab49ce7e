"""What an answer has to be: text, the JSON of a schema, the arguments of one function, or calls of some of several."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from steadyhand import json_schema
from steadyhand.api.transport.errors import json_bytes, unsupported
from steadyhand.errors import InvalidRequest
from steadyhand.job import ClientTool, Job

MOST_TOOLS = 128
MOST_TOOL_BYTES = 256 * 1024
"""How many tools a client may have, and how large they may be together."""
ALLOWED = "allowed_tools"
"""The type of a choice that leaves some of the tools."""
CHOICES = "has to be none, auto, required, the name of a function, or allowed_tools"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_MOST_CALLS = 64
"""How many calls one answer may be."""
_PLACE = "#/properties/calls/items/anyOf/{}/properties/arguments"
"""Where a function's own schema stands in that of an answer of calls."""


@dataclass(frozen=True, slots=True)
class Function:
    """The one function that the answer has to call; `named` when the caller chose it by its name."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    named: bool


class Call(NamedTuple):
    """A call that is the answer of a run, with its arguments as JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the answer is to be. With a `function` its arguments are the answer; with `required` ones calls of those.

    Else with a `schema` it is JSON. `tools` are those of the client that the agent may call on the way, with `one_call`
    one after another.
    """

    schema: dict[str, Any] | None = None
    function: Function | None = None
    tools: tuple[ClientTool, ...] = ()
    required: tuple[Function, ...] = ()
    one_call: bool = False

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """The schema that the agent's object has to fit."""
        return self.schema if self.function is None else dict(self.function.parameters)

    @property
    def forced(self) -> Mapping[str, Any] | None:
        """What is kept of it with a job whose answer is calls: the name of the function, or null for one of several."""
        if self.required:
            return {"name": None}
        return None if self.function is None else {"name": self.function.name}

    @property
    def hint(self) -> str | None:
        """What the agent is told of the functions that its answer calls."""
        if self.required:
            listed = "".join(f"\n- `{each.name}`: {each.description or ''}" for each in self.required)
            return f"Your final answer is a call of one of these functions, or of several of them:{listed}"
        if self.function is None:
            return None
        told = f": {self.function.description}" if self.function.description else "."
        return f"Your final answer is the arguments for a call of the function `{self.function.name}`{told}"

    def text(self, job: Job) -> str:
        """Give what a completed job answered: its text, or the JSON and nothing else."""
        if self.output_schema is not None and job.structured_output is not None:
            return json_bytes(job.structured_output).decode("utf-8")
        return job.answer or ""


def calls_of(job: Job, forced: Mapping[str, Any]) -> list[Call]:
    """Give the calls that a completed job answered with; `forced` is that of what was wanted."""
    given = job.structured_output
    if forced["name"] is not None:
        return [
            Call(f"call_{job.id}", forced["name"], _json(given) if given is not None else job.answer or "")
        ]
    calls = given.get("calls", ()) if isinstance(given, Mapping) else ()
    return [
        Call(f"call_{job.id}_{number}", call["name"], _json(call["arguments"]))
        for number, call in enumerate(calls, 1)
    ]


def _json(value: Any) -> str:
    return json_bytes(value).decode("utf-8")


def wanted_of(
    schema: dict[str, Any] | None,
    tools: Sequence[Mapping[str, Any]],
    choice: Any,
    where: str = "tools",
    inner: str = "",
    *,
    parallel: bool = True,
) -> Wanted:
    """Say what the answer has to be, from a schema, the client's tools as `{name, description, parameters}`, a choice.

    `where` is their place in the request, and each is at `inner` in its own. A choice that requires a call is a run for
    a function's arguments when it leaves one function, else for calls of them, and without `parallel` for one call.
    """
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest.at(f"/{where}", f"has more than {MOST_TOOLS} tools")
    functions = [_function(tool, f"{where}/{place}{inner}") for place, tool in enumerate(tools)]
    if isinstance(choice, Mapping) and choice.get("type") == ALLOWED:
        functions, choice = _allowed(functions, choice)
    if choice in (None, "auto"):
        return Wanted(schema, tools=_callable(functions, where), one_call=not parallel)
    if choice == "none":
        return Wanted(schema)
    name = choice.get("name") if isinstance(choice, Mapping) else None
    named = isinstance(name, str)
    if not named and choice != "required":
        raise unsupported("tool_choice", CHOICES)
    found = [function for function in functions if not named or function.name == name]
    if not found:
        raise InvalidRequest.at("/tool_choice", "names no function of tools" if named else "needs tools")
    if schema is not None:
        raise unsupported("tool_choice", "a function's arguments and a schema cannot both be the answer")
    if len(found) > 1 and not named:
        _callable(found, where)
        return Wanted(_of_calls(found, where, most=_MOST_CALLS if parallel else 1), required=tuple(found))
    first = found[0]
    return Wanted(None, Function(first.name, first.description, first.parameters, named))


def _allowed(functions: Sequence[Function], choice: Mapping[str, Any]) -> tuple[list[Function], Any]:
    """Give the functions that a choice leaves of all, and the choice among those."""
    listed, mode = choice.get("tools"), choice.get("mode")
    if mode not in ("auto", "required"):
        raise InvalidRequest.at("/tool_choice", "has to have the mode auto or required with allowed_tools")
    if not isinstance(listed, list) or not listed:
        raise InvalidRequest.at("/tool_choice", "has to list functions of tools with allowed_tools")
    names = {function.name for function in functions}
    wanted: set[str] = set()
    for place, tool in enumerate(listed):
        name = tool.get("name") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(name, str) or name not in names:
            raise InvalidRequest.at("/tool_choice", f"names no function of tools at {place} of allowed_tools")
        wanted.add(name)
    return [function for function in functions if function.name in wanted], mode


def _of_calls(functions: Sequence[Function], where: str, *, most: int) -> dict[str, Any]:
    """Give the schema of an answer that calls functions."""
    each: list[Any] = []
    for number, function in enumerate(functions):
        alone = {key: value for key, value in function.parameters.items() if key not in ("$schema", "$id")}
        properties = {
            "name": {"type": "string", "enum": [function.name]},
            "arguments": json_schema.moved(alone, _PLACE.format(number)),
        }
        each.append(_object(properties))
    calls = {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": each}}
    schema = _object({"calls": calls})
    json_schema.accept(schema, f"/{where}")
    return schema


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _callable(functions: Sequence[Function], where: str) -> tuple[ClientTool, ...]:
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise InvalidRequest.at(f"/{where}", "has two tools of the same name")
    found = tuple(ClientTool(each.name, each.description, each.parameters) for each in functions)
    size = sum(len(json_bytes([tool.name, tool.description, tool.parameters])) for tool in found)
    if size > MOST_TOOL_BYTES:
        raise InvalidRequest.at(f"/{where}", f"has more than {MOST_TOOL_BYTES} bytes of tools")
    return found


def _function(tool: Mapping[str, Any], where: str) -> Function:
    name, description, parameters = tool.get("name"), tool.get("description"), tool.get("parameters")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidRequest.at(f"/{where}", "has no name of 1 to 64 letters, digits, dashes and underscores")
    schema = _accepted(_ANY_OBJECT if parameters is None else parameters, f"/{where}/parameters")
    return Function(name, description if isinstance(description, str) else None, schema, named=False)


def chat_tools(tools: Sequence[Any], functions: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Give the functions among a chat request's tools; raises `InvalidRequest` for others."""
    found: list[Mapping[str, Any]] = []
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise unsupported(f"tools/{place}", "only functions can be tools")
        if not isinstance(function, Mapping):
            raise InvalidRequest.at(f"/tools/{place}/function", "has to be a function")
        found.append(function)
    for place, function in enumerate(functions):
        if not isinstance(function, Mapping):
            raise InvalidRequest.at(f"/functions/{place}", "has to be a function")
        found.append(function)
    return found


def chat_choice(choice: Any, function_call: Any) -> Any:
    """Give the choice of a chat request as the Responses API has it: a word, a function's `name`, or some of them."""
    if choice is None:
        return function_call
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return choice.get("function")
    if isinstance(choice, Mapping) and choice.get("type") == ALLOWED:
        inner = choice.get(ALLOWED)
        allowed = inner if isinstance(inner, Mapping) else {}
        tools = allowed.get("tools")
        return {"type": ALLOWED, "mode": allowed.get("mode"), "tools": _named(tools)}
    return choice


def _named(tools: Any) -> Any:
    """Give a chat's list of functions with their names where the Responses API has them."""
    if not isinstance(tools, list):
        return tools
    return [
        {"type": tool.get("type"), **tool["function"]}
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
        else tool
        for tool in tools
    ]


def chat_schema(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Give the JSON Schema that the answer has to fit; null when any text will do."""
    if response_format is None:
        return None
    named = response_format.get("json_schema")
    return schema_of(response_format.get("type"), named, "response_format", "json_schema/schema")


def schema_of(kind: Any, named: Any, where: str, below: str) -> dict[str, Any] | None:
    """Give the schema of a format: `named` is the object that has it."""
    if kind == "text":
        return None
    if kind == "json_object":
        return dict(_ANY_OBJECT)
    if kind != "json_schema":
        raise unsupported(f"{where}/type", "has to be text, json_object or json_schema")
    schema = named.get("schema", _ANY_OBJECT) if isinstance(named, Mapping) else None
    return _accepted(schema, f"/{where}/{below}")


def _accepted(schema: Any, where: str) -> dict[str, Any]:
    """Give a schema of an object within the bounds; raises `InvalidRequest` for others."""
    if not isinstance(schema, Mapping):
        raise InvalidRequest.at(where, "has to be a JSON Schema")
    json_schema.accept(schema, where)
    if schema.get("type", "object") != "object":
        raise InvalidRequest.at(f"{where}/type", "has to be object: the answer is one object")
    return dict(schema)
