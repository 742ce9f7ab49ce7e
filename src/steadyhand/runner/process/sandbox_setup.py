"""The service's side of a sandbox: the message and descriptors for the supervisor, and the sockets that it returns.

See `sandbox_child.py` for the other side.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadyhand.errors import SpawnError
from steadyhand.ports import Mount, SandboxSpec
from steadyhand.runner.process.cgroups import detect_cgroups, start_ticks

_ID_MAP_SECONDS = 10.0
_USER_NAMESPACE_PROGRAM = """
import ctypes, os, sys
failed = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)
print(os.strerror(ctypes.get_errno()) if failed else "", flush=True)
sys.stdin.read()
"""

_id_map_cache: dict[tuple[int, int], int] = {}
"""A user namespace for each (owner on disk, uid inside), created once and kept for the life of the process."""


@dataclass(slots=True)
class SandboxSetup:
    """The descriptors for one run's supervisor: user namespaces, and a socket that returns listening sockets."""

    spec: SandboxSpec
    id_maps: Mapping[int, int] = field(default_factory=dict)
    """The descriptor of a user namespace by the owner that it maps to the run's user."""
    namespaces: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """The descriptor of the mount namespace of each supervisor whose mounts the run joins; owned by this setup."""
    service_end: socket.socket | None = None
    supervisor_end: socket.socket | None = None

    @classmethod
    async def prepare(cls, spec: SandboxSpec | None, user: int | None) -> "SandboxSetup | None":
        """Return the setup for a run; None without a sandbox. Raises `SpawnError`."""
        if spec is None:
            return None
        id_maps = {}
        if user is not None:
            owners = {mount.owner for mount in spec.mounts} - {None, user}
            id_maps = {owner: await _id_map(owner, user) for owner in owners if owner is not None}
        namespaces = _open_namespaces({each.holder for each in spec.mounts if each.holder is not None})
        service_end, supervisor_end = socket.socketpair() if spec.loopback_ports else (None, None)
        return cls(spec, id_maps, namespaces, service_end, supervisor_end)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors for the supervisor; the spec refers to them by index from 0."""
        return (
            *self.id_maps.values(),
            *self.namespaces.values(),
            *(() if self.supervisor_end is None else (self.supervisor_end.fileno(),)),
        )

    def to_message(self, name: str, file_size: int | None, *, is_held: bool) -> dict[str, Any]:
        """Return the spec as a message to the supervisor; `name` is that of its groups."""
        spec, cgroups, resource_limits = self.spec, detect_cgroups(), self.spec.limits
        sizes = [size for size in (resource_limits.file_size, file_size) if size is not None]
        return {
            "stage": None if spec.mount_root is None else os.fsencode(spec.mount_root),
            "mounts": [self._mount_message(mount) for mount in spec.mounts],
            "inputs": dict(spec.input_data),
            "ports": spec.loopback_ports,
            "doors": None if self.service_end is None else len(self.id_maps) + len(self.namespaces),
            "groups": cgroups.limits(name, resource_limits),
            "counters": cgroups.counters(name),
            "kill": None if cgroups.kill is None else str(cgroups.kill / name),
            "open_files": resource_limits.open_files,
            "file_size": min(sizes, default=None),
            "processes": resource_limits.processes if cgroups.processes is None else None,
            "memory": resource_limits.memory if cgroups.memory is None else None,
            "hold": is_held,
        }

    def _mount_message(self, mount: Mount) -> dict[str, Any]:
        numbers = {owner: number for number, owner in enumerate(self.id_maps)}
        holders = {holder: len(numbers) + number for number, holder in enumerate(self.namespaces)}
        return {
            "kind": mount.kind,
            "name": os.fsencode(mount.target),
            "source": os.fsencode(mount.source),
            "writable": mount.writable,
            "map": None if mount.owner is None else numbers.get(mount.owner),
            "upper": None if mount.upper is None else os.fsencode(mount.upper),
            "work": None if mount.work is None else os.fsencode(mount.work),
            "middle": None if mount.middle is None else os.fsencode(mount.middle),
            "hand_over": mount.change_owner,
            "holder": None if mount.holder is None else holders[mount.holder],
        }

    def close_supervisor_end(self) -> None:
        """Close the supervisor's end once the supervisor has its own copy."""
        if self.supervisor_end is not None:
            self.supervisor_end.close()

    def receive_listeners(self) -> list[int]:
        """Return descriptors of the sockets that listen inside; the supervisor sends them before the agent starts."""
        if self.service_end is None:
            return []
        self.service_end.setblocking(False)
        try:
            _, descriptors, _, _ = socket.recv_fds(
                self.service_end, 16, len(self.spec.loopback_ports or ()), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return []
        return list(descriptors)

    def close(self) -> None:
        """Close the sockets and namespaces, with any descriptors that nobody has received."""
        for descriptor in self.namespaces.values():
            os.close(descriptor)
        self.namespaces = {}
        for end in (self.service_end, self.supervisor_end):
            if end is not None:
                end.close()


def _open_namespaces(holders: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Return the descriptor of the mount namespace of each supervisor. Raises `SpawnError` if one has ended."""
    opened: dict[tuple[int, int], int] = {}
    try:
        for pid, started in holders:
            opened[pid, started] = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            if start_ticks(pid) != started:
                raise ProcessLookupError
    except OSError as error:
        for descriptor in opened.values():
            os.close(descriptor)
        raise SpawnError("The process that has the checkout mounted has ended.") from error
    return opened


async def _id_map(owner: int, inner_uid: int) -> int:
    """Return a user namespace that maps `owner` to `inner_uid`. Raises `SpawnError`.

    A new one costs a process and 10 ms, so each is cached.
    """
    key = (owner, inner_uid)
    if key not in _id_map_cache:
        fd = await _create_id_map(owner, inner_uid)
        if key in _id_map_cache:  # another run was as fast
            os.close(fd)
        else:
            _id_map_cache[key] = fd
    return _id_map_cache[key]


async def _create_id_map(owner: int, inner_uid: int) -> int:
    pipe = asyncio.subprocess.PIPE
    argv = (sys.executable, "-I", "-S", "-c", _USER_NAMESPACE_PROGRAM)
    holder = await asyncio.create_subprocess_exec(
        *argv, stdin=pipe, stdout=pipe, env={}, start_new_session=True
    )
    try:
        async with asyncio.timeout(_ID_MAP_SECONDS):
            assert holder.stdout is not None  # noqa: S101  # it is a pipe
            failure = (await holder.stdout.readline()).decode().strip()
        if failure:
            raise SpawnError(f"A user namespace for the checkout could not be created: {failure}.")
        process = Path(f"/proc/{holder.pid}")
        for file in ("uid_map", "gid_map"):
            (process / file).write_text(f"{owner} {inner_uid} 1\n")
        return os.open(process / "ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, TimeoutError) as error:
        raise SpawnError("A user namespace for the checkout could not be created.") from error
    finally:
        holder.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ID_MAP_SECONDS):
                await holder.wait()
