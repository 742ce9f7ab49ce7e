"""The check of `doctor` that asks a running service: a small server answers as one does."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from steadyhand.api.schemas.warm_bodies import WarmShortage
from steadyhand.config.settings import load_settings
from steadyhand.ports import DoctorCheck
from steadyhand.serve.running_service import SHORTAGES, check_running_service
from steadyhand.worker import warm_records

READY = {"status": "ok"}
COUNTS = {"configured": 4, "waiting": 3, "hits": 10, "live_hits": 2, "misses": 5}


@contextmanager
def serving(answers: Mapping[str, Any]) -> Iterator[int]:
    """Answer with these objects by path; yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path, {})).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def checks(tmp_path: Path, warm: Any) -> list[DoctorCheck]:
    health = {"status": "ok", **({} if warm is None else {"warm": warm})}
    with serving({"/readyz": READY, "/health": health}) as port:
        environ = {
            "STEADYHAND_DATA_DIR": str(tmp_path),
            "HOME": str(tmp_path),
            "STEADYHAND_SERVER__PORT": str(port),
        }
        return list(asyncio.run(check_running_service(load_settings(None, environ=environ))))


def test_the_waiting_processes_of_a_running_service_are_counted(tmp_path: Path) -> None:
    running, warm = checks(tmp_path, COUNTS)
    assert (running.name, running.ok) == ("running service", True)
    assert (warm.name, warm.ok, warm.warning) == ("warm processes", True, False)
    assert warm.detail == "3 wait, 4 are configured; 12 jobs had one, 5 did not"


@pytest.mark.parametrize("reason", list(warm_records.WarmShortage))
def test_a_shortage_of_waiting_processes_is_a_warning_with_a_remedy(tmp_path: Path, reason: str) -> None:
    warm = checks(tmp_path, {**COUNTS, "shortage": reason})[1]
    assert (warm.ok, warm.warning) == (True, True)
    assert warm.remedy
    assert warm.detail.startswith("3 wait, 4 are configured")
    assert SHORTAGES[reason][0] in warm.detail


def test_without_an_agent_that_has_them_there_is_no_check(tmp_path: Path) -> None:
    assert [each.name for each in checks(tmp_path, None)] == ["running service"]


@pytest.mark.parametrize("warm", ["four", {"waiting": "many", "shortage": 7}, {"shortage": "x" * 10_000}])
def test_an_answer_of_another_form_is_no_error(tmp_path: Path, warm: Any) -> None:
    for each in checks(tmp_path, warm):
        assert each.ok
        assert len(each.detail) < 1000


def test_every_reason_has_a_meaning_and_is_in_the_description_of_the_api() -> None:
    reasons = {each.value for each in warm_records.WarmShortage}
    assert set(SHORTAGES) == reasons == set(WarmShortage.__args__)  # type: ignore[attr-defined]  # of a Literal
