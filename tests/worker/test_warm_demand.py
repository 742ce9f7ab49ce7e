"""How many processes are to wait for which jobs."""

import pytest

from steadyhand.testing.contracts.samples import make_job
from steadyhand.worker.warm_demand import HISTORY_SECONDS, MAX_KEYS, AgentDemand, SlotKey

BASE = SlotKey("chat", "process", "plain", "scratch")
TOOLS = BASE._replace(details="tools")
OTHER_MODEL = BASE._replace(process="other")


def _demand(*arrivals: tuple[SlotKey, float]) -> AgentDemand:
    demand = AgentDemand(make_job())
    for key, at in arrivals:
        demand.record(key, make_job(), at)
    return demand


@pytest.mark.parametrize("size", [1, 2, 5])
def test_before_any_job_all_processes_are_for_the_plain_one(size: int) -> None:
    assert _demand().plan(BASE, size, 0.0) == {(BASE, True): size}


def test_a_key_that_came_twice_is_learned_and_has_its_share() -> None:
    demand = _demand((TOOLS, 1.0), (TOOLS, 2.0), (TOOLS, 3.0))
    assert demand.plan(BASE, 1, 4.0) == {(TOOLS, True): 1}
    assert demand.plan(BASE, 4, 4.0) == {(TOOLS, True): 3, (BASE, True): 1}


def test_keys_that_come_once_share_a_process_that_is_only_started() -> None:
    keys = [BASE._replace(details=f"new {n}") for n in range(3)]
    demand = _demand(*((key, 1.0) for key in keys))
    assert demand.plan(BASE, 1, 2.0) == {(BASE, False): 1}
    assert demand.plan(BASE, 4, 2.0) == {(BASE, False): 3, (BASE, True): 1}
    assert all((key, True) not in demand.plan(BASE, 8, 2.0) for key in keys)


def test_auto_has_as_many_as_came_within_a_few_seconds_and_none_before() -> None:
    assert _demand().plan(BASE, "auto", 0.0) == {}
    demand = _demand(
        (BASE, 0.0), (TOOLS, 10.0), (TOOLS, 11.0), (TOOLS, 12.0), (TOOLS, 60.0), (OTHER_MODEL, 61.0)
    )
    assert demand.plan(BASE, "auto", 62.0) == {(TOOLS, True): 3}


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    demand = _demand((TOOLS, 0.0), (TOOLS, 1.0))
    assert demand.plan(BASE, 1, HISTORY_SECONDS + 2) == {(BASE, True): 1}
    assert demand.plan(BASE, "auto", HISTORY_SECONDS + 2) == {}


def test_the_remembered_keys_are_bounded_and_the_oldest_goes() -> None:
    demand = _demand(*((BASE._replace(details=str(n)), float(n)) for n in range(MAX_KEYS + 10)))
    assert [key.details for key in demand.known_keys()] == [str(n) for n in range(10, MAX_KEYS + 10)]


def test_a_started_process_is_for_any_details_and_an_initialised_one_for_its_own() -> None:
    assert BASE.fits(TOOLS, exactly=False)
    assert not BASE.fits(TOOLS, exactly=True)
    assert not BASE.fits(OTHER_MODEL, exactly=False)
    assert not BASE.fits(BASE._replace(workspace="another"), exactly=False)
