"""The page of the HTTP API has what the code has: routes, fields, states, outcomes, events, errors."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from tests.docs.pages import by_name, names_in, table, text_of
from tests.source_trees import trees_with

from steadyhand import errors
from steadyhand.api import ApiOptions, create_app
from steadyhand.api.classic.execute import CLASSIC_STATUS
from steadyhand.api.native.serializers import job_item_json, job_json, key_json, usage_json
from steadyhand.api.openai.run_failure import failure_reason
from steadyhand.api.schemas.native_bodies import LIST_OMITTED_FIELDS
from steadyhand.api.schemas.requests import JobRequest, TurnRequest
from steadyhand.api.transport.errors import _CODE_BY_STATUS, STATUS_BY_CODE, http_status
from steadyhand.control import Control
from steadyhand.errors import CallerError, RetryLater
from steadyhand.events import (
    EVENT_TYPES,
    PhaseProgress,
    StateChanged,
    TextDelta,
    ThinkingDelta,
    WarningEvent,
    event_data,
)
from steadyhand.job import Changes, Job, JobSpec, Outcome, OutcomeType, Run, State
from steadyhand.job_warnings import WARNINGS, WarningCode
from steadyhand.keyring import Keyring
from steadyhand.outcome import OUTCOMES
from steadyhand.ports import ApiKey, Store, UsageRow, UsageTotal
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.testing.contracts.samples import NOON

PAGE = text_of("http-api.md")
NOT_SERVED = ("cli", "client", "gateway", "runner", "sandbox", "testing", "workspace")
"""Rooms whose errors reach no caller of the HTTP API as they are."""
NAME = re.compile(r"[a-z]+(_[a-z]+)*")


def yes(flag: object) -> str:
    return "yes" if flag else "no"


# --- routes --------------------------------------------------------------------------------------


def routes_of(options: ApiOptions) -> set[str]:
    # An app owns nothing: its document needs no verbs and no store of keys.
    app = create_app(
        control=cast("Control", None),
        keyring=Keyring((), cast("Store", None)),
        options=options,
        tool_names=TOOL_NAMES,
    )
    paths: Mapping[str, Mapping[str, Any]] = app.openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def documented_routes() -> list[str]:
    return re.findall(r"^\| `((?:GET|POST|PATCH|DELETE) /[^`]+)` \|", PAGE, re.MULTILINE)


def test_the_page_has_each_route_once_and_no_other() -> None:
    served = routes_of(ApiOptions()) | routes_of(ApiOptions(profile="classic"))
    assert sorted(documented_routes()) == sorted(served)


# --- jobs ----------------------------------------------------------------------------------------


def test_the_page_has_each_field_of_a_submitted_job_and_no_other() -> None:
    documented = by_name(table(PAGE, "| field | type | meaning |"))
    assert set(documented) == set(JobRequest.model_fields)


def test_the_page_names_the_fields_that_a_turn_does_not_take() -> None:
    sentence = PAGE.partition("`POST /v1/jobs/{job_id}/turns` takes the same fields without")[2].partition(
        "which"
    )[0]
    assert set(names_in(sentence)) == set(JobRequest.model_fields) - set(TurnRequest.model_fields)


def shape(value: Any) -> Any:
    """Return the keys of an answer and of all that is in it; `metadata` is the caller's."""
    if isinstance(value, dict):
        return {key: None if key == "metadata" else shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return None


def sample_job() -> Job:
    return Job(
        id="3f2a9c01be77",
        spec=JobSpec("p"),
        agent="claude",
        api_key_id="k_7h2",
        created_at=NOON,
        budget_micros=1,
        timeout_seconds=1,
        idle_timeout_seconds=1,
        state=State.COMPLETED,
        outcome=Outcome(OutcomeType.SUCCESS),
        runs=(Run(1, State.COMPLETED, Outcome(OutcomeType.SUCCESS)),),
        changes=Changes("a", "b", 1, 1, 1),
    )


def example_job() -> dict[str, Any]:
    text = PAGE.partition("### The job\n")[2].partition("```json\n")[2].partition("```")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_job_on_the_page_has_the_keys_of_a_job() -> None:
    job = example_job()
    assert shape({**job, "warnings": []}) == shape(job_json(sample_job(), None))
    assert [set(warning) for warning in job["warnings"]] == [{"code", "message"}]


def test_the_page_names_what_a_list_of_jobs_leaves_out() -> None:
    sentence = PAGE.partition("An item is a job without")[2].partition(".")[0]
    assert set(names_in(sentence)) == set(LIST_OMITTED_FIELDS)
    left_out = set(job_json(sample_job(), None)) - set(job_item_json(sample_job(), None))
    assert set(names_in(sentence)) == left_out


def test_the_page_has_each_state_and_says_which_ones_are_ends() -> None:
    rows = by_name(table(PAGE, "| state | ended | meaning |"))
    assert {name: ended for name, (ended, _) in rows.items()} == {state: yes(state.ended) for state in State}


def test_the_page_has_each_outcome_with_its_state_and_whether_a_new_run_may_help() -> None:
    rows = by_name(table(PAGE, "| type | state | retryable | meaning |"))
    documented = {name: (state, retryable) for name, (state, retryable, _) in rows.items()}
    assert documented == {
        name: (meaning.state.value, yes(meaning.retryable)) for name, meaning in OUTCOMES.items()
    }


def test_the_page_has_the_classic_word_for_each_state() -> None:
    rows = table(PAGE, "| state | `status` |")
    documented = {state: word.strip("`") for states, word in rows for state in names_in(states)}
    assert documented == CLASSIC_STATUS


def documented_warnings() -> dict[str, list[str]]:
    return by_name(table(PAGE, "| code | where | meaning |"))


def test_the_page_has_each_code_of_a_warning_with_its_meaning_and_no_other() -> None:
    assert set(WARNINGS) == set(WarningCode)
    assert {code: meaning for code, (_, meaning) in documented_warnings().items()} == WARNINGS


def test_the_page_says_which_warnings_stand_in_the_job() -> None:
    events = set()
    for _, tree in trees_with(WarningEvent.__name__):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == WarningEvent.__name__:
                events |= set(re.findall(r"WarningCode\.(\w+)", ast.unparse(node)))
    shown = {code: where for code, (where, _) in documented_warnings().items()}
    assert shown == {code: "event" if code.name in events else "job" for code in WarningCode}


# --- events --------------------------------------------------------------------------------------


def data_keys(kind: type[Any]) -> list[str]:
    return list(event_data(kind(**{each.name: "" for each in fields(kind)})))


def test_the_page_has_each_type_of_event_with_its_data_and_no_other() -> None:
    rows = by_name(table(PAGE, "| type | data | meaning |"))
    kinds: Mapping[str, type[Any]] = {
        **EVENT_TYPES,
        TextDelta.type: TextDelta,
        ThinkingDelta.type: ThinkingDelta,
        PhaseProgress.type: PhaseProgress,
    }
    assert {name: names_in(data) for name, (data, _) in rows.items()} == {
        name: data_keys(kind) for name, kind in kinds.items()
    }
    assert data_keys(StateChanged)[:2] == ["from", "to"]


# --- keys and usage ------------------------------------------------------------------------------


def block(first: str) -> dict[str, Any]:
    """Return the indented JSON object of the page that begins so."""
    text = first + PAGE.partition(first)[2].partition("\n\n")[0]
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_key_on_the_page_has_the_keys_of_a_key() -> None:
    key = ApiKey("k_a", "nightly", "00", frozenset({"read"}), NOON)
    shown = key_json(key, is_fixed=False)
    on_page = block('{"object": "api_key"')
    on_page["limits"]["agents"] = None
    assert shape(on_page) == shape(shown)


def test_the_usage_on_the_page_has_the_keys_of_a_row() -> None:
    assert shape(block('{"object": "usage"')) == shape(usage_json(UsageRow({}, UsageTotal())))


# --- errors --------------------------------------------------------------------------------------


@cache
def calls_with_codes() -> Sequence[tuple[str, str]]:
    """Return what is called with a code and the code itself, for each place in the rooms that answer callers."""
    trees: dict[Path, ast.Module] = {}
    constants: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    for path, tree in trees_with(r"\bcode=|^\w+ = \(?[\"']"):  # a call with a code, or a constant
        if path.parts[0] in NOT_SERVED:
            continue
        trees[path] = tree
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
                constants |= {
                    name.id: str(statement.value.value)
                    for name in statement.targets
                    if isinstance(name, ast.Name)
                }
    for tree in trees.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                value = keyword.value
                code = value.value if isinstance(value, ast.Constant) else None
                if isinstance(value, ast.Name):
                    code = constants.get(value.id)
                if keyword.arg == "code" and isinstance(code, str) and NAME.fullmatch(code):
                    found.append((ast.unparse(node.func).partition(".")[0], code))
    return found


def kinds_of_error() -> list[type[CallerError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, CallerError) and kind is not CallerError
    ]


def statuses() -> dict[str, int]:
    """Return each code that a caller can get with its status."""
    found = dict(STATUS_BY_CODE) | {code: status for status, code in _CODE_BY_STATUS.items()}
    found |= {kind.code: http_status(kind("")) for kind in kinds_of_error()}
    by_class = {kind.__name__: kind for kind in kinds_of_error()}
    named = set(found)
    for called, code in calls_with_codes():
        named.add(code)
        if called in by_class:
            found[code] = http_status(by_class[called]("", code=code))
    # Answered without an error of ours.
    found["internal"] = 500
    for state in (State.FAILED, State.RUNNING):
        found[failure_reason(replace(sample_job(), state=state))[0]] = 503
    assert named <= set(found)
    return found


def test_the_page_has_each_code_of_an_error_with_its_status_and_no_other() -> None:
    rows = by_name(table(PAGE, "| code | status | again | when |"))
    assert {code: int(status) for code, (status, *_) in rows.items()} == statuses()


def test_the_page_says_later_for_the_errors_that_name_a_time() -> None:
    rows = by_name(table(PAGE, "| code | status | again | when |"))
    later = {code for code, (_, again, _) in rows.items() if again == "later"}
    named = {code for called, code in calls_with_codes() if called == RetryLater.__name__}
    assert later == named | {kind.code for kind in kinds_of_error() if issubclass(kind, RetryLater)}
    assert {again for _, again, _ in rows.values()} == {"yes", "no", "later"}
