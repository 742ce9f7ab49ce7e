"""The names of all spans and attributes: the one place where they are declared.

Spans and attributes of models, agents and tools have the names of OpenTelemetry's GenAI semantic conventions v0.1.0,
others begin with `steadyhand.`. `docs/telemetry.md` is tested against these tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

SCOPE: Final = "steadyhand"
"""The name of the instrumentation scope."""
GENAI_CONVENTIONS: Final = "v0.1.0"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
AGENT: Final = "gen_ai.agent.name"
CONVERSATION: Final = "gen_ai.conversation.id"
MODEL: Final = "gen_ai.request.model"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
TOOL: Final = "gen_ai.tool.name"
TOOL_CALL: Final = "gen_ai.tool.call.id"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_RESULT: Final = "gen_ai.tool.call.result"
ERROR_TYPE: Final = "error.type"
STATUS_CODE: Final = "http.response.status_code"
JOB_ID: Final = "steadyhand.job.id"
JOB_STATE: Final = "steadyhand.job.state"
OUTCOME: Final = "steadyhand.outcome"
RUN: Final = "steadyhand.run"
KEY: Final = "steadyhand.key.id"
WORKSPACE: Final = "steadyhand.workspace"
COST: Final = "steadyhand.cost_usd"
CONFIGURED_PROVIDER: Final = "steadyhand.provider"
CALL_ID: Final = "steadyhand.model_call.id"
CALLBACK_ID: Final = "steadyhand.callback.id"
CALLBACK_TYPE: Final = "steadyhand.callback.type"
CALLBACK_ENDPOINT: Final = "steadyhand.callback.endpoint"
CALLBACK_ATTEMPT: Final = "steadyhand.callback.attempt"
LINK: Final = "steadyhand.link"

SpanKind = Literal["internal", "client", "consumer"]
_TOKENS: Final = (INPUT_TOKENS, OUTPUT_TOKENS, CACHE_READ_TOKENS, CACHE_WRITE_TOKENS)
_OF_JOB: Final = (JOB_ID, AGENT, KEY, WORKSPACE)
_OF_CALLBACK: Final = (CALLBACK_ID, CALLBACK_TYPE, CALLBACK_ENDPOINT, CALLBACK_ATTEMPT)


@dataclass(frozen=True, slots=True)
class SpanSpec:
    """One kind of span. Its name is `name`, with the value of the attribute `subject` after it, if it has one."""

    name: str
    kind: SpanKind
    parent: str
    meaning: str
    attributes: tuple[str, ...] = (JOB_ID,)
    subject: str | None = None


def _phase(name: str, meaning: str) -> SpanSpec:
    return SpanSpec(name, "internal", "invoke_agent", meaning)


JOB_SPAN: Final = SpanSpec(
    "job",
    "consumer",
    "the caller's span",
    "A job from its acceptance to its end; after a retry or resume another one, below the first.",
    (*_OF_JOB, JOB_STATE, OUTCOME, RUN, COST, ERROR_TYPE),
    AGENT,
)
QUEUE_SPAN: Final = SpanSpec("queue", "internal", "job", "The wait in the queue before a run.")
PARKED_SPAN: Final = SpanSpec(
    "parked", "internal", "job", "The wait of a parked job for a rate limit or a credential."
)
RUN_SPAN: Final = SpanSpec(
    "invoke_agent",
    "internal",
    "job",
    "A run from its start to its stored end.",
    (
        OPERATION,
        PROVIDER,
        *_OF_JOB,
        RUN,
        OUTCOME,
        CONVERSATION,
        MODEL,
        *_TOKENS,
        COST,
        ERROR_TYPE,
        INPUT_MESSAGES,
        OUTPUT_MESSAGES,
    ),
    AGENT,
)
MODEL_SPAN: Final = SpanSpec(
    "chat",
    "client",
    "invoke_agent",
    "A call of a model, with the gateway's own waits for a busy provider.",
    (
        OPERATION,
        PROVIDER,
        CONFIGURED_PROVIDER,
        MODEL,
        *_TOKENS,
        COST,
        CALL_ID,
        STATUS_CODE,
        ERROR_TYPE,
        JOB_ID,
    ),
    MODEL,
)
TOOL_SPAN: Final = SpanSpec(
    "execute_tool",
    "internal",
    "invoke_agent",
    "A call of a tool.",
    (OPERATION, TOOL, TOOL_CALL, ERROR_TYPE, TOOL_ARGUMENTS, TOOL_RESULT, JOB_ID),
    TOOL,
)
CALLBACK_SPAN: Final = SpanSpec(
    "callback", "client", "job", "An attempt to deliver a callback.",
    (*_OF_CALLBACK, STATUS_CODE, ERROR_TYPE, JOB_ID),
)  # fmt: skip
PHASE_SPANS: Final[Mapping[str, SpanSpec]] = {
    "fetching": _phase("fetching", "The phase of a run that fetches the repository."),
    "checking_out": _phase("checking_out", "The phase of a run that creates its checkout."),
    "setup": _phase("setup", "The phase of a run that runs the setup commands."),
    "starting": _phase("starting", "The phase of a run that starts the agent's process."),
    "running": _phase("running", "The phase of a run in which the agent works."),
    "harvesting": _phase("harvesting", "The phase of a run that keeps what the agent changed."),
}
"""The spans of the phases of a run, by phase."""

_ALL_SPANS: Final = (
    JOB_SPAN,
    QUEUE_SPAN,
    PARKED_SPAN,
    RUN_SPAN,
    *PHASE_SPANS.values(),
    MODEL_SPAN,
    TOOL_SPAN,
    CALLBACK_SPAN,
)
SPANS: Final[Mapping[str, SpanSpec]] = {spec.name: spec for spec in _ALL_SPANS}
"""Every kind of span, by name."""

ATTRIBUTES: Final[Mapping[str, str]] = {
    OPERATION: "`invoke_agent`, `chat` or `execute_tool`.",
    PROVIDER: "The format of the model's service: `anthropic`, `aws.bedrock`, `gcp.vertex_ai`, `openai`, `gcp.gemini`.",
    AGENT: "The agent.",
    CONVERSATION: "The id of the agent's session.",
    MODEL: "The model.",
    INPUT_TOKENS: "The tokens of input, with cache reads and writes.",
    OUTPUT_TOKENS: "The tokens of output.",
    CACHE_READ_TOKENS: "The tokens of input that came from the cache.",
    CACHE_WRITE_TOKENS: "The tokens of input that were written to the cache.",
    TOOL: "The tool.",
    TOOL_CALL: "The id that the model gave the call.",
    INPUT_MESSAGES: "The prompt of the run. Only with `[telemetry] content`.",
    OUTPUT_MESSAGES: "The answer of the run. Only with `[telemetry] content`.",
    TOOL_ARGUMENTS: "The arguments of the call. Only with `[telemetry] content`.",
    TOOL_RESULT: "The output of the tool. Only with `[telemetry] content`.",
    ERROR_TYPE: "The reason of an error: an outcome, an HTTP status, `no_answer`, `tool_error` or `unfinished`.",
    STATUS_CODE: "The HTTP status of the answer.",
    JOB_ID: "The job.",
    JOB_STATE: "The state of the job at the end of the span.",
    OUTCOME: "The outcome of the job or the run.",
    RUN: "The number of the run in its job.",
    KEY: "The id of the key of the job's caller.",
    WORKSPACE: "The name of a configured workspace.",
    COST: "The cost in dollars.",
    CONFIGURED_PROVIDER: "The name of the provider in the configuration.",
    CALL_ID: "The id of the call in the ledger.",
    CALLBACK_ID: "The id of the message, as the receiver sees it.",
    CALLBACK_TYPE: "The event that the callback tells of.",
    CALLBACK_ENDPOINT: "The configured endpoint; without it, the receiver that the job names.",
    CALLBACK_ATTEMPT: "The number of the attempt.",
    LINK: "On a link: `earlier_run` of the job, `earlier_job` of the conversation, `request` of a retry or resume.",
}
"""All attributes of spans and links, with their meaning."""

CONTENT_ATTRIBUTES: Final = frozenset({INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_ARGUMENTS, TOOL_RESULT})
"""The attributes with texts of callers, models and tools."""

GENAI_PROVIDERS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "bedrock": "aws.bedrock",
    "vertex": "gcp.vertex_ai",
    "openai": "openai",
    "openai-compatible": "openai",
    "gemini": "gcp.gemini",
}
"""The values of `gen_ai.provider.name` by the kind of a provider."""


@dataclass(frozen=True, slots=True)
class GenaiMetric:
    """A metric of the conventions whose figures are those of a metric of the service."""

    name: str
    source: str
    attributes: Mapping[str, str]
    """Attributes that each of its points has."""
    labels: Mapping[str, str]
    """The attributes for the labels of the source."""


GENAI_METRICS: Final = (
    GenaiMetric(
        "gen_ai.client.inference.duration",
        "steadyhand_model_call_seconds",
        {OPERATION: "chat"},
        {"provider": CONFIGURED_PROVIDER},
    ),
    GenaiMetric(
        "gen_ai.invoke_agent.duration",
        "steadyhand_run_seconds",
        {OPERATION: "invoke_agent"},
        {"agent": AGENT},
    ),
)
