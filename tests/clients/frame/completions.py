"""Clients that speak in chat completions as they are: one function asks, and gives the official client's objects."""

import json
from collections.abc import Callable
from typing import Any

from cases import CITY, PERSON, Figures, Program, Weather, figures

TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": CITY},
}


def said(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def figures_of(usage: Any) -> Figures:
    return figures(usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens)


class Completions(Program):
    """A client whose `create` takes messages and the other fields of a chat completion."""

    def __init__(self, create: Callable[..., Any]) -> None:
        self._create = create

    def _message(self, messages: list[Any], **fields: Any) -> Any:
        return self._create(messages=messages, **fields).choices[0].message

    def ask(self, prompt: str) -> tuple[str, Figures]:
        answer = self._create(messages=said(prompt))
        return answer.choices[0].message.content, figures_of(answer.usage)

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        used = None
        for chunk in self._create(messages=said(prompt), stream=True, stream_options={"include_usage": True}):
            into += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            used = getattr(chunk, "usage", None) or used
        return figures_of(used)

    def people(self, prompt: str) -> list[Any]:
        schema = {"name": "person", "schema": PERSON, "strict": True}
        wanted = {"type": "json_schema", "json_schema": schema}
        return [json.loads(self._message(said(prompt), response_format=wanted).content)]

    def use(self, prompt: str, weather: Weather) -> str:
        messages = said(prompt)
        while True:
            message = self._message(messages, tools=[TOOL])
            messages.append({"content": None, **message.model_dump(exclude_none=True)})
            if not message.tool_calls:
                return str(message.content)
            for call in message.tool_calls:
                result = weather.in_city(**json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    def talk(self, prompts: list[str]) -> str:
        messages: list[Any] = []
        for prompt in prompts:
            messages += said(prompt)
            messages.append({"role": "assistant", "content": self._message(messages).content})
        return str(messages[-1]["content"])
