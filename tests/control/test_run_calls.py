"""Messages and results of tools come to any node, and reach the run on the node that has its process."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.store.call_nodes import CallNodes, call_nodes

from steadyhand.admission import Admission
from steadyhand.agents import BUILT_IN_AGENTS, Catalog
from steadyhand.api.openai.responses.resource import AppendRequest
from steadyhand.control import Caller, Control
from steadyhand.errors import Conflict, InvalidRequest, NodeGone, NotFound
from steadyhand.event_log import EventFeed, EventLog
from steadyhand.events import EventDraft, SteerAccepted, ToolCallsRequested
from steadyhand.job import ClientTool, Job, Outcome, OutcomeType, Run, State, ToolOutput
from steadyhand.ports import ALL_SCOPES, NO_LIMITS, ClientToolCall, KeyLimits, SteerMessage
from steadyhand.queue.local import LocalQueue
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.steering import SteerBroker
from steadyhand.store import SqlStore, open_store
from steadyhand.store.postgres.postgres_calls import PostgresNodeCalls
from steadyhand.testing.contracts.samples import NOON, FakeClock, accepted_draft, async_test, make_job
from steadyhand.tool_calls import ToolCallBroker, ToolCallState
from steadyhand.workspace.checkout import GitCheckouts

CALLER = Caller("k_one", ALL_SCOPES)
CALLS = [ClientToolCall("c1", "look", {})]


@dataclass
class Node:
    """One node of a cluster: it has its own brokers, and shares the store."""

    name: str
    control: Control
    broker: ToolCallBroker
    steers: SteerBroker
    checkouts: GitCheckouts


@dataclass
class RunCallsWorld:
    store: SqlStore
    nodes: CallNodes
    root: Path
    limits: KeyLimits = NO_LIMITS
    feed: EventFeed = field(default_factory=EventFeed)

    def start(self, name: str) -> Node:
        broker, steers, clock = ToolCallBroker(), SteerBroker(), FakeClock()
        queue = LocalQueue(self.store, capacity=1, max_queued=8)
        checkouts = GitCheckouts(self.root / "shared", agent_files=ClaudeFiles(), redactor=NO_REDACTION)
        control = Control(
            store=self.store,
            queue=queue,
            checkouts=checkouts,
            feed=self.feed,
            ledger=self.store,
            catalog=Catalog(BUILT_IN_AGENTS),
            clock=clock,
            tool_calls=broker,
            steers=steers,
            admission=Admission(get_limits=lambda _: self.limits, get_backlog=queue.backlog, clock=clock),
            node_calls=self.nodes.start(name),
            read_update=AppendRequest.from_json,
        )
        return Node(name, control, broker, steers, checkouts)

    async def running_job(self, node: str, **changes: Any) -> Job:
        """Store a job that runs on a node, whose agent has called a tool of its client."""
        fields: dict[str, Any] = {
            "state": State.RUNNING,
            "runs": (Run(1, State.RUNNING, started_at=NOON, node=node),),
            "tools": (ClientTool("look", None, {}),),
        }
        job = make_job(**(fields | changes))
        await self.store.add(job, accepted_draft())
        call = {"id": "c1", "name": "look", "arguments": {}}
        await self.event_log.append(job.id, [EventDraft(1, NOON, ToolCallsRequested([call]))])
        return job

    @property
    def event_log(self) -> EventLog:
        return EventLog(self.store, self.feed, NO_REDACTION)

    async def interrupt(self, job: Job) -> None:
        """End the run of a job as the reaper of a dead node does."""
        await self.event_log.update_job(
            job.id,
            frozenset({State.RUNNING}),
            lambda old: replace(
                old, state=State.INTERRUPTED, outcome=Outcome(OutcomeType.UNANSWERED), finished_at=NOON
            ),
        )


class TestRunCalls:
    @pytest.fixture(autouse=True)
    def place(self, limits_url: str, tmp_path: Path) -> None:
        self.url, self.root = limits_url, tmp_path

    @asynccontextmanager
    async def world(self, limits: KeyLimits = NO_LIMITS) -> AsyncIterator[RunCallsWorld]:
        store = await open_store(self.url)
        try:
            async with call_nodes(self.url) as nodes:
                yield RunCallsWorld(store, nodes, self.root, limits)
        finally:
            await store.close()

    # --- results of tools ------------------------------------------------------------------

    @async_test
    async def test_results_that_come_to_another_node_reach_the_process_once(self) -> None:
        async with self.world() as world:
            here, there = world.start("here"), world.start("there")
            job = await world.running_job("there")
            results: Mapping[str, ToolOutput] = {"c1": "rain \x00 \ud800"}
            with there.broker.pending(job.id, CALLS) as pending:
                answers = await asyncio.gather(
                    *(
                        node.control.submit_tool_results(CALLER, job.id, results)
                        for node in (here, there, here, there)
                    )
                )
                assert await pending.wait_for_results(1) == results
            assert {(answer.number, answer.last_event) for answer in answers} == {(1, 3)}
            types = [event.type for event in await world.store.list_events(job.id)]
            assert types.count("calls.answered") == 1

    @async_test
    async def test_the_next_response_is_noted_with_results_that_come_to_another_node(self) -> None:
        async with self.world() as world:
            here, there = world.start("here"), world.start("there")
            document = {"kind": "response", "version": 1, "echo": {"temperature": 1}}
            job = await world.running_job("there", request=document)
            later: Any = {
                "model": "m",
                "input": [{"type": "message"}],
                "echo": {"temperature": 1, "user": "u"},
            }
            with there.broker.pending(job.id, CALLS):
                answer = await here.control.submit_tool_results(
                    CALLER, job.id, {"c1": "rain"}, AppendRequest(later, in_background=True)
                )
            assert answer.job.on_interrupt == "resume"
            assert answer.job.spec.request == {**document, "later": [{**later, "echo": {"user": "u"}}]}

    @async_test
    async def test_wrong_results_are_refused_by_the_node_to_which_they_come(self) -> None:
        async with self.world() as world:
            here, there = world.start("here"), world.start("there")
            job = await world.running_job("there")
            stranger = Caller("k_two", frozenset({"submit", "read"}))
            with there.broker.pending(job.id, CALLS) as pending:
                for results in ({"c2": "x"}, {"c1": "x", "c2": "x"}, {}):
                    with pytest.raises(InvalidRequest) as refused:
                        await here.control.submit_tool_results(CALLER, job.id, results)
                    assert refused.value.code == "unknown_call"
                with pytest.raises(NotFound):
                    await here.control.submit_tool_results(stranger, job.id, {"c1": "x"})
                assert not pending.accepted

    @async_test
    async def test_results_for_a_node_that_dies_resume_the_session_once_its_run_is_ended(self) -> None:
        async with self.world() as world:
            here = world.start("here")
            job = await world.running_job("dead")
            here.checkouts.job_paths(job.id).config_dir.mkdir(parents=True)
            async with asyncio.TaskGroup() as group:
                answering = group.create_task(
                    here.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
                )
                await asyncio.sleep(0.5)
                assert not answering.done()
                await world.interrupt(job)
                again = await here.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
            answer = answering.result()
            assert (answer.job.state, answer.job.begin) == (State.QUEUED, "resume")
            assert "rain" in str(answer.job.continue_prompt)
            assert (again.number, again.last_event) == (answer.number, answer.last_event)

    @async_test
    async def test_the_same_results_on_two_nodes_resume_an_ended_run_once(self) -> None:
        async with self.world() as world:
            here, there = world.start("here"), world.start("there")
            job = await world.running_job("dead")
            here.checkouts.job_paths(job.id).config_dir.mkdir(parents=True)
            await world.interrupt(job)
            answers = await asyncio.gather(
                *(node.control.submit_tool_results(CALLER, job.id, {"c1": "rain"}) for node in (here, there))
            )
            assert {(answer.number, answer.last_event) for answer in answers} == {(1, answers[0].last_event)}
            types = [event.type for event in await world.store.list_events(job.id)]
            assert types.count("calls.answered") == 1

    @async_test
    async def test_an_answer_that_gets_lost_is_found_in_the_store(self) -> None:
        async with self.world() as world:
            here, there = world.start("here"), world.start("there")
            job = await world.running_job("there")

            async def die(*_: object) -> None:
                world.nodes.alive.discard("there")

            with there.broker.pending(job.id, CALLS) as pending, pytest.MonkeyPatch.context() as patch:
                patch.setattr(PostgresNodeCalls, "_store_reply", die)
                answer = await here.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
                assert (answer.number, answer.last_event) == (1, 3)
                assert await pending.wait_for_results(1) == {"c1": "rain"}

    @async_test
    async def test_a_node_that_was_cut_off_writes_no_answer_into_a_later_run(self) -> None:
        async with self.world() as world:
            frozen = world.start("frozen")
            job = await world.running_job("frozen")
            with frozen.broker.pending(job.id, CALLS):
                read = ToolCallState.read

                async def read_then_lose_the_run(store: SqlStore, job_id: str) -> Any:
                    state = await read(store, job_id)
                    await store.update_job(
                        job.id,
                        frozenset({State.RUNNING}),
                        lambda old: replace(
                            old, runs=(*old.runs, Run(2, State.RUNNING, started_at=NOON, node="other"))
                        ),
                    )
                    return state

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(ToolCallState, "read", read_then_lose_the_run)
                    with pytest.raises(Conflict, match="had 2 runs"):
                        await frozen.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
            types = [event.type for event in await world.store.list_events(job.id)]
            assert "calls.answered" not in types

    # --- messages --------------------------------------------------------------------------

    @async_test
    async def test_a_message_that_comes_to_another_node_is_read_by_the_agent_once(self) -> None:
        async with self.world() as world:
            here, there = world.start("here"), world.start("there")
            job = await world.running_job("there")
            read: list[SteerMessage] = []

            async def deliver(message: SteerMessage) -> bool:
                read.append(message)
                accepted = SteerAccepted(message.id, message.text)
                await world.event_log.append(job.id, [EventDraft(1, NOON, accepted)])
                return True

            with ExitStack() as stack:
                stack.enter_context(stack.enter_context(there.steers.run(job.id)).open(deliver))
                answers = [
                    await node.control.steer(CALLER, job.id, "Be brief.", "key-1")
                    for node in (here, there, here)
                ]
                with pytest.raises(InvalidRequest) as mismatch:
                    await here.control.steer(CALLER, job.id, "Be long.", "key-1")
                assert mismatch.value.code == "idempotency_mismatch"
                await here.control.steer(CALLER, job.id, "Without a key.")
            assert [message.text for message in read] == ["Be brief.", "Without a key."]
            assert [answer.replayed for answer in answers] == [False, True, True]
            assert len({answer.id for answer in answers}) == 1

    @async_test
    async def test_the_errors_of_a_message_are_those_of_one_node_and_such_a_message_does_not_count(
        self,
    ) -> None:
        async with self.world(KeyLimits(per_minute=1)) as world:
            here, there = world.start("here"), world.start("there")
            job = await world.running_job("there")
            codes = []
            with there.steers.run(job.id) as run:
                codes.append((await refusal(here, job)).code)
                run.refuse()
                codes.append((await refusal(here, job)).code)
            codes.append((await refusal(here, job)).code)
            await world.nodes.stop("there")
            with pytest.raises(NodeGone) as gone:
                await here.control.steer(CALLER, job.id, "Hello.")
            assert codes == ["not_running", "not_steerable", "not_running"]
            assert (gone.value.code, gone.value.may_be_done) == ("node_gone", False)
            await here.control.charge_request(
                CALLER, job.agent, None
            )  # the one request of this minute is left


async def refusal(node: Node, job: Job) -> Conflict:
    """Return the error of a message that comes to this node."""
    with pytest.raises(Conflict) as refused:
        await node.control.steer(CALLER, job.id, "Hello.")
    return refused.value
