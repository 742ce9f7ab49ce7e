"""The columns of a stored job stay as they are, byte for byte: other releases read and write the same database."""

import json
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest

from steadyhand.job import (
    Changes,
    ClientTool,
    Cost,
    ErrorInfo,
    Job,
    JobCallback,
    JobSpec,
    JobWarning,
    Outcome,
    OutcomeType,
    Run,
    SlashCommand,
    State,
    Turn,
    UncommittedChanges,
    Usage,
)
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import ApiKey, KeyLimits
from steadyhand.store.mapping import job_row, key_from_row, key_row
from steadyhand.testing.contracts.samples import NOON

HOUR = timedelta(hours=1)
SPEC = JobSpec(
    prompt="Mend the wall.",
    model="opus",
    priority=7,
    metadata={"ticket": "OPS-7", "n": 1.5},
    title="A wall \u00e9",
    output_schema={"type": "object"},
    expires_in_seconds=30.5,
    max_turns=9,
    effort="high",
    append_system_prompt="Be brief.",
    history=(Turn("user", "U"), Turn("assistant", ({"type": "text", "text": "A"},))),
    session_name="walls",
    content=({"type": "file", "name": "a.txt", "data": "YQ=="},),
    request={"kind": "response", "input": []},
    tools=(ClientTool("buy", None, {"type": "object"}),),
    one_call=True,
    command=SlashCommand("c", "d"),
    uncommitted=UncommittedChanges("e", "f", "g"),
    origin="openai",
    callback=JobCallback("https://x.example/a?b", ("job.parked",), "full"),
    labels=("gpu", "zone=a"),
    not_on_nodes=("one",),
)
JOB = Job(
    id="0123456789ab",
    spec=SPEC,
    agent="mason",
    api_key_id="k_1",
    created_at=NOON,
    budget_micros=2_500_000,
    timeout_seconds=900,
    idle_timeout_seconds=60.0,
    state=State.FAILED,
    runner="other",
    workspace="infra",
    ref="main",
    commit="6a1f",
    on_interrupt="restart",
    publish="branch",
    session_id="s-1",
    conversation="d1",
    parent_job_id="ba9876543210",
    queued_at=NOON,
    started_at=NOON + HOUR,
    finished_at=NOON + 2 * HOUR,
    parked_until=NOON + 3 * HOUR,
    begin="resume",
    continue_prompt="Go on.",
    undelivered_results="They say yes.",
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    at_start="fresh",
    since_run=2,
    requeues=1,
    used_seconds=12.25,
    outcome=Outcome(OutcomeType.BUDGET, "spent"),
    runs=(Run(1, State.FAILED, Outcome(OutcomeType.BUDGET, "spent"), NOON, NOON + HOUR, 1, "n1", 7, 8),),
    answer="Mended.",
    structured_output={"walls": [1]},
    usage=Usage(1, 2, 3, 4, 5),
    cost=Cost(6, "ledger", priced=False, reported_micros=7),
    changes=Changes("a", "b", 1, 2, 3, "steadyhand/x", published=True),
    warnings=(JobWarning(WarningCode.DIFF_TOO_LARGE, "cut"),),
    error=ErrorInfo("budget", "Spent.", retryable=True),
    last_event=4,
    sequence=5,
)

ROW = {
    "id": "0123456789ab",
    "state": "failed",
    "api_key_id": "k_1",
    "agent": "mason",
    "workspace": "infra",
    "created_at": 1772366400123456,
    "finished_at": 1772373600123456,
    "metadata": '{"ticket":"OPS-7","n":1.5}',
    "session_id": "s-1",
    "session_name": "walls",
    "conversation": "d1",
    "record": (
        '{"runner":"other","origin":"openai","model":"opus","ref":"main","commit":"6a1f",'
        '"priority":7,"title":"A wall \\u00e9","output_schema":{"type":"object"},'
        '"on_interrupt":"restart","publish":"branch","budget_micros":2500000,'
        '"timeout_seconds":900,"idle_timeout_seconds":60.0,"expires_in_seconds":30.5,'
        '"max_turns":9,"effort":"high","append_system_prompt":"Be brief.",'
        '"parent_job_id":"ba9876543210","begin":"resume","continue_prompt":"Go on.",'
        '"at_start":"fresh","used_seconds":12.25,"since_run":2,"queued_at":1772366400123456,'
        '"started_at":1772370000123456,"parked_until":1772377200123456,'
        '"usage":{"input_tokens":1,"output_tokens":2,"cache_read_input_tokens":3,'
        '"cache_creation_input_tokens":4,"turns":5},"cost":{"micros":6,"source":"ledger",'
        '"priced":false,"reported_micros":7},"outcome":{"type":"budget","detail":"spent"},'
        '"changes":{"base":"a","head":"b","files":1,"insertions":2,"deletions":3,'
        '"branch":"steadyhand/x","published":true},"error":{"code":"budget",'
        '"message":"Spent.","retryable":true},"undelivered_results":"They say yes.",'
        '"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","requeues":1,'
        '"callback":["https://x.example/a?b",["job.parked"],"full"],'
        '"labels":["gpu","zone=a"],"not_on_nodes":["one"],'
        '"warnings":[{"code":"diff_too_large",'
        '"message":"cut"}]}'
    ),
    "structured_output": '{"walls":[1]}',
    "history": (
        '{"turns":[["user","U"],["assistant",[{"type":"text","text":"A"}]]],'
        '"content":[{"type":"file","name":"a.txt","data":"YQ=="}],'
        '"request":{"kind":"response","input":[]},"tools":[["buy",null,{"type":"object"}]],'
        '"one_call":true,"command":["c","d"],"uncommitted":["e","f","g"]}'
    ),
    "answer": '"Mended."',
    "prompt": "Mend the wall.",
}

SMALL_JOB = Job(
    id="0123456789ab",
    spec=JobSpec("p"),
    agent="a",
    api_key_id="k",
    created_at=NOON,
    budget_micros=1,
    timeout_seconds=2,
    idle_timeout_seconds=3,
)
SMALL_ROW = {
    "id": "0123456789ab",
    "state": "queued",
    "api_key_id": "k",
    "agent": "a",
    "workspace": None,
    "created_at": 1772366400123456,
    "finished_at": None,
    "metadata": None,
    "session_id": None,
    "session_name": None,
    "conversation": None,
    "record": (
        '{"runner":"claude","origin":"api","model":null,"ref":null,"commit":null,"priority":0,'
        '"title":null,"output_schema":null,"on_interrupt":"auto","publish":"none",'
        '"budget_micros":1,"timeout_seconds":2,"idle_timeout_seconds":3,'
        '"expires_in_seconds":null,"max_turns":null,"effort":null,"append_system_prompt":null,'
        '"parent_job_id":null,"begin":"fresh","continue_prompt":null,"at_start":null,'
        '"used_seconds":0.0,"since_run":1,"queued_at":null,"started_at":null,'
        '"parked_until":null,"usage":{"input_tokens":0,"output_tokens":0,'
        '"cache_read_input_tokens":0,"cache_creation_input_tokens":0,"turns":0},'
        '"cost":{"micros":0,"source":"reported","priced":true,"reported_micros":null},'
        '"outcome":null,"changes":null,"error":null,"warnings":[]}'
    ),
    "structured_output": None,
    "history": None,
    "answer": None,
    "prompt": "p",
}


@pytest.mark.parametrize(
    ("job", "row"), [(JOB, ROW), (SMALL_JOB, SMALL_ROW)], ids=["every field set", "none"]
)
def test_a_job_is_stored_as_the_same_bytes_as_ever(job: Job, row: dict[str, object]) -> None:
    assert list(job_row(job).items()) == list(row.items())


def test_the_stored_sample_sets_every_field_to_other_than_its_default() -> None:
    for sample, small in ((JOB, SMALL_JOB), (JOB.spec, SMALL_JOB.spec)):
        same = [
            each.name for each in fields(sample) if getattr(sample, each.name) == getattr(small, each.name)
        ]
        assert same == (["id", "created_at"] if sample is JOB else [])


def test_a_key_is_stored_so_that_an_earlier_version_reads_it_unless_it_has_a_later_limit() -> None:
    key = ApiKey("k_1", "ci", "0" * 64, frozenset({"read"}), NOON, KeyLimits(agents=("a",), day_micros=5))
    stored = key_row(key)["limits"]
    assert json.loads(stored) == {
        "agents": ["a"],
        "workspaces": None,
        "per_minute": None,
        "running": None,
        "queued": None,
        "day_micros": 5,
        "month_micros": None,
    }
    limits = KeyLimits(max_budget_micros=1, max_timeout_seconds=2.5, models=("haiku",))
    for each in (key, replace(key, limits=limits), replace(key, limits=KeyLimits())):
        row: Any = key_row(each)
        assert key_from_row(row) == each
