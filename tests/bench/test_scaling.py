"""The simulation of many nodes gives what can be worked out by hand."""

from dataclasses import replace

import pytest
from bench.scaling.costs import Costs

pytest.importorskip("simpy", reason="an environment from before has no SimPy")

from bench.scaling.model import Layout, Load, quantile, simulate

FREE = Costs(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_one_thread_of_a_worker_is_a_limit_for_each_of_them(workers: int) -> None:
    outcome = simulate(replace(FREE, run_worker=0.02), Layout(workers, 4), Load(), seconds=4)
    assert outcome.jobs_per_second == pytest.approx(workers / 0.02, rel=0.01)
    assert outcome.busy["worker"] == pytest.approx(1, rel=0.01)


def test_one_machine_does_as_many_jobs_as_its_cores_have_time_for() -> None:
    costs = replace(FREE, accept_serve=0.002, run_worker=0.01, run_agent=0.03, run_postgres=0.008)
    outcome = simulate(costs, Layout(4, 4, shared_cores=2), Load(), seconds=10)
    assert outcome.jobs_per_second == pytest.approx(2 / 0.05, rel=0.02)


def test_the_lock_of_the_places_is_a_limit_that_more_nodes_share_in_larger_transactions() -> None:
    costs = replace(FREE, turn=0.004, commit=0.001)
    rates = {each: simulate(costs, Layout(each, 1), Load(), seconds=4) for each in (1, 8)}
    assert rates[1].jobs_per_second < 1 / 0.005
    assert rates[8].jobs_per_second > rates[1].jobs_per_second
    assert rates[8].busy["turn"] == pytest.approx(1, abs=0.02)


def test_commits_that_notify_come_one_after_the_other() -> None:
    costs = replace(FREE, commit=0.01)
    outcome = simulate(costs, Layout(50, 10), Load(1, 300, 1.0))
    assert outcome.busy["notify"] == pytest.approx(1, abs=0.02)
    assert quantile(outcome.event_delays, 0.5) > 5 * 0.01, "an event waits for the commits of other nodes"
    quiet = simulate(costs, Layout(1, 10), Load(0.01, 300, 1.0))
    assert quantile(quiet.event_delays, 0.5) == pytest.approx(0.01, abs=0.005)


def test_an_open_load_has_the_agents_and_the_events_that_it_should() -> None:
    load = Load(2.0, 50, 0.5)
    outcome = simulate(replace(FREE, event_worker=1e-5), Layout(10, 20), load, seconds=60)
    assert outcome.jobs_per_second == pytest.approx(2, rel=0.3)
    assert len(outcome.event_delays) / 60 == pytest.approx(2.0 * 50 * 0.5, rel=0.2)


def test_the_same_seed_has_the_same_outcome() -> None:
    found = [
        simulate(replace(FREE, commit=0.001), Layout(2, 5), Load(1, 10, 1.0), seed=seed).event_delays
        for seed in (7, 7, 8)
    ]
    assert found[0] == found[1] != found[2]
