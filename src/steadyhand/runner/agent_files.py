"""The files of each kind of agent, by the name of its runner."""

from collections.abc import Mapping

from steadyhand.ports import AgentFiles
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.codex.codex_files import CodexFiles
from steadyhand.runner.process.plain_files import PlainFiles

_FILES: Mapping[str, AgentFiles] = {"claude": ClaudeFiles(), "codex": CodexFiles()}
_PLAIN = PlainFiles()


def agent_files_of(runner: str) -> AgentFiles:
    """Return the files of the agents of a runner."""
    return _FILES.get(runner, _PLAIN)
