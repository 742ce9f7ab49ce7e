"""Names that callers, operators and stored data hold: one table, compared with the code.

The table is `names.toml`. A name in it may not go or change. A new one is added to it.
"""

import json
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tests.compat import source
from tests.service_fixtures import make_repository, make_service_root

from steadyhand import config
from steadyhand.job import State
from steadyhand.outcome import OUTCOMES
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.service import Service, wait_until

NAMES: dict[str, Any] = tomllib.loads((Path(__file__).parent / "names.toml").read_text("utf-8"))


def same(kind: str, now: Iterable[str], before: Iterable[str]) -> None:
    """Compare names with those of the table."""
    now, before = set(now), set(before)
    assert not before - now, f"{kind}: gone, though somebody holds them: {sorted(before - now)}"
    assert not now - before, f"{kind}: new, to be added to names.toml: {sorted(now - before)}"


# --- words of the source ---------------------------------------------------------------------------


def test_each_type_of_event_is_that_of_the_table() -> None:
    same("types of events", source.class_constants("type"), NAMES["events"])


def test_each_code_of_an_error_is_that_of_the_table() -> None:
    codes = {*NAMES["errors"]["served"], *NAMES["errors"]["of_runs_and_commands"]}
    found = source.class_constants("code") | source.keyword_constants("code")
    found -= {*NAMES["warnings"], *NAMES["outcomes"]} - codes
    same("codes of errors", found | (codes & source.literals()), codes)


def test_each_code_of_a_warning_is_still_in_the_source() -> None:
    same("codes of warnings", source.literals() & set(NAMES["warnings"]), NAMES["warnings"])


def test_each_state_and_each_outcome_is_that_of_the_table() -> None:
    same("states", (state.value for state in State), NAMES["states"])
    same("types of outcomes", map(str, OUTCOMES), NAMES["outcomes"])
    found = {str(name): [str(each.state), each.retryable] for name, each in OUTCOMES.items()}
    assert found == NAMES["outcomes"]


def test_each_exit_code_is_that_of_the_table() -> None:
    assert source.enum_values("IntEnum") == [set(NAMES["exit_codes"].values())]


def test_each_event_of_the_log_is_that_of_the_table() -> None:
    same("events of the log", source.logged(), NAMES["log"])


@pytest.mark.parametrize("kind", ["texts", "headers"])
def test_what_earlier_callers_read_is_still_in_the_source(kind: str) -> None:
    found = {text for text in NAMES[kind] if any(text in literal for literal in source.literals())}
    same(kind, found, NAMES[kind])


# --- settings --------------------------------------------------------------------------------------


def file_model() -> type[BaseModel]:
    """Return the type of the whole `steadyhand.toml`, wherever it stands in `steadyhand.config`."""
    names = [module.name for module in walk_packages(config.__path__, "steadyhand.config.")]
    kinds = {kind for name in names for kind in vars(import_module(name)).values() if isinstance(kind, type)}
    wanted = {"service", "server", "agents"}
    (found,) = (kind for kind in kinds if issubclass(kind, BaseModel) and wanted <= set(kind.model_fields))
    return found


def settings_of(model: type[BaseModel], before: str = "") -> Iterator[tuple[str, str]]:
    """Return each key with its default; a table of named ones is `*`."""
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        inner = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if inner:
            many = "" if field.annotation is inner[0] else ".*"
            yield from settings_of(inner[0], f"{before}{name}{many}.")
        else:
            default = (
                "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
            )
            yield before + name, default


def test_each_key_of_the_configuration_has_the_name_and_the_default_of_the_table() -> None:
    found = dict(settings_of(file_model()))
    same("keys of steadyhand.toml", found, NAMES["settings"])
    assert found == NAMES["settings"]


def shown_settings(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Return where `steadyhand config` says that each setting came from."""
    done = subprocess.run(
        [Path(sys.executable).parent / "steadyhand", "config", "--json"],
        env={"PATH": SYSTEM_PATH, "HOME": str(folder), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["source"] for row in json.loads(done.stdout)["data"]}


def test_each_name_of_the_environment_sets_what_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sk-ant-a-made-up-secret-in-a-file", "ascii")
    names: dict[str, list[str]] = NAMES["environment"]
    values = {name: value.replace("@FOLDER@", str(tmp_path)) for name, (value, _, _) in names.items()}
    shown = shown_settings(tmp_path, values)
    assert {name: [row, shown.get(row, "not shown")] for name, (_, row, _) in names.items()} == {
        name: [row, where] for name, (_, row, where) in names.items()
    }
    same("names of the client's environment", source.literals() & set(NAMES["client"]), NAMES["client"])


# --- what is stored --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(reachable_tmp: Path, stand_in: Path) -> dict[str, set[str]]:
    """What a service of today has written: the keys of each stored document, and the database's columns."""
    root = make_service_root(reachable_tmp)
    make_repository(root / "workspace", {"greeting.txt": "hello\n"})
    gate = root / "gate"
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    env = {"STEADYHAND_ISOLATION": "none", "WORKSPACE_DIR": str(root / "workspace")}
    with Service(root, stand_in, env=env) as service:
        service.client.post("/v1/keys", json={"name": "limited", "limits": {"queued_jobs": 1}})
        body = {
            "model": "claude",
            "input": "[[standin: text=yes]]",
            "tools": [tool],
            "parallel_tool_calls": False,
        }
        answer = service.client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        job = service.submit(
            f"[[standin: wait_for={gate} write=new.txt:text text=done]]", workspace="default"
        )
        note = service.data_dir / "jobs" / job["id"] / "place.json"
        wait_until(lambda: note.exists() and note.read_text("ascii"))
        found = {"place.json": set(json.loads(note.read_text("ascii")))}
        gate.touch()
        ended = service.wait_until_ended(job["id"])
        assert ended["state"] == "completed", ended
        service.terminate()
        return found | in_database(service.data_dir / "steadyhand.db", job["id"])


def in_database(path: Path, job_id: str) -> dict[str, set[str]]:
    database = sqlite3.connect(path)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {
        f"table {table}": {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        for table in tables
        if not table.startswith("sqlite_")
    }
    indexes = database.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    found["indexes"] = {name for (name,) in indexes}
    ((record,),) = database.execute("SELECT record FROM jobs WHERE id = ?", (job_id,))
    found["record"] = set(json.loads(record))
    for name in ("usage", "cost", "outcome", "changes"):
        found[f"record.{name}"] = set(json.loads(record)[name])
    ((history,),) = database.execute("SELECT history FROM jobs WHERE history IS NOT NULL")
    found["history"] = set(json.loads(history))
    found["history.request"] = set(json.loads(history)["request"])
    found["history.request.echo"] = set(json.loads(history)["request"]["echo"])
    ((limits,),) = database.execute("SELECT limits FROM keys")
    found["keys.limits"] = set(json.loads(limits))
    ((outcome,),) = database.execute(
        "SELECT outcome FROM runs JOIN jobs ON runs.job = jobs.sequence WHERE jobs.id = ?", (job_id,)
    )
    found["runs.outcome"] = set(json.loads(outcome))
    database.close()
    return found


@pytest.mark.parametrize("document", sorted(NAMES["stored"]))
def test_what_is_stored_has_the_names_of_the_table(stored: dict[str, set[str]], document: str) -> None:
    same(document, stored[document], NAMES["stored"][document])


def test_the_table_has_each_document_that_is_stored(stored: dict[str, set[str]]) -> None:
    same("stored documents", stored, NAMES["stored"])
