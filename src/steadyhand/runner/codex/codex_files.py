"""The files of Codex, which reads the instructions of a repository by itself."""

from pathlib import Path

from steadyhand.job import JobWarning
from steadyhand.redact import Redactor
from steadyhand.runner.codex.rollout import copy_transcript
from steadyhand.runner.process.plain_files import PlainFiles


class CodexFiles(PlainFiles):
    """The `AgentFiles` of Codex."""

    def copy_transcript(
        self,
        config_dir: Path,
        target: Path,
        *,
        owner: int | None,
        redactor: Redactor,
        since: float = 0.0,
        directory: Path | None = None,  # noqa: ARG002  # the port's signature
    ) -> JobWarning | None:
        """Copy the newest record of a thread to `target` without live secrets; see `rollout.copy_transcript`."""
        return copy_transcript(config_dir, target, owner=owner, redactor=redactor, since=since)
