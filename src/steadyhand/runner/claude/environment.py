"""The environment variables of the CLI."""

from collections.abc import Mapping
from pathlib import Path

from steadyhand.ports import DEFAULT_PATH, AgentPaths

_NO_TELEMETRY_ENV = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
}


def agent_environment(granted: Mapping[str, str], view: AgentPaths) -> dict[str, str]:
    """Return the agent's whole environment: the variables that the service grants, and its directories.

    An agent with a config directory of its own also gets its own folder for temporary files, and sends nothing but
    its calls of the model. Without one (in place in the classic profile) the rest stays as it was granted.
    """
    env = {"PATH": DEFAULT_PATH, **granted, "HOME": str(view.home), "PWD": str(view.directory)}
    env.pop("OLDPWD", None)
    if view.config_dir is not None:
        env |= {
            "CLAUDE_CONFIG_DIR": str(view.config_dir),
            "TMPDIR": str(temp_dir(view.home)),
            **_NO_TELEMETRY_ENV,
        }
        env |= {"USER": "agent", "LOGNAME": "agent"}
    return env


def temp_dir(home: Path) -> Path:
    """Return the folder for temporary files of a job with a home of its own."""
    return home / "tmp"
