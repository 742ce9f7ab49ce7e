"""The official client by the Responses API."""

import json
from typing import Any

from cases import CITY, PERSON, Figures, Program, Service, Weather, figures, main
from openai import OpenAI

TOOL = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": False}


def figures_of(response: Any) -> Figures:
    used = response.usage
    return figures(used.input_tokens, used.output_tokens, used.input_tokens_details.cached_tokens)


class Responses(Program):
    def __init__(self, service: Service) -> None:
        self._client = OpenAI(base_url=service.url, api_key=service.key)
        self._model = service.model

    def _create(self, **fields: Any) -> Any:
        return self._client.responses.create(model=self._model, **fields)

    def ask(self, prompt: str) -> tuple[str, Figures]:
        response = self._create(input=prompt)
        return response.output_text, figures_of(response)

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        with self._client.responses.stream(model=self._model, input=prompt) as events:
            for event in events:
                if event.type == "response.output_text.delta":
                    into.append(event.delta)
                elif event.type == "response.failed":
                    # The library hands a failure on as an event and raises nothing that has the cause in it.
                    raise RuntimeError(event.response.error.message)
            return figures_of(events.get_final_response())

    def people(self, prompt: str) -> list[Any]:
        wanted = {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}
        return [json.loads(self._create(input=prompt, text={"format": wanted}).output_text)]

    def use(self, prompt: str, weather: Weather) -> str:
        given: Any = prompt
        before = None
        while True:
            response = self._create(input=given, tools=[TOOL], previous_response_id=before)
            calls = [item for item in response.output if item.type == "function_call"]
            if not calls:
                return str(response.output_text)
            before = response.id
            given = [
                {
                    "type": "function_call_output",
                    "call_id": call.call_id,
                    "output": weather.in_city(**json.loads(call.arguments)),
                }
                for call in calls
            ]

    def talk(self, prompts: list[str]) -> str:
        response = None
        for prompt in prompts:
            response = self._create(input=prompt, previous_response_id=response.id if response else None)
        return response.output_text


main(Responses)
