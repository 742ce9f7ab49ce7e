"""The runners of agents: their programs are configured or installed, and one that is missing is named at the start."""

import json
from pathlib import Path

import pytest

from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.packages.installed import RECORD_NAME, packages_dir
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.serve.runner_setup import create_other_runners

AGENT = """
[providers.models]
kind = "openai-compatible"
base_url = "http://127.0.0.1:9"
[agents.other]
runner = "{runner}"
provider = "models"
model = "gpt-5.5"
"""


def settings_for(root: Path, runner: str) -> Settings:
    file = root / "steadyhand.toml"
    file.write_text(AGENT.format(runner=runner))
    return load_settings(environ={"STEADYHAND_DATA_DIR": str(root / "data")}, file=file)


@pytest.mark.parametrize("runner", ["codex", "kimi", "opencode"])
def test_an_agent_whose_program_is_missing_is_refused_with_what_installs_it(
    tmp_path: Path, runner: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"agents.other.runner: {runner} is not installed; run `steadyhand agents install {runner}`",
    ):
        create_other_runners(settings_for(tmp_path, runner), NoSandbox(), NO_REDACTION)


def test_an_installed_program_makes_its_runner(tmp_path: Path) -> None:
    folder = packages_dir(tmp_path / "data") / "opencode" / "1.18.33"
    program = folder / "node_modules/opencode-linux-x64/bin/opencode"
    program.parent.mkdir(parents=True)
    program.write_bytes(b"\x7fELF")
    (folder / RECORD_NAME).write_text(json.dumps({"lock": "0"}))
    runners = create_other_runners(settings_for(tmp_path, "opencode"), NoSandbox(), NO_REDACTION)
    assert set(runners) == {"opencode"}
