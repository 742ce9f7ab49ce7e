"""Every exit code of the contract, from the command as a process against a real service."""

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command_line import CommandLine, read_until, wait_until

from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, UNUSED_MODEL_URL, Service

SLEEPY = '[[standin: say="I am at it." sleep=60]]'


ONE_JOB = {"STEADYHAND_CONCURRENCY": "1", "STEADYHAND_SERVICE__MAX_QUEUED": "0"}


@pytest.fixture
def alone(world_dir: Path, standin: Path) -> Iterator[Service]:
    """A service that runs one job and lets none wait; a test may end it."""
    with Service(world_dir, standin, env=ONE_JOB) as service:
        yield service


@pytest.fixture(scope="module")
def shared(standin: Path) -> Iterator[Service]:
    """The same for the tests of this module that leave it as it was, with nothing running."""
    root = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    root.chmod(0o755)
    with Service(root, standin, env=ONE_JOB) as service:
        yield service
    shutil.rmtree(root, ignore_errors=True)


def command_for(service: Service, token: str = ADMIN_KEY) -> CommandLine:
    return CommandLine(service.home, service.url, token)


def held(service: Service, **fields: Any) -> str:
    """Give the id of a job that runs until it is stopped."""
    job_id = str(service.submit(SLEEPY, **fields)["id"])
    wait_until(lambda: service.get_job(job_id)["state"] == "running")
    return job_id


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "hello"), 0),
        (("run", "[[standin: result=error]]"), 1),
        (("run", "--budget", "0", "hello"), 2),
        (("run", "--agent", "nobody-defined-this", "hello"), 2),
        (("run", "--nonsense", "hello"), 2),
        (("show", "0000000000ff"), 3),
        (("wait", "0000000000ff"), 3),
        (("run", "[[standin: result=max_budget]]"), 5),
        (("run", "--repo", "https://127.0.0.1:9/no/such.git", "hello"), 8),
        (("run", "--timeout", "1s", "[[standin: sleep=60]]"), 124),
        (("run", " "), 2),
    ],
)
def test_a_command_exits_with_what_it_came_to(
    live: CommandLine, arguments: tuple[str, ...], code: int
) -> None:
    ran = live.run_process(*arguments)
    assert ran.code == code, ran.err
    assert bool(ran.err or ran.out)
    assert "Traceback" not in ran.err


def test_a_key_that_is_not_known_or_may_not_do_it_is_4(shared: Service) -> None:
    for arguments in (("run", "hello"), ("jobs",)):
        assert command_for(shared, "no-key-of-this-service").run_process(*arguments).code == 4
    ran = command_for(shared, CLASSIC_KEY).run_process("keys", "list")
    assert ran.code == 4
    assert "'admin'" in ran.err


def test_run_wait_and_logs_exit_6_when_somebody_else_cancels_the_job(shared: Service) -> None:
    command = command_for(shared)
    with command.running("run", SLEEPY) as process:
        job_id = read_until(process.stderr, "I am at it.").partition("job ")[2][:12]
        assert command.run_process("cancel", job_id).code == 0
        process.communicate(timeout=40)
    assert process.returncode == 6
    assert command.run_process("wait", job_id).code == 6
    assert command.run_process("logs", "--exit-status", job_id).code == 6
    assert command.run_process("show", job_id).code == 0


def test_a_job_that_the_service_died_under_is_7(alone: Service) -> None:
    job_id = held(alone)
    alone.kill()
    alone.restart()
    command = command_for(alone)
    ran = command.run_process("wait", job_id)
    assert ran.code == 7
    assert "interrupted" in ran.err
    assert command.run_process("logs", "--exit-status", job_id).code == 7


def test_a_service_that_is_not_there_is_9_and_says_what_to_do(alone: Service) -> None:
    command = command_for(alone)
    alone.kill()
    for arguments in (("run", "hello"), ("wait", "0000000000ff"), ("jobs",)):
        ran = command.run_process(*arguments)
        assert ran.code == 9, ran.err
        assert "steadyhand serve" in ran.err


def test_a_full_queue_and_a_service_that_stops_are_75_and_say_when_to_try_again(alone: Service) -> None:
    command = command_for(alone)
    held(alone)
    ran = command.run_process("run", "hello")
    assert (ran.code, ran.out) == (75, "")
    assert "Try again in " in ran.err
    alone.process.terminate()  # what runs has its grace period, for so long nothing new is taken
    with alone.new_client() as client:
        wait_until(lambda: client.get("/readyz").status_code == 503)
    ran = command.run_process("run", "hello")
    assert (ran.code, ran.out) == (75, "")
    assert "Try again in " in ran.err


def test_a_wait_that_ran_out_is_124_and_ctrl_c_is_130(shared: Service) -> None:
    command = command_for(shared)
    job_id = held(shared)
    waited = command.run_process("wait", "--timeout", "0.3", job_id)
    assert (waited.code, waited.out) == (124, "")
    assert "still running" in waited.err
    for arguments in (("logs", "-f", job_id), ("wait", job_id)):
        with command.running(*arguments) as process:
            if arguments[0] == "logs":
                read_until(process.stdout, "I am at it.")
            else:
                wait_until(lambda: len(connections_of(process.pid)) > 0)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=40)
        assert process.returncode == 130
    assert shared.get_job(job_id)["state"] == "running"
    assert command.run_process("cancel", job_id).code == 0
    shared.wait_until_ended(job_id)
    assert command.run_process("wait", job_id).code == 6
    with command.running("run", SLEEPY) as process:
        job_id = read_until(process.stderr, "I am at it.").partition("job ")[2][:12]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=40)
    assert process.returncode == 130
    assert shared.get_job(job_id)["state"] == "cancelled"


def with_agent(standin: Path) -> dict[str, str]:
    """Give what a service of the command's own needs beside its directory: an agent, and a model where nobody is."""
    return {
        "STEADYHAND_RUNNER__CLAUDE__PATH": str(standin),
        "ANTHROPIC_API_KEY": DUMMY_API_KEY,
        "ANTHROPIC_BASE_URL": UNUSED_MODEL_URL,
    }


def connections_of(pid: int) -> list[str]:
    """The sockets that a process holds open: it has begun to ask."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(each.readlink())
        except OSError:  # closed while we looked
            continue
        if target.startswith("socket:"):
            found.append(target)
    return found


def test_doctor_with_a_fault_is_1_and_each_fault_has_its_remedy_beside_it(
    world_dir: Path, standin: Path
) -> None:
    command = CommandLine(world_dir, None, None)
    command.env |= with_agent(standin)
    del command.env["STEADYHAND_RUNNER__CLAUDE__PATH"]  # the real CLI, which is asked for its version
    ran = command.run_process("doctor", "--json")
    assert ran.code == 0, ran.out
    looked_at = {check["name"] for check in json.loads(ran.out)["data"]}
    assert {
        *("config", "credential", "disk", "database", "cli", "cli runs", "git"),
        *("data directory", "isolation", "limits", "checkouts"),
    } <= looked_at
    command.env |= {
        "ANTHROPIC_API_KEY": "",
        "ANTHROPIC_BASE_URL": "",
        "STEADYHAND_RUNNER__CLAUDE__PATH": "/bin/false",
        "WORKSPACE_DIR": str(world_dir / "no-repository"),
    }
    ran = command.run_process("doctor", "--json")
    assert ran.code == 1
    faults = {check["name"]: check["remedy"] for check in json.loads(ran.out)["data"] if not check["ok"]}
    assert set(faults) >= {"credential", "cli runs", "workspace default"}
    assert all(faults.values())
    lines = command.run_process("doctor").out.splitlines()
    wrong = [number for number, line in enumerate(lines) if line.startswith("✗ ")]
    assert len(wrong) == len(faults)
    assert any(lines[number].startswith("✗ credential") for number in wrong)
    assert all(lines[number + 1].startswith("  → ") for number in wrong)


def test_doctor_names_each_wrong_setting_with_what_was_meant(world_dir: Path) -> None:
    (world_dir / "steadyhand.toml").write_text("[service]\nconcurency = 2\ndrain_seconds = 'soon'\n")
    command = CommandLine(world_dir, None, None)
    ran = command.run_process("doctor")
    assert ran.code == 1
    assert (
        "✗ config  service.concurency (steadyhand.toml): there is no such setting; did you mean concurrency"
        in (ran.out)
    )
    assert "✗ config  service.drain_seconds (steadyhand.toml): " in ran.out
    assert ran.out.count("  → ") == 2
    found = json.loads(command.run_process("doctor", "--json").out)
    assert (found["ok"], [check["name"] for check in found["data"]]) == (False, ["config", "config"])


def test_serve_tells_where_it_listens_as_json(world_dir: Path, standin: Path) -> None:
    command = CommandLine(world_dir, None, None)
    with command.running("serve", "--port", "0", "--json", more_env=with_agent(standin)) as process:
        told = json.loads(read_until(process.stdout, "\n", 60))
        assert told["object"] == "service"
        token = (world_dir / "data" / "admin.key").read_text().strip()
        assert CommandLine(world_dir, told["url"], token).run_process("jobs").code == 0
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=45)
    assert process.returncode == 0
