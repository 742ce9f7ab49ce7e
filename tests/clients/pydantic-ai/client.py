"""Pydantic AI as it speaks by default with a model of OpenAI's: by the Responses API."""

from agents import Agents
from cases import Service, main
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def connect(service: Service) -> Agents:
    provider = OpenAIProvider(base_url=service.url, api_key=service.key)
    return Agents(OpenAIResponsesModel(service.model, provider=provider))


main(connect)
