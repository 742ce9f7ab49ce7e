"""The first steps of a start, before any process is started."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyhand import serve
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.redact import Redactor
from steadyhand.serve import doctor


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "steadyhand.toml"
    file.write_text("[server]\nport = 0\n")
    return load_settings(file, environ={"STEADYHAND_DATA_DIR": str(tmp_path / "data"), "HOME": str(tmp_path)})


def _recorder(calls: list[str], name: str, error: Exception | None = None) -> Callable[..., bool]:
    def record(*_: object) -> bool:
        calls.append(name)
        if error is not None:
            raise error
        return True

    return record


def test_the_service_enters_its_own_cgroup_before_it_looks_for_the_cli(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(serve, "enter_service_cgroup", _recorder(calls, "cgroup"))
    monkeypatch.setattr(serve, "find_agent_cli", _recorder(calls, "cli", ConfigError("There is no CLI.")))

    async def start() -> None:
        events = asyncio.Event(), asyncio.Event()
        await serve.run_service(
            settings, Redactor(), on_started=lambda _: None, stop=events[0], stop_now=events[1]
        )

    with pytest.raises(ConfigError, match=r"There is no CLI\."):
        asyncio.run(start())
    assert calls == ["cgroup", "cli"]


def test_the_doctor_enters_its_own_cgroup_before_its_first_check(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(doctor, "enter_service_cgroup", _recorder(calls, "cgroup"))
    monkeypatch.setattr(doctor, "agent_uid_base", _recorder(calls, "checks", ConfigError("No checks.")))
    with pytest.raises(ConfigError, match=r"No checks\."):
        asyncio.run(doctor.run_checks(settings))
    assert calls == ["cgroup", "checks"]
