"""The profile of Codex for one run."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import Agent, Workspace
from steadyhand.job import JobSpec
from steadyhand.ports import Checkout, JobPaths, ModelAccess, RunSpec
from steadyhand.runner.codex.profile import KEY_VARIABLE, profile_name, render_profile
from steadyhand.testing.contracts.samples import make_job

ACCESS = ModelAccess(api="openai", base_url="http://127.0.0.1:8787/v1", api_key="placeholder")
TEXT = 'Quote "this", a \\ and\nlines;\ttabs, \x00, \x7f and ünïcode \U0001f600.'


def profile(trust: Any = "instructions", *, full_trust: bool = False, **fields: Any) -> dict[str, Any]:
    agent = {name: fields.pop(name) for name in ("append_system_prompt", "model", "effort") if name in fields}
    paths = JobPaths(Path("/x"))
    place = Checkout(
        Workspace("w", trust=trust), paths, paths.checkout, paths.home, paths.config_dir, None, None,
        full_trust=full_trust,
    )  # fmt: skip
    job = replace(make_job(), spec=JobSpec("hello", **fields))
    spec = RunSpec(job, 1, replace(Agent("codex"), **agent), place, {}, lambda _pid, _ticks: None)
    return tomllib.loads(render_profile(spec, ACCESS, "/workspace"))


def test_the_model_is_asked_at_the_address_of_the_gateway_without_repeats() -> None:
    settings = profile()
    provider = settings["model_providers"][settings["model_provider"]]
    assert provider["base_url"] == "http://127.0.0.1:8787/v1"
    assert provider["env_key"] == KEY_VARIABLE
    assert provider["wire_api"] == "responses"
    assert (provider["request_max_retries"], provider["stream_max_retries"]) == (0, 0)
    assert provider["supports_websockets"] is False
    assert "placeholder" not in str(settings)


def test_the_settings_of_a_job_come_before_those_of_its_agent() -> None:
    settings = profile(model="gpt-a", effort="low")
    assert (settings["model"], settings["model_reasoning_effort"]) == ("gpt-a", "low")
    assert "model" not in profile()


def test_any_text_comes_through_as_it_is() -> None:
    assert profile(append_system_prompt=TEXT)["developer_instructions"] == TEXT


def test_without_trust_nothing_of_a_repository_is_read() -> None:
    settings = profile("none")
    assert settings["project_doc_max_bytes"] == 0
    assert settings["skills"] == {"include_instructions": False}
    assert "projects" not in settings


def test_a_repository_has_a_say_at_full_trust_alone() -> None:
    assert "projects" not in profile()
    assert "projects" not in profile("full")  # on another ref than the trusted ones
    assert profile("full", full_trust=True)["projects"] == {"/workspace": {"trust_level": "trusted"}}


def test_each_run_has_a_profile_of_its_own() -> None:
    paths = JobPaths(Path("/x"))
    place = Checkout(Workspace("w"), paths, paths.checkout, paths.home, paths.config_dir, None, None)
    names = {
        profile_name(RunSpec(make_job(), number, Agent("codex"), place, {}, lambda _pid, _ticks: None))
        for number in (1, 2)
    }
    assert len(names) == 2


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_an_effort_has_the_same_name(effort: str) -> None:
    assert profile(effort=effort)["model_reasoning_effort"] == effort
