"""How long a job takes from being accepted to its agent's first line, beside starting the same agent directly.

The agent is the stand-in, as a program that writes down the machine's monotonic clock when it writes its first line,
so both sides are measured to one mark by one clock. Ours is taken from just before the POST is sent, which is before
the commit of its 202: the figure can only be too high.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bench.rows import Row, interleave, percentile
from bench.worlds import Broken, given_to, made_in
from steadyhand.testing.cli import install_standin, isolated_env, system_python
from steadyhand.testing.service import UNUSED_MODEL_URL, Service, wait_until

PROMPT = "Say hello."
WARM_UP = 3
_SECONDS = 30.0
_LAUNCHER = """\
#!{python} -IS
import os, sys, time
sys.dont_write_bytecode = True
sys.path.insert(0, {library!r})
from standin import pipes
from standin.program import main
write = pipes.write
def first(data, stream=1):
    global now
    now = time.monotonic_ns()
    write(data, stream)
    pipes.write = write
    mark = os.open({marks!r}, os.O_WRONLY | os.O_APPEND)
    os.write(mark, b"%d\\n" % now)
    os.close(mark)
pipes.write = first
os._exit(main(sys.argv[1:]))
"""

Kind = Literal["stream", "plain"]


class Marked:
    """The stand-in that writes down when it wrote its first line."""

    def __init__(self, directory: Path) -> None:
        bare = install_standin(directory / "standin")
        self._marks = directory / "marks"
        self._marks.touch()
        self._marks.chmod(0o666)
        self._read = 0
        self.path = directory / "claude"
        library = str(bare.parent / ".stand-in")
        text = _LAUNCHER.format(python=system_python(), library=library, marks=str(self._marks))
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o755)

    def take(self) -> int:
        """Give the one mark that was made since the last call, in ns of the monotonic clock."""
        marks = self._marks.read_text("ascii").split()
        new = marks[self._read :]
        self._read = len(marks)
        if len(new) != 1:
            raise Broken(f"one run of the stand-in left {len(new)} marks")
        return int(new[0])


def measure(world: Path, pairs: int, kind: Kind) -> Row:
    """Measure one mode: `stream` in the default profile, `plain` in the classic one."""
    root = made_in(world, f"start-{kind}")
    agent = Marked(made_in(root, "agent"))
    in_hand: list[float] = []
    # Bare beside bare: what the sandbox adds is the row `sandbox`.
    env = {"STEADYHAND_ISOLATION": "none"}
    with Service(root, agent.path, classic=kind == "plain", env=env) as service:
        user = service.uid_base if os.geteuid() == 0 else None

        def ours() -> float:
            began, accepted, job_id = submitted(service)
            ended = service.poll_classic(job_id, _SECONDS)
            if ended["status"] != "completed":
                raise Broken(f"the job came to {ended['status']}: {ended['stderr'][:300]}")
            mark = agent.take()
            in_hand.append((mark - accepted) / 1e6)
            return (mark - began) / 1e6

        def theirs() -> float:
            home = given_to(root / f"home-{time.monotonic_ns()}", user)
            return asyncio.run(started_directly(agent, kind, home, user))

        for _ in range(WARM_UP):
            theirs()
            ours()
        del in_hand[:]
        figures = interleave(pairs, ours, theirs)
    what = (
        f"POST /execute to the stand-in's first line, {kind} mode; beside create_subprocess_exec of the same"
    )
    return Row(f"start-{kind}", what, "ms", *figures, "at most", 3.0, _notes(figures, in_hand))


def submitted(service: Service) -> tuple[int, int, str]:
    """Post a job; gives when it was sent, when its 202 came (ns), and its id.

    The classic profile has one slot and no queue, and its slot is free a moment after the job before has ended.
    """

    def sent() -> tuple[int, int, str] | None:
        began = time.monotonic_ns()
        answer = service.client.post("/execute", json={"prompt": PROMPT, "agent": "claude"})
        accepted = time.monotonic_ns()
        if answer.status_code == 409:
            return None
        if answer.status_code != 202:
            raise Broken(f"POST /execute gave {answer.status_code}: {answer.text[:200]}")
        return began, accepted, answer.json()["job_id"]

    return wait_until(sent, _SECONDS)


def _notes(figures: tuple[Sequence[float], Sequence[float]], in_hand: Sequence[float]) -> list[str]:
    ours, theirs = figures
    since = statistics.median(hand / direct for hand, direct in zip(in_hand, theirs, strict=True))
    return [
        f"p90: ours {percentile(ours, 0.9):.1f} ms, theirs {percentile(theirs, 0.9):.1f} ms",
        f"from the POST being sent; from the 202 being in the caller's hand it is {since:.2f}",
    ]


async def started_directly(agent: Marked, kind: Kind, home: Path, user: int | None) -> float:
    """Start the stand-in with nothing between, let it answer, and give the ms from the call to its first line."""
    whole: Mapping[str, Any] = (
        {} if user is None else {"user": user, "group": user, "extra_groups": []}
    )  # the CLI, and so the stand-in, refuses to skip permissions as root
    env = isolated_env(home, UNUSED_MODEL_URL)
    began = time.monotonic_ns()
    process = await asyncio.create_subprocess_exec(
        str(agent.path),
        *_arguments(kind),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        cwd=home,
        **whole,
    )
    async with asyncio.timeout(_SECONDS):
        _, errors = await process.communicate(_input(kind))
    if process.returncode != 0:
        raise Broken(f"the stand-in ended with {process.returncode}: {errors.decode()[-300:]}")
    return (agent.take() - began) / 1e6


def _arguments(kind: Kind) -> list[str]:
    shared = ["-p", "--dangerously-skip-permissions", "--max-budget-usd", "5.0"]
    if kind == "plain":
        return [*shared, "--agent", "claude", "--output-format", "json"]
    return [
        *shared,
        "--input-format",
        "stream-json",
        "--output-format",
        "stream-json",
        "--verbose",
        "--include-partial-messages",
        "--setting-sources",
        "user",
    ]


def _input(kind: Kind) -> bytes:
    if kind == "plain":
        return PROMPT.encode()
    lines = (
        {"type": "control_request", "request_id": "1", "request": {"subtype": "initialize"}},
        {"type": "user", "message": {"role": "user", "content": PROMPT}, "parent_tool_use_id": None},
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
