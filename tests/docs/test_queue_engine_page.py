"""docs/decisions/queue-engine.md has the figures of its last run, and they show what the page concludes."""

import json
from typing import Any

from bench.queue_engines.engine import ENGINES, Settings
from bench.queue_engines.page import with_figures
from tests.docs.pages import PROJECT, text_of

PAGE = "decisions/queue-engine.md"
RESULTS = json.loads((PROJECT / "docs/decisions/queue-engine/results.json").read_text("utf-8"))
FOUND: dict[str, dict[str, dict[str, Any]]] = RESULTS["scenarios"]


def test_the_page_has_every_figure_of_its_results() -> None:
    assert with_figures(text_of(PAGE), RESULTS) == text_of(PAGE)


def test_the_run_was_the_full_form_with_the_settings_of_the_harness_and_both_engines() -> None:
    assert RESULTS["context"]["scale"] == 1
    assert {name: RESULTS["settings"][name] for name in ("heartbeat", "dead_after", "pool_timeout")} == {
        "heartbeat": Settings().heartbeat,
        "dead_after": Settings().dead_after,
        "pool_timeout": Settings().pool_timeout,
    }
    assert all(figures.keys() >= ENGINES.keys() for figures in FOUND.values())
    for engine, release in ENGINES.items():
        assert RESULTS["context"]["versions"][engine].startswith(f"{release}.")


def test_the_chosen_engine_ran_no_job_again_and_a_death_was_noticed_in_time() -> None:
    of_engine = {scenario: figures["procrastinate"] for scenario, figures in FOUND.items()}
    assert (of_engine["kills"]["n"], of_engine["kills"]["started_again"]) == (20, 0)
    assert of_engine["kills"]["states"] == {"failed": 20}
    assert of_engine["kills"]["noticed_max"] <= 15
    assert of_engine["freeze"]["starts"] == 1
    assert of_engine["freeze"]["state_after"] == "failed"
    for outage in ("outage_10", "outage_45"):
        assert of_engine[outage]["most_starts"] == 1
        assert (of_engine[outage]["ended_during"], of_engine[outage]["at_work"]) == ("done", "done")


def test_the_other_engine_ran_jobs_again() -> None:
    assert FOUND["kills"]["pgqueuer"]["started_again"] > 0
    assert FOUND["freeze"]["pgqueuer"]["starts"] > 1
    assert FOUND["outage_45"]["pgqueuer"]["exit_codes"] == [1, 1]


def test_a_worker_that_works_on_after_a_freeze_shows_that_a_node_must_fence_itself() -> None:
    assert all(figures["worked_on"] for figures in FOUND["freeze"].values())
