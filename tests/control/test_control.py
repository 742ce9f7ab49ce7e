"""`Control` joins several classes: each public operation of theirs is an attribute of it, over the same store."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from steadyhand.admission import Admission
from steadyhand.agents import BUILT_IN_AGENTS, Agent, Catalog, Workspace
from steadyhand.control import Caller, Control, ResumeOptions, Submission
from steadyhand.control.bulk import BulkOperations
from steadyhand.control.forecast import Forecaster
from steadyhand.control.lifecycle import JobLifecycle
from steadyhand.control.queries import JobQueries
from steadyhand.control.requests import inherit_from_parent
from steadyhand.control.submit import JobSubmitter
from steadyhand.control.tool_results import ToolResultSubmitter
from steadyhand.control.tool_usage import ToolStatisticsReader
from steadyhand.errors import Conflict, Forbidden, InvalidRequest, NotFound, RetryLater
from steadyhand.event_log import EventFeed, EventLog, FeedItem
from steadyhand.events import Event, EventDraft, Message, ToolCallsRequested
from steadyhand.job import (
    ClientTool,
    Job,
    JobSpec,
    Origin,
    Outcome,
    OutcomeType,
    Run,
    State,
    Turn,
    UncommittedChanges,
)
from steadyhand.outcome import StopReason
from steadyhand.ports import ALL_SCOPES, NO_LIMITS, ClientToolCall, KeyLimits
from steadyhand.queue.local import LocalQueue
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.store import SqlStore, open_store
from steadyhand.testing.contracts.samples import NOON, FakeClock, accepted_draft, make_job
from steadyhand.tool_calls import ToolCallBroker
from steadyhand.workspace.checkout import GitCheckouts

CALLER = Caller("k_one", ALL_SCOPES)
INTERNAL = {"ceilings", "resume_job", "check_retry", "check_resume"}
"""Public for the other parts of `Control`, not for its callers."""


@dataclass(frozen=True)
class World:
    control: Control
    store: SqlStore
    queue: LocalQueue
    checkouts: GitCheckouts
    broker: ToolCallBroker
    event_log: EventLog


@asynccontextmanager
async def world_at(root: Path, *agents: Agent, limits: KeyLimits = NO_LIMITS) -> AsyncIterator[World]:
    store = await open_store(f"sqlite:///{root / 'd.db'}")
    try:
        feed, broker, clock = EventFeed(), ToolCallBroker(), FakeClock()
        queue = LocalQueue(store, capacity=1, max_queued=8)
        checkouts = GitCheckouts(root / "data", agent_files=ClaudeFiles(), redactor=NO_REDACTION)
        control = Control(
            store=store,
            queue=queue,
            checkouts=checkouts,
            feed=feed,
            ledger=store,
            catalog=Catalog({**BUILT_IN_AGENTS} | {agent.name: agent for agent in agents}),
            clock=clock,
            tool_calls=broker,
            admission=Admission(get_limits=lambda _: limits, get_backlog=queue.backlog, clock=clock),
        )
        yield World(control, store, queue, checkouts, broker, EventLog(store, feed, NO_REDACTION))
    finally:
        await store.close()


def in_world(
    root: Path, scene: Callable[[World], Any], *agents: Agent, limits: KeyLimits = NO_LIMITS
) -> None:
    async def play() -> None:
        async with asyncio.timeout(60), world_at(root, *agents, limits=limits) as world:
            await scene(world)

    asyncio.run(play())


def public_names(part: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(part, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(
    "part",
    [
        JobQueries,
        JobSubmitter,
        JobLifecycle,
        ToolResultSubmitter,
        BulkOperations,
        Forecaster,
        ToolStatisticsReader,
    ],
)
def test_each_public_operation_of_a_part_is_an_operation_of_control(tmp_path: Path, part: type) -> None:
    async def scene(world: World) -> None:
        operations = public_names(part) - INTERNAL
        assert operations
        for name in operations:
            operation = getattr(world.control, name)
            assert type(operation.__self__) is part
            assert operation.__func__ is getattr(part, name)

    in_world(tmp_path, scene)


def test_control_has_no_operation_under_another_name(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        operations = {name: value for name, value in vars(world.control).items() if callable(value)}
        assert all(name == value.__name__ for name, value in operations.items())
        assert set(vars(world.control)) - set(operations) == {"catalog"}

    in_world(tmp_path, scene)


def test_a_submitted_job_is_stored_and_queued_and_a_follower_reads_it_to_its_end(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        control = world.control
        job = (await control.submit(CALLER, Submission(JobSpec("Say hello.")))).job
        assert (await control.get(CALLER, job.id)).spec.prompt == "Say hello."
        assert control.position(job) == 1

        async def follow() -> list[int]:
            return [item.seq async for item in control.follow(CALLER, job.id) if isinstance(item, Event)]

        async with asyncio.TaskGroup() as group:
            follower = group.create_task(follow())
            waiter = group.create_task(control.wait(CALLER, job.id, 30))
            await asyncio.sleep(0)  # both are subscribed before the job ends
            assert (await control.cancel(CALLER, job.id)).state is State.CANCELLED
        assert follower.result() == [1, 2]
        assert waiter.result().state is State.CANCELLED
        assert (await control.retry(CALLER, job.id)).state is State.QUEUED
        assert control.position(job) == 1

    in_world(tmp_path, scene)


def test_a_request_counts_also_if_its_caller_goes_away_while_its_job_is_stored(tmp_path: Path) -> None:
    limits = KeyLimits(per_minute=1)

    async def scene(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            submitting = group.create_task(world.control.submit(CALLER, Submission(JobSpec("Say hello."))))
            while not world.queue.load().queued:  # noqa: ASYNC110  # each turn of the loop counts
                await asyncio.sleep(0)
            submitting.cancel()
        assert submitting.cancelled()
        with pytest.raises(RetryLater, match="a minute"):
            await world.control.submit(CALLER, Submission(JobSpec("Say hello again.")))
        await world.queue.close()
        assert world.queue.load().queued == 1

    in_world(tmp_path, scene, limits=limits)


def test_a_request_that_the_queue_refuses_does_not_count(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.queue.drain()
        for _ in range(2):
            with pytest.raises(RetryLater) as refused:
                await world.control.submit(CALLER, Submission(JobSpec("Say hello.")))
            assert refused.value.code == "draining"

    in_world(tmp_path, scene, limits=KeyLimits(per_minute=1))


def test_each_part_checks_the_scopes_of_the_caller(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        job = (await world.control.submit(CALLER, Submission(JobSpec("Say hello.")))).job
        stranger = Caller("k_two", frozenset({"read", "submit", "cancel"}))
        without_scopes = Caller("k_one", frozenset())
        for operation in (world.control.get, world.control.cancel, world.control.open_tool_calls):
            with pytest.raises(NotFound):
                await operation(stranger, job.id)
            with pytest.raises(Forbidden):
                await operation(without_scopes, job.id)
        with pytest.raises(Forbidden):
            await world.control.submit(without_scopes, Submission(JobSpec("Say hello.")))

    in_world(tmp_path, scene)


@pytest.mark.parametrize(("origin", "inherited"), [("api", ("opus", "Be brief.")), ("openai", (None, None))])
def test_a_turn_inherits_model_and_system_prompt_unless_an_openai_client_asks(
    origin: Origin, inherited: tuple[str | None, str | None]
) -> None:
    parent = make_job(model="opus", append_system_prompt="Be brief.", effort="low", title="First")
    turn = inherit_from_parent(parent, Submission(JobSpec("Go on.", origin=origin)))
    assert (turn.spec.model, turn.spec.append_system_prompt) == inherited
    assert turn == Submission(
        JobSpec("Go on.", model=inherited[0], append_system_prompt=inherited[1], origin=origin),
        agent=parent.agent,
        strict=False,
    )
    own = inherit_from_parent(parent, Submission(JobSpec("Go on.", model="sonnet", origin=origin)))
    assert own.spec.model == "sonnet"


def test_a_job_has_the_values_of_its_agent_where_its_request_has_none(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        request = JobSpec("Say hello.", effort="high", priority=3, title="Walls")
        job = (await world.control.submit(CALLER, Submission(request))).job
        assert job.spec == replace(request, model="opus", max_turns=9)
        assert request.model is None

    in_world(tmp_path, scene, Agent("claude", model="opus", max_turns=9, effort="low"))


def job_with_calls(state: State, outcome: Outcome | None = None) -> Job:
    """Return a job in its first run whose agent has a client tool."""
    tools = (ClientTool("look", None, {}),)
    runs = (Run(1, state, started_at=NOON),)
    finished_at = NOON if state.ended else None
    return make_job(state=state, runs=runs, tools=tools, outcome=outcome, finished_at=finished_at)


async def store_with_call(world: World, job: Job) -> None:
    await world.store.add(job, accepted_draft())
    call = {"id": "c1", "name": "look", "arguments": {}}
    await world.event_log.append(job.id, [EventDraft(1, NOON, ToolCallsRequested([call]))])


def test_results_reach_a_waiting_agent_once_and_a_repeat_has_the_same_answer(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        job = job_with_calls(State.RUNNING)
        await store_with_call(world, job)
        assert await world.control.open_tool_calls(CALLER, job.id) == {"c1"}
        with world.broker.pending(job.id, [ClientToolCall("c1", "look", {})]) as pending:
            with pytest.raises(InvalidRequest, match="is missing"):
                await world.control.submit_tool_results(CALLER, job.id, {})
            first = await world.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
            again = await world.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
            assert await pending.wait_for_results(1) == {"c1": "rain"}
        assert (first.number, first.last_event) == (again.number, again.last_event) == (1, 3)
        assert await world.control.open_tool_calls(CALLER, job.id) == frozenset()

    in_world(tmp_path, scene)


def test_late_results_resume_the_session_and_only_if_it_was_kept(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        job = job_with_calls(State.INTERRUPTED, Outcome(OutcomeType.UNANSWERED))
        await store_with_call(world, job)
        with pytest.raises(Conflict, match="no session"):
            await world.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
        world.checkouts.job_paths(job.id).config_dir.mkdir(parents=True)
        answer = await world.control.submit_tool_results(CALLER, job.id, {"c1": "rain"})
        assert (answer.job.state, answer.job.begin, answer.number) == (State.QUEUED, "resume", 1)
        assert "rain" in str(answer.job.continue_prompt)
        events = await world.store.list_events(job.id)
        assert [event.type for event in events][-2:] == ["calls.answered", "state.changed"]
        assert events[-2].seq == answer.last_event

    in_world(tmp_path, scene)


def test_a_resume_needs_a_budget_above_the_spent_amount_and_queues_the_job_again(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        job = job_with_calls(State.FAILED, Outcome(OutcomeType.AGENT_ERROR))
        await world.store.add(job, accepted_draft())
        world.checkouts.job_paths(job.id).config_dir.mkdir(parents=True)
        with pytest.raises(InvalidRequest, match="has to be above"):
            await world.control.resume(CALLER, job.id, ResumeOptions(budget_micros=0))
        resumed = await world.control.resume(CALLER, job.id, ResumeOptions(budget_micros=7, prompt="Go on."))
        assert (resumed.budget_micros, resumed.continue_prompt) == (7, "Go on.")
        assert await world.queue.cancel(job.id, StopReason.CANCEL) == "withdrawn"

    in_world(tmp_path, scene)


UNCOMMITTED = UncommittedChanges("a" * 40, "b" * 40, "UEFDSw==")


def test_a_job_on_uncommitted_changes_has_their_ref_and_is_never_published(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        published = Workspace("published", repository="/shop", ref="main", publish="branch")
        cast("dict[str, Workspace]", world.control.catalog.workspaces)["published"] = published
        spec = JobSpec("Go.", uncommitted=UNCOMMITTED)
        job = (await world.control.submit(CALLER, Submission(spec, workspace="published"))).job
        stored = await world.control.get(CALLER, job.id)
        assert (stored.ref, stored.publish) == (f"refs/steadyhand/uncommitted/{'b' * 40}", "none")
        assert stored.spec.uncommitted == UNCOMMITTED
        turn = (await world.control.submit(CALLER, Submission(JobSpec("Go on."), parent=job.id))).job
        assert (turn.ref, turn.publish, turn.spec.uncommitted) == (stored.ref, "none", None)

    in_world(tmp_path, scene)


@pytest.mark.parametrize(
    ("submission", "field"),
    [
        (Submission(JobSpec("x"), workspace="/shop", ref="main"), "/uncommitted"),
        (Submission(JobSpec("x"), workspace="scratch"), "/uncommitted"),
        (Submission(JobSpec("x"), workspace="in_place"), "/uncommitted"),
        (Submission(JobSpec("x"), workspace="/shop", publish="branch"), "/publish"),
    ],
)
def test_uncommitted_changes_that_cannot_be_the_commit_of_a_job_are_refused(
    tmp_path: Path, submission: Submission, field: str
) -> None:
    async def scene(world: World) -> None:
        in_place = Workspace("in_place", repository="/shop", mode="in_place")
        cast("dict[str, Workspace]", world.control.catalog.workspaces)["in_place"] = in_place
        with_changes = replace(submission, spec=replace(submission.spec, uncommitted=UNCOMMITTED))
        with pytest.raises(InvalidRequest) as caught:
            await world.control.submit(CALLER, with_changes)
        assert [each.pointer for each in caught.value.field_errors] == [field]
        if submission.publish is None:
            job = (await world.control.submit(CALLER, submission)).job
            with pytest.raises(InvalidRequest) as caught:
                await world.control.submit(
                    CALLER, Submission(JobSpec("x", uncommitted=UNCOMMITTED), parent=job.id)
                )
            assert [each.pointer for each in caught.value.field_errors] == ["/uncommitted"]

    in_world(tmp_path, scene)


@pytest.mark.parametrize("ref", ["refs/steadyhand/HEAD", UNCOMMITTED.ref])
def test_a_caller_cannot_name_refs_that_the_service_made(tmp_path: Path, ref: str) -> None:
    async def scene(world: World) -> None:
        with pytest.raises(InvalidRequest) as caught:
            await world.control.submit(CALLER, Submission(JobSpec("x"), workspace="/shop", ref=ref))
        assert [each.pointer for each in caught.value.field_errors] == ["/ref"]

    in_world(tmp_path, scene)


class _Reads:
    """Counts the reads of a store, and those of the files of a session."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.looks = 0
        has_session = world.checkouts.has_session

        async def counted_look(job_id: str) -> bool:
            self.looks += 1
            return await has_session(job_id)

        for name in ("read", "read_alone"):
            read = getattr(world.store._readers, name)
            monkeypatch.setattr(world.store._readers, name, self._counted(read))
        monkeypatch.setattr(world.checkouts, "has_session", counted_look)

    def _counted(self, read: Any) -> Any:
        async def counted(work: Any) -> Any:
            self.count += 1
            return await read(work)

        return counted


async def _ended_conversation(world: World, digest: str, **fields: Any) -> Job:
    """Store a job that has answered, whose session is there, with the digest of its conversation."""
    job = make_job(
        state=State.COMPLETED, api_key_id=CALLER.key_id, workspace=None, conversation=digest, session_id="s",
        outcome=Outcome(OutcomeType.SUCCESS), **fields,
    )  # fmt: skip
    await world.store.add(job, accepted_draft())
    world.checkouts.job_paths(job.id).config_dir.mkdir(parents=True)
    return job


def test_the_next_turn_of_a_conversation_takes_one_read_until_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        parent = await _ended_conversation(world, "digest")
        reads = _Reads(world, monkeypatch)
        found = await world.control.find_conversation(CALLER, "digest")
        assert found is not None
        assert found.id == parent.id
        submission = Submission(JobSpec("And now?"), agent=parent.agent, parent=found.id, parent_job=found)
        turn = (await world.control.submit(CALLER, submission)).job
        assert (turn.parent_job_id, turn.session_id, turn.begin) == (parent.id, "s", "resume")
        assert (reads.count, reads.looks) == (1, 1)

    in_world(tmp_path, scene)


def test_a_conversation_that_two_jobs_have_or_another_key_is_not_found(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        for _ in range(2):
            await _ended_conversation(world, "twice")
        await _ended_conversation(world, "once")
        assert await world.control.find_conversation(CALLER, "twice") is None
        assert await world.control.find_conversation(CALLER, "never") is None
        other = Caller("another", ALL_SCOPES)
        assert await world.control.find_conversation(other, "once") is None

    in_world(tmp_path, scene)


def test_a_parent_that_is_deleted_after_its_read_is_looked_for_again(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        parent = await _ended_conversation(world, "digest")
        await world.store.delete(parent.id)
        history = (Turn("user", "Hello."),)
        spec = JobSpec("And now?", history=history)
        turn = (await world.control.submit(CALLER, Submission(spec, parent=parent.id, parent_job=parent))).job
        assert turn.parent_job_id is None
        with pytest.raises(NotFound):
            await world.control.submit(
                CALLER, Submission(JobSpec("And now?"), parent=parent.id, parent_job=parent)
            )

    in_world(tmp_path, scene)


def test_events_that_a_follower_is_sent_at_once_and_those_that_it_receives_are_all_of_them_in_order(
    tmp_path: Path,
) -> None:
    async def scene(world: World) -> None:
        job = (await world.control.submit(CALLER, Submission(JobSpec("Say hello.")))).job
        message = EventDraft(0, NOON, Message("assistant", "Hello."))
        came: list[tuple[str, int]] = []
        waits, can_write = asyncio.Event(), True

        def write(items: Sequence[FeedItem]) -> bool:
            if can_write:
                came.extend(("at once", item.seq) for item in items if isinstance(item, Event))
            return can_write

        async def follow() -> None:
            async for batch in world.control.follow_job(CALLER, job.id, 0, write):
                came.extend(("received", item.seq) for item in batch if isinstance(item, Event))
                waits.set()

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(follow())
            await waits.wait()
            await world.event_log.append(job.id, [message, message])
            waits.clear()
            can_write = False  # its client is slow
            await world.event_log.append(job.id, [message])
            await waits.wait()
            can_write = True
            waits.clear()
            await world.store.append_events(
                job.id, [message]
            )  # published by nobody: it is missing before the next
            await world.event_log.append(job.id, [message])
            await waits.wait()
            await world.event_log.append(job.id, [message])
            await world.control.cancel(CALLER, job.id)
        at_once = [number for how, number in came if how == "at once"]
        assert [number for _, number in came] == list(range(1, 9))
        assert at_once == [2, 3, 7]

    in_world(tmp_path, scene)


def test_a_follower_reads_the_job_and_the_events_that_it_has_and_asks_for_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        job = (await world.control.submit(CALLER, Submission(JobSpec("Say hello.")))).job
        reads = _Reads(world, monkeypatch)
        seen: list[int] = []

        async def follow() -> None:
            async for item in world.control.follow(CALLER, job.id):
                assert isinstance(item, Event)
                seen.append(item.seq)
                waits.set()

        waits = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(follow())
            await waits.wait()
            assert (seen, reads.count) == ([1], 2)
            await world.control.cancel(CALLER, job.id)
        # The cancel reads the job once; its end sends the follower to the job alone, since it has every event.
        assert (seen, reads.count) == ([1, 2], 4)

    in_world(tmp_path, scene)
