"""Request fields that every route of the OpenAI API maps to fields of a submission in the same way."""

from collections.abc import Mapping
from typing import Any

EFFORT_ALIASES = {"none": "low", "minimal": "low"}
"""Effort words that agents do not know, mapped to words that they do."""


def merge_metadata(metadata: Mapping[str, Any] | None, user: str | None) -> dict[str, Any] | None:
    """Return the metadata of a job: the request's, with its `user` added unless there is one already."""
    defaults = {} if user is None else {"user": user}
    return {**defaults, **(metadata or {})} or None
