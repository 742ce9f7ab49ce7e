"""The official client, as its own documentation uses it."""

import json
from typing import Any

from cases import CITY, KEY, MODEL, PERSON, URL, Weather, main, raised
from openai import OpenAI

client = OpenAI(base_url=URL, api_key=KEY)


def say(prompt: str) -> list[Any]:
    return [{"role": "user", "content": prompt}]


def ask(messages: list[Any], **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **fields)


def text_of(messages: list[Any], **fields: Any) -> str:
    return str(ask(messages, **fields).choices[0].message.content)


def pieces_of(messages: list[Any], into: list[str]) -> Any:
    usage = None
    for chunk in ask(messages, stream=True, stream_options={"include_usage": True}):
        into += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        usage = chunk.usage or usage
    return usage


def plain(prompt: str) -> dict[str, Any]:
    return {"text": text_of(say(prompt))}


def streamed(prompt: str) -> dict[str, Any]:
    pieces: list[str] = []
    pieces_of(say(prompt), pieces)
    return {"text": "".join(pieces), "pieces": len(pieces)}


def _figures(usage: Any) -> dict[str, int]:
    cached = usage.prompt_tokens_details.cached_tokens
    return {"input": usage.prompt_tokens, "output": usage.completion_tokens, "cached": cached}


def usage(prompt: str) -> dict[str, Any]:
    return {"plain": _figures(ask(say(prompt)).usage), "streamed": _figures(pieces_of(say(prompt), []))}


def structured(prompt: str) -> dict[str, Any]:
    schema = {"name": "person", "schema": PERSON, "strict": True}
    return {
        "object": json.loads(
            text_of(say(prompt), response_format={"type": "json_schema", "json_schema": schema})
        )
    }


def tools(prompt: str) -> dict[str, Any]:
    weather = Weather()
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
    messages = say(prompt)
    while True:
        message = ask(messages, tools=[tool]).choices[0].message
        messages.append(message)
        if not message.tool_calls:
            return {"text": message.content, "cities": weather.cities}
        for call in message.tool_calls:
            result = weather.in_city(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def multi_turn(prompts: list[str]) -> dict[str, Any]:
    messages: list[Any] = []
    for prompt in prompts:
        messages += say(prompt)
        messages.append({"role": "assistant", "content": text_of(messages)})
    return {"text": messages[-1]["content"]}


def error(prompt: str) -> dict[str, Any]:
    return {"plain": raised(lambda: ask(say(prompt))), "streamed": raised(lambda: pieces_of(say(prompt), []))}


def cut(prompt: str) -> dict[str, Any]:
    pieces: list[str] = []
    return {"error": raised(lambda: pieces_of(say(prompt), pieces)), "text": "".join(pieces)}


main(
    {
        "plain": plain,
        "streamed": streamed,
        "usage": usage,
        "structured": structured,
        "tools": tools,
        "multi-turn": multi_turn,
        "error": error,
        "cut": cut,
        "retry": plain,
    }
)
