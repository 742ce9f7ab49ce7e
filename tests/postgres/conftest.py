"""The tests of a service from outside, once more with its jobs in Postgres: each service has a database of its own.

A module here takes in the tests of one of `tests/blackbox`. Those of `QUICK` are a part of `make test`: each kind of
route and of job once. The others are marked `long`.
"""

from pathlib import Path

import pytest
from tests.blackbox.conftest import (
    classic_service,
    common_dir,
    default_service,
    make_service,
    model,
    open_service,
    reachable_tmp,
    real_default,
    root_only,
    sealed_service,
    service,
    service_maker,
    stand_in,
)
from tests.postgres_fixtures import queue_template, store_template

from steadyhand.testing.cluster import SplitService
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import MakeService, Service

__all__ = [  # fixtures, taken in
    "classic_service",
    "common_dir",
    "default_service",
    "make_service",
    "model",
    "open_service",
    "queue_template",
    "reachable_tmp",
    "real_default",
    "root_only",
    "sealed_service",
    "service",
    "stand_in",
    "store_template",
]

HERE = Path(__file__).parent
QUICK = frozenset(
    {
        "test_a_completed_job_has_answer_usage_cost_run_and_session",
        "test_after_a_kill_9_queued_jobs_run_and_running_ones_are_interrupted",
        "test_a_list_is_newest_first_filtered_and_paged_without_a_gap",
        "test_a_deleted_job_is_gone_with_all_that_was_kept_of_it",
        "test_an_output_schema_gives_an_object",
    }
)
"""Those of one node."""

QUICK_CLASSIC = frozenset({"test_a_completed_job_has_answer_usage_cost_run_and_session"})
"""Those of `QUICK` that `make test` also runs in the classic profile."""


QUICK_APART = frozenset(
    {
        "test_what_is_served_is_as_the_document_says",
        "test_the_same_idempotency_key_and_body_give_the_same_job",
        "test_a_queued_job_is_cancelled_at_once_and_never_runs",
        "test_a_retry_is_a_new_run_of_the_same_job_and_a_repeat_of_it_is_harmless",
    }
)
"""Those that `make test` runs with two nodes, of which one serves and the other works."""

OF_SQLITE = frozenset({"test_a_scrape_during_an_outage_of_the_store_answers_and_says_so"})
"""Tests that hold the lock of the SQLite file."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of SQLite, and leave to `make test-long` what `make test` has no time for."""
    taken_in = [
        item for item in items if item.path.parent == HERE and item.path.stem.startswith("test_blackbox_")
    ]
    for item in taken_in:
        if not is_quick(item):
            item.add_marker(pytest.mark.long)
    left_out = [item for item in taken_in if name_of(item) in OF_SQLITE]
    # The classic profile behaves as the earlier service, which was one.
    left_out += [
        item
        for item in items
        if item.path.parent == HERE and is_apart(item) and (item not in taken_in or "classic" in item.nodeid)
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def name_of(item: pytest.Item) -> str:
    """Return the name of a test without its parameters."""
    name: str = getattr(item, "originalname", item.name)
    return name


def is_quick(item: pytest.Item) -> bool:
    """Return True for a test of `make test`: one of the sets above."""
    if is_apart(item):
        return name_of(item) in QUICK_APART
    if "classic" in item.nodeid and name_of(item) not in QUICK_CLASSIC:
        return False
    return name_of(item) in QUICK


def is_apart(item: pytest.Item) -> bool:
    """Return True for a test with two nodes."""
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get("make_service_in") == "apart"


@pytest.fixture(scope="session", params=["alone", "apart"])
def make_service_in(
    request: pytest.FixtureRequest,
    reachable_tmp: Path,
    stand_in: Path,
    postgres: Postgres,
    queue_template: str,
) -> MakeService:
    """Make a service as the tests of `tests/blackbox` do, on a database of its own: alone, or with another node.

    That one does the work, and the service leaves its jobs to it.
    """
    make_one = service_maker(reachable_tmp, stand_in)

    def make(**options: object) -> Service:
        env: dict[str, str] = dict(options.pop("env", {}))  # type: ignore[call-overload]  # a mapping, as `Service` takes it
        if "STEADYHAND_DATABASE_URL" not in env:
            env["STEADYHAND_DATABASE_URL"] = postgres.url(postgres.create_database(queue_template))
        if request.param == "alone":
            return make_one(env=env, **options)
        front = {"STEADYHAND_SERVICE__NODE": "front", "STEADYHAND_CONCURRENCY": "0"}
        worker = {"STEADYHAND_SERVICE__NODE": "worker"}
        return SplitService.of(
            make_one(env=env | front, **options),
            make_one(env=env | worker, command="worker", **{**options, "arguments": ()}),
        )

    return make


@pytest.fixture(autouse=True)
def _nodes(make_service_in: MakeService) -> None:
    """Let each test have the parameter of `make_service_in`, also one that asks for its service while it runs."""
