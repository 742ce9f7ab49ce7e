"""An agent that was granted a secret file prints it in every encoding: no reader of the job sees it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.redact.test_redactor import WRITTEN, core
from tests.sandboxed.host_inspection import folder_contents

from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.service import MakeService, Service, wait_until
from steadyhand.testing.shell import python_command, shell_prompt

SECRET = 'tok/canary+41_Xw9-TtR9bLm6=Q "z"'
LINES = "FIRST_CANARY=Vq8Zk2Xw41TtR9bLm6\nhost = canary.example.org:8443/x"
TELL = """
import base64, json, sys
from urllib.parse import quote
for path in sys.argv[1:]:
    s = open(path).read().strip()
    b = s.encode()
    print(s)
    print(quote(s, safe=""), quote(s), "".join("%%%02X" % c for c in b))
    text = s
    for _ in range(3):
        text = json.dumps(text)
        print(text, text.replace("/", "\\\\/"))
    print(quote(json.dumps(s)))
    for before in (b"", b"u:", b"user:"):
        print(base64.b64encode(before + b).decode(), base64.urlsafe_b64encode(before + b + b"tail").decode())
    print(b.hex(), b.hex().upper(), base64.encodebytes(b).decode())
"""


@pytest.fixture(scope="module")
def service(make_service_in: MakeService) -> Iterator[Service]:
    made = make_service_in()
    for name, text in (("token", SECRET), ("lines", LINES)):
        path = made.root / name
        path.write_text(f"{text}\n")
        path.chmod(0o644)
    made.config_path.write_text(
        f'[agents.granted]\nworkspace = "scratch"\nsecrets = ["{made.root / "token"}", "{made.root / "lines"}"]\n'
    )
    with made:
        yield made


def tell(service: Service) -> str:
    return f"{python_command(TELL)} {service.root / 'token'} {service.root / 'lines'}"


def live_of(service: Service, job_id: str, found: list[str]) -> None:
    """Keep a live stream as it came, and the pieces of each message joined."""
    said: dict[str, str] = {}
    with service.new_client() as client:
        headers = {"accept": "text/event-stream"}
        with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
            for line in answer.iter_lines():
                found.append(line)
                if '"text.delta"' in line and line.startswith("data: "):
                    delta = json.loads(line[6:])["data"]
                    said[delta["message_id"]] = said.get(delta["message_id"], "") + delta["text"]
    found += [f"joined: {text}" for text in said.values()]


def kept(service: Service, job_id: str) -> bytes:
    """Give all that is kept on disk but the agent's own session, which it goes on with."""
    folder = service.data_dir / "jobs" / job_id / "kept"
    database = b"".join(content for _, content in contents_below(service.data_dir, "steadyhand.db*"))
    return folder_contents(folder) + database


def spellings() -> list[bytes]:
    return [core(text, how) for text in (SECRET, LINES, *LINES.split("\n")) for how in WRITTEN]


@pytest.mark.parametrize("chunk", [3, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "more",
    [
        "",
        pytest.param("stderr='{last}'", marks=pytest.mark.long),
        "stderr='{last}' exit=3 result=error",
    ],
)
def test_no_spelling_of_a_granted_secret_is_told_or_kept(service: Service, more: str, chunk: int) -> None:
    text = shell_prompt(tell(service), f"{tell(service)}; exit 1", options=f"{more} chunk={chunk} pace=1")
    job_id = service.submit(text, agent="granted")["id"]
    live: list[str] = []
    follower = threading.Thread(target=live_of, args=(service, job_id, live))
    follower.start()
    job = service.wait_until_ended(job_id)
    follower.join(30)
    assert not follower.is_alive()
    http = service.client
    told = {
        "the job": http.get(f"/v1/jobs/{job_id}").text,
        "the classic job": http.get(f"/jobs/{job_id}").text,
        "the events": json.dumps(service.events(job_id)),
        "the live events": "\n".join(live),
        "the transcript": http.get(f"/v1/jobs/{job_id}/transcript").text,
        "the log": service.log,
        "the disk": kept(service, job_id).decode("latin-1"),
    }
    for where in ("the classic job", "the events", "the live events", "the disk"):
        assert "[redacted]" in told[where], where
    if not more.endswith("error"):
        assert "[redacted]" in told["the transcript"]
        assert "[redacted]" in job["answer"]
        assert any(line.startswith("joined: ") and "[redacted]" in line for line in live)
    for where, whole in told.items():
        for spelling in spellings():
            assert spelling not in whole.encode("latin-1", "replace"), (where, spelling)
    assert all(json.loads(line) for line in told["the transcript"].splitlines())


def test_the_search_finds_a_secret_that_is_there(service: Service) -> None:
    """The probe: the agent has the secret, and every spelling that is looked for is one that it prints."""
    job = service.run_job(
        shell_prompt(f"{tell(service)} | wc -c", f"sha256sum < {service.root / 'token'}"), agent="granted"
    )
    assert job["state"] == "completed", job["error"]
    printed = wait_until(
        lambda: [each for each in service.events(job["id"]) if each["type"] == "tool.finished"]
    )
    assert int(printed[0]["data"]["output"]) > 2000
    session = folder_contents(service.data_dir / "jobs" / job["id"])
    assert b"sha256sum" in session


def test_a_secret_file_that_is_renewed_is_known_from_the_next_run_on(service: Service) -> None:
    path: Path = service.root / "token"
    before = path.read_text()
    renewed = "renewed-canary-77c0ffee77"
    try:
        path.write_text(renewed)
        job = service.run_job(shell_prompt(f"cat {path}"), agent="granted")
    finally:
        path.write_text(before)
    assert job["answer"] == "[redacted]"
    assert renewed.encode() not in kept(service, job["id"])
