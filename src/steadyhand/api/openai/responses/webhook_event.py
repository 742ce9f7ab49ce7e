"""OpenAI's webhook about a response in the background: its type and its data."""

from collections.abc import Mapping
from typing import Any

from steadyhand.api.openai.responses.resource import latest_response, response_status
from steadyhand.job import Job

_TYPES = frozenset({"completed", "failed", "cancelled"})


def webhook_event(job: Job) -> tuple[str, Mapping[str, Any]] | None:
    """Return the type and the data of the event about the end of a job; None if it is no response in the background."""
    response = latest_response(job)
    if response is None or not response.request.get("background"):
        return None
    status = response_status(job)
    return (f"response.{status}", {"id": response.id}) if status in _TYPES else None
