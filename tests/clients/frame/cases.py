"""What every client program in Python shares: its cases by name, run one after the other, each telling what it saw.

A program is called as `client CASE..` with STEADYHAND_URL, STEADYHAND_KEY, STEADYHAND_MODEL and STEADYHAND_PROMPTS, a
JSON object of what to ask by case. It prints one JSON object a line, with the case's name in it, and `crash` when the
case itself broke. It runs in its client's own environment, so that nothing of Steadyhand can be imported here.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ["STEADYHAND_URL"]
KEY = os.environ["STEADYHAND_KEY"]
MODEL = os.environ["STEADYHAND_MODEL"]
PROMPTS: dict[str, Any] = json.loads(os.environ["STEADYHAND_PROMPTS"])

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Weather:
    """The client's own tool, and the cities that it was asked for."""

    def __init__(self) -> None:
        self.cities: list[str] = []

    def in_city(self, city: str) -> str:
        self.cities.append(city)
        return f"rain in {city}"


def raised(call: Callable[[], Any]) -> dict[str, str]:
    """The exception that a call ends with, in the words that its user reads; a call that ends well has none."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is told
        return {"kind": type(error).__name__, "text": str(error)}
    return {"kind": "", "text": ""}


def main(cases: dict[str, Callable[[Any], dict[str, Any]]]) -> None:
    """Run the cases that the command line names."""
    for name in sys.argv[1:]:
        try:
            saw = cases[name](PROMPTS[name])
        except Exception:  # noqa: BLE001  # the boundary: the test shows it
            saw = {"crash": traceback.format_exc()}
        print(json.dumps({"case": name, **saw}), flush=True)  # noqa: T201  # it is how a program tells
