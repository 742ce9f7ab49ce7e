"""The launch of an agent: its command, its files, and the message about them to the supervisor."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyhand.ports import Command, HoldSpec
from steadyhand.runner.process import cgroups, supervisor
from steadyhand.runner.process.held_record import Holding
from steadyhand.runner.process.sandbox_setup import SandboxSetup


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A command with files (absolute path, content) and folders, which are created as its user before it starts.

    No existing file is overwritten: it is an error, except for `optional_files`, which are skipped, and
    `replaced_files`, which are written anew. The `containment_methods` are tried in order; `file_size` is the largest
    file that it may write, in bytes. With `hold` the run may outlive the service, from `AgentProcess.keep` on.
    """

    command: Command
    files: Sequence[tuple[Path, bytes]] = ()
    optional_files: Sequence[tuple[Path, bytes]] = ()
    replaced_files: Sequence[tuple[Path, bytes]] = ()
    folders: Sequence[Path] = ()
    containment_methods: Sequence[str] = supervisor.CONTAINMENT_METHODS
    file_size: int | None = None
    hold: HoldSpec | None = None

    def to_message(
        self, name: str, sandbox_setup: SandboxSetup | None, holding: Holding | None
    ) -> dict[str, Any]:
        """Return it as a message to the supervisor; `name` is that of the run's groups."""
        first = 0 if sandbox_setup is None else len(sandbox_setup.descriptors)
        is_held = holding is not None
        command, kill_cgroup = self.command, cgroups.detect_cgroups().kill
        return {
            "argv": [os.fsencode(word) for word in command.argv],
            "env": {os.fsencode(name): os.fsencode(value) for name, value in command.env.items()},
            "cwd": os.fsencode(command.cwd),
            "user": command.uid,
            "files": [(os.fsencode(path), content) for path, content in self.files],
            "laid": [(os.fsencode(path), content) for path, content in self.optional_files],
            "replaced": [(os.fsencode(path), content) for path, content in self.replaced_files],
            "folders": [os.fsencode(path) for path in self.folders],
            "file_size": self.file_size,
            "means": list(self.containment_methods),
            "cgroup": None if kill_cgroup is None else str(kill_cgroup / name),
            "seal": None
            if sandbox_setup is None
            else sandbox_setup.to_message(name, self.file_size, is_held=is_held),
            "hold": None if holding is None else holding.to_message(first),
        }
