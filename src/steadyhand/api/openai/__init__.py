"""The OpenAI routes: input messages, output specifications, streams, chat completions and responses."""
