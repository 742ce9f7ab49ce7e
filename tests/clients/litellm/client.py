"""LiteLLM's `completion`, with Steadyhand as an `openai/..` model."""

import os
from functools import partial

from cases import Service, main
from completions import Completions

# Else it asks the network for a list of prices as it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.suppress_debug_info = True


def connect(service: Service) -> Completions:
    model = f"openai/{service.model}"
    return Completions(partial(litellm.completion, model=model, api_base=service.url, api_key=service.key))


main(connect)
