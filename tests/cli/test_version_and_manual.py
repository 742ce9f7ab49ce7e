"""The versions, the completion of shells, and the page of the manual."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.command_line import CommandLine
from tests.docs.pages import PROJECT

from steadyhand import __version__
from steadyhand.cli.app import COMMAND_MODULES
from steadyhand.cli.man_page import man_page
from steadyhand.cli.version import agent_cli_version, store_schema
from steadyhand.store.schema import NEWEST_REVISION
from steadyhand.testing.cli import SYSTEM_PATH

SHELLS = {
    # How each is started without the files of its user, and told of the script.
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {script}"),
    "zsh": (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -u; source {script}"),
    "fish": (["fish", "--no-config", "-i"], "source {script}"),
}
FOUND_SHELLS = [name for name in SHELLS if shutil.which(name)]


def agent_program(folder: Path, script: str) -> str:
    program = folder / "agent"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_the_version_names_the_package_the_agents_program_and_the_schema(
    steadyhand: CommandLine, tmp_path: Path
) -> None:
    program = agent_program(tmp_path, "echo 9.8.7 of an agent")
    shown = steadyhand("--version", STEADYHAND_RUNNER__CLAUDE__PATH=program)
    lines = [__version__, "agent CLI: 9.8.7 of an agent", f"store schema: {NEWEST_REVISION}"]
    assert (shown.code, shown.out.splitlines()) == (0, lines)
    assert store_schema() == NEWEST_REVISION


def test_a_program_that_hangs_fails_or_is_not_there_costs_the_version_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for script, seconds, said in (
        ("exec sleep 60", 0.2, "not known: it did not answer"),
        ("exit 3", 20.0, "not known: it ended with 3"),
        ("printf '\\033[31mred'", 20.0, "red"),
    ):
        monkeypatch.setattr("steadyhand.cli.version._SECONDS", seconds)
        path = agent_program(tmp_path, script)
        found = agent_cli_version({"STEADYHAND_RUNNER__CLAUDE__PATH": path})
        assert said in found
        assert "\x1b" not in found
    assert "not found" in agent_cli_version({"STEADYHAND_RUNNER__CLAUDE__PATH": "/nowhere"})


def test_only_the_users_own_file_names_the_program_whose_version_is_asked_for(
    steadyhand: CommandLine, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    program = agent_program(tmp_path, f"touch {marker}; echo mine")
    (tmp_path / "steadyhand.toml").write_text(f'[runner.claude]\npath = "{program}"\n')
    assert steadyhand("--version").code == 0
    assert not marker.exists(), "a file of a hostile repository started a program"
    own = tmp_path / ".config" / "steadyhand"
    own.mkdir(parents=True)
    (tmp_path / "steadyhand.toml").rename(own / "steadyhand.toml")
    assert "agent CLI: mine" in steadyhand("--version").out


@pytest.mark.parametrize("shell", FOUND_SHELLS)
def test_a_shell_completes_commands_and_options(shell: str, steadyhand: CommandLine, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(steadyhand("completion", shell).out)
    program = tmp_path / "bin" / "steadyhand"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom steadyhand.cli import main\nmain()\n")
    program.chmod(0o755)
    env = steadyhand.env | {"PATH": f"{program.parent}:{SYSTEM_PATH}:{os.environ['PATH']}", "TERM": "dumb"}
    arguments, load = SHELLS[shell]
    typed = [load.format(script=script), "steadyhand resu\t\x15", "steadyhand usage --unt\t\x15"]
    expected = ["", "steadyhand resume", "steadyhand usage --until"]
    shown = type_into(arguments, env, tmp_path, typed, expected)
    assert "Traceback" not in shown


def type_into(
    arguments: list[str], env: dict[str, str], folder: Path, typed: list[str], expected: list[str]
) -> str:
    """Type lines into a shell on a terminal, each after the text that the one before brings; return what it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 90
    try:
        for text, wanted in zip(typed, expected, strict=True):
            ending = "" if text.endswith("\x15") else "\n"
            os.write(ours, (text.removesuffix("\x15") + ending).encode())
            while wanted not in plain(shown):
                ready, _, _ = select.select([ours], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, f"{wanted!r} did not come; this did: {plain(shown)}"
                shown += os.read(ours, 65_536)
            os.write(ours, text[len(text.removesuffix("\x15")) :].encode())
    finally:
        process.kill()
        process.wait(20)
        os.close(ours)
    return plain(shown)


def plain(shown: bytes) -> str:
    """Return the text of a terminal without what moves its cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[>=]|[\r\x07]", "", shown.decode("utf-8", "replace"))


def test_each_shell_has_a_script_and_another_one_is_a_wrong_usage(steadyhand: CommandLine) -> None:
    for shell in SHELLS:
        script = steadyhand("completion", shell)
        assert (script.code, "_STEADYHAND_COMPLETE" in script.out) == (0, True)
    assert steadyhand("completion", "tcsh").code == 2
    assert "bash" in FOUND_SHELLS


def test_the_manual_names_each_command_and_the_formatter_has_nothing_to_say(tmp_path: Path) -> None:
    page = man_page()
    names = {name for group in COMMAND_MODULES.values() for name in group}
    shown = set(re.findall(r"^\.SS steadyhand (\w+)", page, re.MULTILINE))
    assert shown == names
    assert ".B \\-\\-version" in page
    for code in re.findall(r"^\| (\d+) \|", (PROJECT / "docs" / "cli.md").read_text("utf-8"), re.MULTILINE):
        assert f"\n.B {code}\n" in page
    groff = shutil.which("groff")
    if groff is not None:
        (tmp_path / "steadyhand.1").write_text(page)
        command = [groff, "-man", "-Tutf8", "-ww", "-z", str(tmp_path / "steadyhand.1")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
