"""Fixtures of the services that these tests start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgres_fixtures import postgres_url, store_template
from tests.schedules import schedule_world
from tests.service_fixtures import closing_services, make_service_root, model, reachable_tmp, stand_in

from steadyhand.testing.service import MakeService, Service

__all__ = ["model", "postgres_url", "reachable_tmp", "stand_in", "store_template"]  # fixtures, taken in

ON_POSTGRES = frozenset(
    {
        "test_missed_ticks_of_a_queue_all_fire_in_order",
        "test_queued_ticks_wait_for_the_end_of_the_earlier_job_one_after_another",
        "test_schedules_of_the_configuration_follow_it_and_keep_their_history",
        "test_the_jobs_of_a_schedule_together_never_have_a_budget_above_its_cap",
        "test_the_cost_of_a_later_run_of_a_job_counts_once",
        "test_the_history_is_bounded_and_keeps_what_is_open",
        "test_a_schedule_pauses_itself_after_failures_in_a_row_and_says_why",
        "test_a_pause_is_stored_with_its_deliveries_which_end_with_the_schedule",
        "test_a_key_sees_and_changes_its_own_schedules_alone",
        "test_the_doctor_warns_of_schedules_that_no_person_has_paused",
    }
)
"""Those of `make test` on Postgres: claims of ticks, sums, the history, pauses. On SQLite all are."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make test-long` what differs by the database alone."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        is_postgres = callspec is not None and callspec.params.get("each_database") == "postgres"
        if is_postgres and getattr(item, "originalname", item.name) not in ON_POSTGRES:
            item.add_marker(pytest.mark.long)


@pytest.fixture
def make_service(reachable_tmp: Path, stand_in: Path) -> Iterator[MakeService]:
    """Make a service without a sandbox that was not started; keywords are those of `Service`."""

    def make(**options: object) -> Service:
        env = {"STEADYHAND_ISOLATION": "none"}
        return Service(make_service_root(reachable_tmp), stand_in, env=env, **options)  # type: ignore[arg-type]

    with closing_services(make) as making:
        yield making


@pytest.fixture(params=["sqlite", "postgres"])
def each_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Play the scenes of a test on SQLite, then on Postgres; return the name of the database's kind."""
    kind: str = request.param
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
        monkeypatch.setattr(schedule_world, "database_url", lambda _: url)
    return kind
