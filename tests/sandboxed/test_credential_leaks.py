"""A key that sings: it is on every call that reaches the model, and nowhere else, wherever anybody looks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandboxed.codex_services import codex_config
from tests.sandboxed.host_inspection import folder_contents

from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.request import ModelRequest
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, MakeService, Service
from steadyhand.testing.shell import python_command, shell_prompt

KEY = "sk-ant-canary-71c0ffee-of-the-gateway"
TOKEN = "sk-ant-oat-canary-0ddba11"
CALL = """
import http.client, json, socket, sys
class Way(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/steadyhand/model.sock")
for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/models"):
    way = Way("model.invalid")
    if path == "/v1/models":
        way.request("GET", path)
    else:
        body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        way.request("POST", path, json.dumps(body), {"content-type": "application/json", "x-api-key": "mine"})
    answer = way.getresponse()
    print(answer.status, answer.getheaders(), answer.read())
"""
LOOK = """
import os, re
canary = re.compile("sk-ant-" + "canary|sk-ant-oat-" + "canary|sh-test" + "-key|scripted-no" + "-real-key")
hits = []
def look(path, data):
    if canary.search(data.decode("latin-1")):
        hits.append(path)
look("own environment", repr(os.environ).encode())
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "mountinfo", "maps", "stat"):
        try:
            look(f"/proc/{pid}/{name}", open(f"/proc/{pid}/{name}", "rb").read())
        except OSError:
            pass
    try:
        regions = [line.split()[0].split("-") for line in open(f"/proc/{pid}/maps") if " rw" in line]
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            for start, end in regions:
                if int(pid) == os.getpid() or int(end, 16) - int(start, 16) > 1 << 26:
                    continue
                memory.seek(int(start, 16))
                look(f"/proc/{pid}/mem", memory.read(int(end, 16) - int(start, 16)))
    except (OSError, ValueError):
        pass
for top in ("/home", "/tmp", "/var", "/run", "/opt", "/mirror", "/etc", "/dev/shm", "/workspace", "/root"):
    for where, _, names in os.walk(top):
        for name in names:
            path = os.path.join(where, name)
            try:
                if os.path.isfile(path) and os.path.getsize(path) < 1 << 24:
                    look(path, open(path, "rb").read())
            except OSError:
                pass
print(hits or "nowhere")
"""


@pytest.fixture(scope="module", params=["key", pytest.param("token", marks=pytest.mark.long)])
def service(
    request: pytest.FixtureRequest, make_service_in: MakeService, model: ScriptedModel
) -> Iterator[tuple[Service, str]]:
    """A service whose credential is a canary: an API key, or a subscription's token."""
    env: dict[str, str | None] = (
        {"ANTHROPIC_API_KEY": KEY} if request.param == "key" else {"ANTHROPIC_API_KEY": None}
    )
    if request.param == "token":
        env["CLAUDE_CODE_OAUTH_TOKEN"] = TOKEN
    with make_service_in(env=env, model=model.url) as made:
        yield made, KEY if request.param == "key" else TOKEN


def everything_told(service: Service, job_id: str) -> str:
    """Give all that a caller can read of a job, and what the service wrote down."""
    http = service.client
    told = [
        http.get(f"/v1/jobs/{job_id}").text,
        http.get(f"/jobs/{job_id}").text,
        json.dumps(service.events(job_id)),
    ]
    told += [http.get(f"/v1/jobs/{job_id}/{name}").text for name in ("transcript", "diff")]
    told += [service.log, folder_contents(service.data_dir).decode("latin-1")]
    return "\n".join(told)


def secret_of(call: ModelRequest) -> str:
    """Give the credential that a call came with."""
    return call.headers.get("x-api-key") or call.headers.get("authorization", "").removeprefix("Bearer ")


@pytest.fixture
def workspace_of(service: tuple[Service, str]) -> str:
    return str(service[0].root / "workspace")


def test_the_model_sees_the_key_on_every_call_and_the_agent_never(
    service: tuple[Service, str], model: ScriptedModel, workspace_of: str
) -> None:
    made, key = service
    model.clear()
    job = made.run_job(shell_prompt(python_command(CALL)), workspace=workspace_of)
    assert job["state"] == "completed", job["error"]
    assert job["answer"].count("200 [") == 3, job["answer"]
    calls = [*model.requests, *model.side_requests, *model.other_requests]
    assert len(calls) == 3
    for call in calls:
        assert secret_of(call) == key
    told = everything_told(made, job["id"])
    assert key not in told
    assert "[redacted]" not in told  # nor was there anything to take out


def test_the_key_is_nowhere_in_the_sandbox(service: tuple[Service, str], workspace_of: str) -> None:
    made, key = service
    job = made.run_job(shell_prompt(python_command(CALL), python_command(LOOK)), workspace=workspace_of)
    assert (job["state"], job["answer"]) == ("completed", "nowhere")
    told = everything_told(made, job["id"])
    assert key not in told
    assert ADMIN_KEY not in told
    assert CLASSIC_KEY not in told
    assert "[redacted]" not in told


def test_the_search_finds_a_key_that_is_there(service: tuple[Service, str]) -> None:
    """The probe: what the search is to find is found in an environment, in memory and on disk."""
    made, _ = service
    half = "export CANARY=sk-ant-can; export CANARY=${CANARY}ary; "
    found = made.run_job(
        shell_prompt(f"{half} echo $CANARY > ~/there.txt; sleep 30 & {python_command(LOOK)}; kill %1")
    )["answer"]
    for where in ("own environment", "/environ", "/home/agent/there.txt"):
        assert where in found


LOOKING = """\
description = "Two searches with the CLI's own shell, the second for what was put there to be found."
[[turn]]
[[turn.tool]]
name = "Bash"
input = {{ command = {look}, description = "Look" }}
[[turn]]
text = "It is {{last_result}}."
"""


NOWHERE = ("", "nowhere")
THERE = ("echo sk-ant-can''ary > ~/there.txt; ", "there.txt")


# test_changes_under_waiting_processes.py has the key on the calls of the real CLI, and the tests above the searches.
@pytest.mark.parametrize(
    ("agent", "before", "found"),
    [
        pytest.param("claude", *NOWHERE, marks=pytest.mark.long),
        pytest.param("claude", *THERE, marks=pytest.mark.long),
        ("codex", *NOWHERE),
        ("codex", *THERE),
    ],
)
def test_with_a_real_agent_the_key_is_on_the_calls_and_nowhere_that_its_tools_can_look(
    make_service: MakeService, reachable_tmp: Path, agent: str, before: str, found: str
) -> None:
    scenario = reachable_tmp / "looking.toml"
    scenario.write_text(LOOKING.format(look=json.dumps(before + python_command(LOOK))), encoding="utf-8")
    with ScriptedModel(scenario) as model:
        made = make_service(claude=cli_path(), model=model.url, env={"ANTHROPIC_API_KEY": KEY})
        if agent == "codex":
            key = made.root / "openai.key"
            key.write_text(KEY, encoding="utf-8")
            made.config_path.write_text(codex_config(model.url, key), encoding="utf-8")
        made.start()
        job = made.wait_until_ended(
            made.submit("look around", workspace=str(made.root / "workspace"), agent=agent)["id"], 90
        )
        assert job["state"] == "completed", (job["error"], made.log[-3000:])
        assert found in job["answer"]
        assert len(model.requests) == 2
        calls = [*model.requests, *model.side_requests, *model.other_requests]
        assert {secret_of(call) for call in calls} == {KEY}
        told = everything_told(made, job["id"])
        assert KEY not in told
        assert "[redacted]" not in told
        assert not any(KEY in json.dumps(call.body) for call in calls)
