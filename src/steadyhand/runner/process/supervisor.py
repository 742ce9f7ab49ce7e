"""The supervisor: the process between the service and one agent. It makes sure that no process of a run stays alive.

It is forked for one run from the fork server (`fork_server_main.py`), with the agent's stdin, stdout and stderr as its
own and a channel to the service. The fork server has the code of `process_tree.py`, `spawn.py`, `held_run.py` and this
file, compiled by the service (`fork_server.py`) and run one after the other as one module. Frames on the channel are
four bytes of length (little endian) and a `marshal` value: both ends are Python, and a later service is not older. The
forked process is kept small, because a fork copies the page tables of all its memory: hence `marshal` instead of
`json`, and the interpreter's own `_ctypes` and `_signal` instead of the modules above them.

It sends `{"here": pid}`. The service sends `{"start": spec}` once, then any number of `{"signal": n}` (for the agent),
`{"kill": True}` (for all) and `{"lease": seconds}`. If the next lease does not come in time, the service is frozen and
others may have taken its jobs: everything is killed. The supervisor replies `{"started": pid, "means": name, "groups":
paths}` or `{"failed": text, "sealing": bool}`, then `{"exited": code | None, "signal": n | None, "felt": counts}`, and
`{"gone": True}` when no process of the run is alive.
A spec has `argv env cwd` (bytes), `user` (uid and gid, or None), `files` (path, content: written as the agent's user
before it starts, never over an existing file), `laid` (the same, skipped if the path exists), `replaced` (the same, in
place of what is there), `folders` (created the same way), `file_size` (RLIMIT_FSIZE in bytes, or None), `means` (the
methods to try, best first; see `CONTAINMENT_METHODS`), `cgroup` (the group that may be created for the run, or None),
`seal` (None, or the spec of the sandbox for `sandbox_child.py`; a descriptor in it is an index into those that came
with the request) and `hold` (None, or the spec of a run that may outlive the service, for `held_run.py`).

The end of the agent, an end of file on the socket (the service died) and a kill request all have the same effect:
every process is killed until no child is left. A run that is held waits for the next service first, and has the
containment methods as any other. They are, in the order in which they are tried:

- `pid_namespace`: process 1 is a small init of ours; the kernel kills the whole namespace when it ends, and it ends
  when the supervisor does, even by `kill -9`.
- `cgroup`: a group of the run's own with `cgroup.kill`, and the walk.
- `walk`: a child subreaper is the parent of every orphan below it, so a walk of the process tree finds all of them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums
import marshal
import os
import select
import time

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from typing import Any

    from steadyhand.runner.process.held_run import HeldRun
    from steadyhand.runner.process.process_tree import (
        descendants,
        drain_pipe,
        kill_all,
        parents,
        reap_children,
        send_signal,
    )
    from steadyhand.runner.process.spawn import SpawnedAgent, detach_standard_streams, libc, spawn_agent

CONTAINMENT_METHODS = ("pid_namespace", "cgroup", "walk")

_PR_SET_CHILD_SUBREAPER = 36


def supervise(channel: int, descriptors: list[int], sandbox_runtime: Any) -> None:
    """Serve one run, whose spec comes on the channel.

    The spec of the sandbox refers to `descriptors` by index. `sandbox_runtime` is the class `SandboxRuntime`.
    """
    os.setsid()
    sigchld_fd = _open_sigchld_pipe()
    libc("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _send_to_service(channel, {"here": os.getpid()})
    request = _receive_from_service(channel)
    if request is None:
        return
    spec = request["start"]
    held = None
    if spec["hold"] is not None:
        held = HeldRun(spec["hold"], descriptors[spec["hold"]["first"] :])
        descriptors = descriptors[: spec["hold"]["first"]]
    sandbox = (
        None
        if spec["seal"] is None
        else sandbox_runtime(spec["seal"], descriptors, spec["user"], spec["argv"][0])
    )
    spec["stage"] = sandbox
    sandbox_ready = sandbox is None
    try:
        if sandbox is not None:
            sandbox.build()
            sandbox_ready = True
            if held is not None:
                held.sandbox_listeners = sandbox.listeners
        spec["held"] = [] if held is None else held.descriptors
        run = spawn_agent(spec, channel)
    except OSError as error:
        if sandbox is not None:
            sandbox.tear_down()
        _send_to_service(channel, {"failed": f"{error.strerror or error}", "sealing": not sandbox_ready})
        return
    detach_standard_streams()
    cgroups = [] if run.cgroup is None else [run.cgroup]
    started = {
        "started": run.pid,
        "means": run.containment,
        "groups": cgroups if sandbox is None else sandbox.cgroups,
    }
    if held is not None:
        held.state = started
    _send_to_service(channel, started)
    code, signal = _run_until_exit(run, channel, sigchld_fd, held)
    ended = {"exited": code, "signal": signal, "felt": {} if sandbox is None else sandbox.limit_evidence()}
    if run.lease_over:
        ended["lease_over"] = True
    _send_to_service(channel, ended)
    kill_all(run.cgroup, sigchld_fd)
    if sandbox is not None:
        sandbox.tear_down()
    _send_to_service(channel, {"gone": True})
    if held is not None:
        held.finish(channel, ended)


# --- talking to the service ----------------------------------------------------------------------


def _send_to_service(channel: int, message: dict[str, Any]) -> None:
    frame = marshal.dumps(message)
    data = len(frame).to_bytes(4, "little") + frame
    try:
        while data:
            data = data[os.write(channel, data) :]
    except OSError:
        return  # the service is gone; the cleanup is the same without it


def _receive_from_service(channel: int) -> dict[str, Any] | None:
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


def _open_sigchld_pipe() -> int:
    """Return a descriptor that becomes readable when a child dies."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


# --- running and ending it -----------------------------------------------------------------------


def _run_until_exit(
    run: SpawnedAgent, channel: int, sigchld_fd: int, held: HeldRun | None
) -> tuple[int | None, int | None]:
    """Serve requests until the agent ends or a kill is requested; return its exit code and its signal, one is None."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(sigchld_fd, select.POLLIN)
    memory_ms = None if run.sandbox is None else run.sandbox.memory_poll_ms
    lease_until = None
    while True:
        ready = poll.poll(_poll_ms(memory_ms, lease_until))
        is_over = lease_until is not None and time.monotonic() >= lease_until
        if not ready and (is_over or _exceeds_memory(run, memory_ms)):
            run.lease_over = is_over
            return _exit_status_of(run, kill_main(run))
        for descriptor, _ in ready:
            if descriptor == sigchld_fd:
                drain_pipe(sigchld_fd)
                wait_status = reap_children(run.pid)
                if wait_status is not None:
                    return _exit_status_of(run, wait_status)
            else:
                request = _receive_from_service(channel)
                if request is None and held is not None and held.is_kept:
                    wait_status = held.await_service(run, channel, sigchld_fd)
                    if wait_status is not None:
                        return _exit_status_of(run, wait_status)
                    lease_until = None
                    break  # the other descriptors are looked at again
                if request is None or "kill" in request:
                    return _exit_status_of(run, kill_main(run))
                if "lease" in request:
                    lease_until = time.monotonic() + request["lease"]
                elif held is None or not held.handle(request):
                    send_signal(signal_target(run), request["signal"])


def _poll_ms(memory_ms: float | None, lease_until: float | None) -> float | None:
    """Return the time to wait for a request or an end; None waits for as long as it takes."""
    if lease_until is None:
        return memory_ms
    lease_ms = max(0.0, lease_until - time.monotonic()) * 1000 + 1
    return lease_ms if memory_ms is None else min(lease_ms, memory_ms)


def _exceeds_memory(run: SpawnedAgent, memory_ms: float | None) -> bool:
    return memory_ms is not None and run.sandbox.exceeds_memory(descendants(os.getpid()))


def signal_target(run: SpawnedAgent) -> int:
    """Return the pid that a signal is for: bwrap forwards no signal, so it goes to the command inside."""
    inner_pid = None
    if run.sandbox is not None:
        inner_pid = run.sandbox.inner_pid(parents(), run.pid, init=run.containment == "pid_namespace")
    return run.pid if inner_pid is None else inner_pid


def kill_main(run: SpawnedAgent) -> int:
    """Kill the agent (with its namespace, if it has one) and return its wait status."""
    wait_status = reap_children(run.pid)
    if wait_status is None:
        os.kill(run.pid, _signal.SIGKILL)
        _, wait_status = os.waitpid(run.pid, 0)
    return wait_status


def _exit_status_of(run: SpawnedAgent, wait_status: int) -> tuple[int | None, int | None]:
    if run.status_fd is not None:
        reported = os.read(run.status_fd, 32)
        # The init reports how the agent ended; if it reports nothing it was killed first.
        wait_status = int(reported) if reported else int(_signal.SIGKILL)
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        return None, -code
    return (code, None) if run.sandbox is None else run.sandbox.exit_status(code)
