"""A service over a real socket: the real store, queue, control and worker; the agent is a small runner of the test.

A prompt says what its agent does: `say TEXT`, `raw TEXT` (exit 0, no result), `fail TEXT`, `broken TEXT` (the agent
cannot be started), `fault TEXT` (the service itself fails), `object` (structured output), `play TEXT`
(what the test put in `play`), `tell` (events and live text), `hold` (until it is stopped).
"""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from steadyhand.admission import Admission, spending_from_ledger
from steadyhand.agents import BUILT_IN_AGENTS, Agent, AgentDefinition, Catalog, Limits, Workspace
from steadyhand.api import ApiOptions, create_app
from steadyhand.api.native.serializers import job_json
from steadyhand.api.openai.responses.webhook_event import webhook_event
from steadyhand.api.transport.waiting_clients import WaitingClients
from steadyhand.callbacks.address_guard import parse_callback_url
from steadyhand.callbacks.endpoint_registry import EndpointRegistry
from steadyhand.callbacks.plan import DeliveryPlan, Renderers
from steadyhand.callbacks.signing import derive_secret
from steadyhand.control import Control
from steadyhand.errors import SpawnError, WorkspaceError
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import Message, TextDelta, ToolStarted
from steadyhand.gateway import create_shared_limits_getter
from steadyhand.job import Changes, Job, OutcomeType, Usage
from steadyhand.keyring import Keyring
from steadyhand.outcome import AgentResult, RunEvidence
from steadyhand.ports import (
    ALL_SCOPES,
    ApiKey,
    Checkout,
    Emit,
    Harvest,
    JobPaths,
    RunOutput,
    RunReport,
    RunSpec,
    Scope,
    SteerInbox,
    StopSignal,
)
from steadyhand.ports.artifacts import FileName
from steadyhand.ports.nodes import NodeFigures, NodeInfo
from steadyhand.queue import LocalQueue
from steadyhand.queue.local_nodes import LocalNodes
from steadyhand.redact import NO_REDACTION, Redactor
from steadyhand.runner.claude.tool_names import TOOL_NAMES
from steadyhand.schedules.ended_jobs import EndedJobs
from steadyhand.schedules.firing import ScheduleDeps
from steadyhand.schedules.registry import ScheduleRegistry
from steadyhand.steering import SteerBroker
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.service import PLAIN_HTTP
from steadyhand.tool_calls import ToolCallBroker
from steadyhand.worker import Worker, WorkerConfig, WorkerDeps

ADMIN, LIMITED, OTHER, SUBMITTER = "admin-token", "limited-token", "other-token", "submit-token"
SCOPES: Mapping[str, frozenset[Scope]] = {
    ADMIN: ALL_SCOPES,
    LIMITED: frozenset({"submit", "read", "cancel"}),
    OTHER: frozenset({"submit", "read", "cancel"}),
    SUBMITTER: frozenset({"submit"}),
}
TIMEOUT_SECONDS = 20.0


class FakeCheckouts:
    """Empty directories with a fixed diff and transcript; one definition, `helper`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def agent_definitions(self, workspace: Workspace) -> Mapping[str, AgentDefinition]:  # noqa: ARG002  # the port's signature
        return {"helper": AgentDefinition("helper", "Helps.", "---\nname: helper\n---\n", "workspace")}

    async def prepare(self, job: Job, workspace: Workspace, slot: int) -> Checkout:  # noqa: ARG002  # the port's signature
        files = self.job_paths(job.id)
        for folder in (files.artifacts, files.config_dir):
            folder.mkdir(parents=True, exist_ok=True)
        return Checkout(workspace, files, self._root, self._root, None, None, None)

    async def prepare_ahead(self, job: Job, workspace: Workspace, slot: int) -> Checkout:
        return await self.prepare(job, workspace, slot)

    async def find_file(self, job_id: str, name: FileName) -> Path | None:
        files = self.job_paths(job_id)
        path = {"diff": files.diff, "bundle": files.bundle, "transcript": files.transcript}[name]
        return path if path.is_file() else None

    async def save_progress(self, job: Job, checkout: Checkout) -> None:
        pass

    async def save_pending(self) -> None:
        pass

    async def list_job_ids(self) -> Sequence[str]:
        return ()

    async def list_ahead(self) -> Sequence[JobPaths]:
        return ()

    async def hand_over(self, checkout: Checkout, job: Job, agent_root: Path | None) -> Checkout | None:
        del checkout, job, agent_root
        return None

    async def take_back(self, checkout: Checkout, checkout_id: str) -> Checkout | None:
        del checkout, checkout_id
        return None

    async def harvest(self, place: Checkout) -> Harvest:
        if place.workspace.repository is None:
            return Harvest(None)
        place.paths.diff.write_bytes(b"diff --git a/a b/a\n")
        place.paths.transcript.write_bytes(b'{"type":"user"}\n')
        place.paths.bundle.write_bytes(b"# v2 git bundle\n")
        return Harvest(Changes("a" * 40, "b" * 40, 1, 2, 3))

    async def release(self, place: Checkout) -> None:
        pass

    async def delete_job(self, job_id: str) -> None:
        self.job_paths(job_id).diff.unlink(missing_ok=True)
        self.job_paths(job_id).transcript.unlink(missing_ok=True)

    async def remove_leftovers(self, spared: Collection[str] = ()) -> None:
        pass

    async def retain(self, place: Checkout) -> None:
        pass

    async def reopen(self, job: Job, workspace: Workspace) -> Checkout | None:  # noqa: ARG002  # the port's signature
        return None

    async def rejoin(self, job: Job, workspace: Workspace) -> Checkout:  # noqa: ARG002  # the same
        raise WorkspaceError("There is none.")

    async def list_retained(self) -> Mapping[str, datetime]:
        return {}

    async def discard(self, job_id: str) -> None:
        pass

    async def apply_retention(self, *asked: object) -> None:
        pass

    def job_paths(self, job_id: str) -> JobPaths:
        return JobPaths(self._root / "jobs" / job_id)

    async def has_session(self, job_id: str) -> bool:
        return self.job_paths(job_id).config_dir.is_dir()


class FakeRunner:
    """Does what the first word of the prompt says; remembers what it was asked."""

    def __init__(self) -> None:
        self.specs: list[Job] = []
        self.steers: list[SteerInbox] = []
        """The inbox of each run."""
        self.play: Callable[[Emit], Awaitable[None]] | None = None
        """What an agent does whose prompt begins with `play`; its answer is the rest, or without one a failure."""
        self.tool_calling_agent: Callable[[RunSpec, Emit], Awaitable[None]] | None = None
        """What an agent does that has tools of its caller."""
        self.structured: dict[str, Any] = {"city": "Paris"}
        """The object of every agent that has to give one."""
        self.forced_result: str | None = None
        """What every agent does, whatever its prompt says."""
        self.stderr = "some stderr"
        self.linger: Callable[[], Awaitable[object]] | None = None
        """What every agent does between its answer and its end; an answer is told of before the end only then."""

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        self.specs.append(spec.job)
        if spec.steers is not None:
            self.steers.append(spec.steers)
        word, _, rest = (self.forced_result or spec.job.spec.prompt).partition(" ")
        if self.tool_calling_agent is not None and spec.job.spec.tools:
            asking = asyncio.ensure_future(self.tool_calling_agent(spec, emit))
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait({asking, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                return RunReport(RunEvidence(stop_reason=stop.reason), RunOutput([], ""))
            stopped.cancel()
            await asking
        if word == "broken":
            raise SpawnError(rest)
        if word == "fault":
            raise LookupError(rest)
        if word == "hold":
            return RunReport(RunEvidence(stop_reason=await stop.wait()), RunOutput([], ""))
        if word == "raw":
            return RunReport(RunEvidence(exit_code=0), RunOutput([rest], ""))
        if word == "tell":
            await _emit_text(emit)
        if word == "play" and self.play is not None:
            await self.play(emit)
        failed = word in ("fail", "refuse") or (word == "play" and not rest)
        answer: dict[str, Any] | None = self.structured if spec.job.spec.output_schema else None
        text = (
            json.dumps(answer)
            if answer
            else (rest if word in ("say", "play", "refuse") else spec.job.spec.prompt)
        )
        result = AgentResult(
            OutcomeType.SUCCESS,
            is_error=failed,
            text=text,
            structured_output=answer,
            stop_reason="refusal" if word == "refuse" else None,
            cost_micros=41_200,
            usage=Usage(10, 5, 200, 30, 1),
        )
        line = json.dumps({"type": "result", "is_error": failed, "result": text}) + "\n"
        evidence = RunEvidence(exit_code=int(failed), result=result, schema_required=answer is not None)
        if spec.on_answer is not None and self.linger is not None:
            spec.on_answer(evidence)
            await self.linger()
        return RunReport(evidence, RunOutput(["a line\n", line], self.stderr))


async def _emit_text(emit: Emit) -> None:
    for number in range(5):
        await emit(TextDelta("m1", f"piece {number} "))
    await emit(Message("assistant", "the whole message"))
    await emit(ToolStarted("toolu_1", "Bash", {"command": "pytest -q"}))


@dataclass
class RunningService:
    """A running service and what a test may look at inside."""

    url: str
    runner: FakeRunner
    feed: EventFeed
    control: Control
    checkouts: FakeCheckouts
    queue: LocalQueue
    keyring: Keyring
    store: SqlStore
    loop: asyncio.AbstractEventLoop
    attending: WaitingClients

    def client(self, token: str | None = ADMIN, **headers: str) -> httpx2.Client:
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_SECONDS, verify=PLAIN_HTTP)

    def hold_play(self) -> Callable[[], object]:
        """Let every agent that is to `play` wait until what this gives is called."""
        gate = asyncio.Event()

        async def wait(emit: Emit) -> None:
            await gate.wait()

        self.runner.play = wait
        return lambda: self.loop.call_soon_threadsafe(gate.set)

    def hold_end(self) -> Callable[[], object]:
        """Let every agent wait after its answer until what this gives is called."""
        gate = asyncio.Event()
        self.runner.linger = gate.wait
        return lambda: self.loop.call_soon_threadsafe(gate.set)

    def count(self) -> int:
        """How many jobs are stored."""
        with self.client() as client:
            return len(client.get("/v1/jobs", params={"limit": 200}).json()["data"])


def wait_until(condition: Callable[[], Any], timeout_seconds: float = TIMEOUT_SECONDS) -> Any:
    """Wait until a condition holds and give its value; fails after the bound."""
    end = time.monotonic() + timeout_seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
    return value


def run_job(client: httpx2.Client, prompt: str, **fields: Any) -> dict[str, Any]:
    """Run a job to its end and give it."""
    reply = client.post("/v1/jobs", json={"prompt": prompt, **fields}, headers={"prefer": "wait=20"})
    assert reply.status_code == 200, reply.text
    job: dict[str, Any] = reply.json()
    return job


def check_parameter_error(
    service: RunningService, route: str, body: dict[str, Any], *, status: int, param: str | None, why: str
) -> None:
    """See a request refused, streamed or not, by an error that says which parameter and why, with nothing started."""
    before = service.count()
    with service.client() as client:
        for stream in (False, True):
            reply = client.post(route, json={"stream": stream, **body})
            assert reply.status_code == status, reply.text
            error = reply.json()["error"]
            assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
            assert why in error["message"]
            assert param is None or error["param"] == param
    assert service.count() == before


CATALOGUE = Catalog(
    agents={**BUILT_IN_AGENTS, "dear": Agent("dear", "Dear.", budget_micros=7_000_000)},
    workspaces={
        "infra": Workspace("infra", "https://user:secret@git.example.org/infra.git?token=x", ref="main")
    },
    limits=Limits(max_budget_micros=100_000_000, max_timeout_seconds=86_400),
)


async def _load_nodes(store: SqlStore, queue: LocalQueue, name: str, slots: int) -> LocalNodes:
    """Return the one node. Draining it keeps no job from running: who tries all routes waits for jobs, too."""
    nodes = LocalNodes(
        NodeInfo(name, version="1.0", schema="r1", slots=slots, host="here"),
        store.drained_nodes,
        set_drained=lambda _: None,
        get_figures=lambda: NodeFigures(running=len(queue.active_jobs())),
        clock=lambda: datetime.now(UTC),
    )
    await nodes.load()
    return nodes


@contextmanager
def running_service(
    root: Path,
    *,
    capacity: int = 2,
    max_queued: int = 100,
    keys: bool = True,
    options: ApiOptions | None = None,
    worker: bool = True,
    catalog: Catalog = CATALOGUE,
    wrap_app: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    more_routes: Sequence[BaseRoute] = (),
    service_day_micros: int | None = None,
) -> Iterator[RunningService]:
    """Run a service in a thread, with its own event loop, on a free port; `around` puts something before its app."""
    started = threading.Event()
    result: list[RunningService] = []
    stopping: list[Callable[[], None]] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        store = await _open_store(root)
        feed = EventFeed()
        checkouts = FakeCheckouts(root)
        keyring = Keyring([_make_key(token) for token in (SCOPES if keys else ())], store)
        await keyring.load()
        queue = LocalQueue(
            store,
            capacity=capacity,
            max_queued=max_queued,
            running_limit=lambda key_id: keyring.limits_of(key_id).running,
        )
        exchange, steers = ToolCallBroker(), SteerBroker()
        control = Control(
            tool_calls=exchange,
            steers=steers,
            store=store,
            outbox=store,
            saved_items=store,
            check_callback=_take_any_receiver,
            queue=queue,
            checkouts=checkouts,
            feed=feed,
            ledger=store,
            catalog=catalog,
            clock=lambda: datetime.now(UTC),
            get_shared_limits=create_shared_limits_getter(keyring.limits_of, service_day_micros),
            list_limited_keys=keyring.list_limited,
            admission=Admission(
                get_limits=keyring.limits_of,
                get_backlog=queue.backlog,
                get_spending=spending_from_ledger(store, lambda: datetime.now(UTC)),
                clock=lambda: datetime.now(UTC),
            ),
        )
        runner = FakeRunner()
        app = create_app(
            control=control,
            keyring=keyring,
            options=replace(
                options or ApiOptions(),
                node=(options and options.node) or "one",
                nodes=(options and options.nodes) or await _load_nodes(store, queue, "one", capacity),
                get_callback_secret=lambda key_id: derive_secret(b"of the tests", key_id),
                callback_endpoints=EndpointRegistry(
                    {},
                    store,
                    check=_take_any_receiver,
                    add_secrets=Redactor().add,
                    clock=lambda: datetime.now(UTC),
                ),
                schedules=ScheduleRegistry(
                    ScheduleDeps(
                        control,
                        store.schedules,
                        store.get,
                        keyring.find_valid,
                        clock=lambda: datetime.now(UTC),
                    ),
                    EndedJobs().wake,
                ),
            ),
            tool_names=TOOL_NAMES,
            more_routes=more_routes,
        )
        # Without a configuration of its own, which would hold for the whole test run.
        config = uvicorn.Config(wrap_app(app), port=0, log_config=None, log_level="error", access_log=False)
        server = uvicorn.Server(config)
        hand = _make_worker(store, queue, checkouts, runner, feed, exchange=exchange, steers=steers)
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve())
            working = group.create_task(hand.run()) if worker else None
            while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0.005)
            port = server.servers[0].sockets[0].getsockname()[1]
            loop = asyncio.get_running_loop()
            attending = app.state.context.waiting_clients
            result.append(
                RunningService(
                    f"http://127.0.0.1:{port}",
                    runner,
                    feed,
                    control,
                    checkouts,
                    queue,
                    keyring,
                    store,
                    loop,
                    attending,
                )
            )
            stopping.append(lambda: setattr(server, "should_exit", True))
            started.set()
            await serving
            if working:
                working.cancel()
        await store.close()

    def main() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001  # handed to the test's thread
            failed.append(error)
            started.set()

    thread = threading.Thread(target=main)
    thread.start()
    assert started.wait(TIMEOUT_SECONDS)
    with ExitStack() as stack:
        stack.callback(thread.join, TIMEOUT_SECONDS)
        if failed:
            raise failed[0]
        stack.callback(stopping[0])
        stack.callback(lambda: result[0].loop.call_soon_threadsafe(result[0].feed.close))
        yield result[0]


async def _open_store(root: Path) -> SqlStore:
    store = await open_store(f"sqlite:///{root}/jobs.db")
    renderers = Renderers(lambda job: job_json(job, None), webhook_event)
    store.use_plan(DeliveryPlan(tuple, renderers, NO_REDACTION), lambda _endpoints: None)
    return store


async def _take_any_receiver(url: str) -> None:
    """Take the receiver of a callback: nothing is sent to it."""
    parse_callback_url(url)


def _make_key(token: str) -> ApiKey:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return ApiKey(f"k_{token[:5]}", token, digest, SCOPES[token], datetime.now(UTC))


def _make_worker(
    store: SqlStore,
    queue: LocalQueue,
    checkouts: FakeCheckouts,
    runner: FakeRunner,
    feed: EventFeed,
    *,
    exchange: ToolCallBroker,
    steers: SteerBroker,
) -> Worker:
    async def nothing_to_sweep(pid: int, started: int) -> None:
        pass

    def no_environment(agent: Agent, place: Checkout) -> Mapping[str, str]:
        return {}

    config = WorkerConfig(
        node="n1",
        clock=lambda: datetime.now(UTC),
        environment_for=no_environment,
        kill_leftovers=nothing_to_sweep,
    )
    return Worker(
        WorkerDeps(
            store=store,
            queue=queue,
            checkouts=checkouts,
            runners={"claude": runner},
            event_log=EventLog(store, feed, NO_REDACTION),
            catalog=CATALOGUE,
            config=config,
            ledger=store,
            tool_calls=exchange,
            steers=steers,
        )
    )
