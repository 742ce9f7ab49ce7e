"""Two jobs of one agent at one commit send the model the same bytes, so that the second comes from its cache."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.service import Service, git

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
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    yield folder
    shutil.rmtree(root, ignore_errors=True)


def sent(request: ModelRequest) -> str:
    """Give what the model's cache goes by, in its order."""
    return json.dumps([request.body.get(name) for name in ("tools", "system", "messages")])


def test_two_jobs_in_two_slots_share_what_the_model_is_sent(repository: Path, real_cli: Path) -> None:
    root = repository.parent
    config = CONFIG.format(repository=repository)
    with ScriptedModel() as model, Service(root, real_cli, config=config, model=model.url) as service:
        ids = [service.submit("Say ok.", workspace="infra")["id"] for _ in range(2)]
        jobs = [service.ended(job_id, 90) for job_id in ids]
        assert [job["state"] for job in jobs] == ["completed", "completed"], service.log
        assert len(model.requests) == 2
        first, second = (sent(request) for request in model.requests)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    assert shared / max(len(first), len(second)) >= 0.99, (
        first[shared - 80 : shared + 80],
        second[shared - 80 :],
    )
