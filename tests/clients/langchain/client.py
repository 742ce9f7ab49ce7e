"""LangChain's `ChatOpenAI`."""

from typing import Any

from cases import PERSON, Figures, Program, Service, Weather, figures, main
from completions import TOOL
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI


def figures_of(message: AIMessage) -> Figures:
    used = message.usage_metadata
    return figures(used["input_tokens"], used["output_tokens"], used["input_token_details"]["cache_read"])


class LangChain(Program):
    def __init__(self, service: Service) -> None:
        self._chat = ChatOpenAI(
            base_url=service.url, api_key=service.key, model=service.model, stream_usage=True
        )

    def ask(self, prompt: str) -> tuple[str, Figures]:
        answer = self._chat.invoke(prompt)
        return answer.content, figures_of(answer)

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        whole: AIMessageChunk | None = None
        for chunk in self._chat.stream(prompt):
            into += [chunk.content] if chunk.content else []
            whole = chunk if whole is None else whole + chunk
        return figures_of(whole)

    def people(self, prompt: str) -> list[Any]:
        ways = ("json_schema", "function_calling")
        return [self._chat.with_structured_output(PERSON, method=way).invoke(prompt) for way in ways]

    def use(self, prompt: str, weather: Weather) -> str:
        able = self._chat.bind_tools([TOOL])
        messages: list[Any] = [HumanMessage(prompt)]
        while True:
            answer = able.invoke(messages)
            messages.append(answer)
            if not answer.tool_calls:
                return answer.content
            messages += [
                ToolMessage(weather.in_city(**call["args"]), tool_call_id=call["id"])
                for call in answer.tool_calls
            ]

    def talk(self, prompts: list[str]) -> str:
        messages: list[Any] = []
        for prompt in prompts:
            messages.append(HumanMessage(prompt))
            messages.append(self._chat.invoke(messages))
        return messages[-1].content


main(LangChain)
