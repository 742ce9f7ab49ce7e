"""Makes the stored sample: a data directory with jobs of every kind, as the release that runs this leaves it behind.

    .venv/bin/python -m tests.compat.make_sample

It runs the real CLI against the scripted model, sealed, as root. The sample in the repository was made so by the code
as it was before its parts were renamed. No secret is in it: keys are given secrets that stand in `sample.py`.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from tests.compat.sample import (
    ARCHIVE,
    EXPECTED,
    FORMER_KEY,
    FORMER_UNTIL,
    HELD,
    KEY,
    LATER,
    micros,
    pack,
    park_until,
    read,
    service_on,
    unpack,
)

from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import ADMIN_KEY, Service, run_git, wait_until

CONFIG = """\
[service]
concurrency = 2
max_queued = 50
drain_seconds = 0
log_level = "info"

[server]
allowed_hosts = ["sample.example.org"]

[defaults]
agent = "claude"
workspace = "project"
budget_usd = 4
timeout_seconds = 900
idle_timeout_seconds = 300
memory = "3G"
processes = 512

[limits]
max_budget_usd = 50
max_timeout_seconds = 86400
service_per_day_usd = 1000

[retention]
jobs = "never"
transcripts = "never"
kept_checkouts = "never"

[git]
author_name = "Sample"
author_email = "sample@example.org"

[gateway]
max_wait_seconds = 1
max_waits_seconds = 2

[providers.other]
kind = "anthropic"
base_url = "@MODEL@"

[prices."claude-sample-*"]
input = "1"
output = "2"
cache_read = "0.1"
cache_write_5m = "1.25"
cache_write_1h = "2"

[openai]
default_agent = "claude"
tool_result_seconds = 600

[openai.models.reviewer-with-tools]
agent = "reviewer"
reasoning = "tools"

[workspaces.project]
repository = "@ROOT@/project"
ref = "main"
mode = "checkout"
trust = "instructions"
publish = "none"

[agents.reviewer]
description = "Reviews changes."
workspace = "project"
budget_usd = 2.5
budget_per_day_usd = 100
max_turns = 40
effort = "low"
append_system_prompt = "Be brief."
env = { SAMPLE = "yes" }

[agents.patient]
description = "Works with another provider."
provider = "other"
workspace = "project"
"""
TOOL = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["name", "number"],
}


def asked(http: httpx2.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    if answer.status_code not in (200, 201, 202):
        raise RuntimeError(answer.text)
    return dict(answer.json())


def written_down(service: Service, job_id: str, text: str) -> bool:
    """Tell whether the CLI has written a text into its session: what it has not, no later run can know."""
    sessions = contents_below(service.data_dir / "jobs" / job_id / "config" / "projects", "*.jsonl")
    return any(text.encode() in content for _, content in sessions)


def ended_well(service: Service, job_id: str, state: str = "completed") -> dict[str, Any]:
    job = service.wait_until_ended(job_id, 60)
    if job["state"] != state:
        raise RuntimeError(json.dumps(job, indent=1))
    return job


def make_keys(service: Service) -> str:
    """Make a limited key, a revoked one and a rotated one; return the secret of the first."""
    limits = {
        "agents": ["claude", "reviewer"],
        "queued_jobs": 7,
        "requests_per_minute": 600,
        "budget_usd_per_day": 90,
    }
    key = asked(service.client, "/v1/keys", name="ci", scopes=["submit", "read"], limits=limits)
    revoked = asked(service.client, "/v1/keys", name="revoked")
    service.client.delete(f"/v1/keys/{revoked['id']}")
    rotated = asked(service.client, "/v1/keys", name="rotated")
    asked(service.client, f"/v1/keys/{rotated['id']}/rotate", grace_seconds=7 * 86_400)
    return str(key["secret"])


def run_to_their_ends(service: Service) -> None:
    """Run the jobs that have ended when the service stops, and one that its stop interrupts for good."""
    with service.new_client(make_keys(service)) as caller:
        body = {
            "prompt": "[[scenario:commit]] change something",
            "agent": "reviewer",
            "title": "A change",
            "priority": 5,
            "metadata": {"ticket": "S-1", "nested": {"a": [1, None]}},
        }
        answer = caller.post("/v1/jobs", json=body, headers={"idempotency-key": "sample-1"})
        if answer.status_code != 202:
            raise RuntimeError(answer.text)
        ended_well(service, answer.json()["id"])
    failed = service.submit("[[scenario:bad-request]] fail")["id"]
    ended_well(service, failed, "failed")
    ended_well(service, service.submit("[[scenario:structured]] fill in", output_schema=SCHEMA)["id"])
    classic = service.execute_classic("[[scenario:echo]] by the classic route")["job_id"]
    service.poll_classic(classic, 60)
    talk = ended_well(service, service.submit("[[scenario:echo]] first turn", title="A talk")["id"])
    turn = asked(service.client, f"/v1/jobs/{talk['id']}/turns", prompt="[[scenario:echo]] second turn")
    ended_well(service, turn["id"])
    message = {"role": "user", "content": "[[scenario:echo]] in a chat"}
    headers = {"x-session-id": "sample-chat"}
    chat = {"model": "claude", "messages": [message]}
    if service.client.post("/v1/chat/completions", json=chat, headers=headers).status_code != 200:
        raise RuntimeError("the chat failed")
    first = asked(service.client, "/v1/responses", model="claude", input="[[scenario:echo]] first response")
    asked(
        service.client,
        "/v1/responses",
        model="claude",
        input="[[scenario:echo]] second response",
        previous_response_id=first["id"],
        metadata={"sample": "yes"},
        instructions="Be kind.",
    )
    cancelled = service.submit("[[scenario:slow]] cancel this")["id"]
    wait_until(lambda: written_down(service, cancelled, "cancel this"))
    asked(service.client, f"/v1/jobs/{cancelled}/cancel")
    ended_well(service, cancelled, "cancelled")
    interrupted = service.submit("[[scenario:slow]] end with the service", on_interrupt="fail")["id"]
    wait_until(lambda: written_down(service, interrupted, "end with the service"))
    service.terminate()


def leave_in_the_middle(service: Service) -> None:
    """Leave jobs behind that go on later: parked, with calls waiting, to be taken up at the next start, and queued."""
    parked = service.submit(
        "[[scenario:rate-limited-midway]] leave a mark", agent="patient", workspace="project"
    )
    wait_until(lambda: service.get_job(parked["id"])["state"] == "parked", 60)
    tool = {**TOOL, "type": "function"}
    body: dict[str, Any] = {"model": "claude", "tools": [tool]}
    response = asked(service.client, "/v1/responses", input="[[scenario:client-tools]] weather?", **body)
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "sun"}
        for item in response["output"]
        if item["type"] == "function_call"
    ]
    later = asked(service.client, "/v1/responses", input=outputs, previous_response_id=response["id"], **body)
    calls = [item for item in later["output"] if item["type"] == "function_call"]
    waiting = response["id"].removeprefix("resp_")
    wait_until(lambda: written_down(service, waiting, "Oslo"))
    if len(outputs) != 2 or len(calls) != 1:
        raise RuntimeError(json.dumps([response, later], indent=1))
    taken_up = service.submit("[[scenario:slow]] go on later", on_interrupt="resume")["id"]
    wait_until(lambda: written_down(service, taken_up, "go on later"))
    service.submit("[[scenario:echo]] after all the others", priority=-3, timeout_seconds=120)
    service.terminate()


def without_secrets(data_dir: Path) -> None:
    """Put made-up secrets in the place of those that were drawn, and no process of this machine in that of a run."""
    (data_dir / "admin.key").write_text(f"{ADMIN_KEY}\n", "ascii")
    digests = {secret: hashlib.sha256(secret.encode()).hexdigest() for secret in (KEY, FORMER_KEY)}
    with sqlite3.connect(data_dir / "steadyhand.db") as database:
        database.execute("UPDATE keys SET digest = ? WHERE name = 'ci'", (digests[KEY],))
        for name in ("revoked", "rotated"):
            unknown = hashlib.sha256(f"nobody has the secret of {name}".encode()).hexdigest()
            database.execute("UPDATE keys SET digest = ? WHERE name = ?", (unknown, name))
        database.execute(
            "UPDATE keys SET former_digest = ?, former_until = ? WHERE former_digest IS NOT NULL",
            (digests[FORMER_KEY], micros(FORMER_UNTIL)),
        )
        database.execute("UPDATE runs SET supervisor_started = 1 WHERE supervisor_started IS NOT NULL")
    database.execute("VACUUM")
    database.close()


def without_the_clis_own(jobs: Path) -> None:
    """Leave of the CLI's sessions what was said in them: not its own prompts, nor how it knows this machine."""
    for config in jobs.glob("*/config"):
        for name in ("backups", "plugins"):
            shutil.rmtree(config / name, ignore_errors=True)
        (config / ".claude.json").unlink(missing_ok=True)
    for home in jobs.glob("*/home"):
        for each in home.iterdir():
            shutil.rmtree(each)
        (home / "tmp").mkdir(mode=0o700)
        shutil.chown(home / "tmp", home.stat().st_uid, home.stat().st_gid)
    for path in (*jobs.glob("*/config/projects/*/*.jsonl"), *jobs.glob("*/kept/transcript.jsonl")):
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in said(entries)), "utf-8")


def said(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the messages of a session, each after the message before it."""
    before: dict[str | None, Any] = {}
    for entry in entries:
        parent = entry.get("parentUuid")
        if entry["type"] in ("user", "assistant"):
            entry["parentUuid"] = before.get(parent, parent)
            entry.pop("requestRef", None)
            yield entry
        elif "uuid" in entry:
            before[entry["uuid"]] = before.get(parent, parent)


def fresh(parent: Path, name: str) -> Path:
    root = parent / name
    root.mkdir(mode=0o755)
    return root


@contextmanager
def somewhere() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def main() -> None:
    """Write the archive, and beside it what the release that made it tells of it."""
    if os.geteuid() != 0:
        raise SystemExit("The sample is made as root: agents have users of their own in it.")
    with somewhere() as parent, ScriptedModel() as model:
        root = fresh(parent, "made")
        (root / "config.toml").write_text(CONFIG, "ascii")
        project = fresh(root, "project")
        run_git(project, "init", "-q", "-b", "main", "--template=")
        (project / "greeting.txt").write_text("hello\n", "ascii")
        run_git(project, "add", "-A")
        run_git(project, "commit", "-q", "-m", "first")
        with service_on(root, CONFIG, model.url) as service:
            service.terminate()  # it has made its key
            (root / "data" / "admin.key").write_text(f"{ADMIN_KEY}\n", "ascii")
            run_to_their_ends(service.start())
            leave_in_the_middle(service.start())
        without_secrets(root / "data")
        without_the_clis_own(root / "data" / "jobs")
        made = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        ARCHIVE.parent.mkdir(exist_ok=True)
        pack(root, service.uid_base, ARCHIVE)
        expect(fresh(parent, "again"), model.url, made)


def expect(root: Path, model: str, made: str) -> None:
    """Write what this release tells of the archive, with no job going on."""
    service = service_on(root, CONFIG, model, **HELD)
    unpack(root, service.uid_base)
    park_until(root / "data", datetime.now(UTC) + LATER)
    with service:
        found = {"made": made, **read(service, made)}
    EXPECTED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "ascii")


if __name__ == "__main__":
    main()
