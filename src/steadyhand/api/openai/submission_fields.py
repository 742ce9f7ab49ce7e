"""Build the job spec of a request: every route of the OpenAI API maps these fields in the same way."""

from steadyhand.api.openai.input_messages import SplitConversation, join_paragraphs
from steadyhand.api.openai.output_spec import OutputSpec
from steadyhand.api.openai.request_document import RequestDocument
from steadyhand.api.schemas.openai_requests import ChatRequest, ResponseRequest
from steadyhand.job import JobSpec

_EFFORT_ALIASES = {"none": "low", "minimal": "low"}
"""Effort words that agents do not know, mapped to words that they do."""


def build_spec(
    body: ChatRequest | ResponseRequest,
    conversation: SplitConversation,
    output_spec: OutputSpec,
    *,
    model: str | None,
    effort: str | None,
    instructions: str | None = None,
    request: RequestDocument | None = None,
) -> JobSpec:
    """Build the job spec; `model` is that of the alias. The request's `user` becomes metadata."""
    user = {} if body.user is None else {"user": body.user}
    system = [instructions or "", conversation.system or "", output_spec.prompt_hint or ""]
    return JobSpec(
        prompt=conversation.prompt,
        model=model,
        metadata={**user, **(body.metadata or {})} or None,
        output_schema=output_spec.output_schema,
        effort=None if effort is None else _EFFORT_ALIASES.get(effort, effort),
        append_system_prompt=join_paragraphs(system) or None,
        history=conversation.history,
        content=conversation.content,
        tools=output_spec.client_tools,
        one_call=output_spec.one_call,
        request=request,
        origin="openai",
    )
