"""The official client."""

from functools import partial

from cases import Service, main
from completions import Completions
from openai import OpenAI


def connect(service: Service) -> Completions:
    client = OpenAI(base_url=service.url, api_key=service.key)
    return Completions(partial(client.chat.completions.create, model=service.model))


main(connect)
