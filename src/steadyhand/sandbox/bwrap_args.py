"""The arguments of bwrap: what a sealed agent sees, and what it is. Pure.

They go to bwrap over a descriptor, parted by NUL, and never on its command line: that can be read by every user of this
machine, and inside by the agent, while the environment and the paths of the service are nobody's business.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import fsencode
from pathlib import Path, PurePosixPath

from steadyhand.errors import SpawnError

WORKSPACE = Path("/workspace")
HOME = Path("/home/agent")
CONFIG = HOME / ".claude"
SERVICE = Path("/run/steadyhand")
"""Where the folder with the socket to the model is."""
PROGRAMS = Path("/opt/steadyhand")
"""Where the agent's own program is."""
UID = 1000
"""Who every agent is inside; outside it has a user of its own."""

_MIB = 1024 * 1024
SHARED_MEMORY_BYTES = 64 * _MIB
SCRATCH_BYTES = 512 * _MIB
"""What fits into `/tmp`; it is memory. `TMPDIR` is in the home, on disk."""

_FOLDERS = ("/home", "/opt", "/root", "/run", "/var")


@dataclass(frozen=True, slots=True)
class Shown:
    """A file or folder of this machine, and where the agent sees it."""

    source: Path
    at: Path
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """What is the same for every run: the root's own links, and what this kernel lets us do.

    `links` are the likes of `/bin`: a name and where it leads to, or null for a folder of its own. Without
    `disable_userns` the filter of system calls alone keeps the agent from making user namespaces.
    """

    links: tuple[tuple[str, str | None], ...]
    disable_userns: bool = True


def options(
    frame: Frame,
    shown: Iterable[Shown],
    env: Mapping[str, str],
    *,
    own_network: bool,
    filter_from: int | None,
) -> list[str]:
    """Give bwrap's options. `own_network` makes an empty network; `filter_from` is the descriptor of the filter."""
    words = ["--unshare-user", "--uid", str(UID), "--gid", str(UID)]
    words += ["--disable-userns"] if frame.disable_userns else []
    words += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--unshare-net"] if own_network else []
    words += [
        "--hostname",
        "sandbox",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    words += _root(frame)
    made = {PurePosixPath(folder) for folder in ("/", "/usr", "/etc", "/proc", "/dev", "/tmp", *_FOLDERS)}  # noqa: S108  # the sandbox's own
    for each in sorted(shown, key=lambda each: len(each.at.parts)):
        words += _parents(each.at, made)
        words += ["--bind" if each.writable else "--ro-bind", str(each.source), str(each.at)]
        made.add(PurePosixPath(each.at))
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(WORKSPACE)]
    for name, value in env.items():
        words += ["--setenv", name, value]
    if filter_from is not None:
        words += ["--seccomp", str(filter_from)]
    return words


def _root(frame: Frame) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name, target in frame.links:
        words += ["--ro-bind", name, name] if target is None else ["--symlink", target, name]
    for folder in _FOLDERS:
        words += ["--perms", "0755", "--dir", folder]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for place, size in (("/dev/shm", SHARED_MEMORY_BYTES), ("/tmp", SCRATCH_BYTES)):  # noqa: S108  # the sandbox's own
        words += ["--perms", "1777", "--size", str(size), "--tmpfs", place]
    return [*words, "--symlink", "../tmp", "/var/tmp"]  # noqa: S108  # the same


def _parents(at: Path, made: set[PurePosixPath]) -> list[str]:
    """Make the folders above a mount point that are not there: bwrap itself would close them to the agent."""
    words: list[str] = []
    for folder in reversed(PurePosixPath(at).parents):
        if folder not in made and not _below_this_machine(folder):
            words += ["--perms", "0755", "--dir", str(folder)]
            made.add(folder)
    return words


def _below_this_machine(folder: PurePosixPath) -> bool:
    return folder.is_relative_to("/usr") or folder.is_relative_to("/etc")


def encoded(words: Sequence[str]) -> bytes:
    """Give options as bwrap's `--args` reads them. Raises `SpawnError` when one of them holds a NUL."""
    if any("\0" in word for word in words):
        # It would end the word, and what follows would be read as an option.
        raise SpawnError("A value for the sandbox holds a NUL byte.", retryable=False)
    return b"".join(fsencode(word) + b"\0" for word in words)
