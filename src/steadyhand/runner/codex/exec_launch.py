"""The launch of Codex: its command line, its environment and its files. Pure."""

import json
from pathlib import Path

from steadyhand.errors import SpawnError
from steadyhand.json_schema import agent_schema
from steadyhand.ports import DEFAULT_PATH, AgentPaths, Command, ModelAccess, RunSpec, Sandbox
from steadyhand.runner.codex.profile import KEY_VARIABLE, profile_name, render_profile
from steadyhand.runner.process.agent_process import LaunchSpec
from steadyhand.runner.process.direct_calls import direct_environment

TEMP_DIR_NAME = "tmp"
STATE_DIR_NAME = "codex-state"
"""The folder, in the home, of Codex's databases.

They name the records of threads by whole paths. Beside the records they would be copied for the next turn, which would
then go on in the record of the turn before. Without them Codex looks for the record (tried with 0.171.0).
"""


def build_launch(program: Path, spec: RunSpec, thread: str | None, sandbox: Sandbox) -> LaunchSpec:
    """Return the launch of a run, which continues `thread` unless that is None.

    Raise `SpawnError` if the job asks for what Codex has not, or if there is no access to a model on its wire.
    """
    access = spec.model_access
    if access is None or access.api != "openai":
        raise SpawnError("Codex needs a provider of the kind openai or openai-compatible.", retryable=False)
    if spec.job.spec.tools:
        raise SpawnError("Codex takes no tools of a caller.", retryable=False)
    checkout, view = spec.checkout, sandbox.agent_paths(spec.checkout)
    config_dir = checkout.config_dir
    if config_dir is None or view.config_dir is None:
        raise SpawnError("Codex needs a folder of its own for its settings.", retryable=False)
    profile = profile_name(spec)
    text = render_profile(spec, access, str(view.directory))
    files = [(config_dir / f"{profile}.config.toml", text.encode("utf-8", "replace"))]
    argv = [str(program), "exec"]
    options = [
        "--json",
        "--profile",
        profile,
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
    ]
    if spec.job.spec.output_schema is not None:
        name = f"{profile}.schema.json"
        files.append((config_dir / name, json.dumps(agent_schema(spec.job.spec.output_schema)).encode()))
        options += ["--output-schema", str(view.config_dir / name)]
    argv += options if thread is None else [*options, "resume", thread]
    command = Command(
        [*argv, "-"],  # the prompt comes by stdin: as an argument it could be read as an option
        _environment(spec, access, view),
        view.directory,
        checkout.uid,
        needs_model_port=access.socket is None and sandbox.level != "none",
        programs=(program,),
    )
    return LaunchSpec(
        sandbox.wrap(command, checkout, spec.agent),
        files=files,
        folders=[checkout.home / TEMP_DIR_NAME],
        hold=spec.hold,
    )


def _environment(spec: RunSpec, access: ModelAccess, view: AgentPaths) -> dict[str, str]:
    env = {"PATH": DEFAULT_PATH, **spec.environment, **spec.agent.env}
    env |= direct_environment(env, access)
    return env | {
        "HOME": str(view.home),
        "PWD": str(view.directory),
        "TMPDIR": str(view.home / TEMP_DIR_NAME),
        "USER": "agent",
        "LOGNAME": "agent",
        "CODEX_HOME": str(view.config_dir),
        "CODEX_SQLITE_HOME": str(view.home / STATE_DIR_NAME),
        KEY_VARIABLE: access.api_key or "",
    }
