"""The agents of `steadyhand demo`: how each one is described, and the settings that let the service run it."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from steadyhand.config.settings import Settings
from steadyhand.errors import ConfigError
from steadyhand.runner.packages.installed import find_installed

_DUMMY_KEY = "sk-demo-no-real-key"
_CODEX_SETTINGS = """\
[runner.codex]
path = "{program}"

[providers.scripted]
kind = "openai-compatible"
base_url = "{url}"
api_key_file = "{key}"

[agents.codex]
runner = "codex"
provider = "scripted"
model = "gpt-5.5"
"""


@dataclass(frozen=True, slots=True)
class DemoAgent:
    """An agent beside the bundled CLI. `settings` is a file for the service; `find` returns the agent's program."""

    name: str
    title: str
    settings: str
    find: Callable[[Settings], Path]

    def write_settings(self, root: Path, settings: Settings, model_url: str) -> Path:
        """Write the service's settings below `root` and return their file. Raise `ConfigError` without a program."""
        key, file = root / "model.key", root / "steadyhand.toml"
        text = self.settings.format(program=self.find(settings), url=model_url, key=key)
        key.write_text(_DUMMY_KEY, "ascii")
        key.chmod(0o600)
        file.write_text(text, "utf-8")
        return file


def _find_codex(settings: Settings) -> Path:
    configured = settings.tables.runner.codex.path
    if configured is not None:
        return configured.absolute()
    installed = find_installed(settings.data_dir, "codex")
    if installed is not None:
        return installed.program
    found = shutil.which("codex", path=settings.path)
    if found is None:
        raise ConfigError(
            "Codex is not installed: `steadyhand agents install codex` does, or name it by `path` in [runner.codex]."
        )
    return Path(found).absolute()


DEMO_AGENTS: Mapping[str, DemoAgent] = {
    "codex": DemoAgent("codex", "Codex", _CODEX_SETTINGS, _find_codex),
}
"""The agents by their names."""
