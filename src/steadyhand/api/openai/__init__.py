"""What the OpenAI routes are made of: conversations taken apart, answers put together, streams."""
