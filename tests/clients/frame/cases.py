"""What every client program in Python shares: its cases by name, run one after the other, each telling what it saw.

A program is called with STEADYHAND_RUNS, a JSON list of objects, one for each service: `url`, `key`, `model` and
`prompts`, an object of what to ask by case. It prints one JSON object a line, with the model and the case's name in it,
and `crash` when the case itself broke. It runs in its client's own environment, so that nothing of Steadyhand can be
imported here.
"""

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_KINDS = ({"kind": {"const": "cat"}, "lives": {"type": "integer"}}, {"kind": {"const": "dog"}})
PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "example": "Grace"},
        "age": {"type": "integer"},
        "home": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}], "items": False},
        "pet": {
            "oneOf": [
                {"type": "object", "properties": each, "required": list(each), "additionalProperties": False}
                for each in _KINDS
            ],
            "discriminator": {"propertyName": "kind"},
        },
    },
    "required": ["name", "age", "home", "pet"],
    "additionalProperties": False,
}
"""In the words that Pydantic and zod write: the agent's CLI itself takes none of them."""
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

Figures = dict[str, int | None]


def figures(given: int, made: int, cached: int | None) -> Figures:
    """What a client says was used: tokens of the prompt, of the answer, and those of the prompt from the cache."""
    return {"input": given, "output": made, "cached": cached}


@dataclass(frozen=True)
class Service:
    """A service as its clients know it."""

    url: str
    key: str
    model: str


class Weather:
    """The client's own tool, and the cities that it was asked for."""

    def __init__(self) -> None:
        self.cities: list[str] = []

    def in_city(self, city: str) -> str:
        """Tell the weather in a city."""
        self.cities.append(city)
        return f"rain in {city}"


class Program:
    """A client: how it asks, in its own words; the cases are made of that."""

    def ask(self, prompt: str) -> tuple[str, Figures]:
        """Ask and give the whole answer, and what it used."""
        raise NotImplementedError

    def pieces(self, prompt: str, into: list[str]) -> Figures:
        """Ask for a stream, put its text into the list as it comes, and give what it used."""
        raise NotImplementedError

    def people(self, prompt: str) -> list[Any]:
        """Ask for a person in each way that the client knows, and give the objects."""
        raise NotImplementedError

    def use(self, prompt: str, weather: Weather) -> str:
        """Ask with the tool `get_weather`, make every call, and give the last answer."""
        raise NotImplementedError

    def talk(self, prompts: list[str]) -> str:
        """Ask one after the other in one conversation and give the last answer."""
        raise NotImplementedError

    def both(self, prompt: str) -> dict[str, Any]:
        """Ask for the whole answer and for a stream, and give the text or the exception of each."""
        texts: list[Any] = []
        into: list[str] = []
        error = raised(lambda: texts.append(self.ask(prompt)[0]))
        plain = {"text": texts[0] if texts else None, "kind": error["kind"], "error": error["text"]}
        error = raised(lambda: self.pieces(prompt, into))
        streamed = {"text": "".join(into), "kind": error["kind"], "error": error["text"]}
        return {"plain": plain, "streamed": streamed}

    def case(self, name: str, prompt: Any) -> dict[str, Any]:
        """Run a case and give what was seen."""
        into: list[str] = []
        weather = Weather()
        cases: dict[str, Callable[[], dict[str, Any]]] = {
            "plain": lambda: {"text": self.ask(prompt)[0]},
            "streamed": lambda: {
                "used": self.pieces(prompt, into),
                "text": "".join(into),
                "pieces": len(into),
            },
            "usage": lambda: {"plain": self.ask(prompt)[1], "streamed": self.pieces(prompt, into)},
            "structured": lambda: {"objects": self.people(prompt)},
            "tools": lambda: {"text": self.use(prompt, weather), "cities": weather.cities},
            "multi-turn": lambda: {"text": self.talk(prompt)},
            "error": lambda: {
                "plain": raised(lambda: self.ask(prompt)),
                "streamed": raised(lambda: self.pieces(prompt, into)),
            },
            "cut": lambda: {"error": raised(lambda: self.pieces(prompt, into)), "text": "".join(into)},
            "retry": lambda: {"text": self.ask(prompt)[0]},
            "thinking": lambda: self.both(prompt),
            "refused": lambda: self.both(prompt),
        }
        return cases[name]()


def raised(call: Callable[[], Any]) -> dict[str, str]:
    """The exception that a call ends with, in the words that its user reads; a call that ends well has none."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told
        return {"kind": type(error).__name__, "text": str(error)}
    return {"kind": "", "text": ""}


def main(connect: Callable[[Service], Program]) -> None:
    """Run the cases of each service in turn: importing a client takes longer than they do."""
    for run in json.loads(os.environ["STEADYHAND_RUNS"]):
        service = Service(run["url"], run["key"], run["model"])
        program = connect(service)
        for name, prompt in run["prompts"].items():
            try:
                saw = program.case(name, prompt)
            except Exception:  # noqa: BLE001  # the boundary: the test shows it
                saw = {"crash": traceback.format_exc()}
            told = {"model": service.model, "case": name, **saw}
            print(json.dumps(told), flush=True)  # noqa: T201  # it is how a program tells
