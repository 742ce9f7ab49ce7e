"""Chaos: three nodes on one Postgres run jobs, while nodes are killed and frozen and the database restarts.

`make chaos` runs 20 seeds. Those that are done are not run again, so it can be interrupted and gone on with.
"""

import argparse
import json
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos import leftovers
from tests.chaos.agents import check_agents
from tests.chaos.checker import Beat, check
from tests.chaos.clients import JobClient
from tests.chaos.deadline import Deadline
from tests.chaos.faults import Faults, Kill, Plan
from tests.chaos.history import Call, History
from tests.chaos.kinds import KINDS, LONG_KINDS, Kind
from tests.chaos.model_calls import check_ledger, read_notes
from tests.chaos.surroundings import Surroundings, open_surroundings

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.preloaded import Preloaded
from steadyhand.testing.service import ADMIN_KEY, Service

INTERRUPTED = 130
SAME_NODE_EACH = 5
"""Of the mixed form each seed that this number divides hits one node alone."""


@dataclass(frozen=True, slots=True)
class Form:
    """The size of a run. A long one has a model and an object store as well."""

    jobs: int
    clients: int
    plan: Plan
    deadline_seconds: float
    kinds: Sequence[Kind] = KINDS
    is_long: bool = False
    spread_seconds: float = 0.0
    """The time over which the jobs are submitted, so that there are some at each fault."""


def _long(jobs: int, clients: int, plan: Plan, spread_seconds: float) -> Form:
    return Form(jobs, clients, plan, 1800, LONG_KINDS, is_long=True, spread_seconds=spread_seconds)


SMALL = Form(24, 12, Plan(3, 1.5, 6.5, 1), 90)
_FULL = Plan(62, 5.0, 7.0, 2, overlaps=True, object_outage_seconds=20, least_hits=20)
_SAME_NODE = Plan(22, 5.0, 7.0, 2, same_node=True, object_outage_seconds=20, least_hits=20)
_FULL_SHORT = Plan(12, 5.0, 7.0, 1, overlaps=True, object_outage_seconds=10, least_hits=4)
_SAME_NODE_SHORT = Plan(6, 5.0, 7.0, 1, same_node=True, object_outage_seconds=10, least_hits=5)
FORMS: Mapping[str, Form] = {
    "small": SMALL,
    "full": _long(500, 32, _FULL, 150),
    "same-node": _long(500, 32, _SAME_NODE, 200),
    "full-short": _long(48, 16, _FULL_SHORT, 30),
    "same-node-short": _long(48, 16, _SAME_NODE_SHORT, 50),
}


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run: what was wrong, and what was done."""

    seed: int
    wrong: Sequence[str]
    faults: Sequence[str]
    calls: int
    seconds: float
    kills: Sequence[Kill] = ()
    logs: Sequence[str] = ()
    """The ends of the logs of all nodes, if anything was wrong."""


@dataclass(frozen=True, slots=True)
class AgentFiles:
    """Where the agents of a run note what they do; agents of every user append to them."""

    beats: Path
    model_calls: Path


def run_chaos(seed: int, form: Form, directory: Path) -> Result:
    """Run the chaos of a seed in a directory that agents can enter."""
    began = time.monotonic()
    wall_offset = time.time() - began
    history, files = History(), AgentFiles(directory / "beats", directory / "model-calls")
    for path in (files.beats, files.model_calls):
        path.touch()
        path.chmod(0o666)
    kinds = [form.kinds[number % len(form.kinds)] for number in range(form.jobs)]
    with open_surroundings(directory, is_long=form.is_long) as around:
        url = around.postgres.url(around.postgres.create_database())
        with around.make_cluster(url) as cluster:
            token = leftovers.create_key(cluster) if form.is_long else ADMIN_KEY
            faults = Faults(cluster, around.postgres, form.plan, seed, around.objects)
            notes = files.model_calls if form.is_long else None
            clients = [
                JobClient(
                    cluster,
                    history,
                    seed=seed,
                    number=number,
                    kind=kind,
                    body=_body(number, kind, files.beats, notes),
                    token=token,
                )
                for number, kind in enumerate(kinds)
            ]
            try:
                _drive(clients, faults, form)
            finally:
                history.save(directory / "history.jsonl")
            wrong = check(kinds, history.calls(), _read_beats(files.beats), has_cost=not form.is_long)
            wrong += leftovers.find_busy(cluster)
            if form.is_long:
                wrong += check_agents(kinds, history.calls(), _read_beats(files.beats), wall_offset)
                wrong += _check_long(cluster, around, faults, files, last_answers(history.calls()))
                wrong += leftovers.find_lost_files(cluster, kinds, last_answers(history.calls()), seed)
            wrong += leftovers.probe(cluster, token, directory, has_in_place=form.is_long)
            logs = cluster.log_tails() if wrong else []
    return Result(seed, wrong, faults.log, len(history.calls()), time.monotonic() - began, faults.kills, logs)


def last_answers(calls: Sequence[Call]) -> dict[int, Mapping[str, Any]]:
    """Return the last answer about each job, by its number."""
    reads = [call for call in calls if call.operation == "get" and call.succeeded]
    return {call.job: call.body for call in sorted(reads, key=lambda call: call.ended)}


def _check_long(
    cluster: Cluster,
    around: Surroundings,
    faults: Faults,
    files: AgentFiles,
    jobs: Mapping[int, Mapping[str, Any]],
) -> Iterator[str]:
    yield from faults.find_missing()
    if around.model is not None:
        counted = leftovers.usage_of_all(cluster)
        yield from check_ledger(jobs, read_notes(files.model_calls), around.model, counted, faults.kills)


def _drive(clients: Sequence[JobClient], faults: Faults, form: Form) -> None:
    deadline = Deadline(form.deadline_seconds)
    over = threading.Event()
    began = time.monotonic()

    def run(number: int, client: JobClient) -> None:
        deadline.pause(began + form.spread_seconds * number / len(clients) - time.monotonic())
        client.run(deadline)

    with ThreadPoolExecutor(form.clients + 1) as pool:
        breaking = pool.submit(faults.run, over.is_set, deadline)
        try:
            for ended in [pool.submit(run, number, client) for number, client in enumerate(clients)]:
                ended.result()
        except BaseException:  # also Ctrl-C: the threads would go on for minutes
            deadline.interrupt()
            raise
        finally:
            over.set()
        breaking.result()


def _body(number: int, kind: Kind, beats: Path, notes: Path | None) -> dict[str, object]:
    return {
        "prompt": kind.prompt(number, beats, notes),
        "workspace": "scratch",
        "on_interrupt": kind.on_interrupt,
        **dict(kind.fields),
    }


def _read_beats(path: Path) -> list[Beat]:
    beats: list[Beat] = []
    for line in path.read_text().splitlines():
        number, process, at = line.split()
        beats.append((int(number), process, float(at)))
    return beats


def _run_seed(seed: int, name: str, results: Path) -> bool:
    """Run a seed unless it is done, and print a line; return True if all holds."""
    path = results / f"{name}-{seed}.json"
    if path.exists() and not json.loads(path.read_text())["wrong"]:
        print(f"seed {seed}, {name}: done before")  # noqa: T201  # a program
        return True
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        result = run_chaos(seed, FORMS[name], directory)
    except KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    except Exception as error:  # noqa: BLE001  # such as a node that did not come back: it is a result, and the next seed runs
        traceback.print_exc()
        logs = getattr(error, "__notes__", [])
        result = Result(seed, [f"the run broke off: {error!r}"], [], 0, 0.0, logs=logs)
    summary = {
        "seed": seed,
        "wrong": list(result.wrong),
        "faults": list(result.faults),
        "calls": result.calls,
        "seconds": round(result.seconds, 1),
        "kills": [asdict(kill) for kill in result.kills],
        "logs": list(result.logs),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(summary, indent=1))
    part.replace(path)  # an interruption leaves no half of it
    if result.wrong:
        print(f"seed {seed}, {name}: WRONG, see {path} and {directory}")  # noqa: T201  # a program
        for text in (*result.wrong, *result.logs):
            print(f"  {text}")  # noqa: T201  # a program
        return False
    shutil.rmtree(directory, ignore_errors=True)
    print(f"seed {seed}, {name}: all holds, {len(result.faults)} faults, {result.seconds:.0f} s")  # noqa: T201  # a program
    return True


def main() -> int:
    """Run the seeds that are not done yet, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--form", choices=("mixed", *FORMS), default="mixed")
    parser.add_argument("--results", type=Path, default=Path("build/chaos"))
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the nodes would outlive it
    Service.preloaded = Preloaded()
    failed = 0
    try:
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            mixed = "full" if seed % SAME_NODE_EACH else "same-node"
            name = mixed if arguments.form == "mixed" else arguments.form
            failed += not _run_seed(seed, name, arguments.results)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")  # noqa: T201  # a program
        return INTERRUPTED
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
