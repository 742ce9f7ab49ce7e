"""Pydantic AI by chat completions."""

from agents import Agents
from cases import KEY, MODEL, URL, main
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

main(Agents(OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))))
