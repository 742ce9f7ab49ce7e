"""The program of Codex: the native one, also behind npm's launcher."""

from pathlib import Path

import pytest

from steadyhand.errors import ConfigError
from steadyhand.runner.codex.codex_program import find_codex, native_program


def npm_tree(root: Path, *, native: bool = True) -> tuple[Path, Path]:
    """Make what npm installs, and return the link to the launcher and the native program."""
    scope = root / "node_modules" / "@openai"
    launcher, program = scope / "codex" / "bin" / "codex.js", scope / "codex-linux-x64/vendor/musl/bin/codex"
    for path in (launcher, *([program] if native else [])):
        path.parent.mkdir(parents=True)
        path.write_text("#!/usr/bin/env node\n")
        path.chmod(0o755)
    link = root / "bin" / "codex"
    link.parent.mkdir()
    link.symlink_to(launcher)
    return link, program


def test_the_program_beside_npms_launcher_is_the_one_that_runs(tmp_path: Path) -> None:
    link, program = npm_tree(tmp_path)
    assert native_program(link) == program
    assert find_codex(link, tmp_path / "data", None) == program


def test_a_program_that_is_no_launcher_stays_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "codex"
    program.write_bytes(b"\x7fELF")
    assert native_program(program) == program


def test_a_launcher_without_the_program_of_this_machine_is_named_by_its_error(tmp_path: Path) -> None:
    link, _ = npm_tree(tmp_path, native=False)
    with pytest.raises(
        ConfigError, match=r"runner.codex.path: .* is npm's launcher, and the program .* is missing"
    ):
        find_codex(link, tmp_path / "data", None)
    with pytest.raises(ConfigError, match="is not a file"):
        find_codex(tmp_path / "away", tmp_path / "data", None)
    assert find_codex(None, tmp_path / "data", None) is None
