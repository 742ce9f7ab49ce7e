"""The arguments of bwrap: the file system, identity and limits of a sandboxed agent. Pure.

They are sent to bwrap over a descriptor, separated by NUL, and never on its command line: every user of this machine,
and the agent inside, can read that, and the environment and the paths of the service are not theirs to see.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import fsencode
from pathlib import Path, PurePosixPath

from steadyhand.errors import SpawnError

WORKSPACE_DIR = Path("/workspace")
HOME_DIR = Path("/home/agent")
SERVICE_DIR = Path("/run/steadyhand")
"""Where the folder with the socket to the model is."""
PROGRAMS_DIR = Path("/opt/steadyhand")
"""Where the agent's own program is."""
AGENT_UID = 1000
"""The user of every agent inside; outside it has a user of its own."""

_MIB = 1024 * 1024
SHM_BYTES = 64 * _MIB
TMP_BYTES = 512 * _MIB
"""The size of `/tmp`, which is memory. `TMPDIR` is in the home, on disk."""

_ROOT_DIRS = ("/home", "/opt", "/root", "/run", "/var")


@dataclass(frozen=True, slots=True)
class BwrapBind:
    """A file or folder of this machine, and where the agent sees it."""

    source: Path
    at: Path
    writable: bool = False


@dataclass(frozen=True, slots=True)
class RootLayout:
    """The part of the root that is the same for every run: its links, and the abilities of this kernel.

    `links` are those like `/bin`: a name and its target, or None for a directory. Without `disable_userns` the filter
    of system calls alone keeps the agent from making user namespaces.
    """

    links: tuple[tuple[str, str | None], ...]
    disable_userns: bool = True


def bwrap_options(
    layout: RootLayout,
    binds: Iterable[BwrapBind],
    env: Mapping[str, str],
    *,
    unshare_network: bool,
    seccomp_fd: int | None,
) -> list[str]:
    """Return bwrap's options. `own_network` makes an empty network; `filter_from` is the descriptor of the filter."""
    args = ["--unshare-user", "--uid", str(AGENT_UID), "--gid", str(AGENT_UID)]
    args += ["--disable-userns"] if layout.disable_userns else []
    args += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    args += ["--unshare-net"] if unshare_network else []
    args += [
        "--hostname",
        "sandbox",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    args += _root_options(layout)
    folders = ("/", "/usr", "/etc", "/proc", "/dev", "/tmp", *_ROOT_DIRS)  # noqa: S108  # the sandbox's own
    existing = {PurePosixPath(folder) for folder in folders}
    for each in sorted(binds, key=lambda each: len(each.at.parts)):
        args += _parent_options(each.at, existing)
        args += ["--bind" if each.writable else "--ro-bind", str(each.source), str(each.at)]
        existing.add(PurePosixPath(each.at))
    args += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(WORKSPACE_DIR)]
    for name, value in env.items():
        args += ["--setenv", name, value]
    if seccomp_fd is not None:
        args += ["--seccomp", str(seccomp_fd)]
    return args


def _root_options(layout: RootLayout) -> list[str]:
    args = ["--ro-bind", "/usr", "/usr"]
    for name, target in layout.links:
        args += ["--ro-bind", name, name] if target is None else ["--symlink", target, name]
    for folder in _ROOT_DIRS:
        args += ["--perms", "0755", "--dir", folder]
    args += ["--proc", "/proc", "--dev", "/dev"]
    for mount_point, size in (("/dev/shm", SHM_BYTES), ("/tmp", TMP_BYTES)):  # noqa: S108  # the sandbox's own
        args += ["--perms", "1777", "--size", str(size), "--tmpfs", mount_point]
    return [*args, "--symlink", "../tmp", "/var/tmp"]  # noqa: S108  # the same


def _parent_options(target: Path, existing: set[PurePosixPath]) -> list[str]:
    """Make the folders above a mount point that are not there: bwrap itself would close them to the agent."""
    args: list[str] = []
    for folder in reversed(PurePosixPath(target).parents):
        if folder not in existing and not _is_host_mounted(folder):
            args += ["--perms", "0755", "--dir", str(folder)]
            existing.add(folder)
    return args


def _is_host_mounted(folder: PurePosixPath) -> bool:
    return folder.is_relative_to("/usr") or folder.is_relative_to("/etc")


def encode_args(args: Sequence[str]) -> bytes:
    """Return options in the form of bwrap's `--args`. Raises `SpawnError` if one of them holds a NUL."""
    if any("\0" in word for word in args):
        # It would end the word, and what follows would be read as an option.
        raise SpawnError("A value for the sandbox holds a NUL byte.", retryable=False)
    return b"".join(fsencode(word) + b"\0" for word in args)
