"""Services whose agents are Codex: their settings, their jobs, and the usage that the model has told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.real_agents.real_agents import binary

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

PROVIDER = "models"
_PROGRAM = """\
[defaults]
agent = "codex"
[runner.codex]
path = "{program}"
[prices."gpt-*"]
input = "1"
cache_read = "1"
output = "5"
"""
_AGENT = """\
[providers.{provider}]
kind = "openai-compatible"
base_url = "{url}"
api_key_file = "{key}"
[agents.{agent}]
runner = "codex"
provider = "{provider}"
model = "gpt-5.1-codex"
"""
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens")


def codex_config(url: str, key: Path) -> str:
    """Return settings in which Codex is the default agent and asks the model at `url` with the credential in `key`."""
    return _PROGRAM.format(program=binary("codex")) + codex_agent("codex", PROVIDER, url, key)


def codex_agent(agent: str, provider: str, url: str, key: Path) -> str:
    """Return the settings of an agent and its provider; a line that follows is one of the agent."""
    return _AGENT.format(agent=agent, provider=provider, url=url, key=key)


def run(service: Service, prompt: str, **fields: Any) -> dict[str, Any]:
    """Run a job of Codex to its end."""
    job = service.submit(prompt, **{"agent": "codex", "workspace": "scratch", **fields})
    return service.wait_until_ended(job["id"], 60)


def next_turn(service: Service, job: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """Run the next turn of a job to its end."""
    answer = service.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": prompt})
    assert answer.status_code == 202, answer.text
    return service.wait_until_ended(answer.json()["id"], 60)


def counted(model: ScriptedModel) -> dict[str, int]:
    """Return the tokens that the model has told since it was cleared, by the names of a job's usage."""
    totals = model.all_totals
    return {name: totals.get(name, 0) for name in _COUNTS}


def usage(job: Mapping[str, Any]) -> dict[str, int]:
    """Return the same of a job."""
    return {name: job["usage"][name] for name in _COUNTS}
