"""The launch of an agent that speaks ACP: its command line, its environment and its files. Pure."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.errors import SpawnError
from steadyhand.ports import DEFAULT_PATH, BindMount, Checkout, Command, ModelAccess, RunSpec, Sandbox
from steadyhand.runner.acp.acp_agent import AcpAgent, RepositoryLimits
from steadyhand.runner.process.agent_process import LaunchSpec
from steadyhand.runner.process.direct_calls import direct_environment

TEMP_DIR_NAME, CACHE_DIR_NAME = "tmp", ".cache"
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
"""The names of models that may stand in the settings of an agent, which are JSON or the like."""


def check_job(agent: AcpAgent, spec: RunSpec) -> ModelAccess:
    """Return the access to the model. Raise `SpawnError` for another API, or a field that ACP has not."""
    access = spec.model_access
    if access is None or access.api != agent.api:
        raise SpawnError(f"{agent.title} needs a provider whose API is {agent.api}.", retryable=False)
    if spec.job.spec.tools:
        raise SpawnError(f"{agent.title} takes no tools of a caller.", retryable=False)
    if spec.job.spec.output_schema is not None:
        raise SpawnError(f"{agent.title} gives no answers by a schema.", retryable=False)
    if spec.job.spec.max_turns is not None:
        raise SpawnError(f"{agent.title} has no limit of turns.", retryable=False)
    return access


def build_launch(
    agent: AcpAgent, programs: Sequence[Path], spec: RunSpec, sandbox: Sandbox, hidden: Sequence[BindMount]
) -> LaunchSpec:
    """Return the launch of a run. `programs` are its program, after Node if that runs it.

    The paths of `hidden` are empty for the agent. Raise `SpawnError` if it needs a model and none is named.
    """
    access = check_job(agent, spec)
    checkout, view = spec.checkout, sandbox.agent_paths(spec.checkout)
    config_dir, home = checkout.config_dir, view.config_dir
    if config_dir is None or home is None:
        raise SpawnError(f"{agent.title} needs a folder of its own as its home.", retryable=False)
    values = {
        "{base_url}": access.port_url or access.base_url or "",
        "{key}": access.api_key or access.oauth_token or "",
        "{model}": _model(agent, spec),
        "{home}": str(home),
        "{cache}": str(view.home / CACHE_DIR_NAME),
    }
    env = {
        "PATH": DEFAULT_PATH,
        **spec.environment,
        **{name: fill(text, values) for name, text in agent.env.items()},
        **(dict.fromkeys(agent.model_variables, values["{model}"]) if values["{model}"] else {}),
        **{name: text for limits in limits_of(agent, checkout) for name, text in limits.env.items()},
        **spec.agent.env,
    }
    env |= direct_environment(env, replace(access, base_url=values["{base_url}"], socket=None))
    env |= {
        "HOME": str(home),
        "PWD": str(view.directory),
        "TMPDIR": str(view.home / TEMP_DIR_NAME),
        "XDG_CACHE_HOME": values["{cache}"],
        "USER": "agent",
        "LOGNAME": "agent",
    }
    argv = [str(program) for program in programs] + list(agent.arguments)
    command = Command(
        _hiding(argv, hidden, view.directory),
        env,
        view.directory,
        checkout.uid,
        needs_model_port=sandbox.level != "none",
        programs=tuple(programs),
    )
    return LaunchSpec(
        sandbox.wrap(command, replace(checkout, binds=(*checkout.binds, *hidden)), spec.agent),
        replaced_files=[
            (config_dir / path, fill(text, values).encode("utf-8", "replace"))
            for path, text in agent.files.items()
        ],
        folders=[checkout.home / TEMP_DIR_NAME],
        hold=spec.hold,
    )


def limits_of(agent: AcpAgent, checkout: Checkout) -> Sequence[RepositoryLimits]:
    """Return the limits of an agent in a repository, by the trust in it."""
    if checkout.full_trust:
        return ()
    if checkout.workspace.trust == "none":
        return (agent.below_full, agent.below_instructions)
    return (agent.below_full,)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with the values in place of their placeholders."""
    pattern = "|".join(re.escape(name) for name in values)
    return re.sub(pattern, lambda match: values[match[0]], text)


def _model(agent: AcpAgent, spec: RunSpec) -> str:
    model = spec.job.spec.model or spec.agent.model or ""
    if not model and not agent.needs_model:
        return ""
    if _MODEL.fullmatch(model) is None:
        raise SpawnError(f"{agent.title} needs the name of a model, and has {model[:80]!r}.", retryable=False)
    return model


def _hiding(argv: Sequence[str], hidden: Sequence[BindMount], directory: Path) -> list[str]:
    """Return the command, before which git is told to leave hidden paths as they are in its commits."""
    if not hidden:
        return list(argv)
    paths = shlex.join(str(each.target.relative_to(directory)) for each in hidden)
    mark = f"git ls-files -z -- {paths} </dev/null | git update-index -z --skip-worktree --stdin"
    return ["/bin/sh", "-c", f'{{ {mark}; }} >/dev/null 2>&1; exec "$@"', "sh", *argv]
