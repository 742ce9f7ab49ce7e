"""The templates with their filters."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from steadyhand.addresses import redact_url
from steadyhand.clock import utc_now
from steadyhand.events import format_rfc3339
from steadyhand.job import Cost, Job
from steadyhand.money import MICROS_PER_DOLLAR
from steadyhand.ports import UsageTotal
from steadyhand.web.code_colours import tokens_html
from steadyhand.web.plain_text import visible_text
from steadyhand.web.request_snippets import curl_command, python_program
from steadyhand.web.safe_markdown import markdown_html
from steadyhand.web.static_files import StaticFiles
from steadyhand.web.unified_diff import split_rows

_CENT = MICROS_PER_DOLLAR // 100
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_KILO = 1_000
_SHORT = 10
"""Seconds below which tenths count."""


def usd(micros: int) -> str:
    """Return an amount for people: cents, and more digits below one cent."""
    digits = 2 if micros == 0 or abs(micros) >= _CENT else 4
    return f"${micros / MICROS_PER_DOLLAR:,.{digits}f}"


def cost_text(cost: Cost) -> str:
    """Return a cost; one without a known price says so and is never 0."""
    if cost.priced:
        return usd(cost.micros)
    return f"over {usd(cost.micros)}" if cost.micros else "not priced"


def total_text(total: UsageTotal) -> str:
    """Return the cost of some calls, in the words of `cost_text`."""
    return cost_text(Cost(total.micros, "ledger", priced=total.priced))


def duration(seconds: float) -> str:
    """Return a duration such as `42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = max(0, int(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def span_text(seconds: float) -> str:
    """Return a duration as `duration` does, and a short one in tenths of a second."""
    return f"{max(0.0, seconds):.1f} s" if seconds < _SHORT else duration(seconds)


def age(moment: datetime | None) -> str:
    """Return the time since a moment, or until it."""
    if moment is None:
        return "—"
    seconds = (utc_now() - moment).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def compact(number: int) -> str:
    """Return a count such as `950`, `12.3k` or `4.5M`."""
    if number < _KILO:
        return str(number)
    if number < _KILO**2:
        return f"{number / _KILO:.1f}k"
    return f"{number / _KILO**2:.1f}M"


def clock_time(moment: datetime) -> str:
    """Return a moment in UTC to the second; a script of the page shows it in the zone of the browser."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def job_title(job: Job) -> str:
    """Return the title of a job, or the first line of its prompt."""
    text = job.spec.title or next((line for line in job.spec.prompt.split("\n") if line.strip()), "")
    return visible_text(text.strip())[:200] or "(empty prompt)"


def elapsed_seconds(job: Job) -> float | None:
    """Return the seconds that a job runs, or ran; None before its start."""
    if job.started_at is None:
        return None
    return ((job.finished_at or utc_now()) - job.started_at).total_seconds()


FILTERS: dict[str, Callable[..., Any]] = {
    "visible": visible_text,
    "markdown": lambda text: Markup(markdown_html(visible_text(text))),  # noqa: S704  # reduced by nh3
    "usd": usd,
    "cost": cost_text,
    "total_usd": total_text,
    "duration": duration,
    "span": span_text,
    "age": age,
    "compact": compact,
    "rfc3339": format_rfc3339,
    "clock": clock_time,
    "repository": lambda url: redact_url(url) or "",
    "curl": curl_command,
    "python": python_program,
    "split_rows": split_rows,
    "code": lambda line: tokens_html(line.tokens) if line.tokens else line.text,
    "title_of": job_title,
    "elapsed": elapsed_seconds,
}


class Renderer:
    """Renders templates by name. All values are escaped."""

    def __init__(self, files: StaticFiles) -> None:
        self._files = files
        self._environment = Environment(
            loader=PackageLoader("steadyhand.web"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
            auto_reload=False,  # else each rendering reads the times of the files
        )
        self._environment.filters.update(FILTERS)
        self._environment.globals["static"] = files.url

    def load(self) -> None:
        """Compile the templates and import what their filters need, which takes part of a second."""
        for name in self._environment.list_templates():
            self._environment.get_template(name)
        markdown_html("")
        self._files.url("page.css")

    def render(self, template: str, **values: Any) -> str:
        """Return a rendered template."""
        return str(self._environment.get_template(template).render(values))

    def call(self, template: str, macro: str, *values: Any) -> str:
        """Return the text of a macro, without the context of a page, which costs more than a short text."""
        return str(getattr(self._environment.get_template(template).module, macro)(*values))
