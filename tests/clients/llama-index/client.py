"""LlamaIndex's `OpenAILike`, told that it speaks with a chat model that calls functions."""

from typing import Any

from cases import Figures, Program, Service, Weather, figures, main
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from people import Person, as_json


def figures_of(raw: Any) -> Figures:
    used = raw.usage
    return figures(used.prompt_tokens, used.completion_tokens, used.prompt_tokens_details.cached_tokens)


def model(service: Service, **settings: Any) -> OpenAILike:
    return OpenAILike(
        api_base=service.url,
        api_key=service.key,
        model=service.model,
        is_chat_model=True,
        is_function_calling_model=True,
        **settings,
    )


class LlamaIndex(Program):
    def __init__(self, service: Service) -> None:
        self._service = service
        self._llm = model(service)

    def ask(self, prompt: str) -> tuple[str, Figures]:
        answer = self._llm.complete(prompt)
        return answer.text, figures_of(answer.raw)

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        last = None
        for chunk in self._llm.stream_complete(prompt, stream_options={"include_usage": True}):
            into += [chunk.delta] if chunk.delta else []
            last = chunk
        return figures_of(last.raw)

    def people(self, prompt: str) -> list[Any]:
        return [
            as_json(one.as_structured_llm(Person).complete(prompt).raw)
            for one in (self._llm, model(self._service, should_use_structured_outputs=True))
        ]

    def use(self, prompt: str, weather: Weather) -> str:
        tool = FunctionTool.from_defaults(weather.in_city, name="get_weather")
        history = [ChatMessage(role="user", content=prompt)]
        while True:
            answer = self._llm.chat_with_tools([tool], chat_history=history)
            history.append(answer.message)
            calls = self._llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
            if not calls:
                return str(answer.message.content)
            for call in calls:
                result = str(tool(**call.tool_kwargs))
                named = {"tool_call_id": call.tool_id}
                history.append(ChatMessage(role="tool", content=result, additional_kwargs=named))

    def talk(self, prompts: list[str]) -> str:
        history = []
        for prompt in prompts:
            history.append(ChatMessage(role="user", content=prompt))
            history.append(self._llm.chat(history).message)
        return str(history[-1].content)


main(LlamaIndex)
