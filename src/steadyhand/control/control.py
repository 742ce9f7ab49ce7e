"""`Control`: every operation of the service, in one object."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from steadyhand.admission import Admission
from steadyhand.agents import Catalog
from steadyhand.cancellations import Cancellations
from steadyhand.control.bulk import BulkOperations
from steadyhand.control.deliveries import CallbackDeliveries
from steadyhand.control.deps import ControlDeps, JobUpdate
from steadyhand.control.forecast import Forecaster
from steadyhand.control.lifecycle import JobLifecycle
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import JobIds
from steadyhand.control.saved_items import SavedItemOperations
from steadyhand.control.steer import JobSteering
from steadyhand.control.submit import JobSubmitter
from steadyhand.control.tool_results import ToolResultSubmitter
from steadyhand.control.tool_usage import ToolStatisticsReader
from steadyhand.errors import CallbackRefused
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.ports import (
    NO_LIMITS,
    NO_OBSERVER,
    NO_TRACING,
    Checkouts,
    GetSharedLimits,
    JobObserver,
    JobTracing,
    Ledger,
    LocalNodeCalls,
    NodeCalls,
    Outbox,
    Queue,
    SavedItems,
    Store,
)
from steadyhand.redact import NO_REDACTION
from steadyhand.steering import SteerBroker
from steadyhand.tool_calls import ToolCallBroker


async def _refuse_callbacks(_url: str) -> None:
    raise CallbackRefused("is not possible: this service sends no callbacks")


def _refuse_updates(_update: Mapping[str, Any]) -> JobUpdate:
    raise LookupError("no other node calls this one")


class Control:
    """The operations of the service over its ports.

    Each operation that a caller asks for takes the `Caller` and checks the scopes of its key. The operations live in
    parts of their own. Each is an attribute here, so a user of the service needs this object alone.
    """

    def __init__(  # noqa: PLR0915  # one attribute for each operation
        self,
        *,
        store: Store,
        queue: Queue,
        checkouts: Checkouts,
        feed: EventFeed,
        ledger: Ledger,
        catalog: Catalog,
        clock: Callable[[], datetime],
        new_id: Callable[[], str] | None = None,
        admission: Admission | None = None,
        tool_calls: ToolCallBroker | None = None,
        steers: SteerBroker | None = None,
        cancellations: Cancellations | None = None,
        observer: JobObserver = NO_OBSERVER,
        tracing: JobTracing = NO_TRACING,
        get_shared_limits: GetSharedLimits = lambda _key_id, _agent: (),
        list_limited_keys: Callable[[], Sequence[str]] = tuple,
        outbox: Outbox | None = None,
        saved_items: SavedItems | None = None,
        check_callback: Callable[[str], Awaitable[None]] | None = None,
        node_calls: NodeCalls | None = None,
        read_update: Callable[[Mapping[str, Any]], JobUpdate] = _refuse_updates,
    ) -> None:
        """Create the parts. Without `admission` no key has limits, without `check_callback` no job a callback.

        Without `node_calls` there is no other node; `read_update` reads a `JobUpdate` that comes from one.

        `tool_calls`, `steers` and `cancellations` are those of the worker. `get_shared_limits` and `list_limited_keys`
        are for forecasts of budgets.
        """
        deps = ControlDeps(
            store=store,
            queue=queue,
            checkouts=checkouts,
            feed=feed,
            ledger=ledger,
            event_log=EventLog(store, feed, NO_REDACTION, observer=observer),  # it stores what callers sent
            catalog=catalog,
            admission=admission
            or Admission(get_limits=lambda _: NO_LIMITS, get_backlog=queue.backlog, clock=clock),
            tool_calls=tool_calls or ToolCallBroker(),
            steers=steers or SteerBroker(),
            cancellations=cancellations or Cancellations(),
            outbox=outbox,
            saved_items=saved_items,
            check_callback=check_callback or _refuse_callbacks,
            clock=clock,
            new_id=new_id or JobIds().new,
            tracing=tracing,
            node_calls=node_calls or LocalNodeCalls(),
            read_update=read_update,
        )
        queries = JobQueries(deps)
        submitter = JobSubmitter(deps, queries)
        lifecycle = JobLifecycle(deps, queries, submitter)
        tool_results = ToolResultSubmitter(deps, queries, lifecycle)
        forecaster = Forecaster(deps, get_shared_limits, list_limited_keys)
        tool_statistics = ToolStatisticsReader(deps, queries)
        bulk = BulkOperations(deps, queries, lifecycle)
        steering = JobSteering(deps, queries, submitter)

        self.catalog = catalog

        self.get = queries.get
        self.list_jobs = queries.list_jobs
        self.position = queries.position
        self.load = queries.load
        self.wait = queries.wait
        self.list_events = queries.list_events
        self.list_newest_events = queries.list_newest_events
        self.list_model_calls = queries.list_model_calls
        self.follow = queries.follow
        self.follow_answer = queries.follow_answer
        self.follow_job = queries.follow_job
        self.watch_jobs = queries.watch_jobs
        self.change_number = queries.change_number
        self.get_output = queries.get_output
        self.diff = queries.diff
        self.bundle = queries.bundle
        self.transcript = queries.transcript
        self.check_key_limits = queries.check_key_limits
        self.list_agents = queries.list_agents
        self.list_workspaces = queries.list_workspaces
        self.usage = queries.usage
        self.forecast = forecaster.forecast
        self.tool_statistics = tool_statistics.tool_statistics
        self.check = queries.check

        self.submit = submitter.submit
        self.check_submission = submitter.check_submission
        self.charge_request = submitter.charge_request
        self.has_session = submitter.has_session
        self.find_conversation = submitter.find_conversation
        self.get_continuable = submitter.get_continuable
        self.save_conversation = submitter.save_conversation

        self.cancel = lifecycle.cancel
        self.retry = lifecycle.retry
        self.resume = lifecycle.resume
        self.delete = lifecycle.delete
        self.steer = steering.steer

        self.cancel_jobs = bulk.cancel_jobs
        self.retry_jobs = bulk.retry_jobs
        self.resume_jobs = bulk.resume_jobs

        callbacks = CallbackDeliveries(deps)
        self.list_deliveries = callbacks.list_deliveries
        self.get_delivery = callbacks.get_delivery
        self.replay_delivery = callbacks.replay_delivery

        saved = SavedItemOperations(deps)
        self.list_saved = saved.list_saved
        self.save_item = saved.save_item
        self.delete_saved = saved.delete_saved

        self.open_tool_calls = tool_results.open_tool_calls
        self.submit_tool_results = tool_results.submit_tool_results
        self.reduce_job = tool_results.reduce_job
