"""The operations that callers ask of the service, the same for every profile of the API."""

from steadyhand.control.control import Control
from steadyhand.control.requests import AvailableAgent, Caller, ResumeOptions, Submission
from steadyhand.control.tool_results import ToolResultsAnswer

__all__ = ["AvailableAgent", "Caller", "Control", "ResumeOptions", "Submission", "ToolResultsAnswer"]
