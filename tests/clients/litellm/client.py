"""LiteLLM's `completion`, with Steadyhand as an `openai/..` model."""

import os
from functools import partial

from cases import KEY, MODEL, URL, main
from completions import Completions

# Else it asks the network for a list of prices as it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.suppress_debug_info = True
main(Completions(partial(litellm.completion, model=f"openai/{MODEL}", api_base=URL, api_key=KEY)))
