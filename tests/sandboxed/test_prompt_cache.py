"""Two jobs of one agent at one commit send the model the same bytes, so that the second comes from its cache."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from steadyhand.testing.cli import isolated_env
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.service import Service, run_git

CONFIG = """
[service]
isolation = "bwrap"
[workspaces.infra]
repository = "{repository}"
"""


@pytest.fixture
def repository() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    root.chmod(0o755)
    folder = root / "repository"
    folder.mkdir()
    for number in range(30):
        (folder / f"file{number}.py").write_text(f"x = {number}\n", encoding="utf-8")
    (folder / "CLAUDE.md").write_text("Be brief.\n", encoding="utf-8")
    run_git(folder, "init", "-q", "-b", "main")
    run_git(folder, "add", "-A")
    run_git(folder, "commit", "-q", "-m", "first")
    yield folder
    shutil.rmtree(root, ignore_errors=True)


def sent(request: ModelRequest) -> str:
    """Give what the model's cache goes by, in its order."""
    return json.dumps([request.body.get(name) for name in ("tools", "system", "messages")])


def shared(first: str, second: str) -> float:
    """Give how much of the longer one both begin with."""
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return alike / max(len(first), len(second))


# test_lean_context.py counts what two jobs with the CLI's own prompt and tools share.
def test_two_jobs_in_two_slots_share_what_the_model_is_sent(repository: Path, real_cli: Path) -> None:
    root = repository.parent
    config = CONFIG.format(repository=repository)
    with ScriptedModel() as model, Service(root, real_cli, config=config, model=model.url) as service:
        ids = [service.submit("Say ok.", workspace="infra")["id"] for _ in range(2)]
        jobs = [service.wait_until_ended(job_id, 90) for job_id in ids]
        assert [job["state"] for job in jobs] == ["completed", "completed"], service.log
        assert len(model.requests) == 2
        first, second = (sent(request) for request in model.requests)
    assert shared(first, second) >= 0.99, (first, second)


@pytest.mark.long
def test_two_bare_runs_in_two_directories_share_less(repository: Path, real_cli: Path) -> None:
    """The control: what is measured tells runs apart that the model's cache does not take for one."""
    with ScriptedModel() as model:
        for name in ("one", "another"):
            work, home = repository.parent / name, repository.parent / f"home-of-{name}"
            home.mkdir()
            run_git(repository.parent, "clone", "-q", str(repository), str(work))
            subprocess.run(
                [real_cli, "-p", "--output-format", "json"], input="Say ok.", cwd=work,
                env=isolated_env(home, model.url), capture_output=True, text=True, timeout=90, check=True,
            )  # fmt: skip
        assert len(model.requests) == 2
        assert shared(*(sent(request) for request in model.requests)) < 0.9
