"""The verbs: what callers can ask of the service, whatever door they come through."""

from steadyhand.control.requests import AvailableAgent, Caller, ResumeOptions, Submission
from steadyhand.control.tool_results import Control, ToolResultsAnswer

__all__ = ["AvailableAgent", "Caller", "Control", "ResumeOptions", "Submission", "ToolResultsAnswer"]
