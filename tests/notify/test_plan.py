"""Which notifier is told of which event, when, and in which words."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from steadyhand.errors import ConfigError
from steadyhand.events import Event, ToolCallsRequested
from steadyhand.job import Cost, Job, JobSpec, Outcome, OutcomeType, Run, State
from steadyhand.notify.message import notification_text, plain_line
from steadyhand.notify.notification_plan import NotificationPlan
from steadyhand.notify.notifiers import Notifier, check_url
from steadyhand.notify.quiet_hours import parse_quiet_hours
from steadyhand.ports import DeliveryDraft, JobTemplate, Schedule, SchedulePause, ScheduleSpec
from steadyhand.redact import NO_REDACTION, Redactor
from steadyhand.testing.contracts.samples import NOON, make_job

EVENTS: Any = frozenset({"job.ended", "job.parked", "job.needs_results"})
KEY_NAMES = {"k_1": "nightly"}


def make_notifier(**rules: Any) -> Notifier:
    return Notifier("phone", "ntfys://ntfy.example/topic", rules.pop("events", EVENTS), **rules)


def ended(state: State = State.FAILED, outcome: OutcomeType = OutcomeType.AGENT_ERROR, **fields: Any) -> Job:
    fields.setdefault("api_key_id", "k_1")
    job = make_job(**fields)
    return replace(job, state=state, outcome=Outcome(outcome), finished_at=NOON)


def event_of(job: Job, at: datetime = NOON) -> Event:
    return Event(7, job.id, 1, at, "state.changed", {"from": "running", "to": job.state.value})


def plan(
    job: Job, *notifiers: Notifier, at: datetime = NOON, redactor: Redactor = NO_REDACTION
) -> Sequence[DeliveryDraft]:
    return NotificationPlan(notifiers, KEY_NAMES.__getitem__, redactor, "https://steady.example/")(
        job, [event_of(job, at)]
    )


@pytest.mark.parametrize(
    ("rules", "count"),
    [
        ({}, 1),
        ({"events": EVENTS}, 0),
        ({"agents": frozenset({"chat"})}, 0),
        ({"keys": frozenset({"nightly"})}, 1),
        ({"keys": frozenset({"other"})}, 0),
        ({"outcomes": frozenset({"budget"})}, 1),
    ],
)
def test_a_schedule_that_has_paused_itself_is_told_in_plain_words(rules: dict[str, Any], count: int) -> None:
    spec = ScheduleSpec("@daily", JobTemplate(JobSpec("x"), agent="claude"))
    pause = SchedulePause(NOON, "max_failures", "It has failed 3 times in a row.")
    schedule = Schedule("sch_1", "night", "k_1", "api", spec, NOON, None, paused=pause)
    rules = {"events": frozenset({"schedule.paused"}), **rules}
    notifiers = [make_notifier(**rules)]
    plan_all = NotificationPlan(notifiers, KEY_NAMES.__getitem__, NO_REDACTION, "https://steady.example/")
    drafts = plan_all.plan_pause(schedule)
    assert len(drafts) == count
    for draft in drafts:
        assert draft.type == "schedule.paused"
        assert json.loads(draft.body) == {
            "title": "Schedule is paused: night",
            "text": "It has failed 3 times in a row.\nhttps://steady.example/ui/schedules/night",
            "kind": "warning",
        }


@pytest.mark.parametrize(
    ("rules", "is_told"),
    [
        ({}, True),
        ({"events": frozenset({"job.parked"})}, False),
        ({"agents": frozenset({"claude"})}, True),
        ({"agents": frozenset({"chat"})}, False),
        ({"keys": frozenset({"nightly"})}, True),
        ({"keys": frozenset({"k_1"})}, True),
        ({"keys": frozenset({"other"})}, False),
        ({"outcomes": frozenset({"agent_error", "budget"})}, True),
        ({"outcomes": frozenset({"budget"})}, False),
        ({"agents": frozenset({"claude"}), "keys": frozenset({"other"})}, False),
    ],
)
def test_rules_choose_by_event_agent_key_and_outcome(rules: dict[str, Any], *, is_told: bool) -> None:
    drafts = plan(ended(agent="claude"), make_notifier(**rules))
    assert bool(drafts) is is_told
    if is_told:
        (draft,) = drafts
        assert (draft.endpoint, draft.circuit, draft.url, draft.type) == (
            "notify:phone",
            "notify phone",
            None,
            "job.ended",
        )
        assert draft.due_at is None


def test_a_rule_of_outcomes_leaves_the_events_before_the_end() -> None:
    notifier = make_notifier(outcomes=frozenset({"budget"}))
    parked = replace(make_job(api_key_id="k_1"), state=State.PARKED)
    assert [draft.type for draft in plan(parked, notifier)] == ["job.parked"]
    waiting = make_job(api_key_id="k_1")
    body = ToolCallsRequested([{"id": "c"}])
    event = Event(8, waiting.id, 1, NOON, body.type, {"calls": []})
    told = NotificationPlan([notifier], KEY_NAMES.__getitem__, NO_REDACTION)(waiting, [event])
    assert [draft.type for draft in told] == ["job.needs_results"]


def test_quiet_hours_hold_or_drop() -> None:
    quiet = parse_quiet_hours("11:00-13:00", "UTC", "x")
    held = plan(ended(), make_notifier(quiet_hours=quiet))
    assert [draft.due_at for draft in held] == [NOON.replace(hour=13, microsecond=0)]
    assert plan(ended(), make_notifier(quiet_hours=quiet, in_quiet_hours="drop")) == []
    later = NOON + timedelta(hours=2)
    assert [draft.due_at for draft in plan(ended(), make_notifier(quiet_hours=quiet), at=later)] == [None]


def test_a_plan_that_fails_does_not_fail_the_write() -> None:
    def no_name(_key_id: str) -> str:
        raise LookupError

    broken = NotificationPlan([make_notifier()], no_name, NO_REDACTION)
    job = ended()
    assert broken(job, [event_of(job)]) == ()


def told_text(job: Job, redactor: Redactor = NO_REDACTION) -> dict[str, str]:
    (draft,) = plan(job, make_notifier(), redactor=redactor)
    text: dict[str, str] = json.loads(draft.body)
    return text


def test_the_text_is_short_and_has_a_link() -> None:
    job = ended(agent="claude", prompt="Fix it.\n" * 400)
    job = replace(
        job, runs=(Run(1, State.FAILED), Run(2, State.FAILED)), cost=Cost(1_234_000, "ledger", priced=True)
    )
    text = told_text(job)
    assert text["title"].startswith("Job failed: Fix it. Fix it.")
    assert len(text["title"]) <= 115
    assert text["text"] == f"claude, agent_error, run 2, $1.23\nhttps://steady.example/ui/jobs/{job.id}"
    assert text["kind"] == "failure"
    done = ended(State.COMPLETED, OutcomeType.SUCCESS)
    assert told_text(done)["kind"] == "success"
    unpriced = replace(job, cost=Cost(0, "ledger", priced=False))
    assert "not priced" in told_text(unpriced)["text"]
    without_url = notification_text(job, "job.ended", NO_REDACTION, "")
    assert without_url.text.endswith(f"\nJob {job.id}")


def test_a_secret_in_a_title_is_redacted_before_it_is_cut() -> None:
    redactor = Redactor([b"a-secret-of-the-service"])
    text = told_text(ended(title="a " * 40 + "a-secret-of-the-service"), redactor)
    assert "a-secret" not in text["title"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "<!channel> @everyone [x](http://e.example)",
            "\u2039!channel\u203a \uff20everyone (x)(http: //e.example)",
        ),
        ("a\r\nSubject: b\x1b[31m\u202e\u200b", "a Subject: b(31m"),
        ("x" * 200, "x" * 99 + "…"),
    ],
)
def test_words_of_a_caller_cannot_act_on_the_service(text: str, shown: str) -> None:
    assert plain_line(text, 100) == shown


@pytest.mark.parametrize(
    "url",
    [
        "json://receiver.example/", "file:///etc/passwd", "exec://x", "ntfy.example/topic", "", "mqtt://x",
        "syslog://", "dbus://", "NTFY", "ntfy://x/y?attach=https://e.example/a", "discord://a/b?Template=/etc/passwd",
        "ntfy://x/y?a=1&+attach=z", "ntfy://x/y\nz", "ntfy://x/ y", "ntfy://" + "x" * 2_100,
    ],
)  # fmt: skip
def test_an_address_beside_the_list_or_with_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"notify\.phone\.url"):
        check_url(url, "notify.phone.url")


@pytest.mark.parametrize(
    "url", ["NTFYS://ntfy.example/topic", "mailto://u:p@mail.example?to=a@b.example", "slack://T/B/x"]
)
def test_an_address_of_the_list_is_taken(url: str) -> None:
    assert check_url(url, "x") == url


def test_an_address_is_in_no_repr() -> None:
    assert "topic" not in repr(make_notifier())


def test_people_are_told_of_a_budget_that_is_nearly_spent() -> None:
    job = make_job(api_key_id="k_1")
    budget = {"scope": "agent", "name": "triage@", "period": "day", "limit_usd": "10.00", "spent_usd": "8.10"}
    event = Event(9, job.id, 1, NOON, "budget.near", budget)
    notifier = make_notifier(events=frozenset({"budget.near"}), outcomes=frozenset({"budget"}))
    (draft,) = NotificationPlan([notifier], KEY_NAMES.__getitem__, NO_REDACTION)(job, [event])
    text = json.loads(draft.body)
    assert text["title"] == "Budget is nearly spent"
    assert text["text"] == (
        f"The budget of the agent triage\uff20 for this day is nearly spent: 8.10 of 10.00 USD.\nJob {job.id}"
    )
