"""What changes while a process waits for its job: its memory, the machine's, the credential, the prices and the keys.

The next job runs, with the identity and the price of now, and nothing is left of what was there before.
"""

import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.memory_groups import MEBIBYTE, holding, limit_file, memory_group, was_killed
from tests.sandboxed.host_inspection import cgroup_folders, live_agent_processes
from tests.sandboxed.process_modes import ModeService, agent_tables
from tests.sandboxed.warm_services import PATIENCE, cli, cli_below, events_of, wait_for_slot
from tests.service_fixtures import make_service_root

from steadyhand.runner.process.process_tree import descendants
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service, wait_until
from steadyhand.worker.warm_plan import MIN_AVAILABLE_BYTES

__all__ = ["cli"]  # a fixture, taken in
LIMIT = 200 * MEBIBYTE
SMALL = 'workspace = "scratch"\nmemory = "200M"\nprocesses = 60'
FIRST, SECOND, THIRD = (f"sk-ant-credential-number-{name}" for name in ("one", "two", "three"))
CONFIG = """\
[agents.chat]
warm = 1
live_seconds = 60
[providers.default]
api_key_file = "{root}/credential"
"""


# --- memory, with the stand-in ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(reachable_tmp: Path, stand_in: Path) -> Iterator[ModeService]:
    """A sealed service with one waiting process that may have 200 MB."""
    root = make_service_root(reachable_tmp)
    env = {"STEADYHAND_ISOLATION": "bwrap", "STEADYHAND_SERVICE__LOG_LEVEL": "debug"}
    config = agent_tables({"small": SMALL}, "warm")
    made = ModeService(root, stand_in, env=env, config=config, constants=PATIENCE)
    made.mode = "warm"
    with made:
        yield made
    shutil.rmtree(root, ignore_errors=True)


def _memory_group_of(pid: int) -> Path:
    (group,) = [each for each in cgroup_folders({pid: ""}) if limit_file(each).exists()]
    return group


def test_a_waiting_process_without_memory_is_replaced_and_leaves_nothing(small: ModeService) -> None:
    supervisor = wait_for_slot(small, "small")
    victim = cli_below(supervisor)
    processes = {*descendants(supervisor), supervisor}
    group = _memory_group_of(victim)
    assert int(limit_file(group).read_text()) == LIMIT
    # The probe: a program that is first in line to be killed comes to the limit, and harms nobody.
    with holding(group, LIMIT + 20 * MEBIBYTE, oom_score=1000) as probe:
        assert was_killed(probe), "the limit does not hold: no attack"
    assert victim in descendants(supervisor)
    # Now the waiting process is the first in line.
    Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
    with holding(group, LIMIT - 4 * MEBIBYTE):
        wait_until(lambda: not Path(f"/proc/{victim}").exists())
    wait_until(lambda: wait_for_slot(small, "small") != supervisor)  # replaced before any job asks for it
    job = small.run_job("[[standin: text=well]]", agent="small")
    assert (job["state"], job["answer"], job["warnings"]) == ("completed", "well", [])
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))
    wait_until(lambda: not group.exists())


def test_under_memory_pressure_the_pool_is_gone_and_comes_back(small: ModeService) -> None:
    wait_for_slot(small, "small")
    with memory_group(MIN_AVAILABLE_BYTES + 160 * MEBIBYTE) as group:
        # The service alone: its runs have groups of their own.
        (group / "cgroup.procs").write_text(str(small.pid))
        supervisor = wait_for_slot(small, "small")
        before = set(live_agent_processes(small))
        assert before
        with holding(group, 220 * MEBIBYTE):
            wait_until(lambda: not live_agent_processes(small), 10)
            wait_until(lambda: not Path(f"/proc/{supervisor}").exists())  # its agents end first
            health = small.client.get("/health").json()["warm"]
            assert (health["waiting"], health["shortage"]) == (0, "memory")
            # A job has a process of its own meanwhile, and no other is started ahead.
            job = Service.wait_until_ended(
                small, Service.submit(small, "[[standin: text=well]]", agent="small")["id"]
            )
            assert (job["answer"], small.mode_of(job["id"])) == ("well", "cold")
            wait_until(lambda: not live_agent_processes(small), 10)
        assert small.run_job("[[standin: text=again]]", agent="small")["answer"] == "again"


# --- credential, keys and prices, with the real CLI ------------------------------------------------


@pytest.fixture(scope="module")
def model_of_now() -> Iterator[ScriptedModel]:
    with ScriptedModel("echo") as made:
        yield made


@pytest.fixture(scope="module")
def service(reachable_tmp: Path, cli: Path, model_of_now: ScriptedModel) -> Iterator[ModeService]:
    """A sealed service with one waiting process of `chat`, whose credential is in a file."""
    root = make_service_root(reachable_tmp)
    (root / "credential").write_text(FIRST)
    env = {
        "STEADYHAND_ISOLATION": "bwrap",
        "STEADYHAND_SERVICE__LOG_LEVEL": "debug",
        "ANTHROPIC_API_KEY": None,
    }
    config = CONFIG.format(root=root)
    made = ModeService(root, cli, model=model_of_now.url, env=env, config=config, constants=PATIENCE)
    made.mode = "warm"
    with made:
        yield made
    shutil.rmtree(root, ignore_errors=True)


def _set_credential(service: Service, model: ScriptedModel, secret: str) -> None:
    (service.root / "credential").write_text(secret)
    model.valid_secrets = frozenset({secret})


def _turn(service: ModeService, job_id: str, prompt: str, client: httpx2.Client | None = None) -> Any:
    return (client or service.client).post(f"/v1/jobs/{job_id}/turns", json={"prompt": prompt})


def test_a_new_credential_is_that_of_the_next_job_and_the_next_turn(
    service: ModeService, model_of_now: ScriptedModel
) -> None:
    wait_for_slot(service, "chat")
    model_of_now.clear()
    _set_credential(service, model_of_now, SECOND)
    job = service.run_job("Say hello.", agent="chat")
    assert job["state"] == "completed", job["error"]
    wait_until(lambda: any(each["job"] == job["id"] for each in events_of(service, "warm.kept")))
    _set_credential(service, model_of_now, THIRD)
    turn = _turn(service, job["id"], "Say it again.").json()
    ended = Service.wait_until_ended(service, turn["id"])
    assert (ended["state"], service.mode_of(turn["id"])) == ("completed", "live"), ended["error"]
    assert [each.headers["x-api-key"] for each in model_of_now.requests] == [SECOND, THIRD]
    for each in (job["id"], turn["id"]):
        told = service.client.get(f"/v1/jobs/{each}/transcript").text + str(service.events(each))
        assert not any(secret in told for secret in (FIRST, SECOND, THIRD))


# test_rejected_credential.py has it in a process of its own, and the test above a change under one that waited.
@pytest.mark.long
def test_a_rejected_credential_ends_one_job_and_the_next_has_a_process_that_waited(
    service: ModeService, model_of_now: ScriptedModel
) -> None:
    wait_for_slot(service, "chat")
    model_of_now.valid_secrets = frozenset({SECOND, "sk-ant-of-nobody-here"})
    (service.root / "credential").write_text(FIRST)
    failed = service.run_job("Say hello.", agent="chat")
    assert failed["outcome"]["type"] == "unauthorized", failed
    _set_credential(service, model_of_now, SECOND)
    job = service.run_job("Say hello.", agent="chat")
    assert (job["state"], job["warnings"]) == ("completed", []), job["error"]


def test_a_key_that_is_revoked_leaves_its_process_to_nobody(
    service: ModeService, model_of_now: ScriptedModel
) -> None:
    secrets, ids = [], []
    for name in ("revoked", "other"):
        created = service.client.post("/v1/keys", json={"name": name, "scopes": ["submit", "read"]}).json()
        secrets.append(created["secret"])
        ids.append(created["id"])
    with service.new_client(secrets[0]) as client, service.new_client(secrets[1]) as other:
        own = service.run_job("The word is cockatoo.", agent="chat", client=client)
        wait_until(lambda: any(each["job"] == own["id"] for each in events_of(service, "warm.kept")))
        assert service.client.delete(f"/v1/keys/{ids[0]}").status_code == 200
        assert _turn(service, own["id"], "What was the word?", client).status_code == 401
        assert _turn(service, own["id"], "What was the word?", other).status_code == 404
        # Whoever may continue it does so in a process of their own.
        turn = _turn(service, own["id"], "What was the word?").json()
        ended = Service.wait_until_ended(service, turn["id"])
        assert (ended["state"], service.mode_of(turn["id"])) == ("completed", "cold"), ended
        model_of_now.clear()
        job = service.run_job("What was the word?", agent="chat", client=other)
        assert "cockatoo" not in str(model_of_now.requests[-1].body)
    used = {each["slot_id"] for each in events_of(service, "warm.taken") if each["job"] == own["id"]}
    assert not used & {
        each["slot_id"] for each in events_of(service, "warm.taken") if each["job"] == job["id"]
    }
    rows = service.client.get("/v1/usage", params={"by": "api_key"}).json()["data"]
    counted = {row["api_key_id"]: row["calls"] for row in rows}
    assert (counted[ids[0]], counted[ids[1]]) == (1, 1)


# test_warm_slots.py has a budget in a process that waited.
@pytest.mark.long
def test_the_limits_of_the_key_of_a_job_hold_in_a_process_that_waited_for_anybody(
    service: ModeService, model_of_now: ScriptedModel
) -> None:
    limits = {"name": "poor", "scopes": ["submit", "read"], "limits": {"max_budget_usd": 0.01}}
    created = service.client.post("/v1/keys", json=limits).json()
    with service.new_client(created["secret"]) as client:
        job = service.run_job("[[scenario:costly]] Spend.", agent="chat", client=client)
    assert job["outcome"]["type"] == "budget", job
    # The next process is without that limit.
    rich = service.run_job("Say hello.", agent="chat")
    assert (rich["state"], rich["warnings"]) == ("completed", [])
    assert Decimal(rich["budget_usd"]) > Decimal("0.01")


# test_warm_slots.py holds that nothing is left over, and test_budget.py that the configured prices hold.
@pytest.mark.long
@pytest.mark.parametrize("way", ["stop", "crash"])
def test_new_prices_hold_after_a_start_and_no_process_of_the_old_service_is_left(
    service: ModeService, way: str
) -> None:
    supervisor = wait_for_slot(service, "chat")
    old = service.run_job("Say hello.", agent="chat")
    wait_until(lambda: any(each["job"] == old["id"] for each in events_of(service, "warm.kept")))
    (row,) = service.client.get("/v1/usage", params={"by": "model"}).json()["data"]
    before = set(live_agent_processes(service))
    assert before
    if way == "stop":
        assert service.terminate() == 0
    else:
        service.kill()
    wait_until(lambda: not live_agent_processes(service))
    usage, price = old["usage"], {"stop": "100", "crash": "200"}[way]
    prices = f'[prices."{row["model"]}"]\ninput = "{price}"\noutput = "{price}"\n'
    prices += f'cache_read = "{price}"\ncache_write_5m = "{price}"\ncache_write_1h = "{price}"\n'
    service.config_path.write_text(CONFIG.format(root=service.root) + prices)
    service.restart()
    assert wait_for_slot(service, "chat") != supervisor
    job = service.run_job("Say hello.", agent="chat")
    assert (job["state"], job["usage"]) == ("completed", usage)
    tokens = sum(count for name, count in usage.items() if name.endswith("_tokens"))
    assert Decimal(job["cost"]["usd"]) == Decimal(price) * tokens / 1_000_000
    # The turn of the conversation that was live resumes it, at the price of now.
    turn = Service.wait_until_ended(service, _turn(service, old["id"], "Again.").json()["id"])
    assert (turn["state"], {each["code"] for each in turn["warnings"]}) == ("completed", {"cost_differs"})
    assert Decimal(turn["cost"]["usd"]) > Decimal(old["cost"]["usd"])
