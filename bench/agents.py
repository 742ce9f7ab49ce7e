"""How long other agents take until they ask their model, through the service and by their own command alone."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.real_agents.real_agents import COMMANDS, binary

from bench.rows import Row, interleave, percentile
from bench.worlds import Broken, given_to, made_in
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.service import Service

PROMPT = "Say that all is well."
WARM_UP = 2
_SECONDS = 60
_CONFIG = """
[providers.models]
kind = "openai-compatible"
base_url = "{url}"
api_key_file = "{key}"
[agents.{agent}]
runner = "{agent}"
provider = "models"
model = "gpt-5.5"
workspace = "scratch"
[runner.{agent}]
{program}
"""
PROGRAMS: Mapping[str, Callable[[], str]] = {"codex": lambda: f'path = "{binary("codex")}"'}
"""The settings that name the program of an agent, as TOML."""


class TimedModel(ScriptedModel):
    """A scripted model that notes when the requests came, in ns of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__("ok")
        self._arrivals: list[int] = []

    def record(self, request: ModelRequest) -> None:
        """Note the time of a request, and the request; one for the list of models counts for nothing."""
        if request.wire is not None:
            self._arrivals.append(time.monotonic_ns())
        super().record(request)

    def take(self) -> int:
        """Return when the first request since the last call came."""
        if not self._arrivals:
            raise Broken("the agent asked no model")
        first = self._arrivals[0]
        self._arrivals.clear()
        return first


def measure_start(world: Path, pairs: int, agent: str) -> Row:
    """Measure the time until the first request of a model, sealed in the default profile, beside the bare agent."""
    root = made_in(world, f"{agent}-start")
    key = root / "key"
    key.write_text("sk-bench")
    with TimedModel() as model:
        service = Service(root, cli_path(), env={"STEADYHAND_ISOLATION": "bwrap"})
        service.config_path.write_text(
            _CONFIG.format(url=model.url, key=key, agent=agent, program=PROGRAMS[agent]())
        )
        with service:
            user = service.uid_base if os.geteuid() == 0 else None

            def ours() -> float:
                began = time.monotonic_ns()
                job = _run(service, agent)
                if job["answer"] is None:
                    raise Broken(f"the job has no answer: {job['outcome']}")
                return (model.take() - began) / 1e6

            def theirs() -> float:
                home = given_to(root / f"home-{time.monotonic_ns()}", user)
                began = _run_directly(agent, home, model.url, user)
                return (model.take() - began) / 1e6

            for take in (ours, theirs) * WARM_UP:
                take()
            figures = interleave(pairs, ours, theirs)
    spreads = [f"p50 {percentile(side, 0.5):.0f} ms, p90 {percentile(side, 0.9):.0f} ms" for side in figures]
    what = (
        f"from the POST of a job to the first request of the model by {agent}, sealed; beside its own command"
    )
    return Row(
        f"{agent}-start", what, "ms", *figures, "at most", 1.10, (f"ours {spreads[0]}; theirs {spreads[1]}",)
    )


def _run(service: Service, agent: str) -> dict[str, Any]:
    answer = service.client.post(
        "/v1/jobs", json={"prompt": PROMPT, "agent": agent}, headers={"prefer": f"wait={_SECONDS}"}
    )
    job: dict[str, Any] = answer.json()
    if answer.status_code != 200 or job["state"] != "completed":
        raise Broken(f"the job came to {answer.status_code} {job}")
    return job


def _run_directly(agent: str, home: Path, url: str, user: int | None) -> int:
    """Run an agent by its own command in its home, and return when it was started."""
    command = COMMANDS[agent](home, url, PROMPT)
    if user is not None:
        for folder, _, names in os.walk(home):
            for path in (folder, *(os.path.join(folder, name) for name in names)):  # noqa: PTH118  # those of `os.walk`
                os.chown(path, user, user)
    who: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    began = time.monotonic_ns()
    done = subprocess.run(
        command.argv,
        cwd=home,
        env={**command.environment, "PWD": str(home)},
        input=command.stdin.encode(),
        capture_output=True,
        timeout=_SECONDS,
        check=False,
        **who,
    )
    if done.returncode != 0:
        raise Broken(f"{agent} ended with {done.returncode}: {done.stderr[-300:]!r}")
    return began
