"""The wheel holds all that the package is made of: a service that was installed from it lacks nothing."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyhand.testing.cli import SYSTEM_PATH

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "steadyhand"
LOOK = """
import asyncio, sys
import steadyhand
from steadyhand.gateway.money.prices import Prices
from steadyhand.store import open_store
from steadyhand.testing import scenario
assert steadyhand.__file__.startswith(sys.argv[1]), steadyhand.__file__
async def main():
    store = await open_store(f"sqlite:///{sys.argv[1]}/new.db")
    await store.close()
asyncio.run(main())
print(Prices.load().price_of("claude-sonnet-4-5") is not None, scenario.load("ok").turn[0].text)
"""


def sources() -> Iterator[str]:
    """Give every file of the package, but what running it leaves behind."""
    for path in SOURCE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(ROOT / "src"))


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = set(sources())
    assert {
        "steadyhand/gateway/money/prices.toml",
        "steadyhand/py.typed",
        "steadyhand/testing/scenarios/ok.toml",
        "steadyhand/store/migrations/env.py",
        "steadyhand/store/migrations/versions/r0001_jobs.py",
        "steadyhand/web/templates/base.html",
        "steadyhand/web/static/page.css",
        "steadyhand/web/static/vendor/htmx.min.js",
        "steadyhand/web/static/vendor/VENDORED.md",
    } <= wanted
    assert wanted - held == set()


def test_the_wheel_has_the_command_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (entries,) = (name for name in opened.namelist() if name.endswith("entry_points.txt"))
        assert "steadyhand = steadyhand.cli:main" in opened.read(entries).decode()
        assert any(name.endswith("licenses/LICENSE") for name in opened.namelist())


@pytest.mark.long  # the demo of `test_release.py` finds it, too
def test_what_is_unpacked_from_the_wheel_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path)],
        cwd=tmp_path,
        env={"PATH": SYSTEM_PATH, "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True ok")
