"""Fields of a request that every route of the OpenAI API turns into those of a submission alike."""

from collections.abc import Mapping
from typing import Any

EFFORT_ALIASES = {"none": "low", "minimal": "low"}
"""Words for efforts that agents do not know, as those that they do."""


def merge_metadata(metadata: Mapping[str, Any] | None, user: str | None) -> dict[str, Any] | None:
    """Give what a job keeps of a request's metadata, with its `user` among it unless there is another one."""
    defaults = {} if user is None else {"user": user}
    return {**defaults, **(metadata or {})} or None
