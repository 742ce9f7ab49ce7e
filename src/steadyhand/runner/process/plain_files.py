"""The files of an agent that reads the instructions of a repository by itself: none is laid into its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from steadyhand.agents import AgentDefinition
from steadyhand.job import JobWarning
from steadyhand.ports import Instructions
from steadyhand.redact import Redactor


def write_new_file(path: Path, text: str) -> None:
    """Write a file below a folder that only the service can access so far: there is no file and no link yet."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)


class PlainFiles:
    """An `AgentFiles` without instructions, definitions and transcripts, and with no sessions to move."""

    instruction_files: Sequence[str] = ()
    instruction_dirs: Sequence[str] = ()

    def read_instructions(
        self,
        files: Sequence[tuple[str, str]],  # noqa: ARG002  # the port's signature
        *,
        full_trust: bool,  # noqa: ARG002  # the same
    ) -> Instructions:
        """Return no instructions."""
        return Instructions()

    def parse_own_definition(self, stem: str, text: str) -> AgentDefinition | None:  # noqa: ARG002  # the same
        """Return None: it has no definitions of agents."""
        return None

    def write_config(
        self,
        config_dir: Path,
        texts: Mapping[str, str],
        definitions: Mapping[str, AgentDefinition],
        *,
        sandboxed: bool,
    ) -> None:
        """Write nothing."""

    def move_session(self, config_dir: Path, old_directory: Path, new_directory: Path) -> None:
        """Leave the sessions where they are."""

    def redirect_sessions(
        self, config_dir: Path, old_directory: Path, new_directory: Path, owner: int | None
    ) -> None:
        """Leave the sessions where they are: no process of this kind waits for a job."""

    def restore_sessions(self, config_dir: Path, old_directory: Path, new_directory: Path) -> None:
        """Leave the sessions where they are."""

    def copy_transcript(
        self,
        config_dir: Path,  # noqa: ARG002  # the port's signature
        target: Path,  # noqa: ARG002  # the same
        *,
        owner: int | None,  # noqa: ARG002  # the same
        redactor: Redactor,  # noqa: ARG002  # the same
        since: float = 0.0,  # noqa: ARG002  # the same
        directory: Path | None = None,  # noqa: ARG002  # the same
    ) -> JobWarning | None:
        """Copy nothing."""
        return None

    def default_config_dir(self, home: Path) -> Path:
        """Return the home: a folder of its own is set for it."""
        return home
