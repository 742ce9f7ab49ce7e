"""The program for the inside of the sandbox is sent as code of this Python, and as text for any other one."""

import subprocess
import sys
from importlib.util import MAGIC_NUMBER

import pytest

from steadyhand.workspace import sandboxed_git_client

SOURCES = {
    "sandboxed_one": "VALUE = 41\n",
    "sandboxed_two": "from steadyhand.workspace.sandboxed_one import VALUE\ndef main():\n    print(VALUE + 1)\n",
}
WITHOUT_COMPILER = "import builtins\nbuiltins.compile = None\n"


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_same_python_compiles_nothing() -> None:
    program = sandboxed_git_client.build_program(SOURCES)
    assert run(WITHOUT_COMPILER + program).stdout == "42\n"


def test_another_python_compiles_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxed_git_client, "MAGIC_NUMBER", MAGIC_NUMBER[:1] + b"?" + MAGIC_NUMBER[2:])
    program = sandboxed_git_client.build_program(SOURCES)
    assert run(program).stdout == "42\n"
    assert run(WITHOUT_COMPILER + program).returncode == 1
