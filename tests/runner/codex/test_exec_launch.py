"""The launch of Codex: what it demands, and what is in its environment."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import SpawnError
from steadyhand.job import ClientTool, JobSpec
from steadyhand.ports import Checkout, JobPaths, ModelAccess, RunSpec
from steadyhand.runner.codex.exec_launch import build_launch
from steadyhand.runner.codex.profile import KEY_VARIABLE
from steadyhand.runner.process.launch_spec import LaunchSpec
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.contracts.samples import make_job

PROGRAM = Path("/opt/codex/codex")
ACCESS = ModelAccess(api="openai", base_url="http://127.0.0.1:40001/v1", api_key="token-of-the-run")


def launch(
    *,
    thread: str | None = None,
    access: ModelAccess | None = ACCESS,
    environment: dict[str, str] | None = None,
    **fields: Any,
) -> LaunchSpec:
    paths = JobPaths(Path("/x"))
    place = Checkout(Workspace("w"), paths, paths.checkout, paths.home, paths.config_dir, None, None)
    job = replace(make_job(), spec=JobSpec("--help", **fields))
    spec = RunSpec(job, 1, Agent("codex"), place, environment or {}, lambda _pid, _ticks: None, access)
    return build_launch(PROGRAM, spec, thread, NoSandbox())


def test_the_prompt_is_no_argument() -> None:
    assert launch().command.argv[-1] == "-"
    assert "--help" not in launch().command.argv


def test_a_thread_is_resumed_by_its_id() -> None:
    assert list(launch(thread="01a2").command.argv[-3:]) == ["resume", "01a2", "-"]


def test_the_databases_are_not_beside_the_records_that_the_next_turn_gets() -> None:
    env = launch().command.env
    assert not Path(env["CODEX_SQLITE_HOME"]).is_relative_to(env["CODEX_HOME"])


def test_the_credential_of_the_run_is_in_its_environment_and_in_no_file() -> None:
    made = launch()
    assert made.command.env[KEY_VARIABLE] == "token-of-the-run"
    assert all(b"token-of-the-run" not in content for _, content in made.files)


def test_calls_of_a_model_on_loopback_go_to_no_proxy() -> None:
    env = launch(environment={"HTTP_PROXY": "http://proxy.test:3128"}).command.env
    assert "127.0.0.1" in env["NO_PROXY"]
    assert env["NO_PROXY"] == env["no_proxy"]


def test_an_answer_by_a_schema_has_a_file_for_it() -> None:
    made = launch(output_schema={"type": "object", "properties": {}})
    names = [path.name for path, _ in made.files]
    assert Path(made.command.argv[made.command.argv.index("--output-schema") + 1]).name in names


@pytest.mark.parametrize("access", [None, ModelAccess(api_key="x")], ids=["none", "anthropic"])
def test_without_a_model_on_its_wire_it_does_not_start(access: ModelAccess | None) -> None:
    with pytest.raises(SpawnError, match="openai"):
        launch(access=access)


def test_the_tools_of_a_caller_are_refused() -> None:
    with pytest.raises(SpawnError, match="tools"):
        launch(tools=(ClientTool("find", "Finds.", {}),))
