"""Instructions of a repository below full trust: texts that are read from the pinned commit."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import AgentDefinition, Workspace
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import AgentFiles, AgentFilesOf, Instructions
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.tree_files import TreeEntry

MAX_FILE_BYTES = 256 * 1024
MAX_TOTAL_BYTES = 4 * 1024 * 1024
MAX_FILES = 200
_MAX_CACHED = 64
ReadBlobs = Callable[[Sequence[TreeEntry], int], Awaitable[Sequence[bytes]]]


async def read_instructions(
    agent_files: AgentFiles, entries: Sequence[TreeEntry], blobs: ReadBlobs, *, full_trust: bool
) -> Instructions:
    """Choose files of a commit, read them and keep those that are text. A file above a limit becomes a warning."""
    usable = [
        entry for entry in entries if _is_safe_path(entry.path) and _is_instruction(agent_files, entry.path)
    ]
    main_files = agent_files.instruction_files

    def priority(entry: TreeEntry) -> tuple[int, str]:
        """Return the sort key: the main files first, then the rest by path."""
        rank = main_files.index(entry.path) if entry.path in main_files else len(main_files)
        return rank, entry.path

    chosen, skipped = _within_limits(sorted(usable, key=priority))
    contents = await blobs(chosen, MAX_TOTAL_BYTES)
    files: list[tuple[str, str]] = []
    for entry, content in zip(chosen, contents, strict=True):
        try:
            files.append((entry.path, content.decode("utf-8")))
        except UnicodeDecodeError:
            skipped.append(entry.path)
    warnings = (_skipped_warning(skipped),) if skipped else ()
    return replace(agent_files.read_instructions(files, full_trust=full_trust), warnings=warnings)


class InstructionsCache:
    """The instructions of commits by their workspace's trust and the kind of agent; the latest ones are cached."""

    def __init__(self, agent_files_of: AgentFilesOf) -> None:
        self._agent_files_of = agent_files_of
        self._cache: dict[tuple[str, str, str, bool], Instructions] = {}

    async def load(self, mirror: Mirror, commit: str, workspace: Workspace, runner: str) -> Instructions:
        """Return the instructions of a commit for the agents of a runner. Raise `WorkspaceError`."""
        if workspace.trust == "none":
            return Instructions()
        full = is_fully_trusted(workspace)
        agent_files = self._agent_files_of(runner)
        paths = instruction_paths(agent_files)
        if not paths:  # git would list all files
            return Instructions()
        key = (mirror.folder.name, commit, runner, full)
        if key not in self._cache:
            entries = await mirror.list_files(commit, paths)
            while len(self._cache) >= _MAX_CACHED:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = await read_instructions(
                agent_files, entries, mirror.read_blobs, full_trust=full
            )
        return self._cache[key]


def instruction_paths(agent_files: AgentFiles) -> tuple[str, ...]:
    """Return the paths in a repository that may hold instructions."""
    return (*agent_files.instruction_files, *agent_files.instruction_dirs)


def _is_safe_path(path: str) -> bool:
    parts = path.split("/")
    return all(part not in {"", ".", ".."} and len(part) < 200 for part in parts)  # noqa: PLR2004


def _is_instruction(agent_files: AgentFiles, path: str) -> bool:
    """Return True for a main file or a file in a directory of instructions.

    Git lists a directory that has a main file's name with all that is in it; files in it could be settings.
    """
    directories = (f"{name}/" for name in agent_files.instruction_dirs)
    return path in agent_files.instruction_files or path.startswith(tuple(directories))


def _within_limits(entries: Sequence[TreeEntry]) -> tuple[list[TreeEntry], list[str]]:
    chosen: list[TreeEntry] = []
    skipped: list[str] = []
    total = 0
    for entry in entries:
        if entry.size > MAX_FILE_BYTES or total + entry.size > MAX_TOTAL_BYTES or len(chosen) >= MAX_FILES:
            skipped.append(entry.path)
            continue
        total += entry.size
        chosen.append(entry)
    return chosen, skipped


def _skipped_warning(paths: Sequence[str]) -> JobWarning:
    names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")  # noqa: PLR2004
    return JobWarning(
        WarningCode.INSTRUCTIONS_CUT,
        f"Instructions that are too large, too many or no text were left out: {names}.",
    )


def load_definitions(agent_files: AgentFiles, folder: Path) -> dict[str, AgentDefinition]:
    """Return the operator's own agent definitions, with all their keys; unreadable files are left out."""
    definitions: dict[str, AgentDefinition] = {}
    if not folder.is_dir():
        return definitions
    for path in sorted(folder.glob("*.md"))[:MAX_FILES]:
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_FILE_BYTES + 1)
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) <= MAX_FILE_BYTES:
            definition = agent_files.parse_own_definition(path.stem, text)
            if definition is not None:
                definitions[definition.name] = definition
    return definitions


def is_fully_trusted(workspace: Workspace) -> bool:
    """Return true if the repository's own settings, hooks and servers are used on this workspace's ref."""
    if workspace.trust != "full":
        return False
    names = {_branch_name(ref) for ref in workspace.trusted_refs}
    return _branch_name(workspace.ref or "HEAD") in names


def _branch_name(ref: str) -> str:
    return ref.removeprefix("refs/heads/")
