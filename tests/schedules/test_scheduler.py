"""The loop of schedules over a real store and a real queue, with a clock that the test moves."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.schedules import schedule_world
from tests.schedules.schedule_world import (
    KEY,
    MIDNIGHT,
    MINUTE,
    ScheduleWorld,
    in_schedule_world,
    make_spec,
)

from steadyhand.clock import utc_now
from steadyhand.errors import Conflict, Forbidden, InvalidRequest, NotFound
from steadyhand.job import OutcomeType, State
from steadyhand.ports import (
    MISSED_LIMIT,
    WAITING_LIMIT,
    ApiKey,
    AttemptResult,
    DeliveryDraft,
    DeliveryFilter,
    DoctorCheck,
    KeyLimits,
    MissedPolicy,
    ScheduleChange,
)
from steadyhand.schedules.scheduler import LATE
from steadyhand.store import check_store
from steadyhand.testing.contracts.samples import FakeClock, expect_error

HOUR = timedelta(hours=1)

pytestmark = pytest.mark.usefixtures("each_database")


def test_a_tick_submits_the_job_of_the_schedule_at_its_time(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        prompt = "{{ schedule.name }} {{ schedule.run }} {{tick.date}} {{ tick.utc }} {{ previous.outcome }} {{ x }}"
        fields = {"agent": "claude", "budget_micros": 700_000}
        made = await world.make(prompt=prompt, timezone="Asia/Kolkata", cron="0 6 * * *", job=fields)
        assert made.next_at == MIDNIGHT + timedelta(minutes=30)  # 06:00 there
        await world.pass_time()
        assert await world.jobs() == []
        await world.pass_time(timedelta(minutes=29))
        (job,) = await world.jobs()
        assert (job.agent, job.api_key_id, job.budget_micros) == ("claude", KEY.id, 700_000)
        assert job.spec.origin == "schedule"
        assert job.spec.prompt == "s 1 2026-06-01 2026-06-01T00:30:00.000000Z none {{ x }}"
        await world.end_newest()
        await world.pass_time(timedelta(days=1))
        assert (await world.jobs())[
            -1
        ].spec.prompt == "s 2 2026-06-02 2026-06-02T00:30:00.000000Z success {{ x }}"
        first, second = await world.ticks()
        assert (first.outcome, first.micros, first.settled) == (OutcomeType.SUCCESS, 100_000, True)
        assert (second.outcome, second.settled, second.kind) == (None, False, "cron")
        assert world.counted == [("fired", 1), ("fired", 1)]

    in_schedule_world(tmp_path, scene)


def test_the_wait_is_until_the_next_tick_and_bounded(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        assert await world.scheduler.step() == 10
        await world.make(cron="*/2 * * * * *")
        assert await world.scheduler.step() == 2
        await world.make("t", cron="0 0 1 1 *")
        assert await world.scheduler.step() == 2
        await world.registry.remove("s", None)
        assert await world.scheduler.step() == 10

    in_schedule_world(tmp_path, scene)


def test_the_loop_wakes_when_a_schedule_is_changed_or_a_job_ends(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        async with asyncio.TaskGroup() as group:
            loop = group.create_task(world.scheduler.run())
            await world.make(cron="* * * * *")
            world.clock.advance(MINUTE)
            await world.registry.pause("s", None)  # it wakes the loop, which would wait for 10 s else
            await world.registry.resume("s", None)
            world.clock.advance(MINUTE)
            await world.make("other", cron="0 0 * * *")
            while not await world.jobs():  # noqa: ASYNC110  # the scene has a bound
                await asyncio.sleep(0.01)
            (job,) = await world.jobs()
            await world.end(job)
            while (await world.schedule()).spent_micros == 0:  # noqa: ASYNC110  # the same
                await asyncio.sleep(0.01)
            loop.cancel()

    in_schedule_world(tmp_path, scene)


# --- overlap -------------------------------------------------------------------------------------


def test_a_tick_is_skipped_while_the_earlier_job_goes_on(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        await world.pass_time()
        await world.pass_time()
        (job,) = await world.jobs()
        assert await world.lines() == ["cron fired", "cron skipped overlap"]
        assert (await world.ticks())[1].detail == f"The job {job.id} goes on."
        await world.end_newest()
        await world.pass_time()
        assert len(await world.jobs()) == 2

    in_schedule_world(tmp_path, scene)


def test_queued_ticks_wait_for_the_end_of_the_earlier_job_one_after_another(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(overlap="queue")
        for _ in range(3):
            await world.pass_time()
        assert await world.lines() == ["cron fired", "cron waiting", "cron waiting"]
        for count in (2, 3):
            await world.end_newest()
            assert len(await world.jobs()) == count
        assert await world.lines() == ["cron fired", "cron fired", "cron fired"]
        for _ in range(WAITING_LIMIT + 2):
            await world.pass_time()
        lines = await world.lines()
        assert lines.count("cron waiting") == WAITING_LIMIT
        assert lines[-2:] == ["cron skipped overlap"] * 2
        await world.registry.pause("s", None)
        assert (await world.lines()).count("cron skipped paused") == WAITING_LIMIT

    in_schedule_world(tmp_path, scene)


def test_cancel_running_cancels_the_earlier_job_and_fires_the_newest_tick_after_its_end(
    tmp_path: Path,
) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(overlap="cancel_running")
        await world.pass_time()
        await world.pass_time()
        assert await world.lines() == ["cron fired", "cron waiting"]
        await world.scheduler.step()  # the end of the job woke the loop
        first, second = await world.jobs()
        assert (first.state, second.state) == (State.CANCELLED, State.QUEUED)
        assert await world.lines() == ["cron fired", "cron fired"]
        schedule = await world.schedule()
        assert (schedule.failures, schedule.runs) == (0, 2)  # a cancelled job is no failure

    in_schedule_world(tmp_path, scene)


def test_a_waiting_tick_is_replaced_by_a_newer_one_of_cancel_running(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        world.keys[KEY.id] = replace(KEY, scopes=frozenset({"submit", "read", "cancel"}))
        await world.make(overlap="cancel_running")
        await world.pass_time()
        world.keys[KEY.id] = replace(KEY, scopes=frozenset({"submit", "read"}))  # it may not cancel any more
        await world.pass_time()
        await world.pass_time()
        assert await world.lines() == ["cron fired", "cron skipped replaced", "cron waiting"]
        await world.end_newest()
        assert await world.lines() == ["cron fired", "cron skipped replaced", "cron fired"]

    in_schedule_world(tmp_path, scene)


# --- missed ticks and the wall clock -------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "lines", "jobs"),
    [
        ("once", ["missed skipped missed", "missed fired"], 1),
        ("all", ["missed skipped missed", "missed fired"], 1),
        ("none", ["missed skipped missed"], 0),
    ],
)
def test_the_policy_chooses_the_missed_ticks_that_fire_after_a_stop(
    tmp_path: Path, policy: MissedPolicy, lines: list[str], jobs: int
) -> None:
    clock = FakeClock(MIDNIGHT + timedelta(seconds=30))

    async def first(world: ScheduleWorld) -> None:
        await world.make(cron="*/5 * * * *", missed=policy)

    async def second(world: ScheduleWorld) -> None:
        clock.advance(2 * HOUR)  # ticks at 00:05 .. 02:00
        await world.scheduler.step()
        found = await world.ticks()
        assert [line for line in await world.lines() if "overlap" not in line] == lines
        assert len(await world.jobs()) == jobs
        kept = MISSED_LIMIT if policy == "all" else jobs
        assert found[0].count == 24 - kept
        assert found[0].scheduled_at == MIDNIGHT + 2 * HOUR - kept * 5 * MINUTE
        assert (await world.schedule()).next_at == MIDNIGHT + 2 * HOUR + 5 * MINUTE
        assert sum(each.count for each in found) == 24

    in_schedule_world(tmp_path, first, clock=clock)
    in_schedule_world(tmp_path, second, clock=clock)


def test_a_tick_that_is_due_now_fires_in_place_of_missed_ones(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(cron="* * * * *")
        await world.pass_time(10 * MINUTE - timedelta(seconds=25))  # 00:10:05: that of 00:10 is not late
        await world.scheduler.step()
        assert await world.lines() == ["missed skipped missed", "cron fired"]
        assert (await world.ticks())[0].count == 9

    in_schedule_world(tmp_path, scene)


def test_missed_ticks_of_a_queue_all_fire_in_order(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(cron="*/5 * * * *", missed="all", overlap="queue")
        await world.pass_time(HOUR)
        for _ in range(MISSED_LIMIT):
            await world.end_newest()
        fired = [each for each in await world.ticks() if each.result == "fired"]
        assert [each.scheduled_at for each in fired] == sorted(each.scheduled_at for each in fired)
        assert len(fired) == MISSED_LIMIT

    in_schedule_world(tmp_path, scene)


def test_a_clock_that_jumps_back_repeats_nothing_and_one_that_jumps_ahead_misses(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        await world.pass_time()
        await world.end_newest()
        for _ in range(3):
            world.clock.advance(-HOUR)
            assert await world.scheduler.step() == 10  # a bounded wait: the clock may jump again
            world.clock.advance(HOUR)
            await world.scheduler.step()
        assert len(await world.jobs()) == 1
        await world.pass_time(HOUR)
        assert await world.lines() == ["cron fired", "missed skipped missed", "missed fired"]
        assert (await world.ticks())[1].count == 59
        await world.end_newest()
        world.clock.advance(-HOUR)
        for _ in range(59):
            await world.pass_time()
        assert len(await world.jobs()) == 2

    in_schedule_world(tmp_path, scene)


def test_ticks_of_a_pause_neither_fire_nor_are_missed(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        paused = (await world.registry.pause("s", None)).schedule
        assert paused.next_at is None
        assert paused.paused is not None
        assert paused.paused.reason == "request"
        await world.pass_time(HOUR)
        resumed = (await world.registry.resume("s", None)).schedule
        assert resumed.next_at == MIDNIGHT + HOUR + MINUTE
        assert await world.ticks() == []

    in_schedule_world(tmp_path, scene)


# --- caps, keys and errors -----------------------------------------------------------------------


def test_a_schedule_pauses_itself_after_failures_in_a_row_and_says_why(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(max_failures=2)
        for outcome in (
            OutcomeType.AGENT_ERROR,
            OutcomeType.SUCCESS,
            OutcomeType.BUDGET,
            OutcomeType.CANCELLED,
        ):
            await world.pass_time()
            await world.end_newest(outcome)
        assert (await world.schedule()).paused is None
        await world.pass_time()
        await world.end_newest(OutcomeType.KILLED)
        schedule = await world.schedule()
        assert schedule.paused is not None
        assert (schedule.paused.reason, schedule.failures) == ("max_failures", 2)
        assert schedule.paused.detail == "It has failed 2 times in a row."
        assert world.pauses == ["max_failures"]
        await world.pass_time(HOUR)
        assert len(await world.jobs()) == 5
        assert (await world.registry.resume("s", None)).schedule.failures == 0
        await world.pass_time()
        await world.end_newest(OutcomeType.KILLED)
        assert (await world.schedule()).failures == 1

    in_schedule_world(tmp_path, scene)


def test_a_pause_is_stored_with_its_deliveries_which_end_with_the_schedule(tmp_path: Path) -> None:
    reported: list[frozenset[str]] = []

    async def scene(world: ScheduleWorld) -> None:
        draft = DeliveryDraft("msg_1", "hook", None, "endpoint hook", "schedule.paused", "{}")
        world.store.use_plan(lambda _job, _events: (), reported.append)
        world.store.use_pause_plan(lambda _schedule: [draft])
        await world.make()
        await world.registry.pause("s", None)  # somebody knows of it
        await world.registry.resume("s", None)
        assert reported == []
        del world.keys[KEY.id]
        await world.pass_time()
        assert reported == [frozenset({"endpoint hook"})]
        for owner in (None, KEY.id):
            page = await world.store.list_deliveries(DeliveryFilter(api_key_id=owner), 10)
            found = [(each.schedule, each.job_id, each.api_key_id) for each in page.deliveries]
            assert found == ([("s", None, KEY.id)] if owner is None else [])  # an endpoint's is of no key
        due, _ = await world.store.list_due(
            "endpoint hook", utc_now() + HOUR, 5
        )  # the store has its own clock
        (delivery,) = due
        later = AttemptResult(world.clock(), "pending", world.clock() + HOUR, 503, "busy")
        await world.store.save_attempt(delivery, later)
        await world.store.save_attempt(delivery, replace(later, state="delivered", status=200))
        replayed = await world.store.replay("msg_1", world.clock())
        assert replayed is not None
        assert (replayed.state, replayed.schedule) == ("pending", "s")
        await world.registry.remove("s", None)
        assert await world.store.get_delivery("msg_1") is None

    in_schedule_world(tmp_path, scene)


def test_a_schedule_pauses_itself_after_its_last_run(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(max_runs=2)
        for _ in range(2):
            await world.pass_time()
            await world.end_newest()
        schedule = await world.schedule()
        assert schedule.paused is not None
        assert schedule.paused.reason == "max_runs"
        error = await expect_error(Conflict, world.registry.resume("s", None))
        assert error.code == "cap_reached"
        assert (await expect_error(Conflict, world.registry.run_now("s", None))).code == "cap_reached"
        await world.registry.change("s", None, ScheduleChange({"max_runs": 3}))
        await world.registry.resume("s", None)
        await world.pass_time()
        assert len(await world.jobs()) == 3

    in_schedule_world(tmp_path, scene)


def test_the_jobs_of_a_schedule_together_never_have_a_budget_above_its_cap(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(max_micros=1_000_000, job={"budget_micros": 600_000})
        await world.pass_time()
        await world.end_newest(micros=600_000)
        await world.pass_time()
        assert [job.budget_micros for job in await world.jobs()] == [600_000, 400_000]
        error = await expect_error(Exception, world.registry.run_now("s", None))
        assert getattr(error, "code", "") == "cap_reserved"  # the open job may spend the rest
        await world.end_newest(micros=400_000)
        schedule = await world.schedule()
        assert schedule.paused is not None
        assert schedule.paused.reason == "max_usd"
        assert schedule.paused.detail == "Its jobs have cost 1.00 of 1.00 USD."
        await world.registry.change("s", None, ScheduleChange({"max_micros": None}))
        await world.registry.resume("s", None)

    in_schedule_world(tmp_path, scene)


def test_the_cost_of_a_later_run_of_a_job_counts_once(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(cron="0 * * * *")
        await world.pass_time(HOUR)
        (job,) = await world.jobs()
        await world.end_newest(OutcomeType.KILLED, micros=100_000)
        assert (await world.schedule()).failures == 1
        await world.control.retry(world.scheduler._deps.caller_of(KEY.id), job.id)  # type: ignore[arg-type]
        await world.end_newest(micros=250_000)
        schedule = await world.schedule()
        assert (schedule.spent_micros, schedule.failures) == (250_000, 0)

    in_schedule_world(tmp_path, scene)


def test_a_schedule_whose_key_is_revoked_pauses_itself(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        del world.keys[KEY.id]
        await world.pass_time()
        schedule = await world.schedule()
        assert schedule.paused is not None
        assert schedule.paused.reason == "key_revoked"
        assert KEY.id in schedule.paused.detail
        assert await world.jobs() == []
        for attempt in (world.registry.resume, world.registry.run_now):
            await expect_error(Conflict, attempt("s", None))
        world.keys[KEY.id] = KEY
        await world.registry.resume("s", None)
        await world.pass_time()
        assert len(await world.jobs()) == 1

    in_schedule_world(tmp_path, scene)


def test_the_scopes_of_the_key_hold_at_the_time_of_the_tick(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make(max_failures=2)
        world.keys[KEY.id] = replace(KEY, scopes=frozenset({"read"}))
        await world.pass_time()
        await world.pass_time()
        (first, _) = await world.ticks()
        assert (first.result, first.reason) == ("skipped", "scope_missing")
        assert first.detail == "This key lacks the scope 'submit'."
        assert world.pauses == ["max_failures"]  # what could not fire has failed, too

    in_schedule_world(tmp_path, scene)


def test_a_tick_that_the_queue_refuses_is_tried_again_until_the_next_one(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        await world.make("full", cron="0 0 1 1 *")
        await world.registry.run_now("full", None)
        await world.pass_time()
        assert await world.ticks() == []
        assert await world.scheduler.step() == 2
        await world.pass_time()  # the next tick is due
        assert await world.lines() == ["missed skipped queue_full"]

    async def with_room(world: ScheduleWorld) -> None:
        await world.scheduler.step()
        assert (await world.lines())[-1] == "cron fired"

    clock = FakeClock(MIDNIGHT + timedelta(seconds=30))
    in_schedule_world(tmp_path, scene, max_queued=1, clock=clock)
    in_schedule_world(tmp_path, with_room, clock=clock)


def test_a_limit_of_the_key_holds_for_its_schedules(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        error = await expect_error(Forbidden, world.make(job={"agent": "chat"}))
        assert error.code == "agent_not_allowed"

    in_schedule_world(tmp_path, scene, limits=KeyLimits(agents=("claude",)))


def test_an_error_of_the_service_pauses_one_schedule_and_stops_no_other(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        bad = await world.make("bad")
        await world.make("good")
        broken = replace(
            bad, spec=replace(bad.spec, timezone="Gone/Zone"), revision=2
        )  # by another release's zones
        assert await world.store.schedules.save_schedule(broken, 1)
        await world.pass_time()
        assert len(await world.jobs()) == 1
        schedule = await world.schedule("bad")
        assert schedule.paused is not None
        assert schedule.paused.reason == "internal"

    in_schedule_world(tmp_path, scene)


# --- operations ----------------------------------------------------------------------------------


def test_a_schedule_that_could_not_fire_is_refused_with_the_field(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        for fields, pointer in (
            ({"cron": "* * *"}, "/cron"),
            ({"timezone": "Mars"}, "/timezone"),
            ({"prompt": "{{ tick.dat }}"}, "/job/prompt"),
            ({"prompt": "x" * 65_537}, "/job/prompt"),
            ({"job": {"agent": "nobody"}}, "/agent"),
            ({"job": {"workspace": "nowhere"}}, "/workspace"),
        ):
            error = await expect_error(InvalidRequest, world.make(**fields))
            assert error.field_errors[0].pointer == pointer
        world.keys[KEY.id] = replace(KEY, scopes=frozenset({"submit"}))
        await expect_error(Forbidden, world.make(overlap="cancel_running"))
        assert await world.registry.list_schedules(None) == []

    in_schedule_world(tmp_path, scene)


def test_a_key_sees_and_changes_its_own_schedules_alone(tmp_path: Path) -> None:
    other = ApiKey("k_two", "two", "1" * 64, frozenset({"submit", "read"}), MIDNIGHT)

    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        await world.make("theirs", other.id)
        assert [each.schedule.name for each in await world.registry.list_schedules("k_two")] == ["theirs"]
        for attempt in (
            world.registry.get("s", "k_two"),
            world.registry.pause("s", "k_two"),
            world.registry.resume("s", "k_two"),
            world.registry.run_now("s", "k_two"),
            world.registry.remove("s", "k_two"),
            world.registry.history("s", "k_two", 10),
            world.registry.change("s", "k_two", ScheduleChange({})),
        ):
            await expect_error(NotFound, attempt)
        await expect_error(Conflict, world.make("s", other.id))

    in_schedule_world(tmp_path, scene, keys=(KEY, other))


def test_a_manual_run_leaves_the_ticks_as_they_are(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        made = await world.make(cron="0 0 * * *")
        await world.registry.pause("s", None)
        first = await world.registry.run_now("s", None)
        world.clock.advance(MINUTE)
        second = await world.registry.run_now("s", None)
        assert first.id != second.id
        assert await world.lines() == ["manual fired", "manual fired"]
        await world.registry.resume("s", None)
        assert (await world.schedule()).next_at == made.next_at

    in_schedule_world(tmp_path, scene)


def test_a_changed_time_is_counted_from_now_and_other_changes_keep_the_next_tick(tmp_path: Path) -> None:
    async def scene(world: ScheduleWorld) -> None:
        made = await world.make(cron="0 1 * * *")
        world.clock.advance(2 * HOUR)  # that of 01:00 is due
        changed = await world.registry.change("s", None, ScheduleChange({"missed": "none"}))
        assert changed.schedule.next_at == made.next_at
        changed = await world.registry.change("s", None, ScheduleChange({"cron": "0 3 * * *"}))
        assert changed.schedule.next_at == MIDNIGHT + 3 * HOUR
        assert changed.schedule.revision == 3

    in_schedule_world(tmp_path, scene)


def test_schedules_of_the_configuration_follow_it_and_keep_their_history(tmp_path: Path) -> None:
    clock = FakeClock(MIDNIGHT + timedelta(seconds=30))
    spec = make_spec("0 * * * *")

    async def first(world: ScheduleWorld) -> None:
        await world.registry.load({"s": (KEY.id, spec)})
        for attempt in (
            world.registry.change("s", None, ScheduleChange({})),
            world.registry.remove("s", None),
        ):
            await expect_error(Conflict, attempt)
        await world.pass_time(HOUR)
        await world.end_newest()

    async def without(world: ScheduleWorld) -> None:
        await world.registry.load({})
        paused = (await world.schedule()).paused
        assert paused is not None
        assert paused.reason == "not_configured"
        await expect_error(Conflict, world.registry.resume("s", None))

    async def again(world: ScheduleWorld) -> None:
        clock.advance(2 * HOUR + 30 * MINUTE)
        await world.registry.load({"s": (KEY.id, replace(spec, max_runs=9))})
        schedule = await world.schedule()
        assert schedule.paused is None
        assert (schedule.runs, schedule.spec.max_runs, len(await world.ticks())) == (1, 9, 1)
        assert schedule.next_at == MIDNIGHT + 4 * HOUR

    async def unchanged(world: ScheduleWorld) -> None:
        clock.advance(2 * HOUR)
        await world.registry.load({"s": (KEY.id, replace(spec, max_runs=9))})
        await world.scheduler.step()
        assert await world.lines() == ["cron fired", "missed skipped missed", "missed fired"]

    for scene in (first, without, again, unchanged):
        in_schedule_world(tmp_path, scene, clock=clock)


@pytest.mark.parametrize("count", [3])
def test_the_history_is_bounded_and_keeps_what_is_open(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.store.schedules.HISTORY_LENGTH", count)

    async def scene(world: ScheduleWorld) -> None:
        await world.make()
        for _ in range(8):
            await world.pass_time()
        assert await world.lines() == ["cron fired", *["cron skipped overlap"] * count]

    in_schedule_world(tmp_path, scene)


def test_a_tick_is_not_missed_because_others_of_the_same_second_took_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: ScheduleWorld) -> None:
        for name in ("a", "b", "c"):
            await world.make(name, missed="none", cron="0 0 * * *")
        submit = world.control.submit

        async def slow_submit(*arguments: Any, **options: Any) -> Any:
            world.clock.advance(LATE + timedelta(seconds=10))
            return await submit(*arguments, **options)

        monkeypatch.setattr(world.control, "submit", slow_submit)
        await world.pass_time(timedelta(days=1) - timedelta(seconds=20))
        assert [await world.lines(name) for name in ("a", "b", "c")] == [["cron fired"]] * 3

    in_schedule_world(tmp_path, scene)


def test_the_doctor_warns_of_schedules_that_no_person_has_paused(tmp_path: Path) -> None:
    async def look() -> list[DoctorCheck]:
        checks = await asyncio.to_thread(check_store, schedule_world.database_url(tmp_path), tmp_path)
        assert all(check.ok for check in checks)
        return [check for check in checks if check.name == "schedules"]

    async def scene(world: ScheduleWorld) -> None:
        await world.make("asked")
        await world.make("failing", max_failures=1)
        await world.registry.pause("asked", None)
        assert await look() == []
        await world.pass_time()
        await world.end_newest(OutcomeType.KILLED)
        (found,) = await look()
        assert found.warning
        assert found.detail == "paused by themselves: failing (max_failures)"

    in_schedule_world(tmp_path, scene)
