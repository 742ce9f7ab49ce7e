"""The prompt of Codex."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SpawnError
from steadyhand.job import JobSpec, Turn
from steadyhand.ports import Checkout, JobPaths, RunSpec
from steadyhand.runner.process.text_prompt import text_prompt
from steadyhand.testing.contracts.samples import make_job

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


def spec_of(prompt: str, **fields: Any) -> RunSpec:
    paths = JobPaths(Path("/x"))
    place = Checkout(Workspace("w"), paths, paths.checkout, paths.home, paths.config_dir, None, None)
    job = replace(make_job(), spec=JobSpec(prompt, **fields))
    return RunSpec(job, 1, Agent("codex"), place, {}, lambda _pid, _ticks: None)


def test_a_prompt_is_passed_as_it_is() -> None:
    assert text_prompt(spec_of("--version\n"), "Codex", resumed=False) == "--version\n"


def test_earlier_turns_stand_before_the_prompt_unless_its_thread_has_them() -> None:
    history = (Turn("user", "Who?"), Turn("assistant", ({"type": "text", "text": "Me."},)))
    spec = spec_of("Why?", history=history)
    text = text_prompt(spec, "Codex", resumed=False)
    assert text.index("User: Who?") < text.index("Assistant: Me.") < text.index("Why?")
    assert "Who?" not in text_prompt(spec, "Codex", resumed=True)


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(SpawnError, match="empty"):
        text_prompt(spec_of(prompt), "Codex", resumed=False)


def test_a_prompt_that_is_too_long_with_its_earlier_turns_is_refused() -> None:
    prompt = "é" * 100
    assert text_prompt(spec_of(prompt), "Codex", resumed=False, max_characters=100) == prompt
    longer = spec_of(prompt, history=(Turn("user", "Who?"),))
    with pytest.raises(SpawnError, match="Codex takes prompts of at most 100 characters"):
        text_prompt(longer, "Codex", resumed=False, max_characters=100)
    assert text_prompt(longer, "Codex", resumed=True, max_characters=100) == prompt
    with pytest.raises(SpawnError, match="100 characters"):
        text_prompt(spec_of(prompt + "."), "Codex", resumed=True, max_characters=100)


def test_an_image_is_refused() -> None:
    with pytest.raises(SpawnError, match="type image"):
        text_prompt(
            spec_of("Look.", content=({"type": "text", "text": "Look."}, IMAGE)), "Codex", resumed=False
        )
    with pytest.raises(SpawnError, match="type image"):
        text_prompt(spec_of("Look.", history=(Turn("user", (IMAGE,)),)), "Codex", resumed=False)
