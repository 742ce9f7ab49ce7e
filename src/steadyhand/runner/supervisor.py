"""The process between the service and one agent: it sees to it that nothing of a run is left alive.

Run as `python -I -S -c LOADER FD` with the agent's stdin, stdout and stderr as its own and FD one end of a socket
pair, whose first frame is this very code, compiled by the service (`process.py`). Frames on it are four bytes of
length (little endian) and a `marshal` value: both ends are the same interpreter, and `marshal` costs no import where
`json` costs 10 ms of every run. For the same reason the interpreter's own `_ctypes` and `_signal` are used here in
place of the modules over them.

The service sends `{"start": spec}` once, then any of `{"signal": n}` (to the agent) and `{"kill": True}` (to all).
It is answered `{"started": pid, "means": name, "groups": paths}` or `{"failed": text, "sealing": bool}`, then
`{"exited": code | None, "signal": n | None, "felt": counts}`, and `{"gone": True}` when nothing of the run is alive.
A spec is `argv env cwd` (bytes), `user` (uid and gid, or None), `files` (path, content: written as the agent's user
before it starts, never over what is there), `folders` (made the same way), `file_size` (RLIMIT_FSIZE in bytes, or
None), `means` (which to try, best first; see `MEANS`), `cgroup` (the group that may be made for the run, or None) and
`seal` (None, or what `stage.py` makes around the run; its code, compiled, is `seal["program"]`).

The end of the agent, an end of file on the socket (the service died) and a request all end in the same way:
everything is killed until there is no child left to wait for. The means, in the order they are tried:

- `pid_namespace`: a tiny init of ours is process 1; the kernel kills all of the namespace when it ends, and it ends
  when the supervisor does, `kill -9` included.
- `cgroup`: a group of its own with `cgroup.kill`, and the walk.
- `walk`: a child subreaper is the parent of every orphan below it, so all of them are found from here.
"""

from __future__ import annotations

import _ctypes  # 3 ms less than `ctypes`
import _signal  # type: ignore[import-not-found]  # 6 ms less than `signal`, which makes enums
import marshal
import os
import resource
import select
import sys

TYPE_CHECKING = False  # `typing` costs 10 ms of every run; checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

MEANS = ("pid_namespace", "cgroup", "walk")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_CLONE_INTO_CGROUP = 1 << 33
_CLONE3 = 435  # the number of the system call on every architecture
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REC_SLAVE = 16384 | (1 << 19)
_UNABLE = b"unable"
_PAUSE_MS = 5  # between two looks at what is left; a dying child wakes us sooner
_BUSY_ROUNDS = 50  # looks without a pause, for what forks faster than we look


def _libc(name: str, *words: int | bytes | None) -> int:
    """Call a function of the C library that gives an int: 0 when it did what it was asked."""
    library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is the process itself
    answer: int = _ctypes.call_function(_ctypes.dlsym(library, name), words)
    return answer


def main() -> None:
    """Serve one run."""
    channel = int(sys.argv[1])
    os.set_inheritable(channel, False)
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)  # the service alone says when this ends
    wake = _wake_on_child()
    _libc("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked = _receive(channel)
    if asked is None:
        return
    spec = asked["start"]
    spec["stage"] = stage = None if spec["seal"] is None else _stage(spec)
    sealed = stage is None
    try:
        if stage is not None:
            stage.build()
            sealed = True
        run = _start(spec, channel)
    except OSError as error:
        if stage is not None:
            stage.end()
        _send(channel, {"failed": f"{error.strerror or error}", "sealing": not sealed})
        return
    _let_go_of_standard_streams()
    groups = [] if run.cgroup is None else [run.cgroup]
    _send(
        channel, {"started": run.pid, "means": run.means, "groups": groups if stage is None else stage.groups}
    )
    code, signal = _attend(run, channel, wake)
    _send(channel, {"exited": code, "signal": signal, "felt": {} if stage is None else stage.evidence()})
    _kill_all(run, wake)
    if stage is not None:
        stage.end()
    _send(channel, {"gone": True})


def _stage(spec: dict[str, Any]) -> Any:
    """Give the surroundings that are to be made for the run: a `stage.Stage`."""
    space: dict[str, Any] = {"__name__": "stage"}
    for part in spec["seal"]["program"]:
        exec(part, space)  # noqa: S102  # from the service that started us, as is our own code
    return space["Stage"](spec["seal"], spec["user"], spec["argv"][0])


class _Run:
    """What was started: the child of ours, by which means, and where its status is told."""

    def __init__(self, pid: int, means: str, status: int | None = None, cgroup: str | None = None) -> None:
        self.pid = pid
        self.means = means
        self.status = status
        self.cgroup = cgroup
        self.stage: Any = None


# --- talking to the service ----------------------------------------------------------------------


def _send(channel: int, message: dict[str, Any]) -> None:
    frame = marshal.dumps(message)
    data = len(frame).to_bytes(4, "little") + frame
    try:
        while data:
            data = data[os.write(channel, data) :]
    except OSError:
        return  # the service is gone; what is left to do is the same without it


def _receive(channel: int) -> dict[str, Any] | None:
    head = _read_exactly(channel, 4)
    if head is None:
        return None
    frame = _read_exactly(channel, int.from_bytes(head, "little"))
    if frame is None:
        return None
    message: dict[str, Any] = marshal.loads(frame)  # noqa: S302  # from the service that started us
    return message


def _read_exactly(channel: int, size: int) -> bytes | None:
    parts = b""
    while len(parts) < size:
        try:
            part = os.read(channel, size - len(parts))
        except ConnectionResetError:
            return None
        if not part:
            return None
        parts += part
    return parts


def _wake_on_child() -> int:
    """Give a descriptor that becomes readable when a child dies."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _let_go_of_standard_streams() -> None:
    # The agent's copies must be the only ones, or the service would never see their end.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


# --- starting the agent --------------------------------------------------------------------------


def _start(spec: dict[str, Any], channel: int) -> _Run:
    """Start the agent by the first means that works. Raises `OSError` when the agent itself does not start."""
    for means in spec["means"]:
        if means == "pid_namespace":
            run = _start_in_namespace(spec, channel)
        elif means == "cgroup":
            run = _start_in_cgroup(spec)
        else:
            run = _start_child(spec, "walk", None)
        if run is not None:
            run.stage = spec["stage"]
            if run.stage is not None:
                run.cgroup = run.stage.kill
            return run
    raise OSError(0, "no means of supervision is left to try")


def _start_in_cgroup(spec: dict[str, Any]) -> _Run | None:
    group = spec["cgroup"]
    if group is None or spec["stage"] is not None:  # a sealed run is in the groups of its stage
        return None
    try:
        os.mkdir(group)  # noqa: PTH102  # pathlib costs an import
    except OSError:
        return None
    try:
        return _start_child(spec, "cgroup", group)
    except OSError:
        _remove_cgroup(group)
        raise


def _start_child(spec: dict[str, Any], means: str, cgroup: str | None) -> _Run:
    reader, writer = os.pipe()
    pid, born_in = _fork_into(cgroup if spec["stage"] is None else spec["stage"].kill)
    if pid == 0:
        if cgroup is not None and born_in is None:
            _join_cgroup(cgroup, writer)
        _become_agent(spec, writer, born_in)
    os.close(writer)
    _raise_failure(reader)
    return _Run(pid, means, cgroup=cgroup)


def _fork_into(group: str | None) -> tuple[int, str | None]:
    """Fork, with the child born in a control group of version 2 where that can be; gives the pid, and that group.

    A process that is moved into a group waits until the kernel has been through all processors (5 to 15 ms, seen on
    6.1 and later); one that is born in it does not. The C library knows nothing of the child, so it must soon exec.
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
    words = b"".join(value.to_bytes(8, sys.byteorder) for value in values)
    pid = _libc("syscall", _CLONE3, words, len(words))
    os.close(directory)
    return (os.fork(), None) if pid < 0 else (pid, group)


def _join_cgroup(group: str, writer: int) -> None:
    try:
        descriptor = os.open(f"{group}/cgroup.procs", os.O_WRONLY)
        os.write(descriptor, b"0")
    except OSError as error:
        _give_up(writer, error)


def _start_in_namespace(spec: dict[str, Any], channel: int) -> _Run | None:
    """Start the agent below an init of ours in a pid namespace; None where that is not to be had."""
    try:
        home = os.open("/proc/self/ns/pid", os.O_RDONLY)
    except OSError:
        return None
    if _libc("unshare", _CLONE_NEWPID) != 0:
        os.close(home)
        return None
    failure, failure_writer = os.pipe()
    status, status_writer = os.pipe()
    go, go_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (channel, home, failure, status, go_writer):
            os.close(descriptor)
        _be_init(spec, go, failure_writer, status_writer)
    for descriptor in (go, failure_writer, status_writer):
        os.close(descriptor)
    # Later children of ours (there are none unless this fails) belong to the outer namespace again.
    _libc("setns", home, _CLONE_NEWPID)
    os.close(home)
    os.write(go_writer, b"g")
    try:
        able = _raise_failure(failure)
    finally:
        os.close(go_writer)
    if not able:
        os.waitpid(pid, 0)
        os.close(status)
        return None
    return _Run(pid, "pid_namespace", status=status)


def _raise_failure(reader: int) -> bool:
    """Read what a starting child says until its exec closes the pipe; False when the means is not to be had."""
    said = b""
    while part := os.read(reader, 4096):
        said += part
    os.close(reader)
    if said == _UNABLE:
        return False
    if said:
        raise OSError(0, said.decode("utf-8", "replace"))
    return True


def _be_init(spec: dict[str, Any], go: int, failure: int, status: int) -> NoReturn:
    """Be process 1 of the namespace: start the agent, reap what is orphaned, end with the agent."""
    try:
        _libc("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        if os.read(go, 1) != b"g":
            os._exit(1)  # the supervisor died before we asked to die with it
        if not _mount_own_proc():  # bwrap, too, looks its children up here before it mounts one for them
            # Sealed there is no other means: bwrap would have to mount the same.
            os.write(failure, _UNABLE if spec["stage"] is None else b"cannot mount proc for it")
            os._exit(1)
        _signal.set_wakeup_fd(-1)
        agent, born_in = _fork_into(None if spec["stage"] is None else spec["stage"].kill)
        if agent == 0:
            _become_agent(spec, failure, born_in)
        _signal.signal(_signal.SIGTERM, lambda number, _: _forward(agent, number))
        os.close(failure)
        _let_go_of_standard_streams()
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == agent:
                os.write(status, b"%d" % ended)
                os._exit(0)
    except OSError as error:
        _give_up(failure, error)


def _mount_own_proc() -> bool:
    if _libc("unshare", _CLONE_NEWNS) != 0:
        return False
    if _libc("mount", b"none", b"/", None, _MS_REC_SLAVE, None) != 0:
        return False
    return bool(_libc("mount", b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None) == 0)


def _forward(agent: int, number: int) -> None:
    try:
        os.kill(agent, number)
    except ProcessLookupError:
        return


def _become_agent(spec: dict[str, Any], failure: int, born_in: str | None) -> NoReturn:
    """Drop what the agent must not have and become it; what goes wrong is told on `failure`."""
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
        stage = spec["stage"]
        if stage is not None:
            stage.enter(born_in)
        user = spec["user"]
        if user is not None and user != os.geteuid():
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        # After the change of user, which clears it.
        _libc("prctl", _PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
        _libc("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _write_files(spec)
        os.chdir(spec["cwd"])
        if stage is not None:
            failure = stage.hand_over(failure)
        # Every descriptor of ours closes at exec, `failure` too: that is how the supervisor knows it happened.
        os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  # no shell is the point
    except OSError as error:
        _give_up(failure, error)


def _write_files(spec: dict[str, Any]) -> None:
    # As the agent's user: a link that an earlier run left here leads only where that user may write anyway.
    for folder in spec["folders"]:
        os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103  # pathlib costs an import
    for path, content in spec["files"]:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)  # noqa: PTH103, PTH120  # the same
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        rest = content
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.close(descriptor)


def _give_up(failure: int, error: OSError) -> NoReturn:
    name = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    os.write(failure, f"{error.strerror or error}{name}".encode("utf-8", "replace"))
    os._exit(127)


# --- attending and ending it ---------------------------------------------------------------------


def _attend(run: _Run, channel: int, wake: int) -> tuple[int | None, int | None]:
    """Do as asked until the agent ends or all is to be killed; gives its exit code or its signal."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(wake, select.POLLIN)
    look_ms = None if run.stage is None else run.stage.look_ms
    while True:
        ready = poll.poll(look_ms)
        if not ready and run.stage.takes_too_much(descendants(os.getpid())):
            return _status_of(run, _kill_main(run))
        for descriptor, _ in ready:
            if descriptor == wake:
                _drain(wake)
                ended = _reap(run.pid)
                if ended is not None:
                    return _status_of(run, ended)
            else:
                asked = _receive(channel)
                if asked is None or "kill" in asked:
                    return _status_of(run, _kill_main(run))
                _forward(_addressee(run), asked["signal"])


def _addressee(run: _Run) -> int:
    """Give the pid that a signal is for: bwrap hands none on, so the command inside it is told itself."""
    inner = None
    if run.stage is not None:
        inner = run.stage.command(_parents(), run.pid, init=run.means == "pid_namespace")
    return run.pid if inner is None else inner


def _kill_main(run: _Run) -> int:
    """Kill the agent (with its namespace, when it has one) and give its wait status."""
    ended = _reap(run.pid)
    if ended is None:
        os.kill(run.pid, _signal.SIGKILL)
        _, ended = os.waitpid(run.pid, 0)
    return ended


def _status_of(run: _Run, ended: int) -> tuple[int | None, int | None]:
    if run.status is not None:
        told = os.read(run.status, 32)
        # The init says how the agent ended; without a word it was killed before it could.
        ended = int(told) if told else int(_signal.SIGKILL)
    code = os.waitstatus_to_exitcode(ended)
    if code < 0:
        return None, -code
    return (code, None) if run.stage is None else run.stage.ended(code)


def _reap(main: int) -> int | None:
    """Collect every child that has died; gives the wait status of `main` when it was among them."""
    found = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == main:
            found = ended


def _kill_all(run: _Run, wake: int) -> None:
    """Kill every descendant until there is none left to wait for."""
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    rounds = 0
    while True:
        if run.cgroup is not None:
            _kill_cgroup(run.cgroup)
        _drain(wake)
        _reap(0)
        try:
            # Nothing is taken here: WNOWAIT only says whether there is a child at all.
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            break
        _kill_descendants()
        rounds += 1
        if rounds > _BUSY_ROUNDS:
            poll.poll(_PAUSE_MS)
    if run.cgroup is not None:
        _remove_cgroup(run.cgroup)


def _kill_descendants() -> None:
    """Kill every descendant that can be seen, each child of ours the moment it is seen.

    An orphan becomes a child of ours, so a process that forks and ends over and over is always one; newest first
    and at once is what catches it.
    """
    me = os.getpid()
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        if parent == me:
            _forward(pid, _signal.SIGKILL)
        children.setdefault(parent, []).append(pid)
    for pid in _below(me, children):
        _forward(pid, _signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Give the pid of every process below `root`."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    return _below(root, children)


def _below(root: int, children: dict[int, list[int]]) -> list[int]:
    found: list[int] = []
    rest = list(children.get(root, ()))
    while rest:
        pid = rest.pop()
        found.append(pid)
        rest.extend(children.get(pid, ()))
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Give (pid, parent) of every process, newest first; `/proc/PID/children` is not in every kernel."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # pathlib costs an import
    pids.sort(reverse=True)
    for pid in pids:
        try:
            descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        except OSError:
            continue
        try:
            fields = os.read(descriptor, 1024)
        except OSError:
            continue  # it died in between
        finally:
            os.close(descriptor)
        yield pid, int(fields[fields.rindex(b")") + 2 :].split()[1])


def _kill_cgroup(group: str) -> None:
    try:
        descriptor = os.open(f"{group}/cgroup.kill", os.O_WRONLY)
        os.write(descriptor, b"1")
        os.close(descriptor)
    except OSError:
        return  # the walk does it alone


def _remove_cgroup(group: str) -> None:
    try:
        os.rmdir(group)  # noqa: PTH106  # pathlib costs an import
    except OSError:
        return  # an empty group left behind holds nothing


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        return


if __name__ == "__main__":
    main()
    os._exit(0)  # there is nothing to tidy, and somebody waits
