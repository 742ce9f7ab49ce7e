"""Three nodes under faults, in a small form, and the checker of their history."""

from pathlib import Path

import pytest
from tests.chaos.agents import check_agents
from tests.chaos.checker import check
from tests.chaos.faults import Kill
from tests.chaos.history import Call
from tests.chaos.kinds import KINDS, LONG_KINDS, Kind
from tests.chaos.model_calls import CountingModel, Note, check_ledger
from tests.chaos.run import SMALL, run_chaos
from tests.service_fixtures import make_service_root, reachable_tmp

from steadyhand.testing.request import ModelRequest

__all__ = ["reachable_tmp"]  # a fixture, taken in

SHORT = KINDS[0]


@pytest.mark.parametrize("seed", [1, 2])
def test_under_faults_every_job_ends_once_and_nothing_is_left(seed: int, reachable_tmp: Path) -> None:
    result = run_chaos(seed, SMALL, make_service_root(reachable_tmp))
    assert not result.wrong, "\n".join([*result.faults, *result.wrong, *result.logs])
    assert len(result.faults) == SMALL.plan.faults


def run(number: int, state: str) -> dict[str, object]:
    return {"number": number, "state": state}


def job(*states: str, last_event: int = 3) -> dict[str, object]:
    runs = [run(number, state) for number, state in enumerate(states, 1)]
    return {
        "id": "j1",
        "state": states[-1],
        "runs": runs,
        "last_event": last_event,
        "answer": "done",
        "cost": {"usd": "0.25"},
    }


def events(*runs: int) -> dict[str, object]:
    return {"data": [{"seq": at, "run": each, "type": "message"} for at, each in enumerate(runs, 1)]}


def history(*reads: dict[str, object], page: dict[str, object] | None = None) -> list[Call]:
    """The calls of a job that was submitted, read so often, one read after the other, and whose events were read."""
    calls = [Call("submit", 0, "one", 0.0, 0.5, 202, {"id": "j1"})]
    calls += [Call("get", 0, "one", at, at + 0.5, 200, dict(body)) for at, body in enumerate(reads, 1)]
    return [*calls, Call("events", 0, "one", 90.0, 91.0, 200, dict(page or events(1, 1, 1)))]


def wrong(calls: list[Call], kind: Kind = SHORT, beats: list[tuple[int, str, float]] | None = None) -> str:
    return "; ".join(check([kind], calls, beats or []))


def test_the_checker_accepts_a_good_history() -> None:
    assert wrong(history(job("running", last_event=2), job("completed"))) == ""


def test_the_checker_finds_what_must_not_be() -> None:
    good = history(job("completed"))
    other_id = Call("submit", 0, "two", 2.0, 2.5, 202, {"id": "j2"})
    assert "2 ids for one idempotency key" in wrong([*good, other_id])
    assert "did not end" in wrong(history(job("running")))
    assert "an older state" in wrong(history(job("completed"), job("running", last_event=2)))
    assert "at one event" in wrong(history(job("failed"), job("completed")))
    assert "2 runs, and 1 were asked for" in wrong(history(job("interrupted", "completed")))
    assert "an event is missing" in wrong(history(job("completed"), page=events(1, 1)))
    assert "of an earlier run" in wrong(history(job("completed"), page=events(1, 2, 1)))
    not_found = Call("get", 0, "two", 1.0, 1.5, 404, {})
    assert "was not found" in wrong([*good, not_found])
    both = [(0, "10", 1.0), (0, "10", 3.0), (0, "11", 2.0)]
    assert "two agents at once" in wrong(good, beats=both)
    assert "2 agents for 1 runs" in wrong(good, beats=both)


def test_the_checker_finds_agents_that_nobody_owns_and_two_in_one_directory() -> None:
    calls = history(job("running", last_event=2), job("completed"))  # its end was read at 2.5
    assert list(check_agents([SHORT], calls, [(0, "10", 103.0)], 100.0)) == []
    assert "at work 2.5 s after the end" in next(check_agents([SHORT], calls, [(0, "10", 105.0)], 100.0))
    in_place = LONG_KINDS[-1]
    beats = [(0, "10", 1.0), (0, "10", 3.0), (1, "11", 2.0), (1, "11", 2.5)]
    assert "jobs 0 and 1 were in one directory" in next(check_agents([in_place] * 2, [], beats, 0.0))
    assert list(check_agents([SHORT] * 2, [], beats, 0.0)) == []


def ledger_faults(*, calls: int, tokens: int, kills: tuple[Kill, ...] = ()) -> str:
    """Compare a ledger that has so many calls and tokens with a model that answered twice, with 10 tokens each time."""
    with CountingModel() as model:
        body = {"max_tokens": 64, "messages": [{"role": "user", "content": "job 0 of process 10"}]}
        for _ in range(2):
            request = ModelRequest("POST", "/v1/messages", {}, body)
            model.record(request)
            model.count_tokens(request, {"output_tokens": 10})
        notes = [Note(0, at, word) for at in (1.0, 20.0) for word in ("asked", "answered")]
        known = job("completed") | {"cost": {"source": "ledger"}, "usage": {"output_tokens": tokens}}
        counted = {"calls": calls, "usage": {"output_tokens": tokens}}
        return "; ".join(check_ledger({0: known}, notes, model, counted, kills))


def test_the_checker_finds_calls_that_the_ledger_lacks_or_has_twice() -> None:
    assert ledger_faults(calls=2, tokens=20) == ""
    assert "the ledger has 3 calls" in ledger_faults(calls=3, tokens=20)
    assert "the ledger has 30 tokens" in ledger_faults(calls=2, tokens=30)
    missing = ledger_faults(calls=1, tokens=10)
    assert "2 answers came long enough before a kill" in missing
    assert "job 0: 10 tokens by the ledger, and the model sent 20" in missing
    assert "the ledger has" not in ledger_faults(calls=1, tokens=10, kills=(Kill(20.5, 20.6),))
    assert "the ledger has 3 calls" in ledger_faults(
        calls=3, tokens=20, kills=(Kill(20.5, 20.6),)
    )  # none was cut
