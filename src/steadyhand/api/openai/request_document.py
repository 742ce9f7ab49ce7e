"""The JSON document about the requests for a job's responses, which the job stores as `JobSpec.request`.

Only this module reads and writes the form of the document. Its keys must not change: earlier releases wrote
documents without a version, and their databases must open.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NotRequired, TypedDict, cast

from steadyhand.errors import StoreError
from steadyhand.job import Job

_KIND: Final = "response"
_VERSION: Final = 1
"""The version that this release writes. A document without a version has the same form."""


class StoredRequest(TypedDict, total=False):
    """The stored part of one request for a response. An earlier release may have stored fewer keys."""

    function: Mapping[str, Any] | None
    """`OutputSpec.forced_call` of the first request; later requests do not store it."""
    model: str
    instructions: str | None
    background: bool
    metadata: dict[str, Any] | None
    stored: bool
    """False if the request asked not to store the response: it cannot be retrieved."""
    input: Sequence[dict[str, Any]]
    """The items of the input, without files and images; of a later request only the new items."""
    echo: Mapping[str, Any]
    """The parameters that the response repeats; of a later request only those that differ from the first."""
    forgotten: bool
    """True if the response was deleted."""


class RequestDocument(StoredRequest):
    """The first request of a job with responses, and the requests of its later responses."""

    kind: Literal["response"]
    version: Literal[1]
    later: NotRequired[Sequence[StoredRequest]]


def new_document(request: StoredRequest, forced_call: Mapping[str, Any] | None) -> RequestDocument:
    """Create the document of a new job from its first request."""
    document = {"kind": _KIND, "version": _VERSION, "function": forced_call, **request}
    return cast("RequestDocument", document)


def is_response(job: Job) -> bool:
    """Return true if a job was requested as a response, also if its document has another version."""
    return job.spec.request is not None and job.spec.request.get("kind") == _KIND


def parse_document(job: Job) -> RequestDocument | None:
    """Return the document of a job, or None if the job was not requested as a response.

    A document without a version is returned with one. Raise `StoreError` for another version.
    """
    stored = job.spec.request
    if stored is None or not is_response(job):
        return None
    version = stored.get("version", _VERSION)
    if version != _VERSION:
        raise StoreError(
            f"The job {job.id} has a request document of version {version!r}; this release reads version {_VERSION}."
        )
    return cast("RequestDocument", {**stored, "version": _VERSION})


def get_document(job: Job) -> RequestDocument:
    """Return the document of a job that was requested as a response. Raise as `parse_document`."""
    document = parse_document(job)
    assert document is not None  # noqa: S101  # the caller has checked it
    return document


def stored_requests(document: RequestDocument) -> list[StoredRequest]:
    """Return the requests of all responses, by the number of the response."""
    return [document, *document.get("later", ())]


def with_later_request(document: RequestDocument, request: StoredRequest) -> RequestDocument:
    """Return the document with one more request; parameters equal to those of the first are left out."""
    first_echo = document.get("echo", {})
    echo = {key: value for key, value in request["echo"].items() if value != first_echo.get(key)}
    return {**document, "later": [*document.get("later", ()), {**request, "echo": echo}]}


def without_request(document: RequestDocument, number: int) -> RequestDocument | None:
    """Return the document without the input of one response, which is deleted; None if no response is left."""
    others = stored_requests(document)
    del others[number]
    if all(request.get("forgotten") for request in others):
        return None
    if number == 0:
        return {**document, "forgotten": True, "input": []}
    later = list(document.get("later", ()))
    later[number - 1] = {**later[number - 1], "forgotten": True, "input": []}
    return {**document, "later": later}


def merged_request(document: RequestDocument, number: int) -> StoredRequest:
    """Return the request of one response with all that it shares with the first request."""
    if number == 0:
        return document
    request = document.get("later", ())[number - 1]
    echo = {**document.get("echo", {}), **request.get("echo", {})}
    return {"function": document.get("function"), **request, "echo": echo}
