"""The agents that are driven by ACP: one entry for each, with all that differs between them. Pure data.

Values of `env` and `files` may hold placeholders: `{base_url}` is the address of the model's API (of OpenAI's with its
`/v1`), `{key}` the placeholder of the credential, `{model}` the model, `{home}` the home and `{cache}` a folder for
files that are no part of a session.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steadyhand.ports import ModelApi


@dataclass(frozen=True, slots=True)
class RepositoryLimits:
    """The limits of an agent in a repository: variables, and paths that are empty for it."""

    env: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AcpAgent:
    """One agent: how it is started, and how it finds its model."""

    name: str
    title: str
    """Its name in messages."""
    api: ModelApi
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of files by their paths in the home, written before each run."""
    model_variables: tuple[str, ...] = ()
    """The variables that name the model, if a job or its agent names one."""
    mode: str | None = None
    """The mode that its sessions are set to."""
    needs_node: bool = False
    """True if its program is a script that Node runs."""
    loads_sessions: bool = True
    """True if a stored session is to be trusted; else a later turn begins a new one."""
    session_meta: Mapping[str, Any] = field(default_factory=dict)
    """The `_meta` of a new session."""
    untrusted_meta: Mapping[str, Any] = field(default_factory=dict)
    """The same below full trust."""
    appends_system_prompt: bool = False
    """True if it takes an appended system prompt by `_meta`; else the text stands before the first prompt."""
    below_instructions: RepositoryLimits = field(default_factory=RepositoryLimits)
    """The limits that keep all instructions of a repository from it, for the trust `none`."""
    below_full: RepositoryLimits = field(default_factory=RepositoryLimits)
    """The limits that keep files from it which would run code or move the address of the model."""
    instructions_file: str | None = None
    """The path in its home where `AGENTS.md` is laid, if it does not read that of a repository below full trust."""
    transcript: str | None = None
    """The pattern of the path of its record in the home, one JSON object on each line."""

    @property
    def needs_model(self) -> bool:
        """True if a job or its agent has to name a model."""
        return any("{model}" in text for text in (*self.env.values(), *self.files.values()))


_KIMI = AcpAgent(
    "kimi",
    "Kimi Code",
    "openai",
    arguments=("acp",),
    env={
        "KIMI_MODEL_NAME": "{model}",
        "KIMI_MODEL_API_KEY": "{key}",
        "KIMI_MODEL_BASE_URL": "{base_url}",
        "KIMI_MODEL_PROVIDER_TYPE": "openai",
        "KIMI_CODE_NO_AUTO_UPDATE": "1",
        "KIMI_CODE_HOME": "{home}/.kimi-code",
    },
    needs_node=True,
    # It starts no server that a repository names: nobody has told it to trust the folder.
    below_instructions=RepositoryLimits(hidden=("AGENTS.md", "AGENTS.md".lower(), ".kimi-code", ".agents")),
    transcript=".kimi-code/sessions/*/*/agents/main/wire.jsonl",
)

_OPENCODE_CONFIG = {
    "$schema": "https://opencode.ai/config.json",
    "provider": {
        "steadyhand": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Steadyhand",
            "options": {"baseURL": "{base_url}", "apiKey": "{key}"},
            "models": {"{model}": {"name": "{model}"}},
        }
    },
    "model": "steadyhand/{model}",
    "small_model": "steadyhand/{model}",
    "enabled_providers": ["steadyhand"],
    "autoupdate": False,
    "share": "disabled",
}
# It carries out a plugin of the folder whatever is set, and without a network it waits for the packages that it wants.
_OPENCODE_FOLDER = ".opencode"

_OPENCODE = AcpAgent(
    "opencode",
    "opencode",
    "openai",
    arguments=("acp",),
    env={
        "OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE_CONFIG),
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    },
    below_instructions=RepositoryLimits(
        {"OPENCODE_DISABLE_EXTERNAL_SKILLS": "1", "OPENCODE_DISABLE_CLAUDE_CODE": "1"}
    ),
    below_full=RepositoryLimits({"OPENCODE_DISABLE_PROJECT_CONFIG": "1"}, (_OPENCODE_FOLDER,)),
    instructions_file=".config/opencode/AGENTS.md",
)

_CLAUDE = AcpAgent(
    "claude-agent-acp",
    "claude-agent-acp",
    "anthropic",
    env={
        "ANTHROPIC_BASE_URL": "{base_url}",
        "ANTHROPIC_API_KEY": "{key}",
        "CLAUDE_CONFIG_DIR": "{home}",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
    },
    model_variables=(
        "ANTHROPIC_MODEL",
        "ANTHROPIC_CUSTOM_MODEL_OPTION",
    ),  # one that it does not know has to be both
    mode="bypassPermissions",
    needs_node=True,
    session_meta={"claudeCode": {"options": {"promptSuggestions": False}}},
    untrusted_meta={
        "claudeCode": {
            "options": {"promptSuggestions": False, "settingSources": ["user"], "strictMcpConfig": True}
        }
    },
    appends_system_prompt=True,
    transcript="projects/*/*.jsonl",
)

BUILT_IN_ACP_AGENTS: Mapping[str, AcpAgent] = {each.name: each for each in (_KIMI, _OPENCODE, _CLAUDE)}
"""The agents that come with the service, by the names of their runners."""
