"""The environment variables of the CLI."""

from pathlib import Path

from steadyhand.ports import DEFAULT_PATH, AgentPaths, ModelAccess, RunSpec
from steadyhand.runner.process.direct_calls import direct_environment

_NO_TELEMETRY_ENV = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
}
WAITING_ENV = {
    # The CLI's runtime collects garbage by a timer: while the process waits this frees the code that the rehearsal
    # compiled, and the first turn of a job takes three times the processor time. It still collects as it allocates.
    "BUN_GC_TIMER_DISABLE": "1",
}
"""The variables of a process that waits for jobs; an agent's own `env` may set them otherwise."""


def agent_environment(spec: RunSpec, view: AgentPaths) -> dict[str, str]:
    """Return the agent's whole environment: the variables of the service, the model and the agent, and its directories.

    An agent with a config directory of its own also gets its own folder for temporary files, and sends nothing but
    its calls of the model. Without one (in place in the classic profile) the rest stays as it was granted.
    """
    model = {} if spec.model_access is None else model_environment(spec.model_access)
    env = {"PATH": DEFAULT_PATH, **spec.environment, **model, **spec.agent.env}
    env |= {"HOME": str(view.home), "PWD": str(view.directory)}
    env.pop("OLDPWD", None)
    if view.config_dir is not None:
        env |= {
            "CLAUDE_CONFIG_DIR": str(view.config_dir),
            "TMPDIR": str(temp_dir(view.home)),
            **_NO_TELEMETRY_ENV,
        }
        if spec.model_access is not None:
            env |= direct_environment(env, spec.model_access)
        env |= {"USER": "agent", "LOGNAME": "agent"}
    return env


def model_environment(access: ModelAccess) -> dict[str, str]:
    """Return the variables by which the CLI finds its model and the credential for it."""
    variables: dict[str, str | None]
    headers = "\n".join(f"{name}: {value}" for name, value in access.headers.items())
    if access.api == "bedrock":
        variables = {
            "CLAUDE_CODE_USE_BEDROCK": "1",
            "CLAUDE_CODE_SKIP_BEDROCK_AUTH": "1",
            "ANTHROPIC_BEDROCK_BASE_URL": access.base_url,
            "AWS_REGION": access.region,
        }
    elif access.api == "vertex":
        variables = {
            "CLAUDE_CODE_USE_VERTEX": "1",
            "CLAUDE_CODE_SKIP_VERTEX_AUTH": "1",
            "ANTHROPIC_VERTEX_BASE_URL": f"{access.base_url}/v1",
            "CLOUD_ML_REGION": access.region or "global",
            "ANTHROPIC_VERTEX_PROJECT_ID": access.project,
        }
    else:
        variables = {
            "ANTHROPIC_BASE_URL": access.base_url,
            "ANTHROPIC_API_KEY": access.api_key,
            "CLAUDE_CODE_OAUTH_TOKEN": access.oauth_token,
        }
    variables |= {"ANTHROPIC_CUSTOM_HEADERS": headers, "ANTHROPIC_UNIX_SOCKET": access.socket}
    return {name: value for name, value in variables.items() if value}


def temp_dir(home: Path) -> Path:
    """Return the folder for temporary files of a job with a home of its own."""
    return home / "tmp"
