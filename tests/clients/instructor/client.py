"""Instructor around the official client: it adds objects, by a forced function (its default) or by a schema."""

from functools import partial
from typing import Any

import instructor
from cases import Service, main
from completions import Completions, said
from openai import OpenAI
from people import Person, as_json


class Instructor(Completions):
    def __init__(self, service: Service) -> None:
        self._service = service
        self._client = instructor.from_openai(OpenAI(base_url=service.url, api_key=service.key))
        super().__init__(partial(self._client.create, model=service.model, response_model=None))

    def people(self, prompt: str) -> list[Any]:
        official = OpenAI(base_url=self._service.url, api_key=self._service.key)
        by_schema = instructor.from_openai(official, mode=instructor.Mode.JSON_SCHEMA)
        return [
            as_json(one.create(model=self._service.model, messages=said(prompt), response_model=Person))
            for one in (self._client, by_schema)
        ]


main(Instructor)
