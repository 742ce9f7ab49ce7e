"""Start of the agent by the supervisor: by the first containment method that works, with no privilege left.

This file runs inside the supervisor before its own code (`supervisor.py`), whose rules on imports hold here, too.
"""

from __future__ import annotations

import _ctypes  # smaller than `ctypes`
import _signal  # type: ignore[import-not-found]  # `signal` makes enums
import os
import resource
import sys

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from steadyhand.runner.process.process_tree import remove_cgroup, send_signal


_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_CLONE_INTO_CGROUP = 1 << 33
_CLONE3 = 435  # the number of the system call on every architecture
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REC_SLAVE = 16384 | (1 << 19)
_UNSUPPORTED = b"unable"


def libc(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library and return its int: usually 0 on success and -1 on failure."""
    library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is the process itself
    result: int = _ctypes.call_function(_ctypes.dlsym(library, name), arguments)
    return result


class SpawnedAgent:
    """A started agent: the supervisor's child, its containment method, and the descriptor for its wait status."""

    def __init__(
        self, pid: int, containment: str, status_fd: int | None = None, cgroup: str | None = None
    ) -> None:
        self.pid = pid
        self.containment = containment
        self.status_fd = status_fd
        self.cgroup = cgroup
        self.sandbox: Any = None
        self.lease_over = False
        """True if it was ended because the service was frozen."""


def detach_standard_streams() -> None:
    """Replace stdin, stdout and stderr, which belong to the agent, by the null device."""
    # The agent's copies must be the only ones, or the service would never see their end.
    null_fd = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null_fd, descriptor)
    os.close(null_fd)


def spawn_agent(spec: dict[str, Any], channel: int) -> SpawnedAgent:
    """Start the agent by the first method that works. Raises `OSError` if the agent does not start."""
    for method in spec["means"]:
        if method == "pid_namespace":
            run = _spawn_in_namespace(spec, channel)
        elif method == "cgroup":
            run = _spawn_in_cgroup(spec)
        else:
            run = _spawn_child(spec, "walk", None)
        if run is not None:
            run.sandbox = spec["stage"]
            if run.sandbox is not None:
                run.cgroup = run.sandbox.kill_cgroup
            return run
    raise OSError(0, "no containment method is left to try")


def _spawn_in_cgroup(spec: dict[str, Any]) -> SpawnedAgent | None:
    group = spec["cgroup"]
    if group is None or spec["stage"] is not None:  # a sealed run is in the cgroups of its sandbox
        return None
    try:
        os.mkdir(group)  # noqa: PTH102  # pathlib is large
    except OSError:
        return None
    try:
        return _spawn_child(spec, "cgroup", group)
    except OSError:
        remove_cgroup(group)
        raise


def _spawn_child(spec: dict[str, Any], containment: str, cgroup: str | None) -> SpawnedAgent:
    reader, writer = os.pipe()
    pid, initial_cgroup = _fork_into(cgroup if spec["stage"] is None else spec["stage"].kill_cgroup)
    if pid == 0:
        if cgroup is not None and initial_cgroup is None:
            _join_cgroup(cgroup, writer)
        _exec_agent(spec, writer, initial_cgroup)
    os.close(writer)
    _raise_child_failure(reader)
    return SpawnedAgent(pid, containment, cgroup=cgroup)


def _fork_into(group: str | None) -> tuple[int, str | None]:
    """Fork, with the child inside a control group of version 2 if possible; return the pid, and that group or None.

    A process that moves into a group waits until the kernel has visited all processors (5 to 15 ms, seen on 6.1 and
    later); one that is created in it does not. The C library does not know the child, so the child must exec soon.
    """
    if group is None:
        return os.fork(), None
    try:
        directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return os.fork(), None
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
    # set_tid_size, cgroup.
    values = (_CLONE_INTO_CGROUP, 0, 0, 0, int(_signal.SIGCHLD), 0, 0, 0, 0, 0, directory)
    clone_args = b"".join(value.to_bytes(8, sys.byteorder) for value in values)
    pid = libc("syscall", _CLONE3, clone_args, len(clone_args))
    os.close(directory)
    return (os.fork(), None) if pid < 0 else (pid, group)


def _join_cgroup(group: str, failure_fd: int) -> None:
    try:
        descriptor = os.open(f"{group}/cgroup.procs", os.O_WRONLY)
        os.write(descriptor, b"0")
    except OSError as error:
        _report_and_exit(failure_fd, error)


def _spawn_in_namespace(spec: dict[str, Any], channel: int) -> SpawnedAgent | None:
    """Start the agent below our own init in a pid namespace; return None if that is not available."""
    try:
        outer_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
    except OSError:
        return None
    if libc("unshare", _CLONE_NEWPID) != 0:
        os.close(outer_namespace)
        return None
    failure, failure_writer = os.pipe()
    status, status_writer = os.pipe()
    gate, gate_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (channel, outer_namespace, failure, status, gate_writer, *spec["held"]):
            os.close(descriptor)
        _run_init(spec, gate, failure_writer, status_writer)
    for descriptor in (gate, failure_writer, status_writer):
        os.close(descriptor)
    # Later children (there are none unless this fails) belong to the outer namespace again.
    libc("setns", outer_namespace, _CLONE_NEWPID)
    os.close(outer_namespace)
    os.write(gate_writer, b"g")
    try:
        supported = _raise_child_failure(failure)
    finally:
        os.close(gate_writer)
    if not supported:
        os.waitpid(pid, 0)
        os.close(status)
        return None
    return SpawnedAgent(pid, "pid_namespace", status_fd=status)


def _raise_child_failure(reader: int) -> bool:
    """Read from a starting child until its exec closes the pipe. Raises `OSError` with the error that it reports.

    Return False if the child reports that the method is not available.
    """
    message = b""
    while part := os.read(reader, 4096):
        message += part
    os.close(reader)
    if message == _UNSUPPORTED:
        return False
    if message:
        raise OSError(0, message.decode("utf-8", "replace"))
    return True


def _run_init(spec: dict[str, Any], gate: int, failure_fd: int, status_fd: int) -> NoReturn:
    """Run as process 1 of the namespace: start the agent, reap orphans, end with the agent."""
    try:
        libc("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        if os.read(gate, 1) != b"g":
            os._exit(1)  # the supervisor died before PDEATHSIG was set
        if not _mount_proc():  # bwrap also looks up its children here before it mounts one for them
            # With a sandbox no other method works: bwrap would have to mount the same.
            os.write(failure_fd, _UNSUPPORTED if spec["stage"] is None else b"cannot mount proc for it")
            os._exit(1)
        _signal.set_wakeup_fd(-1)
        agent, initial_cgroup = _fork_into(None if spec["stage"] is None else spec["stage"].kill_cgroup)
        if agent == 0:
            _exec_agent(spec, failure_fd, initial_cgroup)
        _signal.signal(_signal.SIGTERM, lambda number, _: send_signal(agent, number))
        os.close(failure_fd)
        detach_standard_streams()
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == agent:
                os.write(status_fd, b"%d" % ended)
                os._exit(0)
    except OSError as error:
        _report_and_exit(failure_fd, error)


def _mount_proc() -> bool:
    if libc("unshare", _CLONE_NEWNS) != 0:
        return False
    if libc("mount", b"none", b"/", None, _MS_REC_SLAVE, None) != 0:
        return False
    return bool(libc("mount", b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None) == 0)


def _exec_agent(spec: dict[str, Any], failure_fd: int, initial_cgroup: str | None) -> NoReturn:
    """Drop all privileges and exec the agent. Report an error on `failure_fd`."""
    try:
        _signal.set_wakeup_fd(-1)
        for number in range(1, _signal.NSIG):
            # An ignored signal would stay ignored across exec; Python itself ignores SIGPIPE and SIGXFSZ.
            if _signal.getsignal(number) not in (_signal.SIG_DFL, None):
                _signal.signal(number, _signal.SIG_DFL)
        os.setsid()
        os.umask(0o022)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if spec["file_size"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (spec["file_size"], spec["file_size"]))
        sandbox = spec["stage"]
        if sandbox is not None:
            sandbox.apply_limits(initial_cgroup)
        user = spec["user"]
        if user is not None and user != os.geteuid():
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        # After the change of user, which clears it.
        libc("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _write_files(spec)
        os.chdir(spec["cwd"])
        if sandbox is not None:
            failure_fd = sandbox.place_inputs(failure_fd)
        # Every descriptor closes at exec, `failure_fd` too: so the supervisor knows that exec succeeded.
        os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  # no shell is the point
    except OSError as error:
        _report_and_exit(failure_fd, error)


def _write_files(spec: dict[str, Any]) -> None:
    # As the agent's user: a link that an earlier run left leads only to places where that user may write anyway.
    for folder in spec["folders"]:
        os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103  # pathlib is large
    optional_files = [file for file in spec["laid"] if not _path_exists(file[0])]
    for path, _ in spec["replaced"]:
        if os.path.lexists(path):  # pathlib is large
            os.unlink(path)  # noqa: PTH108  # the same
    for path, content in (*spec["files"], *spec["replaced"], *optional_files):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)  # noqa: PTH103, PTH120  # the same
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        rest = content
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.close(descriptor)


def _path_exists(path: bytes) -> bool:
    # The folder belongs to the agent, too: changes of an earlier run stay.
    folder = os.path.dirname(path)  # noqa: PTH120  # the same
    return os.path.lexists(path) or os.path.islink(folder) or os.path.isfile(folder)  # noqa: PTH113, PTH114  # the same


def _report_and_exit(failure_fd: int, error: OSError) -> NoReturn:
    name = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    os.write(failure_fd, f"{error.strerror or error}{name}".encode("utf-8", "replace"))
    os._exit(127)
