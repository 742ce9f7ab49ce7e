"""What a request of the Responses API asks for, in the words of the core, and what is shown of it again."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyhand.api.openai.input_messages import joined, taken_apart
from steadyhand.api.openai.kinds import KIND
from steadyhand.api.openai.output_spec import ALLOWED, CHOICES, Wanted, schema_of, wanted_of
from steadyhand.api.openai.responses.input_items import Item, last_of, shown_input, spoken_in
from steadyhand.api.openai.submission_fields import EFFORTS, metadata_of
from steadyhand.api.schemas.requests import ResponseRequest
from steadyhand.api.transport.context import Alias
from steadyhand.api.transport.errors import unsupported
from steadyhand.control import Submission
from steadyhand.errors import InvalidRequest


def refuse_unbuilt(asked: ResponseRequest) -> None:
    """Raise `InvalidRequest` (`unsupported_parameter`) for what is not to be had, naming it."""
    if asked.conversation is not None:
        raise unsupported(
            "conversation", "conversations are not kept here; send the earlier messages as input"
        )
    if asked.prompt is not None:
        raise unsupported("prompt", "there are no stored prompts here")
    if asked.top_logprobs:
        raise unsupported("top_logprobs", "agents have no log probabilities")
    for place, name in enumerate(asked.include or ()):
        if name.endswith("logprobs"):
            raise unsupported(f"include/{place}", "agents have no log probabilities")
    if asked.background and asked.store is False:
        raise InvalidRequest.at("/store", "a response in the background has to be stored")


def submission_of(asked: ResponseRequest, alias: Alias, items: Sequence[Item]) -> Submission:
    """Give what the request asks for with these items as its input; raises `InvalidRequest`."""
    wanted = _wanted(asked)
    conversation = taken_apart(spoken_in(items), "input")
    effort = None if asked.reasoning is None else asked.reasoning.effort
    system = joined([asked.instructions or "", conversation.system or "", wanted.hint or ""])
    return Submission(
        prompt=conversation.prompt,
        agent=alias.agent,
        model=alias.model,
        metadata=metadata_of(asked.metadata, asked.user),
        output_schema=wanted.output_schema,
        effort=None if effort is None else EFFORTS.get(effort, effort),
        append_system_prompt=system or None,
        history=conversation.history,
        content=conversation.content,
        tools=wanted.tools,
        one_call=wanted.one_call,
        request=_kept(asked, wanted, items),
        # A run in the background goes on after the service was stopped; for another one nobody waits then.
        on_interrupt="resume" if asked.background else "fail",
        origin="openai",
    )


def _wanted(asked: ResponseRequest) -> Wanted:
    tools: list[Mapping[str, Any]] = []
    for place, tool in enumerate(asked.tools or ()):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise unsupported(f"tools/{place}", "only functions can be tools; the agent has its own")
        tools.append(tool)
    schema = None
    if asked.text is not None and asked.text.format is not None:
        form = asked.text.format
        schema = schema_of(form.get("type"), form, "text/format", "schema")
    choice = asked.tool_choice
    if isinstance(choice, Mapping) and choice.get("type") not in ("function", ALLOWED):
        raise unsupported("tool_choice", CHOICES)
    return wanted_of(schema, tools, choice, parallel=asked.parallel_tool_calls is not False)


# --- what is shown again ---------------------------------------------------------------------------


def _kept(asked: ResponseRequest, wanted: Wanted, items: Sequence[Item]) -> dict[str, Any]:
    return {"kind": KIND, "function": wanted.forced, **_asked(asked, items)}


def later_of(asked: ResponseRequest, items: Sequence[Item]) -> dict[str, Any]:
    """Give what a job keeps of a request that goes on with it: of its input what is new."""
    new = [item for _, item in last_of(items)]
    return _asked(asked, new)


def _asked(asked: ResponseRequest, items: Sequence[Item]) -> dict[str, Any]:
    return {
        "model": asked.model,
        "instructions": asked.instructions,
        "background": bool(asked.background),
        "metadata": asked.metadata or None,
        "stored": asked.store is not False,
        "input": shown_input(items),
        "echo": _echo(asked),
    }


def _echo(asked: ResponseRequest) -> dict[str, Any]:
    """Give the parameters that a response repeats; what an agent has no use for is repeated all the same."""
    reasoning: dict[str, Any] = {"effort": None, "summary": None}
    if asked.reasoning is not None:
        reasoning = {"effort": asked.reasoning.effort, "summary": asked.reasoning.summary}
    text = {} if asked.text is None else asked.text.model_dump(exclude_none=True)
    return {
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "presence_penalty": _number(asked.presence_penalty, 0.0),
        "frequency_penalty": _number(asked.frequency_penalty, 0.0),
        "temperature": _number(asked.temperature, 1.0),
        "top_p": _number(asked.top_p, 1.0),
        "prompt_cache_key": asked.prompt_cache_key,
        "safety_identifier": asked.safety_identifier,
        "user": asked.user,
        "reasoning": reasoning,
        "store": asked.store is not False,
        "text": {"format": _format(text.get("format")), "verbosity": text.get("verbosity", "medium")},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [_tool(tool) for tool in asked.tools or () if isinstance(tool, Mapping)],
        "truncation": asked.truncation or "disabled",
    }


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _format(given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is None or given.get("type") == "text":
        return {"type": "text"}
    if given.get("type") == "json_object":
        return {"type": "json_object"}
    name = given.get("name")
    return {
        "type": "json_schema",
        "name": name if isinstance(name, str) else "answer",
        "description": given.get("description"),
        "schema": given.get("schema", {"type": "object"}),
        "strict": bool(given.get("strict")),
    }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict"),
    }
