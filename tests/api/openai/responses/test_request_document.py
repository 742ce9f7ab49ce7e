"""The document that a job stores about its responses has a version and fixed bytes; older documents can be read."""

from dataclasses import replace
from typing import Any

import pytest

from steadyhand.api.openai.request_document import is_response, parse_document
from steadyhand.api.openai.responses.build_submission import build_submission, later_request
from steadyhand.api.openai.responses.input_items import normalize_input
from steadyhand.api.openai.responses.resource import (
    append_request,
    forget_response,
    get_stored_response,
    latest_response,
)
from steadyhand.api.openai.responses.start_response import stored_input_items
from steadyhand.api.schemas.openai_requests import ResponseRequest
from steadyhand.api.transport.context import ModelAlias
from steadyhand.errors import StoreError
from steadyhand.job import Job
from steadyhand.store.mapping import to_json
from steadyhand.testing.contracts.samples import make_job

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "a wall"}
HEAD = (
    '{"kind":"response","version":1,"function":null,"model":"claude","instructions":"Be brief.",'
    '"background":false,"metadata":{"a":"b"},"stored":true,"input":['
)
INPUT = (
    '{"type":"message","role":"user","status":"completed","content":[{"type":"input_text","text":"Why?"}]}'
)
ECHO = (
    '],"echo":{"max_output_tokens":null,"max_tool_calls":null,"parallel_tool_calls":true,'
    '"previous_response_id":null,"presence_penalty":0.0,"frequency_penalty":0.0,"temperature":1.0,'
    '"top_p":1.0,"prompt_cache_key":null,"safety_identifier":null,"user":null,'
    '"reasoning":{"effort":null,"summary":null},"store":true,'
    '"text":{"format":{"type":"text"},"verbosity":"medium"},"tool_choice":"auto",'
    '"tools":[{"type":"function","name":"look","description":null,"parameters":{"type":"object"},'
    '"strict":null}],"truncation":"disabled"}'
)
LATER_HEAD = ',"later":[{"model":"claude","instructions":null,"background":true,"metadata":null,"stored":true,"input":['
LATER_INPUT = '{"type":"function_call_output","status":"completed","call_id":"c","output":"a wall"}'
LATER_ECHO = '],"echo":{"temperature":0.5}'


def first_job() -> Job:
    body = ResponseRequest.model_validate(
        {
            "model": "claude",
            "instructions": "Be brief.",
            "input": "Why?",
            "metadata": {"a": "b"},
            "tools": [TOOL],
        }
    )
    return make_job(
        request=build_submission(body, ModelAlias("claude"), normalize_input(body.input)).spec.request
    )


def job_with_two() -> Job:
    body = ResponseRequest.model_validate(
        {
            "model": "claude",
            "input": [CALL, OUTPUT],
            "background": True,
            "temperature": 0.5,
            "tools": [TOOL],
        }
    )
    return append_request(first_job(), later_request(body, normalize_input(body.input)))


def stored_bytes(job: Job | None) -> str:
    assert job is not None
    return to_json(job.spec.request)


def test_a_document_is_stored_with_its_version_as_these_bytes() -> None:
    both = job_with_two()
    assert stored_bytes(first_job()) == HEAD + INPUT + ECHO + "}"
    assert stored_bytes(both) == HEAD + INPUT + ECHO + LATER_HEAD + LATER_INPUT + LATER_ECHO + "}]}"
    without_first, without_second = forget_response(both, 0), forget_response(both, 1)
    assert stored_bytes(without_first) == (
        HEAD + ECHO + LATER_HEAD + LATER_INPUT + LATER_ECHO + '}],"forgotten":true}'
    )
    assert stored_bytes(without_second) == (
        HEAD + INPUT + ECHO + LATER_HEAD + LATER_ECHO + ',"forgotten":true}]}'
    )


def test_a_job_whose_last_response_is_deleted_has_none_left() -> None:
    both = job_with_two()
    without_first, without_second = forget_response(both, 0), forget_response(both, 1)
    assert without_first is not None
    assert without_second is not None
    assert forget_response(without_first, 1) is None
    assert forget_response(without_second, 0) is None
    assert forget_response(first_job(), 0) is None
    deleted, kept = get_stored_response(without_first, 0), get_stored_response(without_first, 1)
    assert deleted is not None
    assert kept is not None
    assert (deleted.is_retrievable, kept.is_retrievable) == (False, True)


def test_a_later_response_has_the_parameters_of_the_first_where_it_stores_none() -> None:
    latest = latest_response(job_with_two())
    assert latest is not None
    assert (latest.number, latest.request["background"], latest.request["function"]) == (1, True, None)
    assert latest.request["echo"]["temperature"] == 0.5
    assert latest.request["echo"]["top_p"] == 1.0
    assert get_stored_response(job_with_two(), 2) is None


def without_version(job: Job) -> Job:
    """Return a job with its document as earlier releases stored it."""
    document = {name: value for name, value in (job.spec.request or {}).items() if name != "version"}
    return with_document(job, document)


def with_document(job: Job, document: dict[str, Any]) -> Job:
    return replace(job, spec=replace(job.spec, request=document))


def test_a_document_of_an_earlier_release_has_the_same_responses() -> None:
    both = job_with_two()
    old = without_version(both)
    assert stored_bytes(old) == stored_bytes(both).replace('"version":1,', "")
    for number in (0, 1):
        stored, expected = get_stored_response(old, number), get_stored_response(both, number)
        assert stored is not None
        assert expected is not None
        assert stored.request == expected.request
        changed, expected_job = forget_response(old, number), forget_response(both, number)
        assert changed is not None
        assert expected_job is not None
        assert changed.spec == expected_job.spec


@pytest.mark.parametrize("version", [{}, {"version": 1}])
def test_a_document_that_lacks_keys_is_read_and_keeps_all_its_keys(version: dict[str, Any]) -> None:
    old = {"kind": "response", "model": "claude", "echo": {"top_p": 0.5}, "unknown": 7, **version}
    job = make_job(request=old)
    stored = get_stored_response(job)
    assert stored is not None
    assert stored.is_retrievable
    assert stored_input_items(stored) == []
    body = ResponseRequest.model_validate({"model": "claude", "input": "And?", "top_p": 0.5})
    later = later_request(body, normalize_input(body.input))
    request = append_request(job, later).spec.request
    assert request is not None
    echo = {name: value for name, value in later["echo"].items() if name != "top_p" and value is not None}
    assert request == {**old, "version": 1, "later": [{**later, "echo": echo}]}


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_a_document_of_another_version_is_an_error_for_each_operation(version: object) -> None:
    job = first_job()
    body = ResponseRequest.model_validate({"model": "claude", "input": "And?"})
    later = later_request(body, normalize_input(body.input))
    newer = with_document(job, {**(job.spec.request or {}), "version": version})
    assert is_response(newer)
    for operation in (
        get_stored_response,
        latest_response,
        lambda job: append_request(job, later),
        lambda job: forget_response(job, 0),
    ):
        with pytest.raises(StoreError, match=f"{job.id} has a request document of version {version!r};"):
            operation(newer)


def test_a_job_that_was_not_requested_as_a_response_has_none() -> None:
    for request in (None, {}, {"kind": "other", "version": 2}):
        job = make_job(request=request)
        assert not is_response(job)
        assert parse_document(job) is None
        assert get_stored_response(job) is None
        assert latest_response(job) is None
