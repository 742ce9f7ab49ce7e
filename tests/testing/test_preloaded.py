"""Services that are forked from a process with the code in its memory look and end as started ones do."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand.testing.preloaded import Preloaded
from steadyhand.testing.service import Service


def look_at(service: Service) -> dict[str, object]:
    folder = Path(f"/proc/{service.pid}")
    status = (folder / "status").read_text("ascii").splitlines()
    signals = {line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt"))}
    return {
        "words": (folder / "cmdline").read_bytes(),
        "environment": sorted((folder / "environ").read_bytes().split(b"\0")),
        "name": (folder / "comm").read_text(),
        "folder": (folder / "cwd").readlink(),
        "program": (folder / "exe").readlink(),
        "streams": [(folder / "fd" / number).readlink() for number in "012"],
        "leads a session": os.getsid(service.pid) == service.pid,
        "signals": signals,
    }


@pytest.fixture
def service(world_dir: Path, standin: Path) -> Iterator[Service]:
    found = Service(world_dir, standin)
    yield found
    found.close()


def test_a_forked_service_looks_as_one_that_was_started(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    preloaded = Service.preloaded
    assert preloaded is not None
    assert preloaded.can_start(service.environment())
    monkeypatch.setattr(Service, "preloaded", None)
    started = look_at(service.start())
    assert service.terminate() == 0
    monkeypatch.setattr(Service, "preloaded", preloaded)
    forked = look_at(service.start())
    assert forked == started
    assert service.terminate() == 0


def test_the_end_of_a_forked_service_is_told_with_its_code_or_its_signal(service: Service) -> None:
    process = service.start().process
    assert process.poll() is None
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    assert process.poll() == process.returncode == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)  # nobody is there any more, and nobody else is meant
    service.config_path.write_text("no toml")
    assert service.spawn().wait(20) == 2
    assert "steadyhand:" in service.log_since_start


def test_a_service_whose_interpreter_is_told_something_is_started() -> None:
    plain = {"LANG": "C.UTF-8", "HOME": "/nonexistent"}
    preloaded = Preloaded()
    assert preloaded.can_start(plain)
    assert not preloaded.can_start({**plain, "PYTHONUTF8": "0"})
    assert not preloaded.can_start({**plain, "LC_ALL": "C"})
    assert not preloaded.can_start({**plain, "LANG": "C"})


def test_a_bound_that_has_another_name_now_is_noticed(world_dir: Path, standin: Path) -> None:
    service = Service(world_dir, standin, constants={"steadyhand.worker.warm_pool.NO_SUCH_SECONDS": 1.0})
    try:
        assert service.spawn().wait(20) == 1
        assert "NO_SUCH_SECONDS" in service.log
    finally:
        service.close()
