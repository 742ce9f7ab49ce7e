"""The scrape of a service: one at a time, and with what can be read."""

import asyncio
import shutil
import threading
import time
from pathlib import Path

import pytest

from steadyhand.metrics import ServiceMetrics
from steadyhand.metrics.names import ALL_METRIC_SCOPES
from steadyhand.serve.metrics_setup import create_scrape


def test_many_scrapes_at_once_take_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, lock, most, current = shutil.disk_usage, threading.Lock(), 0, 0

    def slow_disk_usage(path: Path) -> object:
        nonlocal most, current
        with lock:
            current += 1
            most = max(most, current)
        time.sleep(0.01)  # long enough for another thread to come in, if one could
        with lock:
            current -= 1
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", slow_disk_usage)

    async def main() -> None:
        scrape = create_scrape(ServiceMetrics(), tmp_path)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            tasks = [group.create_task(scrape("", ALL_METRIC_SCOPES)) for _ in range(8)]
        assert all(b"steadyhand_data_free_bytes " in task.result().body for task in tasks)

    asyncio.run(main())
    assert most == 1


def test_a_disk_that_does_not_answer_leaves_out_its_own_figure_alone(tmp_path: Path) -> None:
    scrape = create_scrape(ServiceMetrics(), tmp_path / "is-gone")
    body = asyncio.run(scrape("", ALL_METRIC_SCOPES)).body
    assert b"\nsteadyhand_data_free_bytes " not in body
    assert b"\nsteadyhand_store_writes_total 0.0\n" in body
