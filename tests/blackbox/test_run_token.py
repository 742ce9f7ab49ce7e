"""Without a boundary an agent has its run's token in its environment: what it says of it is told to nobody."""

import base64
import json
import shlex
import threading
from pathlib import Path

import pytest
from tests.redact.test_redactor import WRITTEN, core

from steadyhand.testing.cli import cli_path
from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import MakeService, Service

TELL = """
import base64, json, os, sys
from urllib.parse import quote
token = os.environ["ANTHROPIC_API_KEY"]
open(sys.argv[1], "a").write(token + "\\n")
b = token.encode()
print(token, base64.b64encode(b).decode(), b.hex(), "".join("%%%02x" % c for c in b))
print(json.dumps({"env": dict(os.environ)}), "".join("\\\\u%04x" % c for c in b))
"""
SCENARIO = """\
description = "Tell what is in the environment."
[[turn]]
text = "I look."
[[turn.tool]]
name = "Bash"
input = {{ command = {command}, description = "Look" }}
[[turn]]
text = "It is {{last_result}}"
"""


def command(common_dir: Path) -> str:
    """Give a shell command that writes the token down in `ran` and prints it in many spellings."""
    program = base64.b64encode(TELL.encode()).decode()
    return f"echo {program} | base64 -d | /usr/bin/python3 -I - {shlex.quote(str(common_dir / 'ran'))}"


def followed(service: Service, job_id: str, found: list[str]) -> None:
    headers = {"accept": "text/event-stream"}
    with (
        service.new_client() as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer,
    ):
        found += list(answer.iter_lines())


def tells_nobody(service: Service, prompt: str, common_dir: Path) -> dict[str, str]:
    """Run a job whose agent tells its token, and give what is to be had of it; the token is nowhere in it."""
    job_id = service.submit(prompt, workspace="scratch")["id"]
    live: list[str] = []
    follower = threading.Thread(target=followed, args=(service, job_id, live))
    follower.start()
    job = service.wait_until_ended(job_id)
    follower.join(30)
    assert not follower.is_alive()
    http = service.client
    kept = contents_below(service.data_dir / "jobs" / job_id / "kept")
    files = [*contents_below(service.data_dir, "steadyhand.db*"), *kept]
    told = {
        "the job": json.dumps(job),
        "the classic job": http.get(f"/jobs/{job_id}").text,
        "the events": json.dumps(service.events(job_id)),
        "the live events": "\n".join(live),
        "the transcript": http.get(f"/v1/jobs/{job_id}/transcript").text,
        "the log": service.log,
        "the disk": b"".join(content for _, content in files).decode("latin-1"),
    }
    token = (common_dir / "ran").read_text().splitlines()[-1]
    assert token.startswith("sk-ant-run-")  # the one that lets a run in, and not a credential
    for where, whole in told.items():
        for how in WRITTEN:
            assert core(token, how) not in whole.encode("latin-1", "replace"), (where, how)
    return told


@pytest.mark.parametrize(
    "more", [pytest.param("", marks=pytest.mark.long), "stderr='{last}' exit=3 result=error"]
)
def test_a_run_that_tells_its_token_tells_nobody(
    make_service: MakeService, common_dir: Path, more: str
) -> None:
    service = make_service().start()
    told = tells_nobody(
        service,
        f"[[standin: run=\"{command(common_dir)}\" text='{{last}}' {more} chunk=5 pace=1]]",
        common_dir,
    )
    for where in ("the classic job", "the events", "the live events", "the disk"):
        assert "[redacted]" in told[where], where


def test_the_real_cli_tells_its_token_to_nobody(
    make_service: MakeService, common_dir: Path, world_dir: Path
) -> None:
    scenario = world_dir / "tell.toml"
    scenario.write_text(SCENARIO.format(command=json.dumps(command(common_dir))), encoding="utf-8")
    with ScriptedModel(scenario) as model:
        service = make_service(claude=cli_path(), model=model.url).start()
        told = tells_nobody(service, "Look around.", common_dir)
        assert model.requests
    for where in ("the job", "the events", "the live events", "the transcript", "the disk"):
        assert "[redacted]" in told[where], where
