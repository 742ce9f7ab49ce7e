"""The modules that are loaded when the service listens, and those that are loaded right after that."""

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from steadyhand.optional_modules import not_loaded
from steadyhand.serve.late_imports import LATE_MODULES, load_late_modules
from steadyhand.testing.cli import SYSTEM_PATH

PACKAGES_AT_LISTENING = {
    "ahocorasick_rs",
    "annotated_doc",
    "annotated_types",
    "anyio",
    "attr",
    "click",
    "cython_runtime",
    "httptools",
    "pydantic",
    "pydantic_core",
    "python_multipart",
    "rich",
    "shellingham",
    "sniffio",
    "sqlalchemy",
    "starlette",
    "steadyhand",
    "structlog",
    "typer",
    "typing_extensions",
    "typing_inspection",
    "uvicorn",
    "yaml",
}
"""What a service may load before it listens. Each further package makes every start longer: load it late instead."""

PACKAGES_OF_A_MIGRATION = {"alembic", "mako", "markupsafe"}
"""What the first start of a service, which creates its database, loads as well."""

LISTENING = """
import gc, os, signal, sys, typer
def echo(line):
    print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
    print(gc.isenabled(), gc.get_freeze_count() > 10_000)
    print(*sorted(name for name in sys.modules if name.startswith(("steadyhand.", "sqlalchemy.dialects."))))
    os.kill(os.getpid(), signal.SIGTERM)
typer.echo = echo
from steadyhand.cli import main
main()
"""


def start(folder: Path) -> list[list[str]]:
    """Start a service that ends once it listens, and return the words of its lines."""
    env = {
        "PATH": SYSTEM_PATH,
        "HOME": str(folder),
        "STEADYHAND_DATA_DIR": str(folder / "data"),
        "STEADYHAND_ISOLATION": "none",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", LISTENING, "serve", "--port", "0"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_a_service_listens_without_the_modules_that_it_can_load_later(tmp_path: Path) -> None:
    first, collection, own = start(tmp_path)
    again, _, own_again = start(tmp_path)
    loaded = {name for name in again if not name.startswith("_")}
    assert loaded == PACKAGES_AT_LISTENING
    assert set(first) - set(again) == PACKAGES_OF_A_MIGRATION
    assert collection == ["True", "True"]  # on, and the objects of the start are left out
    commands = {f"steadyhand.cli.{name}" for name in ("jobs", "keys", "run", "usage", "tables")}
    assert {*commands, "steadyhand.client", "steadyhand.api.examples"}.isdisjoint(own)
    assert not [name for name in own if name.startswith("steadyhand.telemetry")]
    assert "sqlalchemy.dialects.sqlite" in own_again
    assert "sqlalchemy.dialects.postgresql" not in own_again  # only for such a database; a migration loads it
    assert "pygments" not in first  # a highlighter of source text: 5 MB


def test_a_module_that_is_not_to_be_loaded_is_missing_for_one_import_alone() -> None:
    name = "this"  # nothing imports it, and it is loaded nowhere
    with not_loaded(name, "sys"), pytest.raises(ImportError):
        importlib.import_module(name)
    assert name not in sys.modules
    assert importlib.import_module("sys") is sys  # what is loaded stays


def test_late_modules_are_loaded_outside_of_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = "import threading\nthread = threading.current_thread()\n"
    (tmp_path / "late_probe.py").write_text(probe, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    asyncio.run(load_late_modules([*LATE_MODULES, "late_probe"]))
    loaded = sys.modules.pop("late_probe")
    assert loaded.thread.name != "MainThread"
    assert set(LATE_MODULES) <= set(sys.modules)
