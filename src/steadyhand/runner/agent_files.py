"""The files of each kind of agent, by the name of its runner."""

from collections.abc import Mapping, Sequence

from steadyhand.ports import AgentFiles, AgentFilesOf, Instructions
from steadyhand.runner.acp.acp_agent import AcpAgent
from steadyhand.runner.acp.acp_files import INSTRUCTIONS_FILE, AcpFiles
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.codex.codex_files import CodexFiles
from steadyhand.runner.process.plain_files import PlainFiles

_CLAUDE_BY_ACP = "claude-agent-acp"


class ClaudeByAcpFiles(ClaudeFiles):
    """The files of the CLI behind ACP. `AGENTS.md` stands for a `CLAUDE.md` that is not there: it reads none itself."""

    instruction_files: Sequence[str] = (*ClaudeFiles.instruction_files, INSTRUCTIONS_FILE)

    def read_instructions(self, files: Sequence[tuple[str, str]], *, full_trust: bool) -> Instructions:
        """Return the instructions in files of a repository, as `ClaudeFiles` does."""
        names = {name for name, _ in files}
        if names.isdisjoint(ClaudeFiles.instruction_files):
            files = [("CLAUDE.md" if name == INSTRUCTIONS_FILE else name, text) for name, text in files]
        else:
            files = [(name, text) for name, text in files if name != INSTRUCTIONS_FILE]
        return super().read_instructions(files, full_trust=full_trust)


def agent_files_by_runner(acp_agents: Mapping[str, AcpAgent]) -> AgentFilesOf:
    """Return the function that finds the files of the agents of a runner."""
    files: dict[str, AgentFiles] = {name: AcpFiles(agent) for name, agent in acp_agents.items()}
    files |= {"claude": ClaudeFiles(), "codex": CodexFiles(), _CLAUDE_BY_ACP: ClaudeByAcpFiles()}
    unknown = PlainFiles()
    return lambda runner: files.get(runner, unknown)
