"""Instructions of a repository below full trust: texts that are read from the pinned commit."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from steadyhand.agents import AgentDefinition, Workspace, parse_definition
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace.filesystem import PRIVATE
from steadyhand.workspace.mirror import Mirror, TreeEntry

INSTRUCTION_PATHS = ("CLAUDE.md", ".claude/CLAUDE.md", ".claude/rules", ".claude/skills", ".claude/agents")
MAX_FILE_BYTES = 256 * 1024
MAX_TOTAL_BYTES = 4 * 1024 * 1024
MAX_FILES = 200
_MAX_CACHED = 64
_SKILL_KEYS = frozenset({"name", "description", "license", "version", "model", "when_to_use"})
_MEMORY_FILES = ("CLAUDE.md", ".claude/CLAUDE.md")


@dataclass(frozen=True, slots=True)
class Instructions:
    """Instructions of a commit: `texts` by their path below the config directory, and `definitions` by name."""

    texts: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, AgentDefinition] = field(default_factory=dict)
    warnings: tuple[JobWarning, ...] = ()


ReadBlobs = Callable[[Sequence[TreeEntry], int], Awaitable[Sequence[bytes]]]


async def read_instructions(entries: Sequence[TreeEntry], blobs: ReadBlobs, *, full: bool) -> Instructions:
    """Choose files of a commit, read them and keep those that are text. A file above a limit becomes a warning."""
    usable = [entry for entry in entries if _is_safe_path(entry.path)]
    chosen, skipped = _within_limits(sorted(usable, key=_priority))
    contents = await blobs(chosen, MAX_TOTAL_BYTES)
    texts: dict[str, str] = {}
    definitions: dict[str, AgentDefinition] = {}
    memory: list[str] = []
    for entry, content in zip(chosen, contents, strict=True):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            skipped.append(entry.path)
            continue
        path = PurePosixPath(entry.path)
        if entry.path in _MEMORY_FILES:
            memory.append(text)
        elif path.parts[1] == "agents":
            definition = _parse_agent_definition(path, text, full=full)
            if definition is not None:
                definitions.setdefault(definition.name, definition)
        else:
            plain = _sanitize_skill(text) if path.name == "SKILL.md" and not full else text
            texts["/".join(path.parts[1:])] = plain
    if memory:
        texts["CLAUDE.md"] = "\n\n".join(memory)
    warnings = (_skipped_warning(skipped),) if skipped else ()
    return Instructions(texts, definitions, warnings)


class InstructionsCache:
    """The instructions of commits by their workspace's trust; the latest ones are cached."""

    def __init__(self) -> None:
        self._cache: dict[tuple[str, str, bool], Instructions] = {}

    async def load(self, mirror: Mirror, commit: str, workspace: Workspace) -> Instructions:
        """Return the instructions of a commit. Raise `WorkspaceError`."""
        if workspace.trust == "none":
            return Instructions()
        full = is_fully_trusted(workspace)
        key = (mirror.folder.name, commit, full)
        if key not in self._cache:
            entries = await mirror.list_files(commit, INSTRUCTION_PATHS)
            while len(self._cache) >= _MAX_CACHED:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = await read_instructions(entries, mirror.read_blobs, full=full)
        return self._cache[key]


def _is_safe_path(path: str) -> bool:
    parts = path.split("/")
    return all(part not in {"", ".", ".."} and len(part) < 200 for part in parts)  # noqa: PLR2004


def _priority(entry: TreeEntry) -> tuple[int, str]:
    """Return the sort key: the memory files first, that of the root before the other, then the rest by path."""
    rank = _MEMORY_FILES.index(entry.path) if entry.path in _MEMORY_FILES else len(_MEMORY_FILES)
    return rank, entry.path


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


def _parse_agent_definition(path: PurePosixPath, text: str, *, full: bool) -> AgentDefinition | None:
    if path.suffix != ".md":
        return None
    return parse_definition(path.stem, text, origin="workspace", full_trust=full)


_FRONTMATTER = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def _sanitize_skill(text: str) -> str:
    """Keep only the description in a skill's frontmatter, which could also define hooks."""
    match = _FRONTMATTER.match(text)
    if match is None:
        return text
    try:
        keys = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError):
        keys = None
    allowed_keys = {k: v for k, v in keys.items() if k in _SKILL_KEYS} if isinstance(keys, dict) else {}
    frontmatter = yaml.safe_dump(allowed_keys, sort_keys=False, allow_unicode=True) if allowed_keys else ""
    return f"---\n{frontmatter}---\n{text[match.end() :]}"


def load_definitions(folder: Path) -> dict[str, AgentDefinition]:
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
            definition = parse_definition(path.stem, text, origin="data_dir", full_trust=True)
            if definition is not None:
                definitions[definition.name] = definition
    return definitions


SANDBOX_SETTINGS = '{"skipWebFetchPreflight": true}\n'
"""In the sandbox, the CLI cannot ask its maker if an address is harmless; the proxy decides which hosts it reaches."""


def write_config(
    config: Path,
    texts: Mapping[str, str],
    definitions: Mapping[str, AgentDefinition],
    *,
    sandboxed: bool = False,
) -> None:
    """Write instructions and definitions to a config directory that only the service can access so far."""
    if sandboxed:
        _write(config / "settings.json", SANDBOX_SETTINGS)
    for name, text in texts.items():
        _write(config / name, text)
    for definition in definitions.values():
        _write(config / "agents" / f"{definition.name}.md", definition.text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8", newline="") as file:  # nothing is there yet, least of all a symlink
        file.write(text)


def is_fully_trusted(workspace: Workspace) -> bool:
    """Return true if the repository's own settings, hooks and servers are used on this workspace's ref."""
    if workspace.trust != "full":
        return False
    names = {_branch_name(ref) for ref in workspace.trusted_refs}
    return _branch_name(workspace.ref or "HEAD") in names


def _branch_name(ref: str) -> str:
    return ref.removeprefix("refs/heads/")
