"""Announcements of other nodes about the events that they have stored."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobAnnouncement:
    """The events of a job that a transaction has stored, from `first` to `last`.

    With `has_changed` the job is new, or its state has changed.
    """

    job_id: str
    first: int
    last: int
    has_changed: bool
