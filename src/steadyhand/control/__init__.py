"""The verbs: what callers can ask of the service, whatever door they come through."""

from steadyhand.control.requests import Caller, Continuation, Offer, Submission
from steadyhand.control.tool_results import Answered, Control

__all__ = ["Answered", "Caller", "Continuation", "Control", "Offer", "Submission"]
