"""The settings and variables that turn the telemetry on, and those that are wrong."""

import asyncio
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.telemetry.otlp_receiver import receiving_otlp

from steadyhand.clock import utc_now
from steadyhand.config.secret_values import secret_values
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.metrics import ServiceMetrics
from steadyhand.redact import NO_REDACTION
from steadyhand.serve import telemetry_setup
from steadyhand.serve.telemetry_check import check_telemetry
from steadyhand.serve.telemetry_setup import Telemetry, create_telemetry, export_config

OTLP = "OTEL_EXPORTER_OTLP_"
URL = "http://127.0.0.1:4318"


def settings_of(folder: Path, text: str = "", **env: str) -> Settings:
    path = folder / "steadyhand.toml"
    path.write_text(text)
    return load_settings(path, environ={"HOME": str(folder), **env})


def create(settings: Settings) -> Telemetry:
    return create_telemetry(settings, ServiceMetrics(), NO_REDACTION, utc_now)


@pytest.mark.parametrize(
    ("env", "signals"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "agents"}, ()),
        ({f"{OTLP}ENDPOINT": URL}, ("traces", "metrics")),
        ({f"{OTLP}ENDPOINT": ""}, ()),
        ({f"{OTLP}TRACES_ENDPOINT": f"{URL}/v1/traces"}, ("traces",)),
        ({f"{OTLP}METRICS_ENDPOINT": f"{URL}/v1/metrics"}, ("metrics",)),
        ({f"{OTLP}ENDPOINT": URL, "OTEL_TRACES_EXPORTER": "none"}, ("metrics",)),
        ({f"{OTLP}ENDPOINT": URL, "OTEL_METRICS_EXPORTER": "prometheus"}, ("traces",)),
        ({f"{OTLP}ENDPOINT": URL, "OTEL_SDK_DISABLED": "TRUE"}, ()),
        ({f"{OTLP}ENDPOINT": URL, f"{OTLP}PROTOCOL": "http/protobuf"}, ("traces", "metrics")),
        ({f"{OTLP}ENDPOINT": URL, f"{OTLP}PROTOCOL": "grpc"}, ()),
        ({f"{OTLP}ENDPOINT": URL, f"{OTLP}METRICS_PROTOCOL": "grpc"}, ("traces",)),
        ({"STEADYHAND_TELEMETRY__ENDPOINT": URL, f"{OTLP}PROTOCOL": "grpc"}, ("traces", "metrics")),
        ({"STEADYHAND_TELEMETRY__ENDPOINT": URL, "STEADYHAND_TELEMETRY__TRACES": "false"}, ("metrics",)),
    ],
)
def test_a_receiver_turns_a_signal_on_and_a_variable_turns_it_off(
    tmp_path: Path, env: dict[str, str], signals: tuple[str, ...]
) -> None:
    with capture_logs() as logs:
        config = export_config(settings_of(tmp_path, **env))
    found = () if config is None else tuple(name for name in ("traces", "metrics") if getattr(config, name))
    assert found == signals
    is_warned = any(line["event"] == "telemetry.off" for line in logs)
    assert is_warned == ("grpc" in env.values() and "STEADYHAND_TELEMETRY__ENDPOINT" not in env)


def test_the_setting_holds_before_the_variable(tmp_path: Path) -> None:
    text = '[telemetry]\nendpoint = "http://collector:4318/"'
    config = export_config(settings_of(tmp_path, text, **{f"{OTLP}ENDPOINT": URL}))
    assert config is not None
    assert (config.traces_url, config.metrics_url) == (
        "http://collector:4318/v1/traces",
        "http://collector:4318/v1/metrics",
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 60), ("250", 0.25), ("1", 0.1), ("99999999", 3600), ("soon", 60), ("-5", 60)]
)
def test_the_interval_of_the_metrics_is_bounded(tmp_path: Path, text: str, seconds: float) -> None:
    env = {f"{OTLP}ENDPOINT": URL, "OTEL_METRIC_EXPORT_INTERVAL": text}
    config = export_config(settings_of(tmp_path, **env))
    assert config is not None
    assert config.metrics_seconds == seconds


@pytest.mark.parametrize(
    "url",
    [
        "collector:4317",
        "ftp://collector",
        "http://",
        "http://user:key@host",
        "http://host/?x",
        "http://host/#x",
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="telemetry"):
        settings_of(tmp_path, f'[telemetry]\nendpoint = "{url}"')


@pytest.mark.parametrize("text", ["no-colon", "a b: c", "x-key: a\x07b", "naïve: x"])
def test_a_file_of_headers_that_is_none_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"x-first: one\n\n{text}\n")
    with pytest.raises(ConfigError, match=r"telemetry\.headers_file") as refused:
        export_config(settings_of(tmp_path, f'[telemetry]\nendpoint = "{URL}"\nheaders_file = "{headers}"'))
    assert text not in str(refused.value)


def test_headers_for_the_receiver_are_secrets_of_the_service(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("authorization: Bearer of-the-file\nx-key: also-of-the-file\n")
    text = f'[telemetry]\nendpoint = "{URL}"\nheaders_file = "{headers}"'
    env = {f"{OTLP}HEADERS": "authorization=Basic%20of-the-variable,x-key=another-one"}
    settings = settings_of(tmp_path, text, **env)
    config = export_config(settings)
    assert config is not None
    assert config.headers == {"authorization": "Bearer of-the-file", "x-key": "also-of-the-file"}
    assert {b"Bearer of-the-file", b"also-of-the-file", b"Basic of-the-variable", b"another-one"} <= set(
        secret_values(settings)
    )


def test_without_the_extra_a_setting_is_an_error_and_a_variable_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry_setup, "_PACKAGE", "opentelemetry.exporter.of_nobody.at_all")
    with pytest.raises(ConfigError, match=r"pip install 'steadyhand\[otel\]'"):
        create(settings_of(tmp_path, f'[telemetry]\nendpoint = "{URL}"'))
    with capture_logs() as logs:
        telemetry = create(settings_of(tmp_path, **{f"{OTLP}ENDPOINT": URL}))
    assert (telemetry.exporter, telemetry.traces) == (None, False)
    assert [line["event"] for line in logs] == ["telemetry.off"]


def test_nothing_is_made_and_nothing_loaded_without_a_receiver(tmp_path: Path) -> None:
    loaded = {name for name in sys.modules if name.startswith("opentelemetry.sdk")}
    assert create(settings_of(tmp_path)) == Telemetry()
    assert {name for name in sys.modules if name.startswith("opentelemetry.sdk")} == loaded


@pytest.mark.parametrize(("status", "is_warning"), [(200, False), (400, True), (401, True)])
def test_the_doctor_tries_the_receiver(tmp_path: Path, status: int, is_warning: bool) -> None:  # noqa: FBT001
    with receiving_otlp() as receiver:
        receiver.status = status
        settings = settings_of(tmp_path, f'[telemetry]\nendpoint = "{receiver.url}"')
        (check,) = asyncio.run(check_telemetry(settings))
        assert receiver.asked.is_set()
    assert (check.ok, check.warning) == (True, is_warning)
    assert receiver.spans == []


def test_the_doctor_names_the_extra_if_it_is_missing_and_is_silent_without_a_receiver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asyncio.run(check_telemetry(settings_of(tmp_path))) == []
    monkeypatch.setattr(telemetry_setup, "_PACKAGE", "opentelemetry.exporter.of_nobody.at_all")
    for text, env, is_ok in (
        (f'[telemetry]\nendpoint = "{URL}"', {}, False),
        ("", {f"{OTLP}ENDPOINT": URL}, True),
    ):
        (check,) = asyncio.run(check_telemetry(settings_of(tmp_path, text, **env)))
        assert (check.ok, check.remedy) == (is_ok, telemetry_setup.EXTRA)
