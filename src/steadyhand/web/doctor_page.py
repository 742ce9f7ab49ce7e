"""The page of the doctor, for a key with the scope `admin`: the checks of `steadyhand doctor`, run on request."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from starlette.responses import Response

from steadyhand.errors import NotFound
from steadyhand.ports import DoctorCheck
from steadyhand.web.web_app import Visit

_VERDICTS = ("failed", "lacking", "passed")


async def show_doctor(visit: Visit) -> Response:
    """Show the report of the newest run, without a run."""
    visit.caller.require_scope("admin")
    report = visit.app.doctor.newest
    checks = [] if report is None else _sorted(visit.context.options.redactor.value, report.checks)
    counts = {verdict: sum(check["verdict"] == verdict for check in checks) for verdict in _VERDICTS}
    is_there = visit.context.options.run_doctor is not None
    return visit.page("doctor.html", report=report, checks=checks, counts=counts, is_there=is_there)


async def run_doctor(visit: Visit) -> Response:
    """Run the checks, and show their report."""
    await visit.read_form()
    visit.caller.require_scope("admin")
    run = visit.context.options.run_doctor
    if run is None:
        raise NotFound("This service has no doctor.")
    await visit.app.doctor.run(run)
    return visit.redirect("/ui/doctor")


def _sorted(redact: Any, checks: Sequence[DoctorCheck]) -> Sequence[Mapping[str, Any]]:
    """Return the checks without live secrets, those that failed first."""
    rows = [{**redact(asdict(check)), "verdict": _verdict(check)} for check in checks]
    return sorted(rows, key=lambda row: _VERDICTS.index(row["verdict"]))


def _verdict(check: DoctorCheck) -> str:
    if not check.ok:
        return "failed"
    return "lacking" if check.warning else "passed"
