"""The text of a notification: plain, short, with a link to the job. Pure."""

import unicodedata
from dataclasses import dataclass
from typing import Literal

from steadyhand.job import CallbackEvent, Job
from steadyhand.money import MICROS_PER_DOLLAR
from steadyhand.redact import Redactor

Kind = Literal["info", "success", "warning", "failure"]
"""The kinds of apprise: some services show them as a colour or a priority."""

_MAX_TITLE_LENGTH = 100
_HEADLINES: dict[CallbackEvent, str] = {
    "job.parked": "Job is parked",
    "job.needs_results": "Job needs results",
    "budget.near": "Budget is nearly spent",
}
_KINDS_OF_STATES: dict[str, Kind] = {"completed": "success", "cancelled": "info"}
# Services may read these as markup, as a mention of people or as a link.
_PLAIN = str.maketrans(
    {"<": "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", ">": "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}",
     "@": "\N{FULLWIDTH COMMERCIAL AT}", "[": "(", "]": ")", "`": "'"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NotificationText:
    """A title, a text of a few lines, and the kind."""

    title: str
    text: str
    kind: Kind


def notification_text(
    job: Job, event: CallbackEvent, redactor: Redactor, public_url: str, budget: str | None = None
) -> NotificationText:
    """Return the text about an event of a job. Of the caller's words it has the title alone, of the agent's none.

    `budget` is the sentence about a budget that is nearly spent.
    """
    state = job.state.value
    headline = _HEADLINES.get(event, f"Job {state}")
    name = plain_line(redactor.text(job.spec.title or job.spec.prompt[:1_000]), _MAX_TITLE_LENGTH)
    if budget is not None:
        link = f"{public_url}/ui/jobs/{job.id}" if public_url else f"Job {job.id}"
        return NotificationText(headline, f"{plain_line(budget, 300)}\n{link}", "warning")
    facts = [plain_line(job.agent, 64)]
    if job.outcome is not None and job.outcome.type.value not in ("success", state):
        facts.append(job.outcome.type.value)
    if job.run > 1:
        facts.append(f"run {job.run}")
    facts.append(f"${job.cost.micros / MICROS_PER_DOLLAR:.2f}" if job.cost.priced else "not priced")
    link = f"{public_url}/ui/jobs/{job.id}" if public_url else f"Job {job.id}"
    kind = _KINDS_OF_STATES.get(state, "failure") if event == "job.ended" else "warning"
    return NotificationText(f"{headline}: {name}" if name else headline, f"{', '.join(facts)}\n{link}", kind)


def pause_text(name: str, detail: str, redactor: Redactor, public_url: str) -> NotificationText:
    """Return the text about a schedule that has paused itself; `detail` is a sentence of the service."""
    link = f"{public_url}/ui/schedules/{name}" if public_url else f"Schedule {name}"
    text = f"{plain_line(redactor.text(detail), 300)}\n{link}"
    return NotificationText(f"Schedule is paused: {plain_line(name, _MAX_TITLE_LENGTH)}", text, "warning")


def plain_line(text: str, limit: int) -> str:
    """Return a text as one line without marks that a service could act on; a longer one is cut."""
    text = " ".join(text.split())
    text = "".join(each for each in text if not unicodedata.category(each).startswith("C"))
    text = text.translate(_PLAIN).replace("://", ": //")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
