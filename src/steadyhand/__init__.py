"""Steadyhand runs headless coding agents as a dependable service.

Public names, each loaded at its first use:

- `Client`, `AsyncClient`: the clients of a service (docs/python-client.md); `Tool`, `DEFAULT_URL`, `ENDED_STATES`.
- Their results, frozen dataclasses: `Job`, `JobItem`, `Event`, `Run`, `Outcome`, `Usage`, `Cost`, `Changes`,
  `RefChange`, `JobWarning`, `JobFault`, `Agent`, `AgentLimits`, `Workspace`, `Key`, `NewKey`, `KeyLimits`,
  `UsageGroup`, `UsageTokens`, `UsageCost`, `Response`, `ResponseFault`, `ToolCall`, `CallbackReceiver`,
  `CallbackDelivery`, `CallbackEndpoint`, `CallbackSecret`, `Steer`, `BulkResult`, `BulkItem`, `BulkFault`, `BulkStop`,
  `Forecast`, `CostForecast`, `TimeForecast`, `BudgetForecast`, `BurnRate`, `ToolList`, `ToolRow`,
  `Schedule`, `ScheduledJob`, `SchedulePause`, `ScheduleTick`, `Node`, `QueueReason` and `ResultPage`.
- Their errors: `SteadyhandError` and its kinds `InvalidRequest` (with `FieldError`), `Unauthenticated`, `Forbidden`,
  `NotFound`, `Conflict`, `RetryLater`, `QueryTooSlow`, `ServiceUnreachable` and `JobNotCompleted`.

All other names are internal.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadyhand.client import (
        DEFAULT_URL,
        ENDED_STATES,
        Agent,
        AgentLimits,
        AsyncClient,
        BudgetForecast,
        BulkFault,
        BulkItem,
        BulkResult,
        BulkStop,
        BurnRate,
        CallbackDelivery,
        CallbackEndpoint,
        CallbackReceiver,
        CallbackSecret,
        Changes,
        Client,
        Conflict,
        Cost,
        CostForecast,
        Event,
        FieldError,
        Forbidden,
        Forecast,
        InvalidRequest,
        Job,
        JobFault,
        JobItem,
        JobNotCompleted,
        JobWarning,
        Key,
        KeyLimits,
        NewKey,
        Node,
        NotFound,
        Outcome,
        QueryTooSlow,
        QueueReason,
        RefChange,
        Response,
        ResponseFault,
        ResultPage,
        RetryLater,
        Run,
        Schedule,
        ScheduledJob,
        SchedulePause,
        ScheduleTick,
        ServiceUnreachable,
        SteadyhandError,
        Steer,
        TimeForecast,
        Tool,
        ToolCall,
        ToolList,
        ToolRow,
        Unauthenticated,
        Usage,
        UsageCost,
        UsageGroup,
        UsageTokens,
        Workspace,
    )

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_URL",
    "ENDED_STATES",
    "Agent",
    "AgentLimits",
    "AsyncClient",
    "BudgetForecast",
    "BulkFault",
    "BulkItem",
    "BulkResult",
    "BulkStop",
    "BurnRate",
    "CallbackDelivery",
    "CallbackEndpoint",
    "CallbackReceiver",
    "CallbackSecret",
    "Changes",
    "Client",
    "Conflict",
    "Cost",
    "CostForecast",
    "Event",
    "FieldError",
    "Forbidden",
    "Forecast",
    "InvalidRequest",
    "Job",
    "JobFault",
    "JobItem",
    "JobNotCompleted",
    "JobWarning",
    "Key",
    "KeyLimits",
    "NewKey",
    "Node",
    "NotFound",
    "Outcome",
    "QueryTooSlow",
    "QueueReason",
    "RefChange",
    "Response",
    "ResponseFault",
    "ResultPage",
    "RetryLater",
    "Run",
    "Schedule",
    "SchedulePause",
    "ScheduleTick",
    "ScheduledJob",
    "ServiceUnreachable",
    "SteadyhandError",
    "Steer",
    "TimeForecast",
    "Tool",
    "ToolCall",
    "ToolList",
    "ToolRow",
    "Unauthenticated",
    "Usage",
    "UsageCost",
    "UsageGroup",
    "UsageTokens",
    "Workspace",
]


def __getattr__(name: str) -> Any:
    """Load a public name: `import steadyhand` alone loads nothing else."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from steadyhand import client  # noqa: PLC0415  # loaded only if it is used

    globals().update({each: getattr(client, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
