"""A release: installed into a clean environment it has all that it needs, and no more than it may."""

import importlib.metadata
import re
import stat
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from tests.docs.pages import table, text_of
from tools.try_release import (
    MAX_BYTES,
    MAX_SECONDS,
    Environment,
    find_pythons,
    install,
    make_empty_folder,
    python_version,
    run,
    run_command,
    unprivileged_uid,
)

from steadyhand import __version__
from steadyhand.testing.cli import SYSTEM_PATH

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_each_pinned_package_can_be_installed_on_the_oldest_python() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    needs = {
        found.metadata["Name"].lower(): found.metadata["Requires-Python"] or ""
        for found in importlib.metadata.distributions()
    }
    checked = [name for name in pinned if name.lower() in needs]
    assert len(checked) > 80
    assert [name for name in checked if not SpecifierSet(needs[name.lower()]).contains(oldest)] == []


@pytest.fixture(scope="module")
def reachable_dir() -> Iterator[Path]:
    """A directory that another user can enter."""
    with tempfile.TemporaryDirectory(prefix="sh-release-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter that another user can start, if this one is root."""
    return next(iter(find_pythons()))


@pytest.fixture(scope="module")
def environment(wheel: Path, python: Path, reachable_dir: Path) -> Environment:
    return install(wheel, python, reachable_dir / "environment")


def test_the_demo_of_an_installed_wheel_works_in_an_empty_folder_without_rights(
    environment: Environment, python: Path, reachable_dir: Path
) -> None:
    uid = unprivileged_uid(python)
    folder = make_empty_folder(reachable_dir, uid)
    assert "sh_admin_" in run_command(environment, folder, "init", "--data-dir", "data", uid=uid)
    key = folder / "data" / "admin.key"
    assert (stat.S_IMODE(key.stat().st_mode), key.stat().st_uid) == (0o600, folder.stat().st_uid)
    empty = make_empty_folder(reachable_dir, uid)
    shown = run_command(environment, empty, "demo", "--clean", uid=uid)
    assert "The test passes." in shown
    # What git and the agent left of their homes is no part of the demo's own directory.
    assert [path.name for path in empty.iterdir() if not path.name.startswith(".")] == []


def test_an_install_is_small_and_has_no_development_package(environment: Environment) -> None:
    names = environment.distributions()
    development = PROJECT["optional-dependencies"]["dev"]
    wanted = {_name(each) for each in PROJECT["dependencies"]} | {"steadyhand"}
    assert wanted <= {_name(name) for name in names}
    assert {_name(each) for each in development} & {_name(name) for name in names} == set()
    size = environment.installed_bytes()
    assert 10_000_000 < size <= MAX_BYTES == 200_000_000


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_the_sdist_has_the_whole_package_and_nothing_that_was_fetched_or_built(sdist: Path) -> None:
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "clients/typescript/package.json"} <= names
    unwanted = {"build", "dist", "node_modules", ".venv", "generated"}
    assert [name for name in names if unwanted & set(name.split("/"))] == []


def test_the_classifiers_name_the_pythons_that_the_page_says_were_tried() -> None:
    prefix = "Programming Language :: Python :: "
    named = [each.removeprefix(prefix) for each in PROJECT["classifiers"] if each.startswith(prefix)]
    tried = [row[0] for row in table(text_of("releasing.md"), "| Python | tried with |")]
    assert named == ["3", *tried]
    assert PROJECT["version"] == __version__
    assert PROJECT["requires-python"] == f">={tried[0]}"
    assert f"{MAX_SECONDS:.0f} s" in text_of("releasing.md")


def test_the_pythons_here_are_found_once_each() -> None:
    versions = [python_version(python) for python in find_pythons()]
    assert versions
    assert len(set(versions)) == len(versions)
    assert min(versions) >= (3, 11)


@pytest.mark.long
def test_a_release_has_all_of_its_parts(tmp_path: Path) -> None:
    run(["/bin/sh", "tools/release.sh", str(tmp_path / "dist")], folder=ROOT)
    version = PROJECT["version"]
    made = {str(path.relative_to(tmp_path / "dist")) for path in (tmp_path / "dist").rglob("*.*")}
    parts = {
        f"steadyhand-{version}-py3-none-any.whl",
        f"steadyhand-{version}.tar.gz",
        f"steadyhand-{version}.cdx.json",
        f"steadyhand-client-{version}.tgz",
        "steadyhand.1",
        "openapi.json",
        *(f"completions/steadyhand.{shell}" for shell in ("bash", "zsh", "fish")),
    }
    assert made == parts
    run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        folder=tmp_path / "dist",
        env={"PATH": SYSTEM_PATH},
    )
    digests = (tmp_path / "dist" / "SHA256SUMS").read_text("ascii")
    assert {line.split("./")[1] for line in digests.splitlines()} == parts
