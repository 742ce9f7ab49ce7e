"""The verbs that move a job on: cancelled, run again, gone on with, told what came of its calls, forgotten."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from steadyhand.control.asked import Caller, Continuation
from steadyhand.control.asking import Asking
from steadyhand.errors import Conflict, InvalidRequest
from steadyhand.events import CallsWaiting, Draft, StateChanged
from steadyhand.job import (
    ENDED,
    MICROS,
    Job,
    State,
    Verdict,
    advance,
)
from steadyhand.outcome import fault_of
from steadyhand.rerun import again, goes_on

_UNKNOWN_CALL = "unknown_call"
_TAKES_LATE_RESULTS = frozenset({"unanswered", "interrupted", "timeout"})


class Control(Asking):
    """Every verb over the ports. Each takes the caller and checks what that key may do."""

    # --- moving ----------------------------------------------------------------------------

    async def cancel(self, caller: Caller, job_id: str) -> Job:
        """Cancel: a queued job at once, a running one as soon as nothing of it is alive."""
        caller.require("cancel")
        job = await self.get(caller, job_id)
        if job.state.ended:
            return job
        found = await self._queue.cancel(job_id)
        if found == "stopping":
            return await self.get(caller, job_id)
        return await self._cancelled(job)

    async def _cancelled(self, job: Job) -> Job:
        verdict = Verdict("cancelled")
        now = self._clock()
        drafts = [Draft(job.run, now, StateChanged(job.state, State.CANCELLED, outcome=verdict.type))]
        try:
            changed = await self._recorder.change(
                job.id,
                frozenset({State.QUEUED, State.PARKED, State.WAITING}),
                lambda old: replace(
                    old,
                    state=advance(old.state, State.CANCELLED),
                    outcome=verdict,
                    error=fault_of(verdict),
                    finished_at=now,
                ),
                drafts,
            )
        except Conflict:
            return await self._store.get(job.id) or job
        if goes_on(job):
            await self._checkouts.drop(job.id)
        return changed

    async def retry(self, caller: Caller, job_id: str, after_run: int | None = None) -> Job:
        """Queue an ended job for a new run from the start; with `after_run` a repeat of the call is harmless."""
        caller.require("submit")
        job = await self.get(caller, job_id)
        if _is_repeat(job, after_run):
            return job
        return await self._run_again(caller, job, "retry", lambda old, now: again(old, "fresh", now))

    async def resume(self, caller: Caller, job_id: str, asked: Continuation) -> Job:
        """Queue an ended job for a new run in the same session and checkout, perhaps with more to spend or to say.

        Raises `Conflict` (`invalid_state`) when it has not ended or has no session, `InvalidRequest` for a budget
        that is no more than was spent.
        """
        caller.require("submit")
        job = await self.get(caller, job_id)
        if _is_repeat(job, asked.after_run):
            return job
        budget = job.budget_micros if asked.budget_micros is None else asked.budget_micros
        self._within_budget(budget)
        if budget <= job.cost.micros and job.cost.source == "ledger":
            spent = f"{job.cost.micros / MICROS:.6f}"
            raise InvalidRequest.at("/budget_usd", f"has to be above the {spent} that the job has spent")
        if not job.run or not await asyncio.to_thread(self._checkouts.files(job_id).config.is_dir):
            raise Conflict("The job has left no session to go on with; retry it.")

        def resumed(old: Job, now: datetime) -> Job:
            return replace(again(old, "resume", now), budget_micros=budget, continue_prompt=asked.prompt)

        return await self._run_again(caller, job, "resume", resumed)

    async def answer_calls(self, caller: Caller, job_id: str, results: Mapping[str, str]) -> tuple[Job, int]:
        """Give an agent the results of the calls that it waits for, by their ids; a repeat is harmless.

        Gives the job and the number of its newest event before that. When the agent's process is not there any more,
        its session is resumed. Raises `NotFound`, `InvalidRequest` for ids that are not those that it waits for.
        """
        caller.require("submit")
        job = await self.get(replace(caller, scopes=frozenset({"read"})), job_id)
        after = self._exchange.given(job_id, results)
        if after is not None:
            return job, after
        wanted = self._exchange.wanted(job_id)
        if wanted:
            _are_those(results, wanted)
            if self._exchange.answer(job_id, results, job.last_event):
                return job, job.last_event
        if job.outcome is None or job.outcome.type not in _TAKES_LATE_RESULTS:
            raise InvalidRequest(
                "The agent does not wait for the results of these calls any more.", code=_UNKNOWN_CALL
            )
        calls: Sequence[Mapping[str, Any]] = ()
        async for event in self._stored(job_id, 0):
            if event.type == CallsWaiting.type and event.run == job.run:
                calls = event.data["calls"]
        _are_those(results, frozenset(call["id"] for call in calls))
        told = _told_late(calls, results)
        resumed = await self.resume(caller, job_id, Continuation(prompt=told, after_run=job.run))
        self._exchange.remember(job_id, results, job.last_event)
        return resumed, job.last_event

    async def _run_again(
        self, caller: Caller, job: Job, reason: str, change: Callable[[Job, datetime], Job]
    ) -> Job:
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
        await self.admit(caller, job.agent, job.workspace)
        now = self._clock()
        drafts = [Draft(job.run, now, StateChanged(job.state, State.QUEUED, reason=reason))]
        job = await self._recorder.change(job.id, ENDED, lambda old: change(old, now), drafts)
        await self._queue.readmit(job)
        return job

    async def delete(self, caller: Caller, job_id: str) -> None:
        """Forget an ended job and all that was kept of it."""
        caller.require("cancel")
        job = await self.get(caller, job_id)
        if not job.state.ended:
            raise Conflict(f"The job is {job.state}; cancel it first.")
        await self._store.delete(job_id)
        await self._checkouts.forget(job_id)


def _are_those(results: Mapping[str, str], wanted: frozenset[str]) -> None:
    if others := sorted(results.keys() - wanted):
        raise InvalidRequest(
            f"The agent does not wait for the result of the call {others[0][:64]!r}.", code=_UNKNOWN_CALL
        )
    if missing := sorted(wanted - results.keys()):
        raise InvalidRequest(
            f"The result of the call {missing[0]!r}, made in the same turn, is missing.", code=_UNKNOWN_CALL
        )


def _told_late(calls: Sequence[Mapping[str, Any]], results: Mapping[str, str]) -> str:
    """Give the results as what a resumed agent is told."""
    parts = ["Your last tool calls were made after all. Their results:"]
    for call in calls:
        given = json.dumps(call["arguments"], ensure_ascii=False)
        parts.append(f"{call['name']}({given}):\n{results[call['id']]}")
    return "\n\n".join([*parts, "Go on with them."])


def _is_repeat(job: Job, after_run: int | None) -> bool:
    """Say whether a job was run again already since the run that the caller knows of.

    Raises `Conflict` when that very run is under way.
    """
    if after_run is None or job.run < after_run:
        return False
    if job.run > after_run or job.state is State.QUEUED:
        return True
    if not job.state.ended:
        raise Conflict(f"The job is {job.state}; only an ended job can be run again.")
    return False
