"""The phases of a run as a follower sees them."""

from typing import Any

from steadyhand.testing.service import MakeService


def phases_of(events: list[dict[str, Any]]) -> list[str]:
    return [each["data"]["phase"] for each in events if each["type"] == "phase"]


def test_a_run_tells_its_phases_in_order_and_all_before_its_end(make_service_in: MakeService) -> None:
    with make_service_in() as service:
        job = service.run_job("say x", workspace="default")
        events = service.events(job["id"])
        assert phases_of(events) == ["fetching", "checking_out", "starting", "running", "harvesting"]
        assert [each["seq"] for each in events] == list(range(1, len(events) + 1))
        assert events[-1]["type"] == "state.changed"
        assert job["last_event"] == len(events)
        scratch = service.run_job("say y", workspace="scratch")
        assert phases_of(service.events(scratch["id"])) == ["starting", "running", "harvesting"]
