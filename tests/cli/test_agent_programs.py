"""`steadyhand agents install`, `list` and `remove`: what they print, and how they fail."""

import json
from pathlib import Path

import pytest
from tests.cli.command_line import InProcessCommandLine
from tests.runner.packages.conftest import place_node


@pytest.fixture
def program(world_dir: Path) -> InProcessCommandLine:
    """The command line of a machine whose npm is configured for a registry that is not there."""
    command = InProcessCommandLine(world_dir, None, None)
    command.env |= {
        "STEADYHAND_DATA_DIR": str(world_dir / "data"),
        "npm_config_registry": "http://127.0.0.1:1/",
        "npm_config_fetch_retries": "0",
    }
    return command


def test_the_list_has_what_is_offered_and_what_is_installed(
    program: InProcessCommandLine, world_dir: Path
) -> None:
    node = place_node(world_dir / "data")
    done = program("agents", "list", "--json")
    rows = {row["name"]: row for row in json.loads(done.out)["data"]}
    assert list(rows) == ["codex", "kimi", "opencode", "claude-agent-acp", "node"]
    assert rows["codex"] == {"name": "codex", "installed": [], "offered": "0.171.0"}
    assert rows["node"]["installed"] == [{"version": "24.19.0", "directory": str(node)}]
    assert [line.split() for line in program("agents", "list").out.splitlines()][:2] == [
        ["NAME", "OFFERED", "INSTALLED"],
        ["codex", "0.171.0", "-"],
    ]


@pytest.mark.parametrize("options", [(), ("--without-sandbox",)])
def test_an_install_without_a_network_says_so_and_leaves_nothing(
    program: InProcessCommandLine, world_dir: Path, options: tuple[str, ...]
) -> None:
    place_node(world_dir / "data")
    done = program("agents", "install", "codex", *options)
    assert done.code == 8
    assert "steadyhand: npm could not fetch codex 0.171.0: " in done.err
    assert sorted(path.name for path in (world_dir / "data" / "packages").iterdir()) == [".lock", "node"]


def test_without_isolation_it_asks_for_the_option(program: InProcessCommandLine) -> None:
    program.env["STEADYHAND_ISOLATION"] = "none"
    done = program("agents", "install", "codex")
    assert done.code == 2
    assert "isolation is 'none' here" in done.err
    assert "--without-sandbox" in done.err


def test_without_bwrap_it_asks_for_the_option(program: InProcessCommandLine, world_dir: Path) -> None:
    program.env["PATH"] = str(world_dir)
    done = program("agents", "install", "codex")
    assert done.code == 2
    assert "there is no bwrap on this machine" in done.err
    assert "--without-sandbox" in done.err


def test_a_name_that_is_not_offered_is_refused(program: InProcessCommandLine) -> None:
    done = program("agents", "install", "codx")
    assert done.code == 2
    assert "'codx' cannot be installed; there are codex, kimi" in done.err


def test_a_removal_says_what_it_removed(program: InProcessCommandLine, world_dir: Path) -> None:
    place_node(world_dir / "data")
    assert program("agents", "remove", "node").err == "Removed node 24.19.0.\n"
    done = program("agents", "remove", "node")
    assert (done.code, done.err) == (3, "steadyhand: node is not installed.\n")
