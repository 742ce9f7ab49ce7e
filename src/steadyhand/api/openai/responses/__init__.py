"""The Responses routes of the OpenAI API."""
