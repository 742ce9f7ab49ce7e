"""How long `/health` takes while sealed agents take all they can get, beside one that takes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.rows import Row, interleave, percentile
from bench.worlds import Broken, made_in
from steadyhand.testing.cli import install_standin
from steadyhand.testing.resource_hogs import SMALL_LIMITS_CONFIG, LimitMissingError, fork_bomb, memory_hog
from steadyhand.testing.service import Service
from steadyhand.testing.shell import shell_prompt

_PAUSE_SECONDS = 0.02
_SECONDS = 60.0
_QUIET_SECONDS = 6
_FLOOD = "[[standin: flood=170M text=done]]"


def measure(world: Path, pairs: int) -> Row:
    """Measure the longest of the looks of a round: a fork bomb, a memory hog and a flood, all at once."""
    root = made_in(world, "health")
    agent = install_standin(root / "agent")
    with Service(root, agent, config=SMALL_LIMITS_CONFIG) as service:
        try:
            hogs = (shell_prompt(fork_bomb(service)), shell_prompt(memory_hog(service) + "; echo lived on"))
        except LimitMissingError as error:
            raise Broken(str(error)) from error
        looks: list[float] = []

        def ours() -> float:
            found = longest(service, *((text, {"agent": "small"}) for text in hogs), (_FLOOD, {}))
            looks.extend(found)
            return max(found)

        def theirs() -> float:
            return max(longest(service, (shell_prompt(f"sleep {_QUIET_SECONDS}"), {"agent": "small"})))

        figures = interleave(pairs, ours, theirs)
    spread = ", ".join(f"p{share * 100:g} {percentile(looks, share):.1f} ms" for share in (0.5, 0.99, 1))
    notes = (f"over all {len(looks)} looks under attack: {spread}",)
    what = "the longest `GET /health` during a fork bomb, a memory hog and a flood; beside a quiet agent"
    return Row("health", what, "ms", *figures, "at most", 100.0, notes, by="added")


def longest(service: Service, *jobs: tuple[str, Mapping[str, Any]]) -> list[float]:
    """Start these and ask for the health until all have ended; gives how long each look took, in ms."""
    ids = [service.submit(text, **fields)["id"] for text, fields in jobs]
    looks = []
    end = time.monotonic() + _SECONDS
    with service.new_client(None) as client:
        while True:
            began = time.monotonic_ns()
            answer = client.get("/health")
            looks.append((time.monotonic_ns() - began) / 1e6)
            if answer.status_code != 200:
                raise Broken(f"/health answered {answer.status_code}")
            if not answer.json()["active"] and len(looks) > 1:
                break
            if time.monotonic() > end:
                raise Broken(f"the jobs took longer than {_SECONDS:.0f} s")
            time.sleep(_PAUSE_SECONDS)
    for job_id in ids:
        service.wait_until_ended(job_id)
    return looks
