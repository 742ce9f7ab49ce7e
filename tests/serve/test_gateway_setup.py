"""What whoever runs the service is told of its credentials and keys, and which limits are wired to the gateway."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import Agent
from steadyhand.clock import utc_now
from steadyhand.config.providers import CONSUMER_TERMS_URL
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.ports import BudgetLimit, KeyLimits
from steadyhand.redact import Redactor
from steadyhand.serve.gateway_setup import (
    check_providers,
    create_budget_limits_getter,
    create_gateway,
    create_provider,
    log_credentials,
)
from steadyhand.serve.logs import configure_logging
from steadyhand.serve.wiring import configured_keys
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.memory_ledger import MemoryLedger


@pytest.fixture
def log() -> io.StringIO:
    """The service's log, as it goes out."""
    stream = io.StringIO()
    configure_logging("info", Redactor([]), stream)
    return stream


def settings_of(folder: Path, text: str = "", **environ: str) -> Settings:
    file = folder / "steadyhand.toml"
    file.write_text(text)
    return load_settings(file, environ={"STEADYHAND_DATA_DIR": str(folder), "HOME": str(folder), **environ})


def lines(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


def test_whoever_uses_a_subscription_is_told_which_terms_to_read(tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / "token").write_text("sk-ant-oat-of-another")
    more = f'[providers.mine]\noauth_token_file = "{tmp_path}/token"\n'
    settings = settings_of(tmp_path, more, CLAUDE_CODE_OAUTH_TOKEN="sk-ant-oat-mine")
    log_credentials(settings)
    told = lines(log, "credential.subscription")
    assert [(line["provider"], line["level"]) for line in told] == [
        ("default", "warning"),
        ("mine", "warning"),
    ]
    assert all(CONSUMER_TERMS_URL in line["meaning"] for line in told)
    assert "sk-ant-oat" not in log.getvalue()
    assert [CONSUMER_TERMS_URL in check.detail for check in check_providers(settings)] == [True, True]


def test_a_start_without_a_credential_says_so_and_how_jobs_will_end(tmp_path: Path, log: io.StringIO) -> None:
    log_credentials(settings_of(tmp_path))
    (line,) = lines(log, "credential.missing")
    assert (line["provider"], line["level"]) == ("default", "warning")
    assert "ANTHROPIC_API_KEY" in line["remedy"]
    assert "outcome unauthorized" in line["meaning"]
    log.truncate(0)
    log_credentials(settings_of(tmp_path, ANTHROPIC_API_KEY="sk-ant-api-mine"))
    log_credentials(settings_of(tmp_path, ANTHROPIC_BASE_URL="http://127.0.0.1:9"))
    assert log.getvalue().strip("\0") == ""


def test_an_api_key_and_a_cloud_s_token_need_no_such_word(tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / "token").write_text("of-a-project")
    more = f'[providers.gcp]\nkind = "vertex"\nproject = "p"\noauth_token_file = "{tmp_path}/token"\n'
    settings = settings_of(tmp_path, more, ANTHROPIC_API_KEY="sk-ant-api-mine")
    log_credentials(settings)
    assert log.getvalue() == ""
    assert not any(CONSUMER_TERMS_URL in check.detail for check in check_providers(settings))


def test_providers_of_other_apis_are_checked_and_built(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-of-another")
    more = (
        f'[providers.a]\nkind = "openai"\napi_key_file = "{key}"\n'
        f'[providers.b]\nkind = "gemini"\napi_key_file = "{key}"\n'
        f'[providers.c]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:1/v1"\napi_key_file = "{key}"\n'
        'header = "api-key"\n'
        '[providers.d]\nkind = "openai-compatible"\nbase_url = "http://127.0.0.1:2"\n'
        '[providers.e]\nkind = "openai"\n'
        '[providers.f]\nkind = "gemini"\n'
    )
    settings = settings_of(tmp_path, more, ANTHROPIC_API_KEY="sk-ant-api-mine")
    checks = {check.name: (check.ok, check.detail) for check in check_providers(settings)}
    assert checks == {
        "credential": (True, "an API key is set"),
        "provider a": (True, "an API key for openai is set"),
        "provider b": (True, "an API key for gemini is set"),
        "provider c": (True, "an API key for openai-compatible is set, for http://127.0.0.1:1/v1"),
        "provider d": (True, "none, and the model is at http://127.0.0.1:2"),
        "provider e": (False, "no api_key_file"),
        "provider f": (False, "no api_key_file"),
    }
    by_name = {each.name: create_provider(each) for each in settings.providers}
    assert [by_name[name].kind for name in "abcdef"] == ["openai", "gemini", *["openai"] * 3, "gemini"]
    sent = [by_name[name].upstream_headers([])[-1] for name in "abc"]
    assert sent == [
        (b"authorization", b"Bearer sk-of-another"),
        (b"x-goog-api-key", b"sk-of-another"),
        (b"api-key", b"sk-of-another"),
    ]
    assert [by_name[name].missing_credential is None for name in "abcdef"] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("name", ["API_BEARER_TOKEN", "STEADYHAND_API_KEY"])
@pytest.mark.parametrize(
    ("secret", "short"),
    [("x", True), ("fifteen letters", True), ("of sixteen chars", False), ("pässwörd", True)],
)
def test_a_key_of_the_environment_is_any_string_and_a_short_one_is_warned_of(
    tmp_path: Path, log: io.StringIO, name: str, secret: str, *, short: bool
) -> None:
    (key,) = configured_keys(settings_of(tmp_path, **{name: secret}))
    assert key.name == name
    told = lines(log, "key.short")
    assert [(line["name"], line["characters"], line["level"]) for line in told] == (
        [(name, len(secret), "warning")] if short else []
    )
    assert len(secret) == 1 or secret not in log.getvalue()


LIMITED = """\
[limits]
service_per_day_usd = 7
[agents.a]
workspace = "scratch"
budget_per_day_usd = 0.5
"""


def test_every_limit_that_is_set_holds_for_a_job(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, LIMITED)
    keys = {"k_1": KeyLimits(day_micros=3, month_micros=4)}
    of = create_budget_limits_getter(settings, lambda key_id: keys.get(key_id, KeyLimits()))
    job = make_job(agent="a", api_key_id="k_1", budget_micros=9)
    service = BudgetLimit("service", "", "day", 7_000_000)
    assert list(of(job, settings.build_catalog().agent("a"))) == [
        BudgetLimit("job", job.id, "job", 9),
        BudgetLimit("agent", "a", "day", 500_000),
        BudgetLimit("key", "k_1", "day", 3),
        BudgetLimit("key", "k_1", "month", 4),
        service,
    ]
    keys["k_1"] = KeyLimits()  # as it is now, not as it was when the run began
    assert list(of(job, Agent("b"))) == [BudgetLimit("job", job.id, "job", 9), service]


def test_a_limit_that_nobody_would_hold_stops_the_start(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, LIMITED, STEADYHAND_PROFILE="classic", API_BEARER_TOKEN="x")
    with pytest.raises(ConfigError) as refused:
        create_gateway(settings, MemoryLedger(), sandboxed=False, clock=utc_now)
    assert (
        "limits.service_per_day_usd, agents.a.budget_per_day_usd: only the gateway can enforce this"
        in str(refused.value)
    )
    assert "STEADYHAND_ISOLATION=bwrap" in str(refused.value)
    assert create_gateway(settings, MemoryLedger(), sandboxed=True, clock=utc_now) is not None
    plain = settings_of(tmp_path, STEADYHAND_PROFILE="classic", API_BEARER_TOKEN="x")
    assert create_gateway(plain, MemoryLedger(), sandboxed=False, clock=utc_now) is None
