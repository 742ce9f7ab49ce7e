"""The chat completions route of the OpenAI API."""
