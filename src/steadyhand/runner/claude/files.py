"""The files of the CLI: its config directory, and the files of a repository that instruct it."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from steadyhand.agents import AgentDefinition
from steadyhand.job import JobWarning
from steadyhand.ports import Instructions
from steadyhand.redact import Redactor
from steadyhand.runner.claude.definitions import parse_definition, sanitize_skill
from steadyhand.runner.claude.session import (
    default_config_dir,
    move_sessions,
    redirect_sessions,
    restore_sessions,
)
from steadyhand.runner.claude.transcript import copy_transcript
from steadyhand.runner.process.plain_files import write_new_file

SANDBOX_SETTINGS = '{"skipWebFetchPreflight": true}\n'
"""In the sandbox, the CLI cannot ask its maker if an address is harmless; the proxy decides which hosts it reaches."""


class ClaudeFiles:
    """The `AgentFiles` of the CLI."""

    instruction_files: Sequence[str] = ("CLAUDE.md", ".claude/CLAUDE.md")
    instruction_dirs: Sequence[str] = (".claude/rules", ".claude/skills", ".claude/agents")

    def read_instructions(self, files: Sequence[tuple[str, str]], *, full_trust: bool) -> Instructions:
        """Return the instructions in files of a repository. Below full trust, nothing of them can start a command."""
        texts: dict[str, str] = {}
        definitions: dict[str, AgentDefinition] = {}
        memory: list[str] = []
        for name, text in files:
            path = PurePosixPath(name)
            if name in self.instruction_files:
                memory.append(text)
            elif path.parts[1] == "agents":
                definition = (
                    parse_definition(path.stem, text, origin="workspace", full_trust=full_trust)
                    if path.suffix == ".md"
                    else None
                )
                if definition is not None:
                    definitions.setdefault(definition.name, definition)
            else:
                plain = sanitize_skill(text) if path.name == "SKILL.md" and not full_trust else text
                texts["/".join(path.parts[1:])] = plain
        if memory:
            texts["CLAUDE.md"] = "\n\n".join(memory)
        return Instructions(texts, definitions)

    def parse_own_definition(self, stem: str, text: str) -> AgentDefinition | None:
        """Parse an agent definition of the operator, with all its keys; return None if the text is not one."""
        return parse_definition(stem, text, origin="data_dir", full_trust=True)

    def write_config(
        self,
        config_dir: Path,
        texts: Mapping[str, str],
        definitions: Mapping[str, AgentDefinition],
        *,
        sandboxed: bool,
    ) -> None:
        """Write instructions and definitions to a config directory that only the service can access so far."""
        if sandboxed:
            write_new_file(config_dir / "settings.json", SANDBOX_SETTINGS)
        for name, text in texts.items():
            write_new_file(config_dir / name, text)
        for definition in definitions.values():
            write_new_file(config_dir / "agents" / f"{definition.name}.md", definition.text)

    def move_session(self, config_dir: Path, old_directory: Path, new_directory: Path) -> None:
        """Move the sessions of a directory to where the CLI looks for those of another one."""
        move_sessions(config_dir, old_directory, new_directory)

    def redirect_sessions(
        self, config_dir: Path, old_directory: Path, new_directory: Path, owner: int | None
    ) -> None:
        """Let a process that was started in one directory write its sessions where those of another one are."""
        redirect_sessions(config_dir, old_directory, new_directory, owner)

    def restore_sessions(self, config_dir: Path, old_directory: Path, new_directory: Path) -> None:
        """Undo `redirect_sessions`."""
        restore_sessions(config_dir, old_directory, new_directory)

    def copy_transcript(
        self,
        config_dir: Path,
        target: Path,
        *,
        owner: int | None,
        redactor: Redactor,
        since: float = 0.0,
        directory: Path | None = None,
    ) -> JobWarning | None:
        """Copy the newest session file to `target` without live secrets; see `transcript.copy_transcript`."""
        return copy_transcript(
            config_dir, target, owner=owner, redactor=redactor, since=since, directory=directory
        )

    def default_config_dir(self, home: Path) -> Path:
        """Return the config directory that the CLI uses in a home if it gets no other."""
        return default_config_dir(home)
