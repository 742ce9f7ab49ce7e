"""The template of a scheduled job's prompt and title: a few fields of the tick, and nothing that is carried out. Pure.

No field has a text of an agent or a repository. Other text in double braces, such as `{{ github.ref }}`, stays.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from steadyhand.events import format_rfc3339

_FIELD = re.compile(r"\{\{ {0,8}((?:schedule|tick|previous)\.\w{0,32}) {0,8}\}\}")
_NONE = "none"


@dataclass(frozen=True, slots=True)
class PreviousJob:
    """The job of the tick before: its id, and its state and outcome as words."""

    id: str
    state: str
    outcome: str | None


@dataclass(frozen=True, slots=True)
class TickFields:
    """The values that a template may have."""

    schedule: str
    scheduled_at: datetime
    zone: ZoneInfo
    run: int
    previous: PreviousJob | None

    @property
    def values(self) -> Mapping[str, str]:
        """The values by the names of the fields."""
        local, previous = self.scheduled_at.astimezone(self.zone), self.previous
        return {
            "schedule.name": self.schedule,
            "schedule.run": str(self.run),
            "tick.time": local.isoformat(timespec="seconds"),
            "tick.utc": format_rfc3339(self.scheduled_at),
            "tick.date": local.date().isoformat(),
            "tick.weekday": local.strftime("%A"),
            "previous.job": _NONE if previous is None else previous.id,
            "previous.state": _NONE if previous is None else previous.state,
            "previous.outcome": (previous and previous.outcome) or _NONE,
        }


FIELD_NAMES = (
    "schedule.name",
    "schedule.run",
    "tick.time",
    "tick.utc",
    "tick.date",
    "tick.weekday",
    "previous.job",
    "previous.state",
    "previous.outcome",
)
"""The names of all fields."""


def check_template(text: str) -> None:
    """Raise `ValueError` if a text has a field that does not exist."""
    for match in _FIELD.finditer(text):
        name = match[1]
        if name not in FIELD_NAMES:
            raise ValueError(f"has the field {name!r}; there are {', '.join(FIELD_NAMES)}")


def fill(text: str, fields: TickFields) -> str:
    """Return a text with the values of its fields, which are not searched for fields again."""
    values = fields.values
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), text)
