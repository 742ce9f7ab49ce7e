"""What a service takes before it has done anything: its start, its memory, and the first text of a cold lean agent."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.answering import within_reach
from bench.callers import Answer, Stage, bare, cold
from bench.rows import Row, percentile
from bench.worlds import Broken, child_environment, made_in
from steadyhand.testing.cli import cli_path, install_standin
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service, wait_until

JOBS = 16
"""The jobs that run at once while memory is measured."""
_MEGABYTE = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_SECONDS = 60.0
_SUPERVISOR_MARK = b"sandbox_code"
"""In the command line of the process that supervisors are forked from, and so in theirs."""


def measure(world: Path, pairs: int) -> list[Row]:
    """Measure the processor time from the start of `steadyhand serve` to its listening line."""
    service = _service(world, "startup")
    created = _started(service)
    taken = [_started(service) for _ in range(pairs)]
    notes = (
        f"the first start, which creates the database, takes {created:.2f} s",
        f"`steadyhand --help` takes {_command('--help'):.2f} s, `steadyhand --version` {_command('--version'):.2f} s",
    )
    what = "processor time from the start of `steadyhand serve` to its listening line, sealed, no jobs"
    return [Row("startup", what, "s", taken, [0.0] * pairs, "at most", 1.0, notes, "added")]


def _service(world: Path, name: str, **env: str) -> Service:
    root = made_in(world, name)
    standin = install_standin(root / "standin")
    return Service(root, standin, env={"STEADYHAND_ISOLATION": _isolation(), **env})


def _isolation() -> str:
    return "bwrap" if os.geteuid() == 0 else "none"


def _started(service: Service) -> float:
    """Start the service, end it, and return the processor seconds until it listened, of it and its children."""
    with service:
        return processor_seconds(service.process.pid)


def processor_seconds(pid: int) -> float:
    """Return the processor seconds that a process and its ended children have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return sum(int(fields[number]) for number in range(11, 15)) / _TICKS


def _command(argument: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = Path(sys.executable).parent / "steadyhand"
    subprocess.run(
        [program, argument], env=child_environment(), capture_output=True, timeout=_SECONDS, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# --- memory --------------------------------------------------------------------------------------


def measure_memory(world: Path, pairs: int) -> list[Row]:
    """Measure the memory of a service at rest, and what a running job adds, its agent apart."""
    rest: list[float] = []
    each: list[float] = []
    for _ in range(pairs):
        service = _service(world, "memory", STEADYHAND_SERVICE__CONCURRENCY=str(JOBS))
        with service:
            service.client.get("/health")
            rest.append(_settled(service))
            service.run_job("[[standin: text=done]]")  # the first job loads what every job needs
            before = _settled(service)
            ids = [service.submit("[[standin: sleep=120]]")["id"] for _ in range(JOBS)]
            wait_until(partial(_all_run, service, ids), _SECONDS)
            added = _settled(service) - before + _supervisors(service)
            each.append(added / JOBS)
            for job_id in ids:
                service.client.post(f"/v1/jobs/{job_id}/cancel")
        shutil.rmtree(service.data_dir, ignore_errors=True)
    nothing = [0.0] * pairs
    job = f"what a running job adds, of {JOBS} at once: to the service, and its supervisor; its agent apart"
    return [
        Row("memory-rest", "resident memory of a service that has done nothing", "MB", rest, nothing,
            "at most", 90.0, (), "added"),
        Row("memory-job", job, "MB", each, nothing, "at most", 2.0, (), "added"),
    ]  # fmt: skip


def _all_run(service: Service, ids: Sequence[str]) -> bool:
    return all(service.get_job(job_id)["state"] == "running" for job_id in ids)


def _settled(service: Service) -> float:
    """Return the resident megabytes of the service once they have not changed for a second."""
    last, since = 0.0, time.monotonic()
    while time.monotonic() - since < 1.0:
        now = service.resident_bytes / _MEGABYTE
        if abs(now - last) > 0.1:
            last, since = now, time.monotonic()
        time.sleep(0.1)
    return last


def _supervisors(service: Service) -> float:
    """Return the private megabytes of all supervisors of the service: what the process it forks them from has below."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and _SUPERVISOR_MARK in (folder / "cmdline").read_bytes():
                parent = int((folder / "stat").read_text("ascii").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
        except OSError:
            continue  # it has ended
    supervisors = [below for pid in children.get(service.process.pid, []) for below in children.get(pid, [])]
    if not supervisors:
        raise Broken("no supervisor was found")
    supervisors += [below for pid in supervisors for below in children.get(pid, [])]  # each has an init
    return sum(_private(pid) for pid in supervisors)


def _private(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


# --- a cold lean agent ---------------------------------------------------------------------------


def measure_cold(world: Path, pairs: int) -> Row:
    """Measure the first text of the agent `chat`, sealed and without a process that waits."""
    root = made_in(world, "cold")
    cli = within_reach(cli_path(), root / "claude")
    user = 99_000 if os.geteuid() == 0 else None
    with ScriptedModel("ok") as model:
        return asyncio.run(_measure_cold(Stage(root, cli, model.url, user), pairs))


async def _measure_cold(stage: Stage, pairs: int) -> Row:
    taken: tuple[list[Answer], list[Answer]] = ([], [])
    async with cold(stage) as ours, bare(stage) as theirs:
        ways = (ours, theirs)
        for way in ways:
            await way.ask(0)
        for number in range(pairs):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                taken[side].append(await ways[side].ask(0))
    first = [[each.first_ms for each in side] for side in taken]
    whole = statistics.median(a.whole_ms / b.whole_ms for a, b in zip(*taken, strict=True))
    p50, p90 = (percentile(first[0], share) for share in (0.5, 0.9))
    note = f"ours p50 {p50:.0f} ms, p90 {p90:.0f} ms; whole answer {whole:.2f}"
    what = "first text of a chat, sealed, without a process that waits; beside `claude -p`"
    return Row("cold-first", what, "ms", first[0], first[1], "at most", 0.85, (note,))
