"""The form of an answer: text, the JSON of a schema, the arguments of one function, or calls of several functions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from steadyhand import json_schema
from steadyhand.api.transport.errors import json_bytes, unsupported_parameter
from steadyhand.errors import InvalidRequest
from steadyhand.job import ClientTool, Job

MAX_TOOLS = 128
MAX_TOOL_BYTES = 256 * 1024
"""The most bytes of all tools of a client together; `MAX_TOOLS` is their largest number."""
ALLOWED_TOOLS = "allowed_tools"
"""The type of a choice that allows some of the tools."""
TOOL_CHOICE_ERROR = "has to be none, auto, required, the name of a function, or allowed_tools"
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ANY_OBJECT_SCHEMA: Mapping[str, Any] = {"type": "object"}
_MAX_CALLS = 64
"""The most calls in one answer."""
_ARGUMENTS_POINTER = "#/properties/calls/items/anyOf/{}/properties/arguments"
"""The place of a function's own schema in the schema of an answer of calls."""


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """The one function that the answer must call; `is_named_by_client` if the client chose it by name."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    is_named_by_client: bool


class FinalCall(NamedTuple):
    """A call that is the answer of a run, with its arguments as JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The form of the answer: with `function` its arguments, with `required_functions` calls of those, else text.

    With `schema` the answer is JSON. `client_tools` are tools of the client that the agent may call during the run;
    with
    `one_call` it calls one after another.
    """

    schema: dict[str, Any] | None = None
    function: FunctionSpec | None = None
    client_tools: tuple[ClientTool, ...] = ()
    required_functions: tuple[FunctionSpec, ...] = ()
    one_call: bool = False

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """The schema of the agent's object."""
        return self.schema if self.function is None else dict(self.function.parameters)

    @property
    def forced_call(self) -> Mapping[str, Any] | None:
        """The form that a job stores if its answer is calls: the function's name, or None for one of several."""
        if self.required_functions:
            return {"name": None}
        return None if self.function is None else {"name": self.function.name}

    @property
    def prompt_hint(self) -> str | None:
        """The sentence for the agent about the functions that its answer calls."""
        if self.required_functions:
            function_list = "".join(
                f"\n- `{each.name}`: {each.description or ''}" for each in self.required_functions
            )
            return f"Your final answer is a call of one of these functions, or of several of them:{function_list}"
        if self.function is None:
            return None
        description = f": {self.function.description}" if self.function.description else "."
        return f"Your final answer is the arguments for a call of the function `{self.function.name}`{description}"

    def answer_text(self, job: Job) -> str:
        """Return the answer of a completed job: its text, or the JSON alone."""
        if self.output_schema is not None and job.structured_output is not None:
            return json_bytes(job.structured_output).decode("utf-8")
        return job.answer or ""


def final_calls(job: Job, forced_call: Mapping[str, Any]) -> list[FinalCall]:
    """Return the calls of a completed job's answer; `forced_call` is that of its `OutputSpec`."""
    output = job.structured_output
    if forced_call["name"] is not None:
        return [
            FinalCall(
                f"call_{job.id}",
                forced_call["name"],
                _encode_json(output) if output is not None else job.answer or "",
            )
        ]
    calls = output.get("calls", ()) if isinstance(output, Mapping) else ()
    return [
        FinalCall(f"call_{job.id}_{number}", call["name"], _encode_json(call["arguments"]))
        for number, call in enumerate(calls, 1)
    ]


def _encode_json(value: Any) -> str:
    return json_bytes(value).decode("utf-8")


def build_output_spec(
    schema: dict[str, Any] | None,
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    choice: Any,
    location: str = "tools",
    *,
    parallel: bool = True,
) -> OutputSpec:
    """Build the form of the answer from a schema, the client's tools `{name, description, parameters}` and a choice.

    Each tool comes with its place in the request; `location` is the place of all of them. If the choice requires a call
    and leaves one function, the answer is that function's arguments; if it leaves more, the answer is calls of them, or
    one call without `parallel`.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest.at(f"/{location}", f"has more than {MAX_TOOLS} tools")
    functions = [_parse_function(tool, place) for place, tool in tools]
    if isinstance(choice, Mapping) and choice.get("type") == ALLOWED_TOOLS:
        functions, choice = _select_allowed(functions, choice)
    if choice in (None, "auto"):
        return OutputSpec(schema, client_tools=_client_tools(functions, location), one_call=not parallel)
    if choice == "none":
        return OutputSpec(schema)
    name = choice.get("name") if isinstance(choice, Mapping) else None
    has_name = isinstance(name, str)
    if not has_name and choice != "required":
        raise unsupported_parameter("tool_choice", TOOL_CHOICE_ERROR)
    chosen = [function for function in functions if not has_name or function.name == name]
    if not chosen:
        raise InvalidRequest.at("/tool_choice", "names no function of tools" if has_name else "needs tools")
    if schema is not None:
        raise unsupported_parameter(
            "tool_choice", "a function's arguments and a schema cannot both be the answer"
        )
    if len(chosen) > 1 and not has_name:
        _client_tools(chosen, location)
        return OutputSpec(
            _calls_schema(chosen, location, max_calls=_MAX_CALLS if parallel else 1),
            required_functions=tuple(chosen),
        )
    chosen_function = chosen[0]
    return OutputSpec(
        None,
        FunctionSpec(chosen_function.name, chosen_function.description, chosen_function.parameters, has_name),
    )


def _select_allowed(
    functions: Sequence[FunctionSpec], choice: Mapping[str, Any]
) -> tuple[list[FunctionSpec], Any]:
    """Return the functions that a choice allows, and the choice among those."""
    entries, mode = choice.get("tools"), choice.get("mode")
    if mode not in ("auto", "required"):
        raise InvalidRequest.at("/tool_choice", "has to have the mode auto or required with allowed_tools")
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest.at("/tool_choice", "has to list functions of tools with allowed_tools")
    names = {function.name for function in functions}
    allowed_names: set[str] = set()
    for index, tool in enumerate(entries):
        name = tool.get("name") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(name, str) or name not in names:
            raise InvalidRequest.at("/tool_choice", f"names no function of tools at {index} of allowed_tools")
        allowed_names.add(name)
    return [function for function in functions if function.name in allowed_names], mode


def _calls_schema(functions: Sequence[FunctionSpec], location: str, *, max_calls: int) -> dict[str, Any]:
    """Return the schema of an answer that calls functions."""
    call_schemas: list[Any] = []
    for number, function in enumerate(functions):
        parameters = json_schema.modernize(function.parameters)
        properties = {
            "name": {"type": "string", "enum": [function.name]},
            "arguments": json_schema.rebase_references(parameters, _ARGUMENTS_POINTER.format(number)),
        }
        call_schemas.append(_object_schema(properties))
    calls = {"type": "array", "minItems": 1, "maxItems": max_calls, "items": {"anyOf": call_schemas}}
    schema = _object_schema({"calls": calls})
    json_schema.check_output_schema(schema, f"/{location}")
    return schema


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _client_tools(functions: Sequence[FunctionSpec], location: str) -> tuple[ClientTool, ...]:
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise InvalidRequest.at(f"/{location}", "has two tools of the same name")
    client_tools = tuple(ClientTool(each.name, each.description, each.parameters) for each in functions)
    size = sum(len(json_bytes([tool.name, tool.description, tool.parameters])) for tool in client_tools)
    if size > MAX_TOOL_BYTES:
        raise InvalidRequest.at(f"/{location}", f"has more than {MAX_TOOL_BYTES} bytes of tools")
    return client_tools


def _parse_function(tool: Mapping[str, Any], location: str) -> FunctionSpec:
    name, description, parameters = tool.get("name"), tool.get("description"), tool.get("parameters")
    if not isinstance(name, str) or _FUNCTION_NAME.fullmatch(name) is None:
        raise InvalidRequest.at(
            f"/{location}", "has no name of 1 to 64 letters, digits, dashes and underscores"
        )
    schema = _validate_object_schema(
        _ANY_OBJECT_SCHEMA if parameters is None else parameters, f"/{location}/parameters"
    )
    return FunctionSpec(
        name, description if isinstance(description, str) else None, schema, is_named_by_client=False
    )


def parse_chat_tool_choice(choice: Any, function_call: Any) -> Any:
    """Return a chat request's choice as the Responses API has it: a word, a function's `name`, or allowed tools."""
    if choice is None:
        return function_call
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return choice.get("function")
    if isinstance(choice, Mapping) and choice.get("type") == ALLOWED_TOOLS:
        allowed_tools = choice.get(ALLOWED_TOOLS)
        allowed = allowed_tools if isinstance(allowed_tools, Mapping) else {}
        tools = allowed.get("tools")
        return {"type": ALLOWED_TOOLS, "mode": allowed.get("mode"), "tools": _flatten_functions(tools)}
    return choice


def _flatten_functions(tools: Any) -> Any:
    """Return a chat's list of functions with their names at the place that the Responses API has them."""
    if not isinstance(tools, list):
        return tools
    return [
        {"type": tool.get("type"), **tool["function"]}
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping)
        else tool
        for tool in tools
    ]


def parse_response_format(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON Schema of the answer; None if any text is accepted."""
    if response_format is None:
        return None
    json_schema = response_format.get("json_schema")
    return parse_format_schema(
        response_format.get("type"), json_schema, "response_format", "json_schema/schema"
    )


def parse_format_schema(
    format_type: Any, schema_holder: Any, location: str, schema_path: str
) -> dict[str, Any] | None:
    """Return the schema of a format; `schema_holder` is the object that holds it."""
    if format_type == "text":
        return None
    if format_type == "json_object":
        return dict(_ANY_OBJECT_SCHEMA)
    if format_type != "json_schema":
        raise unsupported_parameter(f"{location}/type", "has to be text, json_object or json_schema")
    schema = schema_holder.get("schema", _ANY_OBJECT_SCHEMA) if isinstance(schema_holder, Mapping) else None
    return _validate_object_schema(schema, f"/{location}/{schema_path}")


def _validate_object_schema(schema: Any, location: str) -> dict[str, Any]:
    """Return a schema of an object within the bounds; raise `InvalidRequest` for other schemas."""
    if not isinstance(schema, Mapping):
        raise InvalidRequest.at(location, "has to be a JSON Schema")
    json_schema.check_output_schema(schema, location)
    if schema.get("type", "object") != "object":
        raise json_schema.unsupported(f"{location}/type", "has to be object: the answer is one object")
    return dict(schema)
