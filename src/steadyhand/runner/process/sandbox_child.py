"""The part of the sandbox that the supervisor sets up before the command starts: network, mounts, groups, limits.

This file runs inside the supervisor (`supervisor.py`), whose rules on imports hold here, too.

Everything goes away with the run: the mounts exist only in a mount namespace of the supervisor and its children, the
same holds for the network and the user namespace, and loop devices detach with their last mount. Only the groups
outlive a supervisor that was killed; their names have its pid and start time, and the service removes them.

The spec has `stage` (path or None), `mounts` (`kind name source writable map upper work hand_over holder`; `map` is the
index of a user namespace or None, `holder` that of a mount namespace), `inputs` (descriptor: bytes), `ports` (tuple or
None) and `doors` (the index of a socket for the listening descriptors, or None), `groups` (path, with files to write),
`counters` (name, file, key), `kill` (the group with `cgroup.kill`, or None) and the limits `open_files file_size
processes memory` (or None; the last two are None if a group enforces them). `hold` is True if the run may outlive its
service.
An index refers to the descriptors that came with the request.
A step that fails raises `OSError` with a text that names the step.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import resource
import select
import sys

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from steadyhand.runner.process.mounts import (
        allocate_reserve,
        bind_mount,
        bind_mount_at,
        chown_layers,
        clear_volatile_mark,
        free_reserve,
        join_mount,
        libc_call,
        make_mount_point,
        mount,
        mount_image,
    )

_NEWNS, _NEWUSER, _NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC_SLAVE = 2, 4, 16384 | (1 << 19)
_MNT_DETACH = 2
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_BACKLOG = 128
_ENOSPC = 28
_OOM_SCORE = b"500"  # the agent goes before the service when the machine itself runs out
_POLL_MEMORY_MS = 500
_MIN_FREE_BYTES = 1 << 20
_FATAL_SIGNALS = frozenset({4, 5, 6, 7, 8, 9, 11, 31})  # ILL TRAP ABRT BUS FPE KILL SEGV SYS
_FIRST_FREE_FD = 200  # descriptors above it are out of the way of a command's inputs


class _ErrorContext:
    """Adds the name of the failed step to an `OSError`: `with _ErrorContext("the mount of x")`."""

    def __init__(self, step: str) -> None:
        self._step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise OSError(error.errno or 0, f"{self._step}: {error.strerror or error}") from error


class SandboxRuntime:
    """The sandbox of one run, as far as the supervisor sets it up.

    The supervisor calls `build` and `tear_down`; the child that becomes the command calls `apply_limits` and
    `place_inputs`.
    """

    def __init__(
        self, spec: dict[str, Any], descriptors: list[int], user: int | None, program: bytes
    ) -> None:
        self._spec = spec
        self._descriptors = descriptors
        self._user = user
        self._is_bwrap = program.endswith(b"/bwrap")
        self._mount_root: bytes | None = spec["stage"]
        self._images: list[bytes] = []
        self._overlays: list[bytes] = []
        self._root_mounted = False
        self.cgroups: list[str] = []
        """The groups that were created."""
        self.listeners: list[int] = []
        """The sockets that listen in its network, if the run may outlive its service."""
        self.kill_cgroup: str | None = spec["kill"]
        """The group with `cgroup.kill`, which kills the whole run, or None."""
        self.memory_poll_ms: int | None = None if spec["memory"] is None else _POLL_MEMORY_MS
        """Milliseconds between calls of `exceeds_memory`; None if a group limits the memory, or there is no limit."""
        self._memory_exceeded = 0

    def build(self) -> None:
        """Set up everything. Raises `OSError`; call `tear_down` in that case, too."""
        os.umask(0o022)
        if os.geteuid() != 0:
            self._enter_user_namespace()
        elif self._spec["ports"] is not None:
            with _ErrorContext("a network of its own"):
                libc_call("unshare", _NEWNET)
        if self._spec["ports"] is not None:
            self._open_listeners()
        if self._mount_root is not None:
            self._mount_all(self._mount_root)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._create_cgroups()

    def _enter_user_namespace(self) -> None:
        """Enter a user namespace in which this user may create the other ones; without ports it may fail."""
        user, group = os.geteuid(), os.getegid()
        ports = self._spec["ports"]
        try:
            libc_call("unshare", _NEWUSER | (0 if ports is None else _NEWNET))
        except OSError as error:
            if ports is None:
                return
            raise OSError(error.errno, f"a network of its own: {error.strerror}") from error
        with _ErrorContext("the user namespace of the sandbox"):
            _write("/proc/self/setgroups", b"deny")
            _write("/proc/self/uid_map", b"%d %d 1" % (user, user))
            _write("/proc/self/gid_map", b"%d %d 1" % (group, group))

    def _open_listeners(self) -> None:
        """Bring loopback up and send the service sockets that listen in this network."""
        with _ErrorContext("the loopback of the sandbox"):
            handle = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
            name = b"lo".ljust(16, b"\0") + _IFF_UP_RUNNING.to_bytes(2, sys.byteorder)
            fcntl.ioctl(handle.fileno(), _SIOCSIFFLAGS, name.ljust(40, b"\0"))
            handle.close()
        if self._spec["doors"] is None:
            return
        listeners = []
        with _ErrorContext("the listening sockets of the sandbox"):
            for port in self._spec["ports"]:
                listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
                listener.bind(("127.0.0.1", port))
                listener.listen(_BACKLOG)
                listeners.append(listener)
            numbers = b"".join(listener.fileno().to_bytes(4, sys.byteorder) for listener in listeners)
            channel = _socket.socket(fileno=self._descriptors[self._spec["doors"]])
            channel.sendmsg([b"doors"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)])
            channel.detach()
        for listener in listeners:
            if self._spec["hold"]:
                self.listeners.append(listener.detach())
            else:
                listener.close()

    # --- mounts --------------------------------------------------------------------------------------

    def _mount_all(self, root: bytes) -> None:
        with _ErrorContext("a mount namespace of its own"):
            libc_call("unshare", _NEWNS)
            # An unmount on this machine takes effect here as well; a mount made here is visible nowhere else.
            mount(b"none", b"/", None, _MS_REC_SLAVE, None)
        with _ErrorContext("the stage of the sandbox"):
            mount(b"stage", root, b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0711,size=1m")
            self._root_mounted = True
        for number, spec in enumerate(self._spec["mounts"]):
            name: bytes = spec["name"]
            step = (
                f"of {os.fsdecode(spec['source'])!r}" if spec["kind"] == "bind" else repr(os.fsdecode(name))
            )
            with _ErrorContext(f"the {spec['kind']} {step}"):
                point = os.path.join(root, name)  # noqa: PTH118  # pathlib is large
                make_mount_point(point, folder=spec["kind"] != "bind" or os.path.isdir(spec["source"]))  # noqa: PTH112
                if spec["kind"] == "bind":
                    bind_mount(spec["source"], point, self._id_map_fd(spec), writable=spec["writable"])
                elif spec["kind"] == "joined":
                    join_mount(spec["source"], point, self._descriptors[spec["holder"]])
                elif spec["kind"] == "image":
                    mount_image(spec["source"], point, writable=spec["writable"])
                    self._images.append(point)
                    if spec["hand_over"] and self._user is not None:
                        chown_layers(point, self._user)
                    if spec["writable"]:
                        allocate_reserve(point)
                else:
                    self._mount_overlay(spec, point, os.path.join(root, b".lower%d" % number))  # noqa: PTH118

    def _mount_overlay(self, spec: dict[str, Any], point: bytes, lower: bytes) -> None:
        """Mount an overlay over a folder, whose owner is mapped to the run's user."""
        lowers = [lower]
        bind_mount_at(spec["source"], lower, self._id_map_fd(spec))
        if spec["middle"] is not None:
            lowers.insert(0, lower + b"m")  # the first of them is the uppermost
            bind_mount_at(spec["middle"], lower + b"m", self._id_map_fd(spec))
        upper = self._layer_dir(spec["upper"], 0o755)
        work = self._layer_dir(spec["work"], 0o700)
        clear_volatile_mark(work)
        handles = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (*lowers, upper, work)]
        try:
            # By descriptor: no name can be read as an option, and the agent's mount table shows none of our paths.
            # `volatile`: the end of a run does not wait for a sync of the whole disk.
            *lower_fds, upper_fd, work_fd = (b"/proc/self/fd/%d" % handle for handle in handles)
            options = b"lowerdir=%s,upperdir=%s,workdir=%s" % (b":".join(lower_fds), upper_fd, work_fd)
            options += b",redirect_dir=on,volatile"
            try:
                mount(b"overlay", point, b"overlay", _MS_NOSUID | _MS_NODEV, options)
            except OSError as error:
                if error.errno != _ENOSPC or not self._images:
                    raise
                for image in self._images:
                    free_reserve(image)
                mount(b"overlay", point, b"overlay", _MS_NOSUID | _MS_NODEV, options)
                for image in self._images:
                    allocate_reserve(
                        image
                    )  # before the agent fills it: the next mount needs the reserve again
        finally:
            for handle in handles:
                os.close(handle)
        self._overlays.append(work)

    def _id_map_fd(self, spec: dict[str, Any]) -> int | None:
        return None if spec["map"] is None else self._descriptors[spec["map"]]

    def _layer_dir(self, path: bytes, mode: int) -> bytes:
        """Return a layer's folder; its path may be relative to the mount root. On an image a missing one is made."""
        assert self._mount_root is not None  # noqa: S101  # layers are mounted on it
        path = os.path.join(self._mount_root, path)  # noqa: PTH118  # pathlib is large
        if not path.startswith(self._mount_root + b"/"):
            return path
        try:
            os.mkdir(path, mode)  # noqa: PTH102  # the same
        except FileExistsError:
            return path
        if self._user is not None:
            os.chown(path, self._user, self._user)
        return path

    # --- limits --------------------------------------------------------------------------------------

    def _create_cgroups(self) -> None:
        for path, limits in self._spec["groups"]:
            with _ErrorContext(f"the group {path}"):
                os.mkdir(path, 0o755)  # noqa: PTH102  # pathlib is large
                self.cgroups.append(path)
                for name, value, needed in limits:
                    try:
                        _write(f"{path}/{name}", value)
                    except OSError:
                        if needed:
                            raise

    def apply_limits(self, initial_cgroup: str | None) -> None:
        """Apply the limits to this process while it may. It was created in `initial_cgroup`, unless that is None."""
        for path in self.cgroups:
            if path != initial_cgroup:
                with _ErrorContext(f"the group {path}"):
                    _enter_cgroup(path)
        _set_rlimit(resource.RLIMIT_NOFILE, self._spec["open_files"])
        _set_rlimit(resource.RLIMIT_FSIZE, self._spec["file_size"])
        _set_rlimit(resource.RLIMIT_NPROC, self._spec["processes"])
        try:
            _write("/proc/self/oom_score_adj", _OOM_SCORE)
        except OSError:
            return  # a guard for the machine, not a limit of the run

    def exceeds_memory(self, pids: Iterable[int]) -> bool:
        """Return True if processes together hold more memory than the limit, each page counted once."""
        exceeded: bool = sum(_memory_of(pid) for pid in pids) > self._spec["memory"]
        self._memory_exceeded += exceeded
        return exceeded

    def place_inputs(self, failure: int) -> int:
        """Place the inputs on their descriptors; return the descriptor that `failure` has moved to."""
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
        for number, content in self._spec["inputs"].items():
            input_fd = fcntl.fcntl(os.memfd_create("input"), fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
            rest = content
            while rest:
                rest = rest[os.write(input_fd, rest) :]
            os.lseek(input_fd, 0, os.SEEK_SET)
            os.dup2(input_fd, number, inheritable=True)
        return failure

    # --- the command inside bwrap --------------------------------------------------------------------

    def inner_pid(self, pairs: Iterable[tuple[int, int]], root: int, *, init: bool) -> int | None:
        """Return the pid of the command below `root`, from (pid, parent) of all processes; None before it exists.

        The chain is: our init (when there is one), bwrap, its own process 1, and the first child of that.
        """
        if not self._is_bwrap:
            return None
        children: dict[int, list[int]] = {}
        for pid, parent in pairs:
            children.setdefault(parent, []).append(pid)
        at = root
        for _ in range(2 if init else 1):
            child_pids = children.get(at, [])
            if len(child_pids) != 1:
                return None
            at = child_pids[0]
        started = [(_start_time(pid), pid) for pid in children.get(at, [])]
        return min(started)[1] if started else None

    def exit_status(self, code: int) -> tuple[int | None, int | None]:
        """Return how the command ended (code, signal) from bwrap's exit code, which is 128 + n for a signal.

        Only fatal signals are read this way: the CLI itself exits with 143 when it is asked to end.
        """
        if self._is_bwrap and code - 128 in _FATAL_SIGNALS:
            return None, code - 128
        return code, None

    # --- the end -------------------------------------------------------------------------------------

    def limit_evidence(self) -> dict[str, int]:
        """Return how often each limit was reached, by the names of the counters; `full` is the number of full disks."""
        counts = {"oom": self._memory_exceeded}
        for name, path, key in self._spec["counters"]:
            counts[name] = _read_counter(path, key)
        counts["full"] = sum(_is_full(image) for image in self._images)
        return counts

    def tear_down(self) -> None:
        """Unmount and remove everything, once no process of the run is alive."""
        for path in self.cgroups:
            _remove_cgroup_dir(path)
        self.cgroups = []
        if not self._root_mounted or self._mount_root is None:
            return
        try:
            libc_call("umount2", self._mount_root, _MNT_DETACH)
        except OSError:
            return  # it goes away with the namespace, when this process ends
        for work in self._overlays:
            clear_volatile_mark(work)


# --- limits, one at a time -------------------------------------------------------------------------


def _enter_cgroup(group: str) -> None:
    """Enter a control group by the only thread: that needs no wait, but only version 1 allows it."""
    try:
        _write(f"{group}/tasks", b"0")
    except FileNotFoundError:
        _write(f"{group}/cgroup.procs", b"0")


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _set_rlimit(resource_id: int, value: int | None) -> None:
    if value is None:
        return
    hard = resource.getrlimit(resource_id)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(resource_id, (value, value))


def _read_counter(path: str, key: bytes) -> int:
    """Read `key NUMBER` of a group's file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        lines = os.read(descriptor, 4096).splitlines()
    finally:
        os.close(descriptor)
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [key]), 0)


def _is_full(image: bytes) -> bool:
    try:
        state = os.statvfs(image)
    except OSError:
        return False
    return state.f_bavail * state.f_frsize < _MIN_FREE_BYTES or state.f_favail == 0


def _remove_cgroup_dir(group: str) -> None:
    for _ in range(200):
        try:
            os.rmdir(group)  # noqa: PTH106  # pathlib is large
        except FileNotFoundError:
            return
        except OSError:
            select.poll().poll(5)  # killed processes still leave it
        else:
            return


# --- processes -------------------------------------------------------------------------------------


def _memory_of(pid: int) -> int:
    """Return a process's proportional share of memory in bytes."""
    try:
        descriptor = os.open(f"/proc/{pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        lines = os.read(descriptor, 4096).splitlines()
    except OSError:
        return 0  # it ended in between
    finally:
        os.close(descriptor)
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(b"Pss:")), 0)


def _start_time(pid: int) -> int:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 1 << 62
    try:
        fields = os.read(descriptor, 1024)
    except OSError:
        return 1 << 62
    finally:
        os.close(descriptor)
    return int(fields[fields.rindex(b")") + 2 :].split()[19])
