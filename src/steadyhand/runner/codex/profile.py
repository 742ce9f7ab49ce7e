"""The settings of Codex for one run: a profile beside its own `config.toml`. Pure.

Codex takes no address from the environment: `OPENAI_BASE_URL` is ignored (tried with 0.171.0). So the model's service
is a provider of its own in the file, without repeats: the gateway repeats a call that is worth it.
"""

import json
from collections.abc import Mapping

from steadyhand.ports import ModelAccess, RunSpec

KEY_VARIABLE = "STEADYHAND_MODEL_KEY"
"""The variable with the placeholder of the credential."""
_PROVIDER = "steadyhand"


def profile_name(spec: RunSpec) -> str:
    """Return the name of the profile. The next turn has a copy of the folder, so it has the job and the run."""
    return f"steadyhand-{spec.job.id}-{spec.number}"


def render_profile(spec: RunSpec, access: ModelAccess, directory: str) -> str:
    """Return the profile of a run in this directory, as TOML."""
    job, agent, checkout = spec.job, spec.agent, spec.checkout
    texts = [text for text in (agent.append_system_prompt, job.spec.append_system_prompt) if text]
    values: dict[str, str | bool | int | None] = {
        "model_provider": _PROVIDER,
        "check_for_update_on_startup": False,
        "model": job.spec.model or agent.model,
        "model_reasoning_effort": job.spec.effort or agent.effort,
        "developer_instructions": "\n\n".join(texts) or None,
    }
    tables: dict[str, Mapping[str, str | bool | int]] = {
        f"model_providers.{_PROVIDER}": {
            "name": "Steadyhand",
            "base_url": access.base_url or "",
            "env_key": KEY_VARIABLE,
            "wire_api": "responses",
            "supports_websockets": False,
            "request_max_retries": 0,
            "stream_max_retries": 0,
        },
        "analytics": {"enabled": False},
        # With them it asks github.com and chatgpt.com at each start (tried with 0.171.0).
        "features": {"plugins": False},
    }
    if checkout.workspace.trust == "none":
        values["project_doc_max_bytes"] = 0  # it reads no AGENTS.md then
        tables["skills"] = {"include_instructions": False}
    if checkout.full_trust:
        # Without a word it reads the texts of a repository, and starts nothing of its settings.
        tables[f"projects.{json.dumps(directory)}"] = {"trust_level": "trusted"}
    settings = {name: value for name, value in values.items() if value is not None}
    return _render_toml(settings, tables)


def _render_toml(
    settings: Mapping[str, str | bool | int], tables: Mapping[str, Mapping[str, str | bool | int]]
) -> str:
    lines = _render_lines(settings)
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_render_lines(table)]
    return "\n".join(lines) + "\n"


def _render_lines(values: Mapping[str, str | bool | int]) -> list[str]:
    # A string of JSON is one of TOML, but for its pairs of surrogates and the one control character that it leaves.
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return [f"{name} = {text}".replace("\x7f", "\\u007f") for name, text in texts.items()]
