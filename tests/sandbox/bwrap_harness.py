"""A sandbox of this machine in a directory of its own, and a way to run its commands without the supervisor."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import Agent, Workspace
from steadyhand.ports import Checkout, Command, JobPaths
from steadyhand.sandbox.etc_dir import make_etc
from steadyhand.sandbox.sandbox import BwrapSandbox
from steadyhand.workspace.filesystem import make_dir

UID = 64_000
PATH_ENV = {"PATH": "/usr/bin:/bin"}

# bwrap, as the agent's user, with what it reads put on the descriptors that it expects.
_RUN_COMMAND = """
import ast, os, sys
user, inputs, argv = ast.literal_eval(sys.stdin.buffer.readline().decode())
for descriptor, data in inputs.items():
    file = os.memfd_create("input", 0)
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, descriptor)
    os.set_inheritable(descriptor, True)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
if user is not None and os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
os.execve(argv[0], argv, {})
"""


class BwrapHarness:
    """A place, a sandbox without a stage, and what runs in it."""

    def __init__(self, root: Path, cli: Path, *, secrets: Sequence[str] = ()) -> None:
        self.root = root
        self.user = UID if os.geteuid() == 0 else None
        data = root / "data"
        files = JobPaths(data / "jobs" / "job1")
        files.root.mkdir(parents=True)
        (data / "run" / "slot-0").mkdir(parents=True)
        for folder in (files.checkout, files.home, files.config_dir):
            make_dir(folder, 0o700, self.user)
        etc = make_etc(data, placeholders=[Path(name) for name in secrets])
        made = BwrapSandbox.detect(
            data, cli, program_name="claude", config_dir_name=".claude", etc_dir=etc, secrets=secrets
        )
        # Nobody makes mounts or a network for it here: bwrap does all by itself.
        self.sandbox = replace(made, staging_dir=None, egress_network=False)
        self.place = Checkout(
            Workspace("w"), files, files.checkout, files.home, files.config_dir, self.user, commit=None
        )

    def wrap(
        self, argv: Sequence[str], env: Mapping[str, str] = PATH_ENV, agent: Agent | None = None
    ) -> Command:
        command = Command(argv, env, self.sandbox.agent_paths(self.place).directory, self.user)
        return self.sandbox.wrap(command, self.place, agent or Agent("a"))

    def run(
        self,
        *argv: str,
        env: Mapping[str, str] = PATH_ENV,
        agent: Agent | None = None,
        place: Checkout | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        command = Command(argv, env, Path("/workspace"), self.user)
        return run_command(self.sandbox.wrap(command, place or self.place, agent or Agent("a")))

    def run_script(self, script: str, **options: object) -> str:
        """Run a shell script and give what it printed; it must end well."""
        done = self.run("/bin/sh", "-c", script, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()


def run_command(command: Command) -> subprocess.CompletedProcess[bytes]:
    assert command.sandbox is not None
    assert command.sandbox.mount_root is None
    asked = (command.uid, dict(command.sandbox.input_data), list(command.argv))
    return subprocess.run(
        [sys.executable, "-IS", "-c", _RUN_COMMAND],
        input=repr(asked).encode() + b"\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
