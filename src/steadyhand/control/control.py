"""`Control`: every operation of the service, in one object."""

from collections.abc import Callable
from datetime import datetime

from steadyhand.admission import Admission
from steadyhand.agents import Catalog
from steadyhand.cancellations import Cancellations
from steadyhand.control.deps import ControlDeps
from steadyhand.control.lifecycle import JobLifecycle
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import JobIds
from steadyhand.control.submit import JobSubmitter
from steadyhand.control.tool_results import ToolResultSubmitter
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.ports import NO_LIMITS, Checkouts, Ledger, Queue, Store
from steadyhand.redact import NO_REDACTION
from steadyhand.tool_calls import ToolCallBroker


class Control:
    """The operations of the service over its ports.

    Each operation that a caller asks for takes the `Caller` and checks the scopes of its key. The operations live in
    four classes. Each is an attribute here, so a user of the service needs this object alone.
    """

    def __init__(
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
        cancellations: Cancellations | None = None,
    ) -> None:
        """Create the four parts. Without `admission` no key has limits.

        `tool_calls` and `cancellations` are those of the worker.
        """
        deps = ControlDeps(
            store=store,
            queue=queue,
            checkouts=checkouts,
            feed=feed,
            ledger=ledger,
            event_log=EventLog(store, feed, NO_REDACTION),  # it stores what callers sent
            catalog=catalog,
            admission=admission
            or Admission(get_limits=lambda _: NO_LIMITS, get_backlog=queue.backlog, clock=clock),
            tool_calls=tool_calls or ToolCallBroker(),
            cancellations=cancellations or Cancellations(),
            clock=clock,
            new_id=new_id or JobIds().new,
        )
        queries = JobQueries(deps)
        submitter = JobSubmitter(deps, queries)
        lifecycle = JobLifecycle(deps, queries, submitter)
        tool_results = ToolResultSubmitter(deps, queries, lifecycle)

        self.catalog = catalog

        self.get = queries.get
        self.list_jobs = queries.list_jobs
        self.position = queries.position
        self.load = queries.load
        self.wait = queries.wait
        self.list_events = queries.list_events
        self.follow = queries.follow
        self.follow_answer = queries.follow_answer
        self.follow_job = queries.follow_job
        self.get_output = queries.get_output
        self.diff = queries.diff
        self.bundle = queries.bundle
        self.transcript = queries.transcript
        self.check_key_limits = queries.check_key_limits
        self.list_agents = queries.list_agents
        self.list_workspaces = queries.list_workspaces
        self.usage = queries.usage
        self.check = queries.check

        self.submit = submitter.submit
        self.charge_request = submitter.charge_request
        self.has_session = submitter.has_session
        self.find_conversation = submitter.find_conversation
        self.get_continuable = submitter.get_continuable
        self.save_conversation = submitter.save_conversation

        self.cancel = lifecycle.cancel
        self.retry = lifecycle.retry
        self.resume = lifecycle.resume
        self.delete = lifecycle.delete

        self.open_tool_calls = tool_results.open_tool_calls
        self.submit_tool_results = tool_results.submit_tool_results
        self.reduce_job = tool_results.reduce_job
