"""The Dockerfile's own steps, and what they make, run as the compose files say: a job from end to end in each."""

import json
import os
from pathlib import Path

import pytest
from tests.container.conftest import PROJECT
from tests.container.container import ComposeService, Container
from tests.container.image_builder import Image

from steadyhand.testing.cli import DUMMY_API_KEY

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a root"),
    pytest.mark.timeout(1800),  # the first time all of Debian is fetched
]

MODEL_PORT = 9099
PYTHON = "/opt/steadyhand/bin/python"
REPOSITORY = "/home/steadyhand/shop"
MAKE = f"from pathlib import Path; from steadyhand.testing.example import make_repository as m; m(Path('{REPOSITORY}'))"


def service(file: str) -> ComposeService:
    return ComposeService.read(PROJECT / file, {"ANTHROPIC_API_KEY": DUMMY_API_KEY})


def container(image: Image, service: ComposeService, scratch: Path) -> Container:
    return Container(
        image,
        service,
        scratch,
        ANTHROPIC_BASE_URL=f"http://127.0.0.1:{MODEL_PORT}",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )


def namespace_of(pid: int | str) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


# The other one opens less of the engine; test_compose.py holds that it fits the image.
@pytest.mark.parametrize("file", ["compose.yaml", pytest.param("compose.none.yaml", marks=pytest.mark.long)])
def test_a_job_is_done_in_the_container_and_a_stop_leaves_nothing(
    image: Image, scratch: Path, file: str
) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    with container(image, service(file), scratch) as running:
        running.healthy()
        inside = namespace_of(running.init_pid)
        assert running.execute("id", "-u").stdout == "10001\n"
        status = running.execute("cat", "/proc/self/status").stdout
        assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
        doctor = running.execute("steadyhand", "doctor")
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        level = "bwrap: tried" if file == "compose.yaml" else "none: an agent can do"
        assert level in doctor.stdout
        assert ("clones that share the mirror's objects" in doctor.stdout) == (file == "compose.yaml")

        model = running.background(
            PYTHON, "-m", "steadyhand.testing.model", "--port", str(MODEL_PORT), "--scenario", "fix-the-test"
        )
        assert model.stdout is not None
        assert model.stdout.readline() == f"http://127.0.0.1:{MODEL_PORT}\n".encode()
        assert running.execute(PYTHON, "-c", MAKE).returncode == 0
        done = running.execute(
            "steadyhand", "run", "--repo", REPOSITORY, "--json", "Fix the failing test.", seconds=120
        )
        assert done.returncode == 0, done.stdout + done.stderr + running.log
        job = json.loads(done.stdout)
        assert (job["state"], job["changes"]["files"]) == ("completed", 1)
        assert running.execute("cat", "/data/admin.key").stdout.strip()

        assert running.stop() == 0, running.log
    assert inside is not None
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and namespace_of(pid) == inside] == []  # noqa: PTH208
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_with_the_paths_that_engines_cover_the_sealed_service_refuses_and_names_the_option(
    image: Image, scratch: Path
) -> None:
    covered = service("compose.yaml").without("systempaths=unconfined")
    with container(image, covered, scratch) as running:
        assert running.process.wait(60) != 0
        assert "Agents cannot run in a sandbox here" in running.log
        assert "systempaths=unconfined" in running.log
        assert "STEADYHAND_ISOLATION=none" in running.log
