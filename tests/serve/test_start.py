"""The first steps of a start, before any process is started."""

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from steadyhand import serve
from steadyhand.cli.tables import checks_text
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.redact import Redactor
from steadyhand.serve import doctor
from steadyhand.serve.isolation import check_isolation
from steadyhand.serve.metrics_server import open_metrics_socket


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
        lifetime = serve.Lifetime(lambda _: None, asyncio.Event(), asyncio.Event())
        await serve.run_service(settings, Redactor(), lifetime)

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


@pytest.mark.parametrize(
    ("host", "port", "advice"),
    [("192.0.2.1", 0, "Is it an address of this machine?"), ("no-such-host.invalid", 0, "Is it an address")],
)
def test_an_address_that_is_not_ours_is_not_taken_for_a_second_service(
    settings: Settings, host: str, port: int, advice: str
) -> None:
    server = settings.tables.server.model_copy(update={"host": host, "port": port})
    elsewhere = replace(settings, tables=settings.tables.model_copy(update={"server": server}))
    with pytest.raises(ConfigError) as caught:
        serve.open_socket(elsewhere)
    assert advice in caught.value.detail
    assert "another one running" not in caught.value.detail


def test_a_port_that_is_taken_is_said_to_be(settings: Settings) -> None:
    with closing(serve.open_socket(settings)) as first:
        first.listen()
        server = settings.tables.server.model_copy(update={"port": first.getsockname()[1]})
        second = replace(settings, tables=settings.tables.model_copy(update={"server": server}))
        with pytest.raises(ConfigError, match="Is another one running"):
            serve.open_socket(second)


@pytest.mark.parametrize(
    ("bind", "host"), [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("localhost:0", "127.0.0.1")]
)
def test_the_metrics_have_a_socket_of_their_own_on_the_address_that_is_set(
    settings: Settings, bind: str, host: str
) -> None:
    with open_metrics_socket(with_metrics_at(settings, bind)) as sock:
        assert sock is not None
        assert sock.getsockname()[0] == host
        port = sock.getsockname()[1]
        sock.listen()
        taken = with_metrics_at(settings, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        with pytest.raises(ConfigError, match=r"metrics_bind"), open_metrics_socket(taken):
            pass
    assert sock.fileno() == -1
    with open_metrics_socket(settings) as none:
        assert none is None


def with_metrics_at(settings: Settings, bind: str) -> Settings:
    service = settings.tables.service.model_copy(update={"metrics_bind": bind})
    return replace(settings, tables=settings.tables.model_copy(update={"service": service}))


def test_doctor_marks_a_lack_and_does_not_tick_it() -> None:
    checks = [
        {"name": "a", "ok": True, "detail": "good"},
        {"name": "b", "ok": True, "detail": "lacks", "warning": True, "remedy": "do this"},
        {"name": "c", "ok": False, "detail": "bad", "remedy": "do that"},
    ]
    assert checks_text(checks).plain.splitlines() == [
        "✓ a  good",
        "! b  lacks",
        "  → do this",
        "✗ c  bad",
        "  → do that",
    ]


def test_doctor_warns_of_agents_without_a_sandbox(settings: Settings) -> None:
    service = settings.tables.service.model_copy(update={"isolation": "none"})
    unsandboxed = replace(settings, tables=settings.tables.model_copy(update={"service": service}))
    (check,) = asyncio.run(check_isolation(unsandboxed, Path("/bin/true")))
    assert (check.ok, check.warning) == (True, True)
