"""The Python client of the service; `steadyhand` exports its public names (docs/python-client.md).

    from steadyhand import Client

    with Client("http://127.0.0.1:8080", key) as client:
        job = client.submit("Fix the failing test.", workspace="infra", budget_usd=2)
        for event in client.follow(job):
            print(event.type, event.text)
        print(client.get(job).require_completed().answer)

Errors are those of `steadyhand.errors`: `InvalidRequest`, `Unauthenticated`, `Forbidden`, `NotFound`, `Conflict`,
`RetryLater`, `QueryTooSlow`, if no service answers `ServiceUnreachable`, and `JobNotCompleted`.
"""

from steadyhand.client.async_client import AsyncClient
from steadyhand.client.client import Client
from steadyhand.client.connection_options import DEFAULT_URL
from steadyhand.client.http_requests import Tool
from steadyhand.client.node_types import Node
from steadyhand.client.report_types import (
    BudgetForecast,
    BulkFault,
    BulkItem,
    BulkResult,
    BulkStop,
    BurnRate,
    CostForecast,
    Forecast,
    TimeForecast,
    ToolList,
    ToolRow,
)
from steadyhand.client.result_types import (
    ENDED_STATES,
    Agent,
    AgentLimits,
    CallbackDelivery,
    CallbackEndpoint,
    CallbackReceiver,
    CallbackSecret,
    Changes,
    Cost,
    Event,
    Job,
    JobFault,
    JobItem,
    JobWarning,
    Key,
    KeyLimits,
    NewKey,
    Outcome,
    QueueReason,
    RefChange,
    Response,
    ResponseFault,
    ResultPage,
    Run,
    Steer,
    ToolCall,
    Usage,
    UsageCost,
    UsageGroup,
    UsageTokens,
    Workspace,
)
from steadyhand.client.schedule_types import Schedule, ScheduledJob, SchedulePause, ScheduleTick
from steadyhand.errors import (
    Conflict,
    FieldError,
    Forbidden,
    InvalidRequest,
    JobNotCompleted,
    NotFound,
    QueryTooSlow,
    RetryLater,
    ServiceUnreachable,
    SteadyhandError,
    Unauthenticated,
)

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
