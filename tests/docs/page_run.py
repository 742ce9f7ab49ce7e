"""The marked blocks of a page, carried out in order as a reader would: files, commands, programs, and their output."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml
from tests.docs.pages import PROJECT

from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, Service

SECONDS = 120
ADDRESS = "http://127.0.0.1:8080"
"""The address of the service on the pages."""
DATA_DIR = "/var/lib/steadyhand"
"""Its data directory on the pages."""
_BLOCK = re.compile(
    r"(?:^<!-- ([a-z]+)(?:: ([^\n]+))? -->\n)?^```([a-z]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
_KEEP = 'set -a\n[ ! -f "$STATE" ] || . "$STATE"\ncd "${PAGE_DIR:-$PWD}"\n'
_SAVE = (
    '\nPAGE_DIR=$PWD\nexport -p | grep -Ev "^declare -x (STEADYHAND_URL|OPENAI_BASE_URL|STATE)=" > "$STATE"\n'
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page with the marker above it: `run`, `file`, `start`, `output` or `read`."""

    kind: str
    argument: str
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order; the kind of one without a marker is empty."""
    return [Block(*match) for match in _BLOCK.findall(page.read_text("utf-8"))]


def check_syntax(name: str, text: str) -> None:
    """Raise an error for a file that its own program could not read."""
    match name.rpartition(".")[2]:
        case "toml":
            tomllib.loads(text)
        case "yaml" | "yml":
            assert isinstance(yaml.safe_load(text), dict)
        case "json":
            json.loads(text)
        case "sh":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=SECONDS)
        case "py":
            compile(text, name, "exec")


def matches(expected: str, printed: str) -> bool:
    """Return True if a text is as expected; `…` stands for anything within a line, and a line of it for any lines."""
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n"
        for line in expected.splitlines()
    )
    return re.fullmatch(pattern, printed if printed.endswith("\n") else f"{printed}\n") is not None


@dataclass
class PageRun:
    """A page that is carried out in a directory, with the service that it is about once that has started."""

    commands_dir: ClassVar[Path | None] = None
    """A directory with a `steadyhand` that goes before the one that is installed."""

    page: Path
    folder: Path
    service: Service | None = None
    replaced: dict[str, str] = field(default_factory=dict)
    """Texts of the page that are other ones here, such as the address of the service."""
    environment: dict[str, str] = field(default_factory=dict)
    """More variables of its commands; an empty one takes a variable away."""
    programs: dict[str, Callable[[Path], tuple[list[str], dict[str, str]]]] = field(default_factory=dict)
    """The command and the environment of a Python program, by the word after `run:`."""
    is_stopped: bool = False
    """True while the service does not run, before a block `start`."""
    printed: str = ""

    def here(self, text: str) -> str:
        """Return a text of the page as it has to be on this machine."""
        replaced = dict(self.replaced)
        if self.service is not None:
            replaced |= {ADDRESS: self.service.url, DATA_DIR: str(self.service.data_dir)}
        for before, after in replaced.items():
            text = text.replace(before, after)
        return text

    def settings(self) -> str:
        """Return the settings of the page's files, for the service."""
        texts = [
            each.text
            for each in blocks_of(self.page)
            if (each.kind, each.argument) == ("file", "steadyhand.toml")
        ]
        return self.here("\n".join(texts))

    def carry_out(self) -> None:
        """Carry out the page; a command that fails, or that prints something else, fails the test."""
        for block in blocks_of(self.page):
            match block.kind:
                case "file":
                    self.write(block)
                case "run":
                    self.printed = self.run(block)
                case "stop":
                    self.service_in_use().terminate()
                    self.is_stopped = True
                    self.printed = self.run(block)
                case "start" if self.is_stopped:
                    self.service_in_use().start()
                    self.is_stopped = False
                case "output":
                    assert matches(block.text, self.printed), f"{self.page.name}: it printed {self.printed!r}"

    def write(self, block: Block) -> None:
        """Write a file of the page, as it has to be here, and look at its syntax."""
        check_syntax(block.argument, self.here(block.text))
        path = self.folder / block.argument.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.here(block.text), "utf-8")
        path.chmod(0o755 if block.text.startswith("#!") else 0o644)

    def run(self, block: Block) -> str:
        """Run a block and return what it printed on stdout."""
        text = self.here(block.text)
        if block.language == "python":
            program = self.folder / "block.py"
            program.write_text(text, "utf-8")
            command, environment = self.programs[block.argument](program)
            return self.run_command(command, environment)
        state = self.folder / ".state"
        return self.run_shell(f"{_KEEP}{text}{_SAVE}", {"STATE": str(state)})

    def run_shell(self, text: str, variables: Mapping[str, str] | None = None) -> str:
        """Run a text of bash in the page's directory and return what it printed on stdout."""
        return self.run_command(["bash", "-eu", "-c", text], variables or {})

    def run_command(self, command: list[str], variables: Mapping[str, str]) -> str:
        """Run a command in the page's directory, with more variables, and return what it printed on stdout."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.variables(), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{self.page.name}: {command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def service_in_use(self) -> Service:
        """Return the service of the page."""
        assert self.service is not None
        return self.service

    def variables(self) -> dict[str, str]:
        """Return the environment of the page's commands; nothing of this process's own goes in."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        programs = [self.commands_dir, Path(sys.executable).parent, SYSTEM_PATH]
        found = {
            "PATH": ":".join(str(each) for each in programs if each is not None),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "API_BEARER_TOKEN": CLASSIC_KEY,
            "STEADYHAND_TOKEN": ADMIN_KEY,
        }
        if self.service is not None:
            found |= {
                "STEADYHAND_URL": self.service.url,
                "STEADYHAND_DATA_DIR": str(self.service.data_dir),
                "OPENAI_BASE_URL": f"{self.service.url}/v1",
                "OPENAI_API_KEY": ADMIN_KEY,
            }
        return {name: value for name, value in {**found, **self.environment}.items() if value}


def pages() -> list[Path]:
    """Return the pages whose every block is carried out: the how-tos and the tutorial."""
    return [
        *sorted((PROJECT / "docs" / "how-to").glob("*.md")),
        *sorted((PROJECT / "docs").glob("tutorial.md")),
    ]
