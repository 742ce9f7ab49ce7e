"""The files of an agent that speaks ACP: its record, and the instructions that are laid where it looks for them."""

import contextlib
import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from steadyhand.agents import AgentDefinition
from steadyhand.job import JobWarning
from steadyhand.ports import Instructions
from steadyhand.redact import Redactor
from steadyhand.runner.acp.acp_agent import AcpAgent
from steadyhand.runner.process.agent_record import (
    DIR_FLAGS,
    copy_redacted,
    is_record,
    opened,
    record_lost,
)
from steadyhand.runner.process.plain_files import PlainFiles, write_new_file

INSTRUCTIONS_FILE = "AGENTS.md"
_MAX_NAMES = 100
"""The most names of one folder that are looked at: the newest by name."""


class AcpFiles(PlainFiles):
    """The `AgentFiles` of one agent."""

    def __init__(self, agent: AcpAgent) -> None:
        """Create them by the agent's entry."""
        self._agent = agent
        self.instruction_files: Sequence[str] = (
            () if agent.instructions_file is None else (INSTRUCTIONS_FILE,)
        )

    def read_instructions(
        self,
        files: Sequence[tuple[str, str]],
        *,
        full_trust: bool,  # noqa: ARG002  # the port's signature
    ) -> Instructions:
        """Return the text of `AGENTS.md` by the path where the agent looks for it."""
        path = self._agent.instructions_file
        return Instructions() if path is None or not files else Instructions({path: files[0][1]})

    def write_config(
        self,
        config_dir: Path,
        texts: Mapping[str, str],
        definitions: Mapping[str, AgentDefinition],  # noqa: ARG002  # the port's signature
        *,
        sandboxed: bool,  # noqa: ARG002  # the same
    ) -> None:
        """Write the instructions to a home that only the service can access so far."""
        for name, text in texts.items():
            write_new_file(config_dir / name, text)

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
        """Copy the newest record to `target` without live secrets, if there is one; see `ports.AgentFiles`."""
        if self._agent.transcript is None:
            return None
        try:
            with opened(config_dir, None, DIR_FLAGS) as home:
                records = _records(home, self._agent.transcript.split("/"), owner, since)
                newest = max(records, default=None)
                return None if newest is None else _copy(home, newest[1], target, redactor)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return record_lost(error)


def _copy(folder: int, path: Sequence[str], target: Path, redactor: Redactor) -> JobWarning | None:
    with contextlib.ExitStack() as stack:
        for name in path[:-1]:  # no link is followed on the way
            folder = stack.enter_context(opened(name, folder, DIR_FLAGS))
        return copy_redacted(folder, path[-1], target, redactor)


def _records(
    folder: int, pattern: Sequence[str], owner: int | None, since: float
) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Yield the time and the path of each record below an open folder."""
    names = sorted(fnmatch.filter(os.listdir(folder), pattern[0]))[-_MAX_NAMES:]  # a descriptor has no path
    for name in names:
        if len(pattern) == 1:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if is_record(info, owner, since):
                yield info.st_mtime, (name,)
            continue
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, OSError),
            opened(name, folder, DIR_FLAGS) as inner,
        ):
            for time, path in _records(inner, pattern[1:], owner, since):
                yield time, (name, *path)
