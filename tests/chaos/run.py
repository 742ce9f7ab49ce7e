"""Chaos: three nodes on one Postgres run jobs, while nodes are killed and frozen and the database restarts.

`make chaos` runs 20 seeds. Those that are done are not run again, so it can be interrupted and gone on with.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.checker import Beat, check
from tests.chaos.clients import JobClient
from tests.chaos.faults import Faults, Plan
from tests.chaos.history import History
from tests.chaos.kinds import KINDS, Kind

from steadyhand.testing.cli import install_standin
from steadyhand.testing.cluster import SHORT_LEASE, Cluster
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.preloaded import Preloaded
from steadyhand.testing.service import Service, wait_until

NODES = ("one", "two", "three")


@dataclass(frozen=True, slots=True)
class Form:
    """The size of a run."""

    jobs: int
    clients: int
    plan: Plan
    deadline_seconds: float


SMALL = Form(24, 12, Plan(3, 1.5, 6.5, 1), 90)
FULL = Form(500, 32, Plan(24, 5.0, 7.0, 2), 1200)
SAME_NODE = Form(200, 24, Plan(20, 3.0, 7.0, 0, same_node=True), 1200)


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run: what was wrong, and what was done."""

    seed: int
    wrong: Sequence[str]
    faults: Sequence[str]
    calls: int
    seconds: float


def run_chaos(seed: int, form: Form, directory: Path) -> Result:
    """Run the chaos of a seed in a directory that agents can enter."""
    began = time.monotonic()
    history, marks = History(), directory / "beats"
    marks.touch()
    marks.chmod(0o666)
    kinds = [KINDS[number % len(KINDS)] for number in range(form.jobs)]
    with Postgres() as postgres:
        stand_in = install_standin(directory / "stand-in")
        url = postgres.url(postgres.create_database())

        def make_service(**options: object) -> Service:
            root = Path(tempfile.mkdtemp(prefix="node-", dir=directory))
            root.chmod(0o755)
            return Service(root, stand_in, **options)  # type: ignore[arg-type]

        env = {"STEADYHAND_ISOLATION": "none", "STEADYHAND_SERVICE__MAX_QUEUED": "10000"}
        cluster = Cluster(
            make_service, url, serving=(), working=(), both=NODES, env=env, constants=SHORT_LEASE
        )
        with cluster:
            faults = Faults(cluster, postgres, form.plan, seed)
            clients = [
                JobClient(
                    cluster, history, seed=seed, number=number, kind=kind, body=_body(number, kind, marks)
                )
                for number, kind in enumerate(kinds)
            ]
            _drive(clients, faults, form)
            wrong = [*check(kinds, history.calls(), _read_beats(marks)), *_leftovers(cluster, postgres, url)]
    history.save(directory / "history.jsonl")
    return Result(seed, wrong, faults.log, len(history.calls()), time.monotonic() - began)


def _drive(clients: Sequence[JobClient], faults: Faults, form: Form) -> None:
    deadline = time.monotonic() + form.deadline_seconds
    over = threading.Event()
    with ThreadPoolExecutor(form.clients + 1) as pool:
        breaking = pool.submit(faults.run, over.is_set)
        for ended in [pool.submit(client.run, deadline) for client in clients]:
            ended.result()
        over.set()
        breaking.result()


def _body(number: int, kind: Kind, marks: Path) -> dict[str, object]:
    return {
        "prompt": kind.prompt(number, marks),
        "workspace": "scratch",
        "on_interrupt": kind.on_interrupt,
        **dict(kind.fields),
    }


def _read_beats(marks: Path) -> list[Beat]:
    beats: list[Beat] = []
    for line in marks.read_text().splitlines():
        number, process, at = line.split()
        beats.append((int(number), process, float(at)))
    return beats


def _leftovers(cluster: Cluster, postgres: Postgres, url: str) -> list[str]:
    """Return what is still taken once all jobs have ended."""
    database = url.rpartition("/")[2]
    wrong = []

    def is_quiet() -> bool:
        health = [node.client.get("/health").json() for node in cluster.nodes.values()]
        return all(each["active"] == each["queued"] == 0 for each in health)

    try:
        wait_until(is_quiet, 30)
    except TimeoutError:
        wrong.append("a slot is left taken")
    places = postgres.execute("SELECT job_id, state, node FROM queue_places", database)
    wrong += [f"a place is left: {place}" for place in places]
    for name, node in cluster.nodes.items():
        try:
            wait_until(lambda node=node: not node.live_agent_pids(), 15)  # type: ignore[misc]  # bound at once
        except TimeoutError:
            wrong.append(f"agents of {name} are alive")
    return wrong


def main() -> int:
    """Run the seeds that are not done yet, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--form", choices=("full", "small", "same-node"), default="full")
    parser.add_argument("--results", type=Path, default=Path("build/chaos"))
    arguments = parser.parse_args()
    form = {"full": FULL, "small": SMALL, "same-node": SAME_NODE}[arguments.form]
    results: Path = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    Service.preloaded = Preloaded()
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        path = results / f"{arguments.form}-{seed}.json"
        if path.exists() and not json.loads(path.read_text())["wrong"]:
            print(f"seed {seed}: done before")  # noqa: T201  # a program
            continue
        directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        directory.chmod(0o755)
        result = run_chaos(seed, form, directory)
        summary = {
            "seed": seed,
            "wrong": list(result.wrong),
            "faults": list(result.faults),
            "calls": result.calls,
            "seconds": round(result.seconds, 1),
        }
        path.write_text(json.dumps(summary, indent=1))
        if result.wrong:
            failed += 1
            print(f"seed {seed}: WRONG, see {path} and {directory}")  # noqa: T201  # a program
            for text in result.wrong:
                print(f"  {text}")  # noqa: T201  # a program
        else:
            shutil.rmtree(directory, ignore_errors=True)
            print(f"seed {seed}: all holds, {len(result.faults)} faults, {result.seconds:.0f} s")  # noqa: T201  # a program
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
