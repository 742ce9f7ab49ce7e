"""The TypeScript client is generated from the document of the service, type-checked, and works with it."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.api.api_service import ADMIN, RunningService, running_service
from tests.api.tool_calling_agent import ToolCallingAgent
from tests.client.cutting_proxy import CuttingProxy
from tests.clients.client_programs import NODE, environment_dir
from tests.docs.pages import PROJECT, text_of

from steadyhand import __version__
from steadyhand.testing.cli import SYSTEM_PATH

SOURCE = PROJECT / "clients" / "typescript"
CHECKS = Path(__file__).parent / "typescript"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(scope="module")
def work_dir(service: RunningService) -> Iterator[Path]:
    """The client with the checks beside it, generated from the document of the service and compiled."""
    folder = environment_dir("typescript") / f"work-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCE, folder)
    shutil.copy(CHECKS / "checks.ts", folder / "src")
    programs = re.findall(r"```ts\n(.*?)```", (SOURCE / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(programs) == 3
    for number, program in enumerate(programs):
        text = program.replace('"steadyhand-client"', '"./index.js"')
        (folder / "src" / f"readme_{number}.ts").write_text(text)
    with service.client() as client:
        document = client.get("/openapi.json").raise_for_status()
    (folder / "openapi.json").write_bytes(document.content)
    run(folder, "node_modules/.bin/openapi-ts", OPENAPI="openapi.json")
    run(folder, "node_modules/.bin/tsc")
    yield folder
    shutil.rmtree(folder)


def run(folder: Path, program: str, **env: str) -> str:
    """Run a program of the client's environment, and return what it printed."""
    path = folder / program if (folder / program).exists() else folder.parent / program
    done = subprocess.run(
        [str(NODE), str(path)],
        cwd=folder,
        env={"PATH": f"{NODE.parent}:{SYSTEM_PATH}", "HOME": str(folder), "NO_COLOR": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results_of(folder: Path, url: str) -> Mapping[str, Any]:
    printed = run(folder, "dist/checks.js", STEADYHAND_URL=url, STEADYHAND_TOKEN=ADMIN)
    return {found["case"]: found["value"] for found in map(json.loads, printed.splitlines())}


def test_jobs_events_and_tools_work_across_lost_answers_and_a_cut_stream(
    service: RunningService, work_dir: Path
) -> None:
    agent = ToolCallingAgent(["Paris", "Rome"], ["Oslo"])
    service.runner.tool_calling_agent = agent
    before = service.count()
    try:
        with (
            CuttingProxy(service.url, b"POST /v1/jobs ") as submissions,
            CuttingProxy(submissions.url, b"/events", b'"seq":3') as events,
            CuttingProxy(events.url, b"POST /v1/responses ", times=2) as responses,
        ):
            found = results_of(work_dir, responses.url)
            assert (submissions.cuts, events.cuts, responses.cuts) == (1, 1, 2)
    finally:
        service.runner.tool_calling_agent = None
    assert found["submitted"] in ("queued", "running", "completed")
    assert found["waited"] == ["completed", "hello"]
    numbers = [seq for seq, _ in found["events"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 3
    assert found["events"][-1][1] == "state.changed"
    assert found["rest"] == 0
    assert found["cancelled"] == "cancelled"
    assert found["responded"][-1] == "message"
    assert agent.results == [['{"sun":"Paris"}', '{"sun":"Rome"}'], ["Error: no such city"]]
    assert found["refused"] == [422, "unknown_agent"]
    assert found["listed"] == 2
    assert service.count() == before + 4, "a request whose answer was lost had one effect"


def test_the_package_names_what_is_installed_and_the_release_that_it_belongs_to() -> None:
    package = json.loads((SOURCE / "package.json").read_text("ascii"))
    installed = json.loads((CHECKS / "package.json").read_text("ascii"))
    assert package["version"] == __version__
    assert package["devDependencies"] == installed["devDependencies"]
    assert "dependencies" not in package
    assert "clients/typescript" in text_of("clients.md")
