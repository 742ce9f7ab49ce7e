"""What a failure tells about the nodes of a cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cluster.conftest import CLUSTERS
from tests.cluster.conftest import pytest_runtest_makereport as add_logs

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.service import LOG_TAIL_BYTES, Service


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Nodes that were not started, with logs."""

    def make_service(**options: object) -> Service:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        return Service(root, tmp_path / "agent", **options)  # type: ignore[arg-type]

    made = Cluster(make_service, "postgresql://x@127.0.0.1/x", serving=("one",), working=("two",))
    made["one"].log_path.write_text("".join(f"line {number}\n" for number in range(10_000)))
    return made


def test_an_error_in_a_cluster_has_the_bounded_end_of_the_log_of_each_node(cluster: Cluster) -> None:
    with pytest.raises(ConnectionRefusedError) as raised:
        fail_in(cluster)
    one, two = raised.value.__notes__
    assert one.startswith("node one: It was not started. The end of its log:\nline ")
    assert one.endswith("line 9998\nline 9999\n")
    assert len(one) < LOG_TAIL_BYTES + 100
    assert two == "node two: It was not started. The end of its log:\n"


def fail_in(cluster: Cluster) -> None:
    error = ConnectionRefusedError("refused")
    try:
        raise error
    finally:
        cluster.__exit__(type(error), error, None)


def test_the_end_of_a_short_log_is_all_of_it(cluster: Cluster) -> None:
    cluster["two"].log_path.write_text("begun\nüber\n")
    assert cluster["two"].log_tail() == "begun\nüber\n"


def test_a_test_of_a_cluster_that_fails_has_the_logs_in_its_report(cluster: Cluster) -> None:
    item: Any = SimpleNamespace(stash=pytest.Stash())
    item.stash[CLUSTERS] = [cluster]
    for failed, count in ((True, 2), (False, 0)):
        report: Any = SimpleNamespace(failed=failed, sections=[])
        hook = add_logs(item)
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(report)
        assert [name for name, _ in report.sections] == ["logs of the nodes"] * count
