"""The verbs: what callers can ask of the service, whatever door they come through."""

from steadyhand.control.asked import Caller, Continuation, Offer, Submission
from steadyhand.control.moving import Control

__all__ = ["Caller", "Continuation", "Control", "Offer", "Submission"]
