"""The configured notifiers: an address, and the rules that choose the events that it is told of."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from steadyhand.errors import ConfigError
from steadyhand.job import CallbackEvent, Job
from steadyhand.notify.quiet_hours import QuietHours
from steadyhand.ports import NOTIFICATION_CIRCUIT, Schedule

SCHEMES = frozenset(
    {
        "discord",
        "gotify",
        "gotifys",
        "mailto",
        "mailtos",
        "matrix",
        "matrixs",
        "ntfy",
        "ntfys",
        "pover",
        "slack",
        "tgram",
    }
)
"""The schemes of addresses. All that these services of apprise open are connections that the guard sees."""
MAIL_SCHEMES = frozenset({"mailto", "mailtos"})
ENDPOINT_PREFIX = "notify:"
"""Begins the endpoint of a notifier's deliveries; the name of an endpoint has no colon."""
_FORBIDDEN_OPTIONS = ("attach", "filename", "template")
_MAX_URL_LENGTH = 2_048


@dataclass(frozen=True, slots=True)
class Notifier:
    """One address with its rules; an empty set of agents, keys or outcomes means any."""

    name: str
    url: str = field(repr=False)
    events: frozenset[CallbackEvent]
    agents: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    """Names or ids of keys."""
    outcomes: frozenset[str] = frozenset()
    quiet_hours: QuietHours | None = None
    in_quiet_hours: Literal["hold", "drop"] = "hold"

    @property
    def endpoint(self) -> str:
        """The endpoint of its deliveries."""
        return f"{ENDPOINT_PREFIX}{self.name}"

    @property
    def circuit(self) -> str:
        """The circuit of its deliveries."""
        return f"{NOTIFICATION_CIRCUIT}{self.name}"

    @property
    def scheme(self) -> str:
        """The scheme of its address."""
        return url_scheme(self.url)

    def is_told(self, event: CallbackEvent, job: Job, key_name: str) -> bool:
        """Return True if its rules choose this event of this job."""
        if event not in self.events or (self.agents and job.agent not in self.agents):
            return False
        if self.keys and not self.keys & {job.api_key_id, key_name}:
            return False
        # An event before the end of a job has no outcome that could be compared.
        is_end = event == "job.ended" and job.outcome is not None
        return not (is_end and self.outcomes and job.outcome and job.outcome.type.value not in self.outcomes)

    def is_told_of_pause(self, schedule: Schedule, key_name: str) -> bool:
        """Return True if its rules choose a schedule that has paused itself."""
        if "schedule.paused" not in self.events or (
            self.agents and schedule.spec.job.agent not in self.agents
        ):
            return False
        return not self.keys or bool(self.keys & {schedule.api_key_id, key_name})

    def quiet_end(self, moment: datetime) -> datetime | None:
        """Return the end of the quiet hours that a moment falls into, or None."""
        return None if self.quiet_hours is None else self.quiet_hours.end_after(moment)


def url_scheme(url: str) -> str:
    """Return the scheme of an address in lower case; empty without one."""
    scheme, separator, _ = url.partition("://")
    return scheme.strip().lower() if separator else ""


def check_url(url: str, setting: str) -> str:
    """Return an address of apprise. Raise `ConfigError` for a scheme beside the list and for options with files."""
    if not url.isprintable() or " " in url or len(url) > _MAX_URL_LENGTH:
        raise ConfigError(f"{setting}: has a space or a control character, or is too long")
    if url_scheme(url) not in SCHEMES:
        raise ConfigError(f"{setting}: its scheme is none of {', '.join(sorted(SCHEMES))}")
    _, _, query = url.partition("?")
    names = {part.partition("=")[0].lower().lstrip("+-:") for part in query.split("&")}
    for option in _FORBIDDEN_OPTIONS:
        if option in names:
            raise ConfigError(f"{setting}: notifications have no files, and so no option {option!r}")
    return url
