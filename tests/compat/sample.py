"""The stored sample of a data directory: how it is unpacked, made as young as it was, and read over HTTP.

`make_sample.py` writes it and the tests open it. No module of the service is used here but `steadyhand.testing`, so
that both can be run with any release.
"""

import hashlib
import json
import os
import re
import sqlite3
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2

from steadyhand.testing.cli import cli_path
from steadyhand.testing.service import UIDS_PER_SERVICE, Service

FOLDER = Path(__file__).parent / "sample"
ARCHIVE = FOLDER / "sample.tar.xz"
EXPECTED = FOLDER / "expected.json"

KEY = "sh_sample_key_made_up_for_a_test"
"""The secret of the stored key `ci`: made up, and put into the sample in place of the one that was drawn."""
FORMER_KEY = "sh_sample_former_key_made_up_for_a_test"
"""The secret that the stored key `rotated` had before it was rotated; in the sample it is good for a long time."""
FORMER_UNTIL = datetime(2100, 1, 1, tzinfo=UTC)
UID_BASE = 90_000
"""The first user id of the sample's agents in the archive."""
HELD = {"STEADYHAND_SERVICE__PAUSED": "true"}
"""Starts the service without starting any job."""
BUILT_IN = ("claude", "chat")
LATER = timedelta(hours=1)
_FROM_ADMIN_KEY: dict[str, str | None] = {"STEADYHAND_API_KEY": None, "API_BEARER_TOKEN": None}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def service_on(root: Path, config: str, model: str, **env: str | None) -> Service:
    """Return a service on a sample's root, not started; its keys are those of the data directory alone."""
    text = config.replace("@ROOT@", str(root)).replace("@MODEL@", model)
    return Service(root, cli_path(), config=text, model=model, env={**_FROM_ADMIN_KEY, **env})


def mirror_of(root: Path) -> str:
    """Return the name under which the data directory keeps what it fetched from the sample's repository."""
    return hashlib.sha256(f"{root / 'project'}\n".encode()).hexdigest()[:16]


# --- the archive -----------------------------------------------------------------------------------


def pack(root: Path, uid_base: int, archive: Path) -> None:
    """Write the data directory and the repository below `root` as they are on disk, free of this machine's names."""
    mirror = mirror_of(root)

    def portable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if entry.name == "data/etc":
            return None  # this machine's, copied for the sandbox at each start
        entry.uid, entry.gid = (_moved(each, uid_base, UID_BASE) for each in (entry.uid, entry.gid))
        entry.uname = entry.gname = ""
        entry.name = entry.name.replace(mirror, "@MIRROR@")
        return entry

    _rewrite_notes(root, lambda uid: _moved(uid, uid_base, UID_BASE), mirror, "@MIRROR@")
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in ("data", "project"):
            tar.add(root / name, name, filter=portable)
        tar.add(root / "config.toml", "config.toml", filter=portable)


def unpack(root: Path, uid_base: int) -> str:
    """Lay the sample out below `root` with the files of agents owned as there; return the text of its configuration.

    What names a place or a user of the machine is rewritten: the mirror's folder, and the user in `place.json`.
    """
    mirror = mirror_of(root)
    as_root = os.geteuid() == 0

    def placed(entry: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        found = tarfile.tar_filter(entry, path)
        return found.replace(name=found.name.replace("@MIRROR@", mirror), deep=False)

    with tarfile.open(ARCHIVE) as tar:
        members = tar.getmembers()
        for entry in members:
            entry.uid, entry.gid = (_moved(each, UID_BASE, uid_base) for each in (entry.uid, entry.gid))
        tar.extractall(root, members, numeric_owner=True, filter=placed)  # noqa: S202  # our own archive, and filtered
    _rewrite_notes(root, lambda uid: _moved(uid, UID_BASE, uid_base) if as_root else None, "@MIRROR@", mirror)
    return (root / "config.toml").read_text("ascii")


def _rewrite_notes(root: Path, user_of: Callable[[int], int | None], before: str, after: str) -> None:
    for path in (root / "data" / "jobs").glob("*/place.json"):
        note = json.loads(path.read_text("ascii"))
        note["user"] = user_of(note["user"])
        note["warm"] = note["warm"] and note["warm"].replace(before, after)
        path.write_text(json.dumps(note), "ascii")


def _moved(uid: int, before: int, after: int) -> int:
    # The user below the first belongs to the agents too: it owns the checkouts that several jobs share.
    return after + uid - before if before - 1 <= uid < before + UIDS_PER_SERVICE else uid


# --- its age -----------------------------------------------------------------------------------


def micros(moment: datetime) -> int:
    """Return a time as the database has it."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def park_until(data_dir: Path, until: datetime) -> None:
    """Set until when the parked job waits, and make young what time ends.

    A parked job is given up seven days after its first run, and an idempotency key is forgotten after a day.
    """
    with sqlite3.connect(data_dir / "steadyhand.db") as database:
        ((sequence, record),) = database.execute("SELECT sequence, record FROM jobs WHERE state = 'parked'")
        changed = json.dumps({**json.loads(record), "parked_until": micros(until)})
        database.execute("UPDATE jobs SET record = ? WHERE sequence = ?", (changed, sequence))
        database.execute(
            "UPDATE runs SET started_at = ? WHERE job = ?", (micros(datetime.now(UTC)), sequence)
        )
        database.execute("UPDATE idempotency SET created_at = ?", (micros(datetime.now(UTC)),))
    database.close()


# --- reading it ----------------------------------------------------------------------------------


def read(service: Service, made: str) -> dict[str, Any]:
    """Return all that the service tells of the sample; times after `made` and places of the machine are left out."""
    http = service.client
    ids = [job["id"] for job in _ok(http.get("/v1/jobs", params={"limit": 200}))["data"]]
    found: dict[str, Any] = {"list": ids}
    for job_id in ids:
        job = service.get_job(job_id)
        if job["state"] == "parked":  # made younger
            job["parked_until"] = job["runs"][0]["started_at"] = "@LATER@"
        found[f"job {job_id}"] = job
        found[f"events {job_id}"] = service.events(job_id)
        for path in (
            f"/jobs/{job_id}",
            *(f"/v1/jobs/{job_id}/{part}" for part in ("diff", "transcript", "bundle")),
        ):
            found[path] = _short(http.get(path))
        if job["origin"] == "openai":
            for path in (f"/v1/responses/resp_{job_id}", f"/v1/responses/resp_{job_id}/input_items"):
                found[path] = _short(http.get(path))
            found[f"/v1/responses/resp_{job_id}_1"] = _short(http.get(f"/v1/responses/resp_{job_id}_1"))
    for path in ("/v1/keys", "/v1/agents", "/v1/workspaces", "/v1/models"):
        found[path] = _ok(http.get(path))
    for agent in found["/v1/agents"]["data"]:
        if agent["name"] in BUILT_IN:
            del agent["description"]  # prose of the release
    for by in ("day", "agent", "api_key", "model"):
        since = {"since": f"{made[:10]}T00:00:00Z", "until": made, "by": by}
        found[f"/v1/usage by {by}"] = _short(http.get("/v1/usage", params=since))
    text = json.dumps(found).replace(str(service.root), "@ROOT@")
    text = _TIME.sub(lambda match: match[0] if match[0] <= made else "@LATER@", text)
    normal: dict[str, Any] = json.loads(text)
    return normal


def _ok(answer: httpx2.Response) -> Any:
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    return answer.json()


def _short(answer: httpx2.Response) -> Any:
    """Return an answer's status with its JSON, an error's code, the text of a diff, or the digest of anything else."""
    kind = answer.headers["content-type"].partition(";")[0]
    if answer.status_code != 200:  # the texts of errors may become clearer
        return [answer.status_code, answer.json()["code"]]
    if kind == "application/json":
        return [answer.status_code, answer.json()]
    if kind.startswith("text/"):
        return [answer.status_code, kind, answer.text]
    return [answer.status_code, kind, hashlib.sha256(answer.content).hexdigest()]
