"""The nodes that a job may run on."""

from steadyhand.agents import Agent, Catalog
from steadyhand.placement import ANYWHERE, Placement, combine
from steadyhand.ports.nodes import Drained, NodeFigures, NodeInfo, NodeState, describe_obstacle
from steadyhand.testing.contracts.samples import NOON, make_job


def node(
    name: str, *labels: str, slots: int = 1, age: float | None = 1.0, drained: bool = False
) -> NodeState:
    info = NodeInfo(name, labels=labels, slots=slots)
    return NodeState(info, NodeFigures(), Drained(NOON) if drained else None, age)


def test_a_node_fits_if_it_has_all_labels_and_is_not_excluded() -> None:
    placement = Placement(("gpu", "zone=a"), ("two",))
    assert placement.fits("one", ["zone=a", "gpu", "more"])
    assert not placement.fits("one", ["gpu"])
    assert not placement.fits("two", ["zone=a", "gpu"])
    assert ANYWHERE.fits("two", [])
    assert ANYWHERE.is_free
    assert not placement.is_free


def test_the_demands_of_an_agent_and_of_a_job_add_up() -> None:
    agent = Agent("build", labels=("gpu",), not_on_nodes=("one",))
    catalog = Catalog(agents={"build": agent})
    job = make_job(agent="build", labels=("zone=a", "gpu"), not_on_nodes=("two",))
    assert catalog.placement_of(job) == Placement(("gpu", "zone=a"), ("one", "two"))
    assert catalog.placement_of(make_job(agent="unknown")) is ANYWHERE
    assert combine(((), ()), ((), ())) is ANYWHERE


def test_the_demands_are_described_as_a_node() -> None:
    assert Placement(("gpu",)).describe() == "a node with the label gpu"
    assert (
        Placement(("a", "b"), ("one", "two")).describe() == "a node with the labels a, b other than one, two"
    )
    assert ANYWHERE.describe() == "a node"


def test_a_node_that_is_silent_or_has_no_slots_takes_no_job() -> None:
    placement = Placement(("gpu",))
    unfit = [node("old", "gpu", age=60.0), node("serves", "gpu", slots=0), node("away", "gpu", age=None)]
    obstacle = describe_obstacle(placement, unfit)
    assert obstacle is not None
    assert obstacle.code == "no_node"
    assert describe_obstacle(placement, [*unfit, node("one", "gpu")]) is None


def test_drained_nodes_are_named_as_the_reason_if_no_other_one_fits() -> None:
    nodes = [node("b", "gpu", drained=True), node("a", "gpu", drained=True), node("plain")]
    obstacle = describe_obstacle(Placement(("gpu",)), nodes)
    assert obstacle is not None
    assert (obstacle.code, obstacle.detail) == ("drained", "Each node that could take it is drained: a, b.")
    assert describe_obstacle(ANYWHERE, nodes) is None
