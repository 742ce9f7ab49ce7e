"""Pydantic AI as it speaks by default with a model of OpenAI's: by the Responses API."""

from agents import Agents
from cases import KEY, MODEL, URL, main
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

main(Agents(OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))))
