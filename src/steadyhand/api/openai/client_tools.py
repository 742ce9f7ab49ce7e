"""The tools in a request: functions, also those in namespaces, and tools of OpenAI's own, which are passed over."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steadyhand.api.transport.errors import unsupported_parameter
from steadyhand.errors import InvalidRequest
from steadyhand.job import JobSpec
from steadyhand.ports import ToolNames

HOSTED_TOOL_TYPES = frozenset(
    {
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "file_search",
        "image_generation",
        "mcp",
        "programmatic_tool_calling",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
"""Tools that OpenAI executes itself. The agent has its own: these neither give it a tool nor take one."""
WARNING_HEADER = "x-steadyhand-warning"
_NAMESPACE = "namespace"
_SEPARATOR = "__"
_MAX_NAME_LENGTH = 64
_DIGEST_LENGTH = 8
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


@dataclass(frozen=True, slots=True)
class ClientTools:
    """The functions of a request, each with its place.

    Those of a namespace have their flat names, which `namespaces` lists by namespace. `passed_over` has the types of
    the tools that OpenAI would execute.
    """

    functions: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    namespaces: dict[str, list[str]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


def is_own_tool(spec: JobSpec, names: ToolNames, name: str) -> bool:
    """Return true for a tool of the agent itself: no tool of the client, and not the one that returns its answer."""
    if spec.output_schema is not None and name == names.structured_output:
        return False
    return not (spec.tools and name.startswith(names.client_prefix))


def flat_name(namespace: str, name: str) -> str:
    """Return the name of a function of a namespace among all functions: at most 64 characters, the same each time."""
    joined = namespace + (name if namespace.endswith(_SEPARATOR) else _SEPARATOR + name)
    joined = joined.replace(".", "_")
    if len(joined) <= _MAX_NAME_LENGTH:
        return joined
    digest = hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"{joined[: _MAX_NAME_LENGTH - _DIGEST_LENGTH - 1]}_{digest}"


def namespaces_of(tools: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """Return the namespace and the own name of each function in the namespaces of these tools, by its flat name."""
    return {
        flat_name(tool["name"], inner["name"]): (tool["name"], inner["name"])
        for tool in tools
        if tool.get("type") == _NAMESPACE
        for inner in tool["tools"]
    }


def passed_over_headers(tools: Sequence[Any] | None) -> dict[str, str]:
    """Return the header that names the tools of a request that are passed over; empty if there are none."""
    types = _passed_over(tools)
    return {WARNING_HEADER: f"tools passed over: {', '.join(dict.fromkeys(types))}"} if types else {}


def parse_response_tools(tools: Sequence[Any] | None) -> ClientTools:
    """Return the functions among the tools of a response; raise `InvalidRequest` for a tool of another type."""
    parsed = ClientTools(passed_over=_passed_over(tools))
    for index, tool in enumerate(tools or ()):
        location = f"tools/{index}"
        if _is_hosted(tool):
            continue
        if isinstance(tool, Mapping) and tool.get("type") == _NAMESPACE:
            _parse_namespace(tool, location, parsed)
        elif isinstance(tool, Mapping) and tool.get("type") == "function":
            parsed.functions.append((location, tool))
        else:
            raise unsupported_parameter(location, "only functions can be tools; the agent has its own")
    return parsed


def parse_chat_tools(tools: Sequence[Any], functions: Sequence[Any]) -> ClientTools:
    """Return the functions among a chat request's tools; raise `InvalidRequest` for a tool of another type."""
    parsed = ClientTools(passed_over=_passed_over(tools))
    for index, tool in enumerate(tools):
        if _is_hosted(tool):
            continue
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise unsupported_parameter(f"tools/{index}", "only functions can be tools")
        if not isinstance(function, Mapping):
            raise InvalidRequest.at(f"/tools/{index}/function", "has to be a function")
        parsed.functions.append((f"tools/{index}/function", function))
    for index, function in enumerate(functions):
        if not isinstance(function, Mapping):
            raise InvalidRequest.at(f"/functions/{index}", "has to be a function")
        parsed.functions.append((f"functions/{index}", function))
    return parsed


def resolve_choice(choice: Any, tools: ClientTools) -> Any:
    """Return a choice with the flat names of functions, without the tools that are passed over."""
    if choice == "required" and tools.passed_over and not tools.functions:
        raise unsupported_parameter("tool_choice", "requires a tool, and none of tools is available here")
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "function":
        return _flat_choice(choice)
    entries = choice.get("tools")
    if not isinstance(entries, list):
        return choice
    flat: list[Any] = []
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("type") == _NAMESPACE:
            names = tools.namespaces.get(str(entry.get("name")), [])
            flat += [{"type": "function", "name": name} for name in names]
        elif not _is_hosted(entry):
            flat.append(_flat_choice(entry))
    if entries and not flat:
        raise unsupported_parameter("tool_choice", "allows only tools that are not available here")
    return {**choice, "tools": flat}


def _flat_choice(choice: Any) -> Any:
    namespace, name = (
        (choice.get("namespace"), choice.get("name")) if isinstance(choice, Mapping) else (None, None)
    )
    if isinstance(namespace, str) and isinstance(name, str):
        return {"type": "function", "name": flat_name(namespace, name)}
    return choice


def _passed_over(tools: Sequence[Any] | None) -> list[str]:
    return [tool["type"] for tool in tools or () if _is_hosted(tool)]


def _is_hosted(tool: Any) -> bool:
    type_ = tool.get("type") if isinstance(tool, Mapping) else None
    return isinstance(type_, str) and type_ in HOSTED_TOOL_TYPES


def _parse_namespace(tool: Mapping[str, Any], location: str, parsed: ClientTools) -> None:
    namespace, inner_tools = tool.get("name"), tool.get("tools")
    if not isinstance(namespace, str) or _NAME.fullmatch(namespace) is None:
        raise InvalidRequest.at(
            f"/{location}/name", "has to be a name of letters, digits, dashes and underscores"
        )
    if not isinstance(inner_tools, list):
        raise InvalidRequest.at(f"/{location}/tools", "has to be a list of functions")
    for index, inner in enumerate(inner_tools):
        inner_location = f"{location}/tools/{index}"
        if not isinstance(inner, Mapping) or inner.get("type") != "function":
            raise unsupported_parameter(inner_location, "only functions can be in a namespace")
        name = inner.get("name")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise InvalidRequest.at(
                f"/{inner_location}", "has no name of letters, digits, dashes and underscores"
            )
        flat = flat_name(namespace, name)
        parsed.namespaces.setdefault(namespace, []).append(flat)
        parsed.functions.append((inner_location, {**inner, "name": flat}))
