"""What the core needs of the world, named by domain verbs; adapters are in the rooms.

One contract suite per port (`steadyhand.testing.contracts`) is passed by every adapter of it.
"""

from steadyhand.ports.keeping import (
    ALL_SCOPES,
    Added,
    ApiKey,
    Filter,
    Idempotency,
    Page,
    RunOutput,
    Scope,
    Store,
)
from steadyhand.ports.places import (
    Bind,
    Ceiling,
    Check,
    Checkouts,
    Command,
    Done,
    Errands,
    Harvest,
    JobFiles,
    Layers,
    Mounted,
    Place,
    Sandbox,
    Seal,
    View,
)
from steadyhand.ports.queueing import Claim, Load, Queue, StopSignal
from steadyhand.ports.running import Emit, Gateway, Listening, Report, Runner, RunSpec

__all__ = [
    "ALL_SCOPES",
    "Added",
    "ApiKey",
    "Bind",
    "Ceiling",
    "Check",
    "Checkouts",
    "Claim",
    "Command",
    "Done",
    "Emit",
    "Errands",
    "Filter",
    "Gateway",
    "Harvest",
    "Idempotency",
    "JobFiles",
    "Layers",
    "Listening",
    "Load",
    "Mounted",
    "Page",
    "Place",
    "Queue",
    "Report",
    "RunOutput",
    "RunSpec",
    "Runner",
    "Sandbox",
    "Scope",
    "Seal",
    "StopSignal",
    "Store",
    "View",
]
