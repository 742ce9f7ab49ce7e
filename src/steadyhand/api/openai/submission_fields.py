"""Fields of a request that every route of the OpenAI API turns into those of a submission alike."""

from collections.abc import Mapping
from typing import Any

EFFORTS = {"none": "low", "minimal": "low"}
"""Words for efforts that agents do not know, as those that they do."""


def metadata_of(given: Mapping[str, Any] | None, user: str | None) -> dict[str, Any] | None:
    """Give what a job keeps of a request's metadata, with its `user` among it unless there is another one."""
    whole = {} if user is None else {"user": user}
    return {**whole, **(given or {})} or None
