"""How long an answer takes in a sealed git workspace, and what a job there costs beside the CLI itself.

The stream of a chat ends once the answer is stored; the exit of the agent and the harvest follow, and are in the
processor time but not in the time of the answer. Each turn comes later than the shared fetch lasts, so it fetches. The
bare CLI works in a clone of the same repository: it asks git for the state of it, as the agent in the sandbox does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.answering import PROMPT, answered_directly, within_reach
from bench.rows import Row, interleave, percentile
from bench.sealing import SMALL, generate, must_be_root
from bench.worlds import Broken, given_to, made_in
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

WARM_UP = 2
_SECONDS = 60
_FETCH_AGE_SECONDS = 2.1
_REST_SECONDS = 0.3
"""The time in which a job's checkout is removed, after its end."""
_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # idle and iowait


@dataclass(frozen=True)
class Sides:
    """The two sides of a row: each runs once and gives the ms until its answer is whole."""

    ours: Callable[[], float]
    theirs: Callable[[], float]


@contextmanager
def sides(world: Path) -> Iterator[Sides]:
    """Run a service with a git workspace, and the bare CLI beside it."""
    must_be_root()
    root = made_in(world, "git")
    cli = within_reach(cli_path(), root / "claude")
    generate(root / "repository", SMALL)
    clone = root / "clone"
    subprocess.run(
        ["git", "clone", "--quiet", str(root / "repository"), str(clone)], check=True, timeout=_SECONDS
    )
    config = f'[defaults]\nworkspace = "bench"\n[workspaces.bench]\nrepository = "{root / "repository"}"\n'
    env = {"STEADYHAND_ISOLATION": "bwrap"}
    with ScriptedModel("ok") as model, Service(root, cli, model=model.url, env=env, config=config) as service:
        service.give_to_agent(clone)

        def ours() -> float:
            time.sleep(_FETCH_AGE_SECONDS)
            began = time.monotonic_ns()
            messages = [{"role": "user", "content": PROMPT}]
            body = {"model": "claude", "stream": True, "messages": messages}
            reply = service.client.post("/v1/chat/completions", json=body)
            took = (time.monotonic_ns() - began) / 1e6
            if reply.status_code != 200 or "data: [DONE]" not in reply.text:  # OK
                raise Broken(f"the answer came to {reply.status_code} {reply.text[-500:]}")
            path = f"/v1/jobs/{reply.headers['x-steadyhand-job-id']}"
            job = service.client.get(path, headers={"prefer": f"wait={_SECONDS}"}).json()
            if job["state"] != "completed" or job["commit"] is None:
                raise Broken(f"the job came to {job}")
            return took

        def theirs() -> float:
            time.sleep(_FETCH_AGE_SECONDS)  # as on our side: other work of the machine weighs on both alike
            home = given_to(root / f"home-{time.monotonic_ns()}", service.uid_base)
            return answered_directly(cli, home, model.url, service.uid_base, clone)[0]

        for take in (ours, theirs) * WARM_UP:
            take()
        yield Sides(ours, theirs)


def measure_answer(world: Path, pairs: int) -> Row:
    """Measure the whole answer of a chat in a sealed git workspace beside the bare CLI."""
    with sides(world) as both:
        figures = interleave(pairs, both.ours, both.theirs)
    what = f"a streamed chat to its end, sealed, in a git workspace of {SMALL} files; beside `claude -p` in a clone"
    notes = [f"p90: ours {percentile(figures[0], 0.9):.0f} ms, theirs {percentile(figures[1], 0.9):.0f} ms"]
    return Row("answer-git", what, "ms", *figures, "at most", 1.08, notes)


def measure_processor(world: Path, pairs: int) -> Row:
    """Measure the processor time of the whole machine during one job, beside one run of the bare CLI."""
    with sides(world) as both:
        figures = interleave(pairs, lambda: _busy_during(both.ours), lambda: _busy_during(both.theirs))
    what = "processor time of a sealed git job, its harvest included; beside that of the bare CLI in a clone"
    notes = ["of the whole machine without this process, which asks and plays the model"]
    return Row("cpu-git", what, "ms", *figures, "at most", 35.0, notes, by="added")


def _busy_during(take: Callable[[], float]) -> float:
    machine, own = _busy_ms(), time.process_time()
    take()
    time.sleep(_REST_SECONDS)
    return _busy_ms() - machine - (time.process_time() - own) * 1000


def _busy_ms() -> float:
    """Return the processor time that the machine has spent since it started, in ms."""
    first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()[1:9]
    return sum(int(ticks) for index, ticks in enumerate(first) if index not in _IDLE) * 1000 / _TICKS
