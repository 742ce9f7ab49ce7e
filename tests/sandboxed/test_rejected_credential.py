"""A credential that the model's service rejects, with each real agent: its run ends, others wait until it is good."""

import asyncio
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.codex_services import PROVIDER, codex_config
from tests.sandboxed.test_parked import Clock, Running, World

from steadyhand.config.settings import Settings, load_settings
from steadyhand.ports import DoctorCheck
from steadyhand.serve.running_service import check_running_service
from steadyhand.testing.cli import SYSTEM_PATH, cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import ADMIN_KEY

GOOD, BAD = "sk-ant-good-credential-0123456789", "sk-ant-bad-credential-0123456789"


def settings_of(root: Path, model: str, kind: str, isolation: str, port: int = 0) -> Settings:
    config, secret = root / "steadyhand.toml", root / "secret"
    if kind == "codex":
        config.write_text(codex_config(model, secret))
    else:
        config.write_text(f'[providers.default]\n{kind}_file = "{secret}"\n')
    return load_settings(
        config,
        {"server.port": port, "service.data_dir": str(root / "data"), "service.concurrency": 2},
        {
            "PATH": SYSTEM_PATH,
            "HOME": str(root),
            "ANTHROPIC_BASE_URL": model,
            "STEADYHAND_API_KEY": ADMIN_KEY,
            "STEADYHAND_ISOLATION": isolation,
            "STEADYHAND_RUNNER__CLAUDE__PATH": str(cli_path()),
        },
    )


@pytest.fixture(
    params=[
        ("api_key", "bwrap"),
        ("codex", "bwrap"),
        pytest.param(("oauth_token", "none"), marks=pytest.mark.long),
        pytest.param(("oauth_token", "bwrap"), marks=pytest.mark.long),
        pytest.param(("api_key", "none"), marks=pytest.mark.long),
        pytest.param(("codex", "none"), marks=pytest.mark.long),
    ],
    ids="-".join,
)
def world(request: pytest.FixtureRequest, reachable_tmp: Path) -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="rejected-", dir=reachable_tmp))
    root.chmod(0o755)
    (root / "secret").write_text(BAD)
    kind, isolation = request.param
    with ScriptedModel() as model:
        model.valid_secrets = frozenset({GOOD})
        yield World(settings_of(root, model.url, kind, isolation), Clock(), model, "scratch")


def secret_file(world: World) -> Path:
    return world.settings.data_dir.parent / "secret"


def asked(model: ScriptedModel) -> int:
    return len(model.requests) + len(model.side_requests) + len(model.other_requests)


def readiness(running: Running) -> dict[str, Any]:
    answer = running.http.get("/readyz")
    assert answer.status_code == 200
    return dict(answer.json())


def doctor_check(world: World, running: Running) -> DoctorCheck:
    port = running.http.base_url.port
    assert port is not None
    root = world.settings.data_dir.parent
    settings = settings_of(root, world.model.url, "api_key", "none", port)
    (check,) = asyncio.run(check_running_service(settings))
    return check


def test_a_wrong_credential_ends_one_run_and_the_jobs_that_wait_go_on_when_its_file_is_good(
    world: World,
) -> None:
    model = world.model
    with world.running() as running:
        assert readiness(running) == {"status": "ok"}
        assert doctor_check(world, running).ok
        failed = running.until_state(running.submit("hello", workspace="scratch"), "failed")
        assert failed["outcome"]["type"] == "unauthorized"
        assert (len(failed["runs"]), failed["cost"]["usd"]) == (1, "0.000000")
        assert asked(model) == 2
        assert readiness(running)["code"] == "credential_rejected"
        named = PROVIDER if PROVIDER in world.settings.tables.providers else "default"
        assert f"provider {named}" in readiness(running)["detail"]
        assert not doctor_check(world, running).ok
        # Nobody starts while the credential rests; then one job tries it, and waits on.
        waiting = [running.submit("hello", workspace="scratch") for _ in range(3)]
        assert [running.job(job_id)["state"] for job_id in waiting] == ["queued"] * 3
        before = world.clock()
        world.clock.ahead += timedelta(seconds=31)
        parked = running.until_state(waiting[0], "parked")
        assert asked(model) == 4
        until = datetime.fromisoformat(parked["parked_until"])
        assert until - before > timedelta(seconds=31 + 59)
        assert parked["error"] is None
        change = running.events(waiting[0])[-1]["data"]
        assert change["reason"] == "the model's service rejects the credential"
        assert [running.job(job_id)["state"] for job_id in waiting[1:]] == ["queued"] * 2
        # No time passes: the file alone frees them.
        secret_file(world).write_text(GOOD)
        for job_id in waiting:
            done = running.until_state(job_id, "completed")
            assert done["answer"]
        assert [run["state"] for run in running.job(waiting[0])["runs"]] == ["parked", "completed"]
        assert readiness(running) == {"status": "ok"}
        forbidden = running.until_state(
            running.submit("[[scenario:forbidden]] hello", workspace="scratch"), "failed"
        )
        assert forbidden["outcome"]["type"] == "unauthorized"
        assert readiness(running) == {"status": "ok"}


# The file alone ends the wait above, and blackbox/test_reattach.py has a parked job over a start.
@pytest.mark.long
@pytest.mark.parametrize("world", [("api_key", "none"), ("codex", "bwrap")], ids="-".join, indirect=True)
def test_a_start_with_a_new_credential_ends_the_wait_at_once(world: World) -> None:
    with world.running() as running:
        running.until_state(running.submit("hello", workspace="scratch"), "failed")
        world.clock.ahead += timedelta(seconds=31)
        job_id = running.submit("hello", workspace="scratch")
        running.until_state(job_id, "parked")
    secret_file(world).write_text(GOOD)
    with world.running() as running:
        parked = running.job(job_id)
        assert parked["state"] != "failed"
        done = running.until_state(job_id, "completed")
        assert [run["state"] for run in done["runs"]] == ["parked", "completed"]


def test_doctor_says_nothing_of_a_service_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(BAD)
    with ScriptedModel() as model:
        # The model is a server, but none of ours: its answers are passed over.
        port = int(model.url.rpartition(":")[2])
        for each in (port, 1):
            settings = settings_of(tmp_path, model.url, "api_key", "none", each)
            assert list(asyncio.run(check_running_service(settings))) == []
