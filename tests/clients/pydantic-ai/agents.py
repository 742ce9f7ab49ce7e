"""What an agent of Pydantic AI does for each case, whichever way its model is spoken with."""

from typing import Any

from cases import Figures, Program, Weather, figures
from people import Person, as_json
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models import Model


def figures_of(used: Any) -> Figures:
    return figures(used.input_tokens, used.output_tokens, used.cache_read_tokens)


class Agents(Program):
    def __init__(self, model: Model) -> None:
        self._model = model

    def ask(self, prompt: str) -> tuple[str, Figures]:
        answer = Agent(self._model).run_sync(prompt)
        return answer.output, figures_of(answer.usage)

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        answer = Agent(self._model).run_stream_sync(prompt)
        into.extend(answer.stream_text(delta=True, debounce_by=None))
        return figures_of(answer.usage)

    def people(self, prompt: str) -> list[Any]:
        # By a function that it forces, which is its default, and by a schema.
        kinds = (ToolOutput(Person), NativeOutput(Person))
        return [as_json(Agent(self._model, output_type=kind).run_sync(prompt).output) for kind in kinds]

    def use(self, prompt: str, weather: Weather) -> str:
        agent = Agent(self._model)

        @agent.tool_plain
        def get_weather(city: str) -> str:
            """Tell the weather in a city."""
            return weather.in_city(city)

        return agent.run_sync(prompt).output

    def talk(self, prompts: list[str]) -> str:
        agent, answer = Agent(self._model), None
        for prompt in prompts:
            answer = agent.run_sync(prompt, message_history=answer.all_messages() if answer else None)
        return answer.output
