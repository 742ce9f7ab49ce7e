"""The service's side of a seal: what the supervisor is given for it, and what comes back.

See `sandbox_child.py` for the other side.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadyhand.errors import SpawnError
from steadyhand.ports import Mounted, Seal
from steadyhand.runner.process.cgroups import groups

_MAP_SECONDS = 10.0
_MAKE_NAMESPACE = """
import ctypes, os, sys
failed = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)
print(os.strerror(ctypes.get_errno()) if failed else "", flush=True)
sys.stdin.read()
"""

_maps: dict[tuple[int, int], int] = {}
"""A user namespace for each (owner on disk, shown as), made once and kept for the life of the process."""


@dataclass(slots=True)
class Sealing:
    """What one run's supervisor is given: descriptors of user namespaces, and a socket for listening ones."""

    seal: Seal
    maps: Mapping[int, int] = field(default_factory=dict)
    """The descriptor of a user namespace by the owner that it shows as the run's user."""
    ours: socket.socket | None = None
    theirs: socket.socket | None = None

    @classmethod
    async def prepare(cls, seal: Seal | None, user: int | None) -> "Sealing | None":
        """Get ready for a run; None without a seal. Raises `SpawnError`."""
        if seal is None:
            return None
        maps = {}
        if user is not None:
            owners = {mounted.owner for mounted in seal.mounts} - {None, user}
            maps = {owner: await _map(owner, user) for owner in owners if owner is not None}
        ours, theirs = socket.socketpair() if seal.ports else (None, None)
        return cls(seal, maps, ours, theirs)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the supervisor is given, which the spec counts from 0."""
        return (*self.maps.values(), *(() if self.theirs is None else (self.theirs.fileno(),)))

    def spec(self, name: str, file_size: int | None) -> dict[str, Any]:
        """Give the seal as the supervisor reads it; `name` is that of its groups."""
        seal, held, ceiling = self.seal, groups(), self.seal.ceiling
        sizes = [size for size in (ceiling.file_size, file_size) if size is not None]
        return {
            "stage": None if seal.stage is None else os.fsencode(seal.stage),
            "mounts": [self._mounted(each) for each in seal.mounts],
            "inputs": dict(seal.inputs),
            "ports": seal.ports,
            "doors": None if self.ours is None else len(self.maps),
            "groups": held.limits(name, ceiling),
            "counters": held.counters(name),
            "kill": None if held.kill is None else str(held.kill / name),
            "open_files": ceiling.open_files,
            "file_size": min(sizes, default=None),
            "processes": ceiling.processes if held.processes is None else None,
            "memory": ceiling.memory if held.memory is None else None,
        }

    def _mounted(self, mounted: Mounted) -> dict[str, Any]:
        numbers = {owner: number for number, owner in enumerate(self.maps)}
        return {
            "kind": mounted.kind,
            "name": os.fsencode(mounted.name),
            "source": os.fsencode(mounted.source),
            "writable": mounted.writable,
            "map": None if mounted.owner is None else numbers.get(mounted.owner),
            "upper": None if mounted.upper is None else os.fsencode(mounted.upper),
            "work": None if mounted.work is None else os.fsencode(mounted.work),
            "hand_over": mounted.hand_over,
        }

    def handed_over(self) -> None:
        """Let go of the supervisor's end once it has its own."""
        if self.theirs is not None:
            self.theirs.close()

    def listening(self) -> list[int]:
        """Take the descriptors of the sockets that listen inside; the supervisor has sent them before it started."""
        if self.ours is None:
            return []
        self.ours.setblocking(False)
        try:
            _, found, _, _ = socket.recv_fds(
                self.ours, 16, len(self.seal.ports or ()), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return []
        return list(found)

    def close(self) -> None:
        """Let go of the sockets, with what nobody took from them."""
        for end in (self.ours, self.theirs):
            if end is not None:
                end.close()


async def _map(owner: int, shown: int) -> int:
    """Give a user namespace in which `owner` is `shown`; making one costs a process and 10 ms. Raises `SpawnError`."""
    key = (owner, shown)
    if key not in _maps:
        made = await _make_map(owner, shown)
        if key in _maps:  # another run was as fast
            os.close(made)
        else:
            _maps[key] = made
    return _maps[key]


async def _make_map(owner: int, shown: int) -> int:
    pipe = asyncio.subprocess.PIPE
    words = (sys.executable, "-I", "-S", "-c", _MAKE_NAMESPACE)
    holder = await asyncio.create_subprocess_exec(
        *words, stdin=pipe, stdout=pipe, env={}, start_new_session=True
    )
    try:
        async with asyncio.timeout(_MAP_SECONDS):
            assert holder.stdout is not None  # noqa: S101  # it was asked for
            said = (await holder.stdout.readline()).decode().strip()
        if said:
            raise SpawnError(f"A user namespace for the checkout could not be made: {said}.")
        process = Path(f"/proc/{holder.pid}")
        for file in ("uid_map", "gid_map"):
            (process / file).write_text(f"{owner} {shown} 1\n")
        return os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, TimeoutError) as error:
        raise SpawnError("A user namespace for the checkout could not be made.") from error
    finally:
        holder.kill()
        await holder.wait()
