"""Pydantic AI by chat completions."""

from agents import Agents
from cases import Service, main
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def connect(service: Service) -> Agents:
    provider = OpenAIProvider(base_url=service.url, api_key=service.key)
    return Agents(OpenAIChatModel(service.model, provider=provider))


main(connect)
