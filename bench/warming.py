"""What a job gains from a process that waits for it: the time to the first text, and to the whole answer.

Beside each is `claude -p` on the same prompt and the same scripted model, as in `answering`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from bench.answering import within_reach
from bench.callers import Answer, Stage, WarmService, Way, bare, chat, warm_service, wrapper
from bench.memory_group import MemoryGroup
from bench.rows import Row, percentile
from bench.worlds import Broken, made_in
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel

_TICKS = os.sysconf("SC_CLK_TCK")
IDLE_SLOTS = 4
IDLE_SECONDS = 20.0
_SHORT_BYTES = 100 << 20
"""Less than the memory below which no process waits, and more than the service needs."""
_PRESSURE_SECONDS = 60.0
CALLERS = 16
ANSWERS = 3
"""The answers that each caller gets in a round, one after the other."""
_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("get_weather", "get_time")
]
Ask = Callable[[], Awaitable[Answer]]


def measure(world: Path, pairs: int) -> list[Row]:
    """Measure the agent `chat`, sealed: plain, and with a system message and two tools, seen before and new."""
    return _run(world, lambda stage: _measure_chat(stage, pairs))


def measure_live(world: Path, pairs: int) -> Row:
    """Measure the first text of a turn in the process that holds its conversation."""
    (row,) = _run(world, lambda stage: _measure_live(stage, pairs))
    return row


def measure_live_repository(world: Path, pairs: int) -> Row:
    """Measure the same for the agent `claude` in a repository, whose checkout stays with the process."""
    (row,) = _run(world, lambda stage: _measure_live_repository(stage, pairs))
    return row


def measure_reuse(world: Path, pairs: int) -> Row:
    """Measure the answers a second of 16 callers whose processes are reset, beside a plain wrapper of the CLI."""
    (row,) = _run(world, lambda stage: _measure_reuse(stage, pairs))
    return row


def measure_repository(world: Path, pairs: int) -> Row:
    """Measure a whole job of the agent `claude` in a repository, sealed, from POST to its end."""
    (row,) = _run(world, lambda stage: _measure_repository(stage, pairs))
    return row


def measure_idle(world: Path, pairs: int) -> list[Row]:
    """Measure what four waiting processes take: processor time of all, and memory of ours for each."""
    return _run(world, lambda stage: _measure_idle(stage, pairs))


def measure_pressure(world: Path, pairs: int) -> Row:
    """Measure the seconds until no process waits any more, from the moment when the memory is short."""
    (row,) = _run(world, lambda stage: _measure_pressure(stage, pairs))
    return row


def _run(world: Path, work: Callable[[Stage], Coroutine[Any, Any, list[Row]]]) -> list[Row]:
    root = made_in(world, "warm")
    cli = within_reach(cli_path(), root / "claude")
    user = 99_000 if os.geteuid() == 0 else None
    with ScriptedModel("ok") as model:
        return asyncio.run(work(Stage(root, cli, model.url, user)))


async def _measure_chat(stage: Stage, pairs: int) -> list[Row]:
    config = "[agents.chat]\nwarm = 1\n"
    async with bare(stage) as theirs, warm_service(stage, "plain", config, 1) as (service, client):
        plain = await _pairs(pairs, lambda: _plain(client), theirs, service)
    async with bare(stage) as theirs, warm_service(stage, "tools", config, 1) as (service, client):
        for _ in range(3):  # it is learned
            await _with_tools(client, "Be brief.")
            await service.settle()
        seen = await _pairs(pairs, lambda: _with_tools(client, "Be brief."), theirs, service)
    async with bare(stage) as theirs, warm_service(stage, "new", config, 1) as (service, client):
        number = iter(range(1, 1 << 20))
        for _ in range(3):
            await _with_tools(client, f"Be brief, {next(number)}.")
            await service.settle()
        new = await _pairs(pairs, lambda: _with_tools(client, f"Be brief, {next(number)}."), theirs, service)
    named = (
        ("warm-first", "a chat", 0.12, plain),
        ("warm-tools-seen", "a chat with a system message and two tools, seen before,", 0.12, seen),
        ("warm-tools-new", "a chat with a new system message and two tools", 0.45, new),
    )
    return [
        _row(name, f"first text of {what} in a sealed process that waited; beside `claude -p`", goal, taken)
        for name, what, goal, taken in named
    ]


def _row(name: str, what: str, goal: float, taken: tuple[list[Answer], list[Answer]]) -> Row:
    ours, theirs = ([each.first_ms for each in side] for side in taken)
    whole, bare_whole = ([each.whole_ms for each in side] for side in taken)
    ratio = statistics.median(a / b for a, b in zip(whole, bare_whole, strict=True))
    note = f"ours p50 {percentile(ours, 0.5):.0f} ms, p90 {percentile(ours, 0.9):.0f} ms; whole answer {ratio:.2f}"
    return Row(name, what, "ms", ours, theirs, "at most", goal, (note,))


async def _pairs(
    pairs: int, ours: Ask, theirs: Way, service: WarmService
) -> tuple[list[Answer], list[Answer]]:
    taken: tuple[list[Answer], list[Answer]] = ([], [])
    await ours()
    await theirs.ask(0)
    for number in range(pairs):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            await service.settle()
            taken[side].append(await (ours() if side == 0 else theirs.ask(0)))
    return taken


async def _plain(client: httpx2.AsyncClient) -> Answer:
    return await chat(client, [{"role": "user", "content": "Say that all is well."}])


async def _with_tools(client: httpx2.AsyncClient, system: str) -> Answer:
    messages: Sequence[Mapping[str, str]] = (
        {"role": "system", "content": system},
        {"role": "user", "content": "Say that all is well."},
    )
    return await chat(client, messages, tools=_TOOLS)


async def _measure_live(stage: Stage, pairs: int) -> list[Row]:
    taken = await _take_turns(stage, pairs, "chat")
    return [_row("live-first", "first text of a turn in the live process; beside `claude -p`", 0.09, taken)]


async def _measure_live_repository(stage: Stage, pairs: int) -> list[Row]:
    taken = await _take_turns(stage, pairs, "claude", WORKSPACE_DIR=str(_repository(stage)))
    what = "first text of a turn in the live process and its checkout of 300 files; beside `claude -p`"
    return [_row("live-git-first", what, 0.09, taken)]


async def _take_turns(stage: Stage, pairs: int, agent: str, **env: str) -> tuple[list[Answer], list[Answer]]:
    config = f"[agents.{agent}]\nwarm = 1\nlive_seconds = 600\n"
    conversation: list[Mapping[str, str]] = []

    async with bare(stage) as theirs, warm_service(stage, "live", config, 1, **env) as (service, client):

        async def ask() -> Answer:
            conversation.append({"role": "user", "content": f"Say that all is well, {len(conversation)}."})
            answer = await chat(client, conversation, model=agent)
            conversation.append({"role": "assistant", "content": answer.text})
            return answer

        return await _pairs(pairs, ask, theirs, service)


def _repository(stage: Stage) -> Path:
    from tests.service_fixtures import make_repository  # noqa: PLC0415  # bench has no repository of its own

    repository = stage.root / "repository"
    make_repository(repository, {f"folder/file-{n}.txt": f"{n}\n" for n in range(300)})
    return repository


async def _measure_reuse(stage: Stage, pairs: int) -> list[Row]:
    config = f"[agents.chat]\nwarm = {CALLERS}\n"
    ours: list[float] = []
    theirs: list[float] = []
    async with (
        wrapper(stage, lean=True) as plain,
        warm_service(stage, "reuse", config, CALLERS) as (service, client),
    ):

        async def ask(_caller: int) -> Answer:
            return await _plain(client)

        await asyncio.gather(*(ask(caller) for caller in range(CALLERS)))  # from now on they are reset ones
        service.wanted = (
            2 * CALLERS
        )  # beside them as many wait for other callers: nothing starts while it is measured
        for number in range(pairs):
            await service.settle()
            for figures, one in ((ours, ask), (theirs, plain.ask))[:: 1 if number % 2 == 0 else -1]:
                figures.append(await _rate(one))
    what = (
        f"answers a second to {CALLERS} callers, one key, processes reset between; "
        "beside a plain wrapper with the same context"
    )
    return [Row("reuse-rate", what, "/s", ours, theirs, "at least", 4.0)]


async def _rate(ask: Callable[[int], Awaitable[Answer]]) -> float:
    """Return the answers a second of callers that each ask one after the other."""

    async def caller(number: int) -> None:
        for _ in range(ANSWERS):
            await ask(number)

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(caller(number))
    return CALLERS * ANSWERS / (time.monotonic() - began)


async def _measure_repository(stage: Stage, pairs: int) -> list[Row]:
    config = "[agents.claude]\nwarm = 1\n"
    async with (
        bare(stage) as theirs,
        warm_service(stage, "git", config, 1, WORKSPACE_DIR=str(_repository(stage))) as (service, client),
    ):

        async def ask() -> Answer:
            began = time.monotonic()
            answer = await client.post(
                "/v1/jobs", json={"prompt": "Say that all is well."}, headers={"prefer": "wait=60"}
            )
            job = answer.json()
            if answer.status_code != 200 or job["state"] != "completed":
                raise Broken(f"the job came to {answer.status_code} {job}")
            took = 1000 * (time.monotonic() - began)
            return Answer(took, took, job["answer"])

        ours, bare_answers = await _pairs(pairs, ask, theirs, service)
    what = "a whole job in a git workspace of 300 files, in a sealed process that waited; beside `claude -p`"
    figures = ([each.whole_ms for each in ours], [each.whole_ms for each in bare_answers])
    return [Row("warm-whole", what, "ms", *figures, "at most", 0.25)]


async def _measure_idle(stage: Stage, pairs: int) -> list[Row]:
    config = f"[agents.chat]\nwarm = {IDLE_SLOTS}\n"
    shares, memory = [], []
    async with warm_service(stage, "idle", config, IDLE_SLOTS) as (service, _):
        own = service.service.pid
        empty = _private_bytes(own)
        for _ in range(pairs):
            before = sum(map(_seconds, (own, *service.service.live_agent_pids())))
            await asyncio.sleep(IDLE_SECONDS)
            after = sum(map(_seconds, (own, *service.service.live_agent_pids())))
            shares.append(100 * (after - before) / IDLE_SECONDS)
            others = [pid for pid in _descendants(own) if not _is_cli(pid)]
            if len(others) < IDLE_SLOTS:
                raise Broken(f"only {len(others)} processes beside those of the CLI were found")
            memory.append(sum(map(_private_bytes, others)) / IDLE_SLOTS / 1e6)
        note = f"the service itself has {empty / 1e6:.0f} MB of its own"
    return [
        Row(
            "warm-idle", f"processor of {IDLE_SLOTS} waiting processes and the service, of one core", "%", shares,
            [0.0] * pairs, "at most", 1.0, (), "added",
        ),
        Row(
            "warm-memory", "private memory of what a waiting CLI needs beside itself", "MB", memory, [0.0] * pairs,
            "at most", 3.0, (note,), "added",
        ),
    ]  # fmt: skip


async def _measure_pressure(stage: Stage, pairs: int) -> list[Row]:
    config = f"[agents.chat]\nwarm = {IDLE_SLOTS}\n"
    figures: list[float] = []
    async with warm_service(stage, "pressure", config, IDLE_SLOTS) as (service, _):
        with MemoryGroup.of(service.service.pid) as group:
            for _ in range(pairs):
                await service.settle()
                began = time.monotonic()
                group.leave_free(_SHORT_BYTES)
                while any(map(_is_cli, _descendants(service.service.pid))):
                    if time.monotonic() - began > _PRESSURE_SECONDS:
                        raise Broken("processes wait although the memory is short")
                    await asyncio.sleep(0.01)
                figures.append(time.monotonic() - began)
                group.remove_limit()
    what = f"the end of {IDLE_SLOTS} waiting processes, from the moment when the memory is short"
    return [Row("warm-pressure", what, "s", figures, [0.0] * pairs, "at most", 2.0, (), "added")]


def _descendants(root: int) -> list[int]:
    """Return the processes that belong to slots: those below the server that the service forks them from."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    below, found = [pid for pid, parent in parents.items() if parent == root], []
    while below:
        below = [pid for pid, parent in parents.items() if parent in below]
        found += below
    return found


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _private_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _is_cli(pid: int) -> bool:
    try:
        return b"--input-format" in Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"--args")[0]
    except OSError:
        return False
