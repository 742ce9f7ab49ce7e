"""The command line against a real service, whose agent is the stand-in; nothing here is laid out beforehand."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tests.cli.command_line import CommandLine, read_until

from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.example import make_repository
from steadyhand.testing.service import UNUSED_MODEL_URL


def test_a_run_tells_what_happens_and_ends_with_the_answer(live: CommandLine) -> None:
    ran = live("run", '[[standin: say="On it." run="echo one; echo two" text="All done." cost=0.0123]]')
    assert (ran.code, ran.out) == (0, "All done.\n"), ran.err
    assert "On it.\n● Bash  echo one; echo two\n  └ one\n    two\n" in ran.err
    assert "$0.0123" in ran.err
    assert "completed" in ran.err.splitlines()[-1]


def test_what_was_run_can_be_looked_at_by_the_beginning_of_its_id(live: CommandLine) -> None:
    job = json.loads(live("run", "--json", "--title", "A title of its own", "hello").out)
    assert job["answer"].startswith("ok: hello")
    short = job["id"][:9]
    assert json.loads(live("show", short, "--json").out)["id"] == job["id"]
    assert "A title of its own" in live("show", short).out
    assert "A title of its own" in live("jobs", "--limit", "200").out
    assert json.loads(live("jobs", "--state", "running", "--json").out)["object"] == "list"
    told = live("logs", short)
    assert "ok: hello" in told.out
    events = [json.loads(line) for line in live("logs", short, "--json").out.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, job["last_event"] + 1))
    followed = live("logs", "-f", "--json", "--after", "2", short).out.splitlines()
    assert [json.loads(line)["seq"] for line in followed] == list(range(3, job["last_event"] + 1))
    assert live("show", "0000000000ff").code == 3
    assert live("jobs", "--state", "nonsense").code == 2


def test_a_prompt_that_looks_like_an_option_arrives_as_text(live: CommandLine) -> None:
    ran = live("run", "--quiet", "--", "--version")
    assert (ran.code, ran.out) == (0, "ok: --version\n")


def test_an_ended_job_can_be_run_once_more_and_deleted(live: CommandLine) -> None:
    job_id = json.loads(live("run", "--json", "again").out)["id"]
    assert live("retry", job_id, "--after-run", "1").code == 0
    assert live("wait", job_id).out == "ok: again\n"
    assert json.loads(live("show", job_id, "--json").out)["run"] == 2
    told = live("logs", job_id)
    assert told.out.count("ok: again") == 2
    assert live("delete", job_id).code == 0
    assert live("show", job_id).code == 3


@pytest.mark.long  # the tutorial does it with the real CLI, see `docs/test_how_to.py`
def test_a_diff_from_the_repository_here_can_be_applied_to_it(live: CommandLine, world_dir: Path) -> None:
    repository = world_dir / "shop"
    make_repository(repository)
    live.home = repository
    told = live("run", "--repo", ".", "[[standin: write=new.txt:hello]]")
    assert (
        "1 file changed, 1 insertion(+), 0 deletions(-)\nto take the changes over: steadyhand diff "
        in told.err
    )
    ran = live("run", "--repo", ".", "--json", "[[standin: write=new.txt:hello]]")
    assert ran.code == 0, ran.err
    job = json.loads(ran.out)
    assert job["changes"]["files"] == 1
    patch = live("diff", job["id"]).out
    subprocess.run(["git", "apply", "-"], cwd=repository, input=patch.encode(), check=True, timeout=60)
    assert (repository / "new.txt").read_text().strip() == "hello"
    assert "1 file changed, 1 insertion(+), 0 deletions(-)" in live("show", job["id"]).out


def test_a_job_has_a_transcript_of_json_lines(live: CommandLine) -> None:
    job_id = json.loads(live("run", "--json", "hello").out)["id"]
    ran = live("transcript", job_id)
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert lines
    assert all(isinstance(line, dict) for line in lines)


def test_the_agents_and_workspaces_are_listed(live: CommandLine) -> None:
    assert "claude" in live("agents").out
    assert {agent["name"] for agent in json.loads(live("agents", "--json").out)["data"]} >= {"claude", "chat"}
    assert live("workspaces").code == 0


def test_a_terminal_sees_the_text_grow_and_the_progress(live: CommandLine) -> None:
    ran = live.on_terminal(
        "run", '[[standin: pace=800 chunk=6 text="Slowly it comes into being." turns=1 cost=0.5]]'
    )
    assert ran.code == 0
    assert "Slowly it" in ran.out
    frames = ran.out.split("\r")
    assert any(frame.rstrip().endswith("Slowly it co") for frame in frames), (
        "no frame shows a piece of the text"
    )
    assert "running · " in ran.out
    assert "$0.5000" in ran.out
    assert ran.out.rstrip().endswith("no changes\x1b[0m")


def test_without_a_service_run_brings_its_own(standin: Path, world_dir: Path) -> None:
    command = CommandLine(world_dir, None, None)
    agent = {
        "STEADYHAND_RUNNER__CLAUDE__PATH": str(standin),
        "ANTHROPIC_API_KEY": DUMMY_API_KEY,
        "ANTHROPIC_BASE_URL": UNUSED_MODEL_URL,
    }
    # The default address is one where nobody listens: another service of this machine is none of ours.
    address = {"steadyhand.cli.run.DEFAULT_URL": UNUSED_MODEL_URL}
    with command.running("run", "hello", more_env=agent, constants=address) as process:
        out, err = (text.decode() for text in process.communicate(timeout=120))
    assert (process.returncode, out) == (0, "ok: hello\n"), err
    assert "running one in this process" in err
    assert re.search(r"steadyhand serve &  then  steadyhand show [0-9a-f]{12}", err)


def test_a_second_service_on_the_same_data_is_refused(live: CommandLine) -> None:
    data = Path(live.env["STEADYHAND_DATA_DIR"])
    with live.running("serve", "--port", "0") as first:
        read_until(first.stdout, "Steadyhand listens on", 60)
        ran = live("serve", "--port", "0")
        assert ran.code == 75
        assert "--data-dir" in ran.err
        first.send_signal(signal.SIGTERM)
        assert first.wait(45) == 0
    assert (data / "admin.key").stat().st_mode & 0o777 == 0o600
