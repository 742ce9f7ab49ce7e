"""How long a job takes as a whole, beside a bare `claude -p` on the same prompt and the same scripted model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.rows import Row, interleave, percentile
from bench.worlds import Broken, given_to, made_in
from steadyhand.testing.cli import cli_path, isolated_env
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service

PROMPT = "Say that all is well."
WARM_UP = 2
_SECONDS = 60


def measure(world: Path, pairs: int, *, sealed: bool = False) -> Row:
    """Measure it with the real CLI, each run of either side with a fresh home as the same unprivileged user.

    With `sealed` the service's agent is in the sandbox; the bare one never is.
    """
    name, goal = ("answer-sealed", 1.15) if sealed else ("answer", 1.10)
    root = made_in(world, name)
    cli = within_reach(cli_path(), root / "claude")
    env = {"STEADYHAND_ISOLATION": "bwrap" if sealed else "none"}
    with ScriptedModel("ok") as model, Service(root, cli, model=model.url, env=env) as service:
        user = service.uid_base if os.geteuid() == 0 else None
        answers: list[str] = []

        def ours() -> float:
            began = time.monotonic_ns()
            answer = service.client.post(
                "/v1/jobs", json={"prompt": PROMPT}, headers={"prefer": f"wait={_SECONDS}"}
            )
            took = (time.monotonic_ns() - began) / 1e6
            job = answer.json()
            if answer.status_code != 200 or job["state"] != "completed":
                raise Broken(f"the job came to {answer.status_code} {json.dumps(job)[:500]}")
            answers.append(job["answer"])
            return took

        def theirs() -> float:
            home = given_to(root / f"home-{time.monotonic_ns()}", user)
            took, answer = answered_directly(cli, home, model.url, user)
            answers.append(answer)
            return took

        for take in (ours, theirs) * WARM_UP:
            take()
        ours_taken, theirs_taken = interleave(pairs, ours, theirs)
    if len(set(answers)) != 1:
        raise Broken(f"the answers differ: {sorted(set(answers))}")
    how = "default profile, in the sandbox" if sealed else "default profile"
    what = f"a whole job, from POST to its end, {how}; beside `claude -p --output-format json`"
    notes = _notes(ours_taken, theirs_taken)
    return Row(name, what, "ms", ours_taken, theirs_taken, "at most", goal, notes)


def _notes(ours: Sequence[float], theirs: Sequence[float]) -> list[str]:
    def spread(figures: Sequence[float]) -> str:
        return f"p50 {percentile(figures, 0.5):.0f} ms, p90 {percentile(figures, 0.9):.0f} ms"

    return [f"ours {spread(ours)}; theirs {spread(theirs)}; the real CLI and the scripted model on loopback"]


def answered_directly(
    cli: Path, home: Path, model: str, user: int | None, directory: Path | None = None
) -> tuple[float, str]:
    """Run the bare CLI once, in `directory` or in its home; gives the ms from its start to its end, and its answer."""
    became: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    who = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    began = time.monotonic_ns()
    process = became(
        [str(cli), "-p", "--output-format", "json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=isolated_env(home, model),
        cwd=directory or home,
        **who,
    )
    try:
        printed, errors = process.communicate(PROMPT.encode(), timeout=_SECONDS)
    finally:
        process.kill()
    took = (time.monotonic_ns() - began) / 1e6
    if process.returncode != 0:
        raise Broken(f"the bare CLI ended with {process.returncode}: {errors.decode()[-300:]}")
    return took, json.loads(printed)["result"]


def within_reach(program: Path, target: Path) -> Path:
    """Give a program under a path that any user can reach: a link to it, or a copy."""
    try:
        target.hardlink_to(program)
    except OSError:
        shutil.copyfile(program, target)
    target.chmod(0o755)
    return target
