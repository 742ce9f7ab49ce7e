"""The official client."""

from functools import partial

from cases import KEY, MODEL, URL, main
from completions import Completions
from openai import OpenAI

client = OpenAI(base_url=URL, api_key=KEY)
main(Completions(partial(client.chat.completions.create, model=MODEL)))
