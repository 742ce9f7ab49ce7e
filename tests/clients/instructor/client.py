"""Instructor around the official client: it adds objects, by a forced function (its default) or by a schema."""

from functools import partial
from typing import Any

import instructor
from cases import KEY, MODEL, URL, main
from completions import Completions, said
from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


class Instructor(Completions):
    def __init__(self) -> None:
        self._client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY))
        super().__init__(partial(self._client.create, model=MODEL, response_model=None))

    def people(self, prompt: str) -> list[Any]:
        by_schema = instructor.from_openai(
            OpenAI(base_url=URL, api_key=KEY), mode=instructor.Mode.JSON_SCHEMA
        )
        return [
            one.create(model=MODEL, messages=said(prompt), response_model=Person).model_dump()
            for one in (self._client, by_schema)
        ]


main(Instructor())
