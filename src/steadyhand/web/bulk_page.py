"""Cancel, retry and resume of many jobs: a page that says their number, and a page of the result.

The first is a GET that changes nothing (`dry_run`). Its form has the time at which the jobs were counted, so jobs that
came or were changed since then are left alone, and a form that is sent twice changes each job once.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, cast

from starlette.responses import Response

from steadyhand.api.schemas.field_types import to_positive_micros
from steadyhand.api.schemas.requests import BulkResumeRequest
from steadyhand.api.transport.body import validate_body
from steadyhand.api.transport.params import validate_job_id
from steadyhand.control import BulkResult, JobSelection, ResumeOptions
from steadyhand.errors import InvalidRequest, RetryLater, StoreUnavailable
from steadyhand.events import format_rfc3339
from steadyhand.job import ENDED, Job
from steadyhand.ports import Scope
from steadyhand.web.job_actions import read_fields
from steadyhand.web.list_filter import ListFilter
from steadyhand.web.web_app import Visit

MAX_COUNTED = 2_000
"""The jobs that the first page counts; beyond them it says that there are more."""
MAX_CHANGED = 1_000
"""The jobs that one form changes; the result has a form for the rest."""
MAX_SECONDS = 20.0
_PAGE = 200
_MAX_SELECTED = 100
_SHOWN_JOBS = 12
_SHOWN_REASONS = 10
_MAX_CURSOR = 500

Action = Literal["cancel", "retry", "resume"]
_SCOPES: Mapping[Action, Scope] = {"cancel": "cancel", "retry": "submit", "resume": "submit"}
_DONE: Mapping[Action, str] = {"cancel": "cancelled", "retry": "queued again", "resume": "resumed"}


@dataclass(frozen=True, slots=True)
class BulkForm:
    """The jobs that somebody chose, and what to do with them."""

    action: Action
    list_filter: ListFilter
    job_ids: tuple[str, ...] | None
    """The chosen rows; None for all jobs of the filter."""

    @classmethod
    def build(cls, action: str, of: str, list_filter: ListFilter, job_ids: Sequence[str]) -> "BulkForm":
        """Return the checked form; raise `InvalidRequest` for an action that there is not."""
        if action not in _SCOPES or of not in ("selected", "all"):
            raise InvalidRequest("The action has to be cancel, retry or resume, of selected jobs or of all.")
        ids = tuple(validate_job_id(each) for each in job_ids[:_MAX_SELECTED])
        return cls(cast("Action", action), list_filter, ids if of == "selected" else None)

    @property
    def selection(self) -> JobSelection:
        """The selection for `Control`. The filter does not hold for jobs that were chosen one by one."""
        if self.job_ids is None:
            return JobSelection(self.list_filter.job_filter(), _PAGE)
        job_filter = ListFilter.from_pairs(()).job_filter()
        if self.action != "cancel":
            job_filter = replace(job_filter, states=ENDED)  # a completed one too: somebody chose it
        return JobSelection(job_filter, _PAGE, job_ids=self.job_ids)


@dataclass(slots=True)
class BulkTotal:
    """The sum of some calls."""

    matched: int = 0
    done: int = 0
    jobs: list[Job] = field(default_factory=list)
    """The first jobs that are changed."""
    states: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    """The number of jobs that are left as they are, by the reason."""
    left_jobs: list[Job] = field(default_factory=list)
    next_cursor: str | None = None
    has_more: bool = False
    as_of: datetime | None = None
    stopped_by: str | None = None

    @property
    def left_count(self) -> int:
        """The number of jobs that are left as they are."""
        return self.left.total()

    @property
    def reasons(self) -> Sequence[tuple[str, int]]:
        """The most frequent reasons, and all others as one."""
        shown = self.left.most_common(_SHOWN_REASONS)
        others = self.left_count - sum(count for _, count in shown)
        return [*shown, ("for other reasons", others)] if others else shown

    def add(self, result: BulkResult, redact: Any) -> None:
        """Add a call."""
        self.matched += result.matched
        for item in result.items:
            if item.error is None:
                self.done += 1
                self.states[item.job.state.value] += 1
                self.jobs += [item.job] if len(self.jobs) < _SHOWN_JOBS else []
            elif not isinstance(item.error, RetryLater | StoreUnavailable):  # those are for the next call
                self.left[redact(item.error.detail)] += 1
                self.left_jobs += [item.job] if len(self.left_jobs) < _SHOWN_JOBS else []
        self.as_of, self.next_cursor, self.has_more = result.as_of, result.next_cursor, result.has_more
        self.stopped_by = None if result.stopped_by is None else redact(result.stopped_by.detail)


async def confirm(visit: Visit) -> Response:
    """Show how many jobs would be changed, with a form that does it."""
    params = visit.request.query_params
    form = BulkForm.build(
        params.get("action", ""),
        params.get("of", "selected"),
        ListFilter.from_pairs(params.multi_items()),
        params.getlist("job"),
    )
    total = await _run(visit, form, replace(form.selection, dry_run=True), ResumeOptions(), MAX_COUNTED)
    return _page(visit, "bulk.html", form, total)


async def apply(visit: Visit) -> Response:
    """Change the jobs of the form, and show the result."""
    fields = await visit.read_form()
    form = BulkForm.build(
        fields.get("action", ""),
        fields.get("of", ""),
        ListFilter.from_query(fields.get("filter", "")),
        fields.get("jobs", "").split(),
    )
    body = read_fields(fields, "budget_usd", "prompt") if form.action == "resume" else {}
    body |= {name: text for name in ("as_of", "cursor") if (text := fields.get(name, "")[:_MAX_CURSOR])}
    if "as_of" not in body:
        raise InvalidRequest.at("/as_of", "is required")
    request = validate_body(BulkResumeRequest, {**body, "all": True})
    budget = None if request.budget_usd is None else to_positive_micros(request.budget_usd)
    selection = replace(form.selection, cursor=request.cursor, as_of=request.as_of)
    total = await _run(visit, form, selection, ResumeOptions(budget, request.prompt), MAX_CHANGED)
    return _page(visit, "bulk_result.html", form, total, fields)


async def _run(
    visit: Visit, form: BulkForm, selection: JobSelection, options: ResumeOptions, most: int
) -> BulkTotal:
    """Call the operation until it has seen all jobs of the form, or as many as one request may."""
    caller, control = visit.caller, visit.control
    caller.require_scope(_SCOPES[form.action])
    total, end = BulkTotal(), time.monotonic() + MAX_SECONDS
    while True:
        if form.action == "cancel":
            result = await control.cancel_jobs(caller, selection)
        elif form.action == "retry":
            result = await control.retry_jobs(caller, selection)
        else:
            result = await control.resume_jobs(caller, selection, options)
        total.add(result, visit.context.options.redactor.text)
        if not result.has_more or result.stopped_by or total.matched >= most or time.monotonic() >= end:
            break
        selection = replace(selection, cursor=result.next_cursor, as_of=result.as_of)
    return total


def _page(
    visit: Visit, template: str, form: BulkForm, total: BulkTotal, fields: Mapping[str, str] | None = None
) -> Response:
    gone = 0 if form.job_ids is None else len(form.job_ids) - total.matched
    return visit.page(
        template,
        form=form,
        total=total,
        gone=gone,
        verb=form.action.capitalize(),
        done_word=_DONE[form.action],
        as_of="" if total.as_of is None else format_rfc3339(total.as_of),
        fields_sent=fields or {},
    )
