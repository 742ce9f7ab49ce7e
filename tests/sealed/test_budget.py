"""A budget is a wall: with the real CLI, whatever it believes itself."""

import sqlite3
from pathlib import Path

import pytest

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, until

TURNS = 50
A_TURN_MICROS = 6_000
"""1,000 tokens in and 1,000 out of a model that costs 1 and 5 dollars a million."""
SCENARIO = """\
description = "Fifty turns, each with a tool call, that cost the same."
[[turn]]
text = "Again."
[[turn.tool]]
name = "Bash"
input = { command = "echo turn >> turns.txt; wc -l < turns.txt", description = "Count" }
[turn.usage]
input_tokens = 1000
output_tokens = 1000
cache_creation_input_tokens = 0
cache_read_input_tokens = 0
"""
CONFIG = """\
[prices."claude-haiku-4-5"]
input = "1"
output = "5"
"""


@pytest.mark.parametrize("isolation", ["bwrap", "none"])
def test_a_job_of_50_turns_with_a_budget_of_ten_stops_within_one_of_it(
    make_service: MakeService, reachable_tmp: Path, isolation: str
) -> None:
    turn = SCENARIO.partition("\n")[2]
    scenario = reachable_tmp / "fifty.toml"
    scenario.write_text(SCENARIO.partition("\n")[0] + "\n" + turn * TURNS, encoding="utf-8")
    with ScriptedModel(scenario) as model:
        service = make_service(
            claude=cli_path(), model=model.url, config=CONFIG, env={"STEADYHAND_ISOLATION": isolation}
        ).start()
        job = service.ended(
            service.submit("go on", model="claude-haiku-4-5", budget_usd=10 * A_TURN_MICROS / 1e6)["id"], 120
        )
        assert (job["state"], job["outcome"]["type"]) == ("failed", "budget"), (job, service.log[-2000:])
        assert "The budget of this job (0.06 USD) is spent." in job["outcome"]["detail"]
        assert 10 <= model.calls <= 11, model.calls
        # What it did until then was harvested; it may go on with a higher budget, which is a wall again.
        resumed = service.http.post(f"/v1/jobs/{job['id']}/resume", json={"budget_usd": 0.12})
        assert resumed.status_code == 202, resumed.text
        job = service.ended(job["id"], 120)
        assert job["outcome"]["type"] == "budget"
        assert 20 <= model.calls <= 22, model.calls


def test_a_call_under_way_when_the_service_is_killed_costs_what_it_had_reserved(
    make_service: MakeService, model: ScriptedModel
) -> None:
    service = make_service(claude=cli_path(), model=model.url, config=CONFIG).start()
    model.clear()
    job_id = service.submit("[[scenario:slow]] go on", model="claude-haiku-4-5")["id"]
    until(lambda: bool(model.requests), 60)
    until(lambda: _open_calls(service) == [(job_id, 0)], 20)
    service.kill9()
    service.restart()
    assert _open_calls(service) == []
    with sqlite3.connect(service.data_dir / "steadyhand.db") as database:
        query = "SELECT micros, reserved_micros, complete FROM calls WHERE job_id = ?"
        found = database.execute(query, (job_id,)).fetchall()
    assert found
    assert all(micros == reserved > 4_096 * 5 and complete == 0 for micros, reserved, complete in found)


def _open_calls(service: Service) -> list[tuple[str, int]]:
    """Give the calls in the ledger on the disk that have not ended: whose, and what they cost so far."""
    with sqlite3.connect(service.data_dir / "steadyhand.db") as database:
        return list(database.execute("SELECT job_id, micros FROM calls WHERE settled = 0"))
