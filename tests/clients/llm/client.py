"""Simon Willison's `llm`, with Steadyhand among its extra OpenAI models, as its documentation sets them up."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cases import PERSON, Figures, Program, Service, Weather, figures, main

settings = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(settings)
import llm  # noqa: E402  # reads the line above


def figures_of(response: Any) -> Figures:
    used = response.usage()
    # It leaves zeros out.
    cached = (used.details or {}).get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return figures(used.input, used.output, cached)


class Llm(Program):
    def __init__(self, service: Service) -> None:
        (settings / "extra-openai-models.yaml").write_text(f"""\
- model_id: steadyhand
  model_name: {service.model}
  api_base: {service.url}
  api_key_name: steadyhand
  supports_schema: true
  supports_tools: true
""")
        self._model = llm.get_model("steadyhand")
        self._model.key = service.key

    def ask(self, prompt: str) -> tuple[str, Figures]:
        response = self._model.prompt(prompt, stream=False)
        return response.text(), figures_of(response)

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        response = self._model.prompt(prompt)
        into.extend(response)
        return figures_of(response)

    def people(self, prompt: str) -> list[Any]:
        return [
            json.loads(self._model.prompt(prompt, schema=PERSON, stream=stream).text())
            for stream in (False, True)
        ]

    def use(self, prompt: str, weather: Weather) -> str:
        def get_weather(city: str) -> str:
            """Tell the weather in a city."""
            return weather.in_city(city)

        rounds = self._model.chain(prompt, tools=[get_weather])
        return list(rounds.responses())[-1].text()

    def talk(self, prompts: list[str]) -> str:
        conversation = self._model.conversation()
        return [conversation.prompt(prompt).text() for prompt in prompts][-1]


main(Llm)
