"""The operations that callers ask of the service, the same for every profile of the API."""

from steadyhand.control.bulk import MAX_BULK_JOBS, BulkItem, BulkResult, JobSelection
from steadyhand.control.control import Control
from steadyhand.control.forecast import BudgetForecast, Forecast, ForecastRequest
from steadyhand.control.requests import AvailableAgent, Caller, ResumeOptions, Submission
from steadyhand.control.saved_items import MAX_CONTENT as MAX_SAVED_CONTENT
from steadyhand.control.tool_results import ToolResultsAnswer
from steadyhand.control.tool_usage import (
    MAX_TOOL_JOBS,
    ToolGroup,
    ToolQuery,
    ToolRow,
    ToolStatistics,
)

__all__ = [
    "MAX_BULK_JOBS",
    "MAX_SAVED_CONTENT",
    "MAX_TOOL_JOBS",
    "AvailableAgent",
    "BudgetForecast",
    "BulkItem",
    "BulkResult",
    "Caller",
    "Control",
    "Forecast",
    "ForecastRequest",
    "JobSelection",
    "ResumeOptions",
    "Submission",
    "ToolGroup",
    "ToolQuery",
    "ToolResultsAnswer",
    "ToolRow",
    "ToolStatistics",
]
