"""The demo, with the real CLI and the scripted model, as `make demo` plays it."""

import json
import re
import signal
from pathlib import Path

import pytest
from tests.cli.command_line import CommandLine, read_until
from tests.real_agents.real_agents import installed_directory


@pytest.mark.long  # `package/test_release.py` has it of an installed wheel, and the next test its steps
def test_the_demo_fixes_the_test_and_leaves_nothing_when_told_so(world_dir: Path) -> None:
    ran = CommandLine(world_dir, None, None)("demo", "--clean", timeout=170)
    assert ran.code == 0, ran.out + ran.err
    before, after = ran.out.split("6. The test again")
    assert "FAILED (failures=1)" in before
    assert "ANTHROPIC_API_KEY is not set, so nothing is spent" in before
    assert "isolation bwrap: the agent reaches its checkout and the model, and no more" in before
    assert "● Edit  /workspace/shop.py" in before
    assert "+    return sum(item.price_cents * item.quantity for item in basket)" in before
    assert "OK" in after
    assert "The test passes." in after
    assert re.search(r"Cost: \$\d+\.\d{2,}", after), after
    assert "the scripted model's tokens cost nothing" in after
    assert "\x1b" not in ran.out
    assert not list(world_dir.glob("steadyhand-demo-*"))


def test_the_demo_says_how_to_open_what_it_made_and_that_works(world_dir: Path) -> None:
    command = CommandLine(world_dir, None, None)
    ran = command("demo", "--json", timeout=170)
    assert ran.code == 0, ran.err
    job = json.loads(ran.out)
    [kept] = world_dir.glob("steadyhand-demo-*")
    told = [line.strip() for line in ran.err.partition("To look at the job")[2].splitlines()]
    assert f"export STEADYHAND_DATA_DIR={kept}/data" in told
    assert f"steadyhand show {job['id']}" in told
    assert f"Remove all of it: rm -r {kept}" in told
    command.env |= {"STEADYHAND_DATA_DIR": f"{kept}/data", "STEADYHAND_ISOLATION": "none"}
    with command.running("serve", "--port", "0", "--json") as process:
        command.env["STEADYHAND_URL"] = json.loads(read_until(process.stdout, "\n", 60))["url"]
        shown = command("show", job["id"], "--json")
        assert (json.loads(shown.out)["id"], json.loads(shown.out)["state"]) == (job["id"], "completed")
        assert "+    return sum(item.price_cents * item.quantity" in command("diff", job["id"]).out
        assert "● Edit" in command("logs", job["id"]).out
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=45)


def test_codex_fixes_the_test_as_well(world_dir: Path) -> None:
    """The program is found through npm's launcher, which needs Node and is not what runs."""
    command = CommandLine(world_dir, None, None)
    command.env["PATH"] = f"{installed_directory('codex') / '.bin'}:{command.env['PATH']}"
    ran = command("demo", "--agent", "codex", "--clean", timeout=170)
    assert ran.code == 0, ran.out + ran.err
    assert "The agent is the real Codex; only its model is played back." in ran.out
    assert "● shell  /bin/bash -lc" in ran.out
    assert "+    return sum(item.price_cents * item.quantity for item in basket)" in ran.out
    assert "The test passes." in ran.out


def test_an_agent_that_is_not_installed_is_named_with_what_finds_it(world_dir: Path) -> None:
    ran = CommandLine(world_dir, None, None)("demo", "--agent", "codex", "--clean")
    assert ran.code == 1
    assert "Codex is not installed: `steadyhand agents install codex` does" in ran.err
    ran = CommandLine(world_dir, None, None)("demo", "--agent", "nobody", "--clean")
    assert ran.code == 2
    assert "The demo knows these other agents: codex." in ran.err
