"""Many nodes from the image, as `deploy/compose` and the chart start them, around a Postgres of this machine.

A container has a network of its own, without a way out: Postgres is reached by its socket, and each worker has the
scripted model beside it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.container.conftest import PROJECT
from tests.container.container import ComposeService, Container
from tests.container.image_builder import Image
from tests.container.test_image import MODEL_PORT, PYTHON
from tests.deploy.chart import FULL, container_of, environment_of, render

from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.postgres import Postgres
from steadyhand.testing.service import wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a root"),
    pytest.mark.timeout(1800),
]
COMPOSE = PROJECT / "deploy/compose/compose.yaml"
KEY = "sh-test-key-of-the-containers"
SOCKET = "/run/postgres"
BUSY_SECONDS = 120
"""More time for a start than an engine allows: several services start here beside other tests."""
GET = "import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=20)"

RUN = """
import json, time
from steadyhand.client import ENDED_STATES, Client

with Client.from_environment() as client:
    job = client.submit("Say ok.", workspace="scratch")
    end = time.monotonic() + 120
    while job.state not in ENDED_STATES and time.monotonic() < end:
        time.sleep(0.2)
        job = client.get(job)
    print(json.dumps(job.document))
"""
"""A job from its acceptance to its end, by the library in the image."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as found:  # below /tmp: its user reaches it
        yield found


@dataclass(frozen=True, slots=True)
class World:
    """What all nodes of a test share."""

    image: Image
    scratch: Path
    server: Postgres
    database: str


@pytest.fixture
def world(image: Image, scratch: Path, server: Postgres) -> World:
    return World(image, scratch, server, server.create_database())


def node(it: World, service: ComposeService, name: str) -> Container:
    """Return a container as a service says, but for the address of the database and of the model."""
    secret = it.scratch / "callbacks.key"
    secret.write_text("a-secret-for-the-callbacks-of-all-nodes\n")
    binds = [(secret, target) for _, target in service.binds]
    url = f"postgresql://steadyhand:{it.server.password}@/{it.database}?host={SOCKET}&port={it.server.port}"
    return Container(
        it.image,
        service,
        it.scratch,
        binds=[*binds, (it.server.data_directory.parent, SOCKET)],
        STEADYHAND_DATABASE_URL=url,
        STEADYHAND_SERVICE__NODE=name,
        STEADYHAND_API_KEY=KEY,
        STEADYHAND_TOKEN=KEY,
        ANTHROPIC_BASE_URL=f"http://127.0.0.1:{MODEL_PORT}",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )


def start_model(worker: Container) -> None:
    model = worker.background(PYTHON, "-m", "steadyhand.testing.model", "--port", str(MODEL_PORT))
    assert model.stdout is not None
    assert model.stdout.readline() == f"http://127.0.0.1:{MODEL_PORT}\n".encode()


def run_job(serve: Container) -> dict[str, Any]:
    """Run a job from its acceptance on the node that serves to its end."""
    done = serve.execute(PYTHON, "-c", RUN, seconds=150)
    assert done.returncode == 0, done.stdout + done.stderr + serve.log
    job: dict[str, Any] = json.loads(done.stdout)
    assert job["state"] == "completed", job
    return job


def node_of(job: dict[str, Any]) -> str:
    name: str = job["runs"][-1]["node"]
    return name


# The pods below are two such nodes in each run; how the compose file differs from them is read by test_compose.py.
@pytest.mark.long
def test_the_nodes_of_compose_share_jobs_and_a_drained_one_gets_none(world: World) -> None:
    variables = {"POSTGRES_PASSWORD": "-", "STEADYHAND_API_KEY": KEY, "ANTHROPIC_API_KEY": DUMMY_API_KEY}
    with ExitStack() as stack:
        nodes = {}
        for name in ("serve", "worker-1", "worker-2"):
            service = ComposeService.read(COMPOSE, variables, name)
            nodes[name] = stack.enter_context(node(world, service, name))
            nodes[name].healthy(BUSY_SECONDS)
        for name in ("worker-1", "worker-2"):
            start_model(nodes[name])
        first = node_of(run_job(nodes["serve"]))
        (other,) = {"worker-1", "worker-2"} - {first}
        drained = nodes[first].execute("steadyhand", "drain", "--wait", "--until-restart")
        assert drained.returncode == 0, drained.stdout + drained.stderr
        assert [node_of(run_job(nodes["serve"])) for _ in range(2)] == [other, other]
        for each in nodes.values():
            assert each.execute("touch", "/usr/of-mine").returncode != 0, "the root is read-only"
            assert each.stop() == 0, each.log


def as_service(pod: dict[str, Any]) -> ComposeService:
    """Return what a pod of the chart says, as a service of compose; references are those of the test."""
    container = container_of(pod)
    context = container["securityContext"]
    options = {"no-new-privileges:true"} if context["allowPrivilegeEscalation"] is False else set()
    if context.get("procMount") == "Unmasked":
        options.add("systempaths=unconfined")
    environment = {name: value for name, value in environment_of(pod).items() if isinstance(value, str)}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    memory = {each["name"] for each in pod["volumes"] if "emptyDir" in each} - {"data"}
    return ComposeService(
        environment,
        frozenset(options),
        next(path for path, name in mounts.items() if name == "data"),
        None,
        pod["terminationGracePeriodSeconds"],
        tuple(container["args"]),
        context["readOnlyRootFilesystem"],
        tuple(f"{path}:mode=1777" for path, name in mounts.items() if name in memory),
        ((".", environment["STEADYHAND_CALLBACKS__SECRET_FILE"]),),
    )


def test_the_pods_of_the_chart_run_a_job_in_the_sandbox_and_their_hook_drains(world: World) -> None:
    rendered = render(
        {**FULL, "config": "", "secretFiles": [], "extraEnv": [], "workers": {"drainSeconds": 30}}
    )
    environment = {"ANTHROPIC_API_KEY": DUMMY_API_KEY}
    with ExitStack() as stack:
        nodes = {}
        for part in ("serve", "worker"):
            service = as_service(rendered.pod(part))
            service.environment.update(environment)
            for unused in ("STEADYHAND_CONFIG", "ANTHROPIC_API_KEY_FILE"):
                service.environment.pop(unused)
            found = node(world, service, part)
            found.give_data_to_group()
            nodes[part] = stack.enter_context(found)
        for part, each in nodes.items():
            probes = [
                container_of(rendered.pod(part))[f"{kind}Probe"]["httpGet"]
                for kind in ("startup", "readiness")
            ]
            for probe in probes:
                url = f"http://127.0.0.1:8080{probe['path']}"
                wait_until(lambda: each.execute(PYTHON, "-c", GET, url).returncode == 0, BUSY_SECONDS)  # noqa: B023  # at once
        start_model(nodes["worker"])
        doctor = nodes["worker"].execute("steadyhand", "doctor")
        assert "bwrap: tried" in doctor.stdout, doctor.stdout + doctor.stderr
        assert node_of(run_job(nodes["serve"])) == "worker"
        hook = container_of(rendered.pod("worker"))["lifecycle"]["preStop"]["exec"]["command"]
        stopping = nodes["worker"].execute(*hook)
        assert stopping.returncode == 0, stopping.stdout + stopping.stderr
        for each in nodes.values():
            assert each.stop() == 0, each.log
