"""The files of all agents that jobs may have."""

from pathlib import Path

from steadyhand.job import JobWarning
from steadyhand.redact import Redactor
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.claude.session import PROJECTS_DIR
from steadyhand.runner.codex import rollout


class AllAgentFiles(ClaudeFiles):
    """The `AgentFiles` of a service: a job's folder has the sessions of one kind of agent.

    Instructions are laid into it for the CLI alone: Codex reads those of a repository by itself.
    """

    def copy_transcript(
        self,
        config_dir: Path,
        target: Path,
        *,
        owner: int | None,
        redactor: Redactor,
        since: float = 0.0,
        directory: Path | None = None,
    ) -> JobWarning | None:
        """Copy the newest record of the kind that is there; see `ports.AgentFiles`."""
        if (config_dir / PROJECTS_DIR).is_dir():
            return super().copy_transcript(
                config_dir, target, owner=owner, redactor=redactor, since=since, directory=directory
            )
        return rollout.copy_transcript(config_dir, target, owner=owner, redactor=redactor, since=since)
