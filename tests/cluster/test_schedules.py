"""Schedules on several nodes: each tick fires once, whichever node is killed."""

import pytest
from tests.cluster.conftest import MakeCluster
from tests.schedules.service_schedules import check_every_second_through_kills


@pytest.mark.parametrize("seconds", [15, pytest.param(45, marks=pytest.mark.long)])
def test_each_of_many_every_second_ticks_fires_once_while_three_nodes_are_killed_in_turn(
    make_cluster: MakeCluster, seconds: int
) -> None:
    env = {"STEADYHAND_CONCURRENCY": "2", "STEADYHAND_SERVICE__MAX_QUEUED": "1000"}
    cluster = make_cluster(serving=(), working=(), both=("one", "two", "three"), env=env)
    check_every_second_through_kills(list(cluster.nodes.values()), seconds)
