"""Becomes process 1 of a root: run as `unshare --mount --pid --fork .. python -I -S enter.py SPEC`, as root.

What is mounted here is in a mount namespace of this process, and goes with it. SPEC is JSON: `root` (an empty folder),
`lower` (layers, the lowest first), `upper` and `work`, `binds` (source, target; a source that is a list is layers),
`masked` and `read_only` (paths), `tmpfs` (paths with options), `read_only_root`, `alone` (a network of its own is to be
brought up), `init` (stay, hand SIGTERM on and reap, in place of becoming the command), `folder`, `env`, `argv`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x41
_DETACH = 2
_OLD = "dev/.old"
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    library = ctypes.CDLL(None, use_errno=True)
    root = Path(spec["root"])
    _mount("-t", "overlay", "-o", _layers(spec["lower"], spec["upper"], spec["work"]), "overlay", str(root))
    _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", str(root / "proc"))
    _mount("-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", str(root / "sys"))
    _make_dev(root / "dev")
    for source, target in spec["binds"]:
        _bind(source, root / target.lstrip("/"))
    for each in spec.get("tmpfs", ()):
        path, _, options = each.partition(":")
        target = root / path.lstrip("/")
        _mount("-t", "tmpfs", "-o", f"noexec,nosuid,nodev,{options or 'mode=1777'}", "tmpfs", str(target))
    for path in spec["masked"]:
        _mask(root / path.lstrip("/"))
    for path in spec["read_only"]:
        _close_to_writing(root / path.lstrip("/"))
    if spec["alone"]:
        _bring_loopback_up()
    os.chdir(root)
    (root / _OLD).mkdir()
    subprocess.run(["pivot_root", ".", _OLD], check=True)
    os.chroot(".")
    os.chdir("/")
    if library.umount2(f"/{_OLD}".encode(), _DETACH) != 0:
        raise OSError(ctypes.get_errno(), "the machine's own root stays")
    Path("/", _OLD).rmdir()
    if spec.get("read_only_root"):
        _mount("-o", "remount,bind,ro", "/")
    os.chdir(spec["folder"])
    if spec["init"]:
        _be_init(spec["argv"], spec["env"])
    os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  # no shell is the point


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _layers(lower: Sequence[str], upper: str | None = None, work: str | None = None) -> str:
    found = "lowerdir=" + ":".join(reversed(lower))
    return found if upper is None else f"{found},upperdir={upper},workdir={work},redirect_dir=off"


def _bind(source: str | list[str], target: Path) -> None:
    folder = isinstance(source, list) or Path(source).is_dir()
    if folder:
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    if isinstance(source, list):
        _mount("-t", "overlay", "-o", _layers([str(target), *source]), "overlay", str(target))
    else:
        _mount("--rbind", source, str(target))


def _make_dev(dev: Path) -> None:
    _mount("-t", "tmpfs", "-o", "nosuid,mode=755,size=65536k", "tmpfs", str(dev))
    for name, numbers in _DEVICES.items():
        os.mknod(dev / name, 0o020666, os.makedev(*numbers))
        (dev / name).chmod(0o666)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (dev / name).symlink_to(f"/proc/self/{target}")
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620", "devpts", str(dev / "pts"))
    (dev / "ptmx").symlink_to("pts/ptmx")
    _mount("-t", "tmpfs", "-o", "nosuid,nodev,mode=1777,size=65536k", "tmpfs", str(dev / "shm"))


def _mask(path: Path) -> None:
    """Cover a path as container engines do; what this kernel does not have is left out."""
    if path.is_dir():
        _mount("-t", "tmpfs", "-o", "ro", "tmpfs", str(path))
    elif path.exists():
        _mount("--bind", "/dev/null", str(path))


def _close_to_writing(path: Path) -> None:
    """Make a path read-only, if this kernel has it."""
    if path.exists():
        _mount("--bind", str(path), str(path))
        _mount("-o", "remount,bind,ro", str(path))


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        name = b"lo".ljust(16, b"\0") + _UP_AND_RUNNING.to_bytes(2, sys.byteorder)
        fcntl.ioctl(handle.fileno(), _SIOCSIFFLAGS, name.ljust(40, b"\0"))


def _be_init(argv: list[str], env: Mapping[str, Any]) -> None:
    pid = os.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, env)  # noqa: S606  # the same
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            sys.exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    main()
