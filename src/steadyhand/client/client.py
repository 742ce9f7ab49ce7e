"""The synchronous client: one method for each route, and iterators that reconnect."""

import ssl
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx2

from steadyhand.client import http_requests, node_requests, sans_io, schedule_requests
from steadyhand.client.connection_options import (
    DEFAULT_URL,
    RECONNECT_SECONDS,
    RETRY_LATER_SECONDS,
    TIMEOUT_SECONDS,
    ConnectionOptions,
    options_from_environment,
    parse_options,
)
from steadyhand.client.http_requests import (
    BulkFields,
    BulkResumeFields,
    DeliveryFilters,
    EndpointFields,
    ForecastFields,
    JobFields,
    JobFilters,
    KeyLimitFields,
    ResponseFields,
    Tool,
    ToolFilters,
    UsageFilters,
    WorkFields,
)
from steadyhand.client.node_types import Node
from steadyhand.client.report_types import BulkResult, Forecast, ToolList
from steadyhand.client.response_errors import HttpResponse, lower_case_names
from steadyhand.client.result_types import (
    Agent,
    CallbackDelivery,
    CallbackEndpoint,
    CallbackSecret,
    Event,
    Job,
    JobItem,
    Key,
    NewKey,
    Response,
    ResultPage,
    Steer,
    UsageGroup,
    Workspace,
)
from steadyhand.client.sans_io import (
    Deliver,
    OpenStream,
    Pause,
    Procedure,
    ProcedureRun,
    ReadChunk,
    Send,
    Step,
    job_id_of,
)
from steadyhand.client.schedule_requests import ScheduleFields
from steadyhand.client.schedule_types import Schedule, ScheduleTick

T = TypeVar("T")


class Client:
    """A connection to one service. Use it as a context manager, or `close` it; do not share it between threads.

    `token` is sent as the bearer key. An answer may be silent for `timeout_seconds`. If the service stops answering,
    a request that has one effect however often it arrives is sent again for `reconnect_seconds`; if the service never
    answered, `ServiceUnreachable` is raised at once. A request that is refused for now (429, 503) is sent again after
    the time that the service names, for `retry_later_seconds` in all. `verify` is a TLS context with other authorities
    than those of the machine.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        reconnect_seconds: float = RECONNECT_SECONDS,
        retry_later_seconds: float = RETRY_LATER_SECONDS,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._options = parse_options(
            base_url,
            token,
            timeout_seconds=timeout_seconds,
            reconnect_seconds=reconnect_seconds,
            retry_later_seconds=retry_later_seconds,
            verify=verify,
        )
        self._state = self._options.state
        self._http = httpx2.Client(**self._options.http_options())

    @classmethod
    def from_environment(cls) -> Self:
        """Create a client of the service that `STEADYHAND_URL` and `STEADYHAND_TOKEN` name, or of the local one."""
        return cls(*options_from_environment())

    @property
    def base_url(self) -> str:
        """The address of the service, without a slash at the end."""
        return self._options.base_url

    @property
    def is_local(self) -> bool:
        """True if the service runs on this machine."""
        return self._options.is_local

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- submitting and changing jobs ------------------------------------------------------

    def submit(
        self,
        prompt: str | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """Submit a job and return it as accepted; `fields` are those of `POST /v1/jobs`.

        Each call submits one job, also if the connection breaks: it has an idempotency key of its own. With a key of
        yours, calls with the same key within 24 hours submit one job.
        """
        request = http_requests.submit(prompt, fields, idempotency_key)
        return self._run(sans_io.fetch(self._state, Job, request))

    def run(
        self,
        prompt: str | None = None,
        *,
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """Submit a job and return it when it has ended, or as it is after `wait_seconds`."""
        request = http_requests.submit(prompt, fields, idempotency_key)
        return self._run(sans_io.submit_and_wait(self._state, request, wait_seconds))

    def turn(
        self,
        job: str | JobItem,
        prompt: str | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[WorkFields],
    ) -> Job:
        """Submit the next turn in the session of a job and return it, which is a new job; it is submitted once."""
        request = http_requests.submit_turn(job_id_of(job), prompt, fields, idempotency_key)
        return self._run(sans_io.fetch(self._state, Job, request))

    def retry(self, job: str | JobItem, *, after_run: int | None = None) -> Job:
        """Start a new run of an ended job, from the start, and return the job.

        There is one new run after the run `after_run`, however often it is asked for. The default is the last run of
        `job` if that has ended; with an id alone, the service is asked for it.
        """
        return self._run(sans_io.run_again(self._state, job, "retry", {"after_run": after_run}))

    def resume(
        self,
        job: str | JobItem,
        *,
        prompt: str | None = None,
        budget_usd: float | None = None,
        after_run: int | None = None,
    ) -> Job:
        """Resume an ended job in its session and checkout and return it, with another prompt or budget if set.

        `after_run` is that of `retry`.
        """
        fields = {"prompt": prompt, "budget_usd": budget_usd, "after_run": after_run}
        return self._run(sans_io.run_again(self._state, job, "resume", fields))

    def steer(self, job: str | JobItem, text: str, *, idempotency_key: str | None = None) -> Steer:
        """Send a message to the running turn of a job, once, and return it when the agent has read it.

        Raise `Conflict` (`not_running`) if no turn goes on, or if it is about to end.
        """
        request = http_requests.steer(job_id_of(job), text, idempotency_key)
        return self._run(sans_io.fetch(self._state, Steer, request))

    def cancel(self, job: str | JobItem) -> Job:
        """Cancel a job and return it; an ended job does not change."""
        return self._run(sans_io.fetch(self._state, Job, http_requests.cancel(job_id_of(job))))

    def cancel_jobs(self, **selection: Unpack[BulkFields]) -> BulkResult:
        """Cancel the jobs of a filter, at most 200, and return what became of each.

        `selection` are the fields of `POST /v1/jobs/cancel`. With the `as_of` of an earlier call a repeat changes
        no job that came or was changed since then; only then is a request sent again whose answer was lost.
        """
        return self._change_jobs("cancel", selection)

    def retry_jobs(self, **selection: Unpack[BulkFields]) -> BulkResult:
        """Run the ended jobs of a filter again; the fields are those of `POST /v1/jobs/retry`.

        `as_of` is that of `cancel_jobs`: with it a repeat runs no job twice.
        """
        return self._change_jobs("retry", selection)

    def resume_jobs(self, **selection: Unpack[BulkResumeFields]) -> BulkResult:
        """Resume the ended jobs of a filter; the fields are those of `POST /v1/jobs/resume`.

        `as_of` is that of `cancel_jobs`.
        """
        return self._change_jobs("resume", selection)

    def _change_jobs(self, operation: str, selection: Mapping[str, Any]) -> BulkResult:
        request = http_requests.change_jobs(operation, selection)
        return self._run(sans_io.fetch(self._state, BulkResult, request))

    def delete(self, job: str | JobItem) -> None:
        """Delete an ended job and all its files."""
        self._run(sans_io.send(self._state, http_requests.delete(job_id_of(job))))

    # --- reading ---------------------------------------------------------------------------

    def get(self, job: str | JobItem) -> Job:
        """Return a job as it is now."""
        return self._run(sans_io.fetch(self._state, Job, http_requests.get_job(job_id_of(job))))

    def wait(self, job: str | JobItem, *, timeout_seconds: float | None = None) -> Job:
        """Return a job when it has ended, or as it is after `timeout_seconds` (`None` waits without a limit).

        A job that a stop of the service interrupted, and that the next start runs again, has not ended for this. If
        the service does not come back within `reconnect_seconds`, the job is returned as it was interrupted.
        """
        return self._run(sans_io.wait_for_job(self._state, job_id_of(job), timeout_seconds))

    def follow(
        self, job: str | JobItem, *, after: int = 0, timeout_seconds: float | None = None
    ) -> Generator[Event, None, None]:
        """Yield a job's events after number `after`, as they happen, until the job has ended and does not run again.

        A broken connection is opened again after the last numbered event, so each of those comes once; parts of a text
        in progress (`seq` is `None`) are lost then. After `timeout_seconds` it ends at the next sign of the service,
        which comes within 10 s.
        """
        return self._iterate(sans_io.follow_job(self._state, job_id_of(job), after, timeout_seconds))

    def events(self, job: str | JobItem, *, after: int = 0) -> Generator[Event, None, None]:
        """Yield the events of a job that are stored now, after number `after`."""
        return self._iterate(sans_io.deliver_stored_events(self._state, job_id_of(job), after))

    def list(
        self, *, limit: int = 20, cursor: str | None = None, **filters: Unpack[JobFilters]
    ) -> ResultPage[JobItem]:
        """Return a page of jobs, newest first; `filters` are those of `GET /v1/jobs`, `None` leaves one out."""
        request = http_requests.list_jobs(limit, cursor, filters)
        return self._run(sans_io.fetch_page(self._state, JobItem, request))

    def jobs(self, **filters: Unpack[JobFilters]) -> Generator[JobItem, None, None]:
        """Yield all jobs that match, newest first; the pages are read as they are needed."""
        return self._iterate(sans_io.deliver_jobs(self._state, filters))

    def diff(self, job: str | JobItem) -> bytes:
        """Return the changes of an ended job as a patch for `git apply`."""
        return self._fetch_file(job, "diff")

    def bundle(self, job: str | JobItem) -> bytes:
        """Return the commits of an ended job as a git bundle."""
        return self._fetch_file(job, "bundle")

    def transcript(self, job: str | JobItem) -> bytes:
        """Return the transcript of an ended job: one JSON object a line."""
        return self._fetch_file(job, "transcript")

    def agents(self) -> Sequence[Agent]:
        """Return the agents that the key may use, with their limits."""
        return self._run(sans_io.fetch_list(self._state, Agent, "/v1/agents"))

    def workspaces(self) -> Sequence[Workspace]:
        """Return the workspaces that the key may use."""
        return self._run(sans_io.fetch_list(self._state, Workspace, "/v1/workspaces"))

    # --- tools of the client ---------------------------------------------------------------

    def respond(
        self,
        prompt: str,
        *,
        agent: str,
        tools: Sequence[Tool] = (),
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[ResponseFields],
    ) -> Response:
        """Ask an agent that may call tools of this client, and return its response when it has ended.

        It ends with text, or with `calls`: send their results. `fields` are those of `POST /v1/responses`; `agent` may
        name a model as well (`claude/opus`). The agent is asked once, as by `submit`, and goes on without the client.
        """
        request = http_requests.respond(prompt, agent, tools, fields, idempotency_key)
        return self._run(sans_io.respond(self._state, request, wait_seconds))

    def send_results(
        self, response: Response, results: Mapping[str, Any], *, wait_seconds: float | None = None
    ) -> Response:
        """Send the results of a response's calls by their ids, and return the next response when it has ended.

        A result is text, or any value that becomes JSON. All results of a response are sent together.
        """
        request = http_requests.send_results(response.id, response.model, results)
        return self._run(sans_io.respond(self._state, request, wait_seconds))

    def wait_response(self, response: str | Response, *, timeout_seconds: float | None = None) -> Response:
        """Return a response when it has ended, or as it is after `timeout_seconds`."""
        response_id = response if isinstance(response, str) else response.id
        return self._run(sans_io.wait_for_response(self._state, response_id, timeout_seconds))

    # --- callbacks -------------------------------------------------------------------------

    def deliveries(
        self, *, limit: int | None = None, cursor: str | None = None, **filters: Unpack[DeliveryFilters]
    ) -> ResultPage[CallbackDelivery]:
        """Return a page of deliveries of callbacks, newest first."""
        request = http_requests.list_deliveries(limit, cursor, filters)
        return self._run(sans_io.fetch_page(self._state, CallbackDelivery, request))

    def delivery(self, delivery_id: str) -> CallbackDelivery:
        """Return a delivery with its body."""
        return self._run(
            sans_io.fetch(self._state, CallbackDelivery, http_requests.get_delivery(delivery_id))
        )

    def replay_delivery(self, delivery_id: str) -> CallbackDelivery:
        """Have a delivery sent once more, with the same id and body. The request is never sent twice."""
        request = http_requests.replay_delivery(delivery_id)
        return self._run(sans_io.fetch(self._state, CallbackDelivery, request))

    def callback_secret(self) -> CallbackSecret:
        """Return the secret that signs the callbacks of the jobs of this key."""
        return self._run(
            sans_io.fetch(self._state, CallbackSecret, http_requests.get("/v1/callbacks/secret"))
        )

    def list_endpoints(self) -> Sequence[CallbackEndpoint]:
        """Return the endpoints of callbacks, without secrets. All methods for endpoints need the scope `admin`."""
        return self._run(sans_io.fetch_list(self._state, CallbackEndpoint, http_requests.ENDPOINTS_PATH))

    def create_endpoint(self, name: str, **fields: Unpack[EndpointFields]) -> CallbackEndpoint:
        """Create an endpoint of callbacks; its `secret` is shown once."""
        request = http_requests.create_endpoint(name, fields)
        return self._run(sans_io.fetch(self._state, CallbackEndpoint, request))

    def change_endpoint(
        self, name: str, *, rotate_secret: bool = False, **fields: Unpack[EndpointFields]
    ) -> CallbackEndpoint:
        """Change fields of an endpoint; with `rotate_secret` it has a new secret, and the former signs, too."""
        request = http_requests.change_endpoint(name, fields, rotate_secret=rotate_secret)
        return self._run(sans_io.fetch(self._state, CallbackEndpoint, request))

    def remove_endpoint(self, name: str) -> None:
        """Remove an endpoint: nothing more is sent to it."""
        self._run(sans_io.send(self._state, http_requests.remove_endpoint(name)))

    # --- nodes -----------------------------------------------------------------------------

    def list_nodes(self) -> Sequence[Node]:
        """Return the nodes that run the jobs of the service, by name."""
        return self._run(sans_io.fetch_list(self._state, Node, node_requests.NODES_PATH))

    def drain_node(self, name: str, *, until_restart: bool = False) -> Node:
        """Let a node take no new runs, until it is undrained or starts again, and return it. What it runs goes on."""
        request = node_requests.drain_node(name, until_restart=until_restart)
        return self._run(sans_io.fetch(self._state, Node, request))

    def undrain_node(self, name: str) -> Node:
        """Let a node take new runs again and return it."""
        return self._run(sans_io.fetch(self._state, Node, node_requests.undrain_node(name)))

    # --- schedules -------------------------------------------------------------------------

    def list_schedules(self) -> Sequence[Schedule]:
        """Return the schedules of the key by name; with `read:all` those of all keys."""
        return self._run(sans_io.fetch_list(self._state, Schedule, schedule_requests.SCHEDULES_PATH))

    def schedule(self, name: str) -> Schedule:
        """Return a schedule."""
        return self._run(sans_io.fetch(self._state, Schedule, schedule_requests.get_or_act(name)))

    def create_schedule(
        self, name: str, *, paused: bool = False, **fields: Unpack[ScheduleFields]
    ) -> Schedule:
        """Create a schedule of the key. It needs `cron`, and `job` with the fields of a job."""
        request = schedule_requests.create_schedule(name, fields, paused=paused)
        return self._run(sans_io.fetch(self._state, Schedule, request))

    def change_schedule(self, name: str, **fields: Unpack[ScheduleFields]) -> Schedule:
        """Change fields of a schedule; `job` is replaced as a whole, and a cap of 0 is no cap."""
        request = schedule_requests.change_schedule(name, fields)
        return self._run(sans_io.fetch(self._state, Schedule, request))

    def remove_schedule(self, name: str) -> None:
        """Remove a schedule with its history; its jobs stay."""
        self._run(sans_io.send(self._state, schedule_requests.remove_schedule(name)))

    def pause_schedule(self, name: str) -> Schedule:
        """Pause a schedule and return it."""
        return self._run(sans_io.fetch(self._state, Schedule, schedule_requests.get_or_act(name, "pause")))

    def resume_schedule(self, name: str) -> Schedule:
        """Resume a schedule from now on and return it."""
        return self._run(sans_io.fetch(self._state, Schedule, schedule_requests.get_or_act(name, "resume")))

    def run_schedule(self, name: str) -> Job:
        """Submit the job of a schedule now and return it. It is never sent twice."""
        return self._run(sans_io.fetch(self._state, Job, schedule_requests.get_or_act(name, "run")))

    def schedule_history(
        self, name: str, *, limit: int = 20, cursor: str | None = None
    ) -> ResultPage[ScheduleTick]:
        """Return a page of the ticks of a schedule, newest first."""
        request = schedule_requests.schedule_history(name, limit, cursor)
        return self._run(sans_io.fetch_page(self._state, ScheduleTick, request))

    # --- keys ------------------------------------------------------------------------------

    def list_keys(self) -> Sequence[Key]:
        """Return every key of the service, without their secrets. All methods for keys need the scope `admin`."""
        return self._run(sans_io.fetch_list(self._state, Key, "/v1/keys"))

    def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        strict: bool = False,
        **limits: Unpack[KeyLimitFields],
    ) -> NewKey:
        """Create a key and return it with its `secret`, shown only once. It is never sent twice.

        With `strict` an agent that is not known and the name of another valid key are refused.
        """
        request = http_requests.create_key(name, scopes, limits, strict=strict)
        return self._run(sans_io.fetch(self._state, NewKey, request))

    def revoke_key(self, key: str | Key) -> Key:
        """Revoke a key at once and return it."""
        request = http_requests.revoke_key(key if isinstance(key, str) else key.id)
        return self._run(sans_io.fetch(self._state, Key, request))

    def rotate_key(self, key: str | Key, *, grace_seconds: float = 0) -> NewKey:
        """Return a key with a new `secret`; the old one ends at once, or after `grace_seconds`.

        It is never sent twice.
        """
        request = http_requests.rotate_key(key if isinstance(key, str) else key.id, grace_seconds)
        return self._run(sans_io.fetch(self._state, NewKey, request))

    def forecast(self, **parameters: Unpack[ForecastFields]) -> Forecast:
        """Return the likely cost and time of a job; the parameters are those of `GET /v1/forecast`."""
        return self._run(sans_io.fetch(self._state, Forecast, http_requests.get("/v1/forecast", parameters)))

    def tools(self, *, by: Sequence[str] = (), **filters: Unpack[ToolFilters]) -> ToolList:
        """Return the calls of tools, a row for each tool and group; the filters are those of `GET /v1/tools`."""
        request = http_requests.get("/v1/tools", {"by": list(by), "limit": 1000, **filters})
        return self._run(sans_io.fetch(self._state, ToolList, request))

    def usage(self, *, by: Sequence[str] = (), **filters: Unpack[UsageFilters]) -> Sequence[UsageGroup]:
        """Return usage and cost, one row for each group of `by`: api_key, agent, model, provider or day."""
        return self._run(sans_io.fetch_usage(self._state, tuple(by), filters))

    def create_sign_in_link(self) -> str:
        """Return a link that signs a browser in to the operations page with this key: once, and within a minute."""
        return self._run(sans_io.fetch_sign_in_link(self._state))

    # --- performing ------------------------------------------------------------------------

    def _fetch_file(self, job: str | JobItem, name: str) -> bytes:
        return self._run(sans_io.fetch_file(self._state, http_requests.job_file(job_id_of(job), name)))

    def _run(self, procedure: Procedure[T]) -> T:
        run = ProcedureRun(procedure)
        with _Connection(self._http, self._options) as connection:
            while run.step is not None:
                connection.advance(run, run.step)
        return run.result

    def _iterate(self, procedure: Procedure[None]) -> Generator[Any, None, None]:
        run = ProcedureRun(procedure)
        with _Connection(self._http, self._options) as connection:
            while run.step is not None:
                if isinstance(run.step, Deliver):
                    yield run.step.value
                    run.resume(None)
                else:
                    connection.advance(run, run.step)


class _Connection(ExitStack):
    """The steps of one procedure, performed with blocking calls; it closes a stream that is open at its end."""

    def __init__(self, http: httpx2.Client, options: ConnectionOptions) -> None:
        super().__init__()
        self._http = http
        self._options = options
        self._chunks: Iterator[bytes] = iter(())

    def advance(self, run: ProcedureRun[Any], step: Step) -> None:
        """Perform a step and let the procedure go on."""
        try:
            value = self._perform(step)
        except httpx2.HTTPError as error:
            unreachable = self._options.unreachable(error)
            unreachable.__cause__ = error
            run.fail(unreachable)
        else:
            run.resume(value)

    def _perform(self, step: Step) -> Any:
        match step:
            case Send(request):
                response = self._http.request(**self._options.request_options(request))
                return HttpResponse(
                    response.status_code, lower_case_names(response.headers), response.content
                )
            case OpenStream(request):
                self.close()
                options = self._options.request_options(request, is_stream=True)
                response = self.enter_context(self._http.stream(**options))
                body = b"" if response.is_success else response.read()
                self._chunks = response.iter_bytes()
                return HttpResponse(response.status_code, lower_case_names(response.headers), body)
            case ReadChunk():
                return next(self._chunks, None)
            case Pause(seconds):
                time.sleep(seconds)
        return None
