"""A call of the model that has ended, and that the ledger did not have when its service was killed."""

import sqlite3
from contextlib import closing

from tests.blackbox.conftest import UNSANDBOXED

from steadyhand.gateway.money.call_journal import FILE_NAME
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service, wait_until

CONFIG = "[service]\nreattach_seconds = 30\n"


def calls_of(service: Service, job_id: str) -> list[tuple[int, int, int]]:
    """Return the calls of a job in the ledger: settled, complete, the tokens of their answers."""
    with closing(sqlite3.connect(service.data_dir / "steadyhand.db")) as database:
        query = "SELECT settled, complete, output FROM calls WHERE job_id = ? ORDER BY at"
        return database.execute(query, (job_id,)).fetchall()


def test_it_is_counted_once_at_its_usage_if_its_run_goes_on(
    make_service: MakeService, scripted_model: ScriptedModel
) -> None:
    options = {"claude": cli_path(), "model": scripted_model.url, "env": UNSANDBOXED, "config": CONFIG}
    with make_service(**options) as service:
        job_id = service.submit("[[scenario:silent-tool]] counted", workspace="default", agent="claude")["id"]
        wait_until(lambda: any(each["type"] == "tool.started" for each in service.events(job_id)), 60)
        journal = service.data_dir / FILE_NAME
        wait_until(lambda: journal.stat().st_size == 0)
        # The tool takes four seconds. The call after it ends while nothing can be stored.
        with closing(sqlite3.connect(service.data_dir / "steadyhand.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            wait_until(lambda: journal.stat().st_size > 0, 60)
            service.kill()
        service.restart()
        job = service.wait_until_ended(job_id, 60)
        assert (job["state"], len(job["runs"])) == ("completed", 1), job
        requests = [each for each in scripted_model.requests if "counted" in each.prompt]
        calls = calls_of(service, job_id)
        assert [each[:2] for each in calls] == [(1, 1)] * len(requests)
        assert all(output > 0 for *_, output in calls)
        assert job["usage"]["output_tokens"] == sum(output for *_, output in calls)
        assert "ledger.recovered" in service.log
