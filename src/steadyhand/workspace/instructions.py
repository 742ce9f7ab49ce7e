"""What a repository may bring along below full trust: instructions as text, read from the pinned commit."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from steadyhand.agents import Definition, Workspace, parse_definition
from steadyhand.job import Notice
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace.filesystem import PRIVATE
from steadyhand.workspace.mirror import Entry, Mirror

PATHS = ("CLAUDE.md", ".claude/CLAUDE.md", ".claude/rules", ".claude/skills", ".claude/agents")
FILE_BYTES = 256 * 1024
ALL_BYTES = 4 * 1024 * 1024
FILES = 200
_CACHED = 64
_SKILL_KEYS = frozenset({"name", "description", "license", "version", "model", "when_to_use"})
_MEMORY = ("CLAUDE.md", ".claude/CLAUDE.md")


@dataclass(frozen=True, slots=True)
class Instructions:
    """`texts` maps a path below the config directory to a text; `definitions` are by name."""

    texts: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()


Blobs = Callable[[Sequence[Entry], int], Awaitable[Sequence[bytes]]]


async def read_instructions(found: Sequence[Entry], blobs: Blobs, *, full: bool) -> Instructions:
    """Choose among the files of a commit, read them, and keep what is text; the caps are noted, not raised."""
    usable = [entry for entry in found if _safe(entry.path)]
    chosen, left_out = _within_caps(sorted(usable, key=_order))
    contents = await blobs(chosen, ALL_BYTES)
    texts: dict[str, str] = {}
    definitions: dict[str, Definition] = {}
    memory: list[str] = []
    for entry, content in zip(chosen, contents, strict=True):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            left_out.append(entry.path)
            continue
        path = PurePosixPath(entry.path)
        if entry.path in _MEMORY:
            memory.append(text)
        elif path.parts[1] == "agents":
            definition = _definition(path, text, full=full)
            if definition is not None:
                definitions.setdefault(definition.name, definition)
        else:
            plain = _plain_skill(text) if path.name == "SKILL.md" and not full else text
            texts["/".join(path.parts[1:])] = plain
    if memory:
        texts["CLAUDE.md"] = "\n\n".join(memory)
    notices = (_left_out(left_out),) if left_out else ()
    return Instructions(texts, definitions, notices)


class InstructionsOf:
    """What commits bring along by their workspace's trust; the latest ones are remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bool], Instructions] = {}

    async def of(self, mirror: Mirror, commit: str, workspace: Workspace) -> Instructions:
        """Give what a commit brings along; raises `WorkspaceError`."""
        if workspace.trust == "none":
            return Instructions()
        full = trusts_fully(workspace)
        key = (mirror.folder.name, commit, full)
        if key not in self._known:
            found = await mirror.files(commit, PATHS)
            while len(self._known) >= _CACHED:
                self._known.pop(next(iter(self._known)))
            self._known[key] = await read_instructions(found, mirror.blobs, full=full)
        return self._known[key]


def _safe(path: str) -> bool:
    parts = path.split("/")
    return all(part not in {"", ".", ".."} and len(part) < 200 for part in parts)  # noqa: PLR2004


def _order(entry: Entry) -> tuple[int, str]:
    """What is wanted most comes first: the memory files, the root's before the other, then the rest by path."""
    rank = _MEMORY.index(entry.path) if entry.path in _MEMORY else len(_MEMORY)
    return rank, entry.path


def _within_caps(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    chosen: list[Entry] = []
    left_out: list[str] = []
    total = 0
    for entry in entries:
        if entry.size > FILE_BYTES or total + entry.size > ALL_BYTES or len(chosen) >= FILES:
            left_out.append(entry.path)
            continue
        total += entry.size
        chosen.append(entry)
    return chosen, left_out


def _left_out(paths: Sequence[str]) -> Notice:
    names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")  # noqa: PLR2004
    return Notice(
        WarningCode.INSTRUCTIONS_CUT,
        f"Instructions that are too large, too many or no text were left out: {names}.",
    )


def _definition(path: PurePosixPath, text: str, *, full: bool) -> Definition | None:
    if path.suffix != ".md":
        return None
    return parse_definition(path.stem, text, origin="workspace", full=full)


_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def _plain_skill(text: str) -> str:
    """Keep only what describes a skill: its frontmatter could bring hooks along."""
    match = _FRONT.match(text)
    if match is None:
        return text
    try:
        keys = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError):
        keys = None
    kept = {k: v for k, v in keys.items() if k in _SKILL_KEYS} if isinstance(keys, dict) else {}
    front = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True) if kept else ""
    return f"---\n{front}---\n{text[match.end() :]}"


def definitions_in(folder: Path) -> dict[str, Definition]:
    """Give the operator's own agent definitions, with all their keys; what cannot be read is left out."""
    found: dict[str, Definition] = {}
    if not folder.is_dir():
        return found
    for path in sorted(folder.glob("*.md"))[:FILES]:
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(FILE_BYTES + 1)
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) <= FILE_BYTES:
            definition = parse_definition(path.stem, text, origin="data_dir", full=True)
            if definition is not None:
                found[definition.name] = definition
    return found


SEALED_SETTINGS = '{"skipWebFetchPreflight": true}\n'
"""In the sandbox the CLI cannot ask its maker whether an address is harmless; the proxy decides which it reaches."""


def write_config(
    config: Path, texts: Mapping[str, str], definitions: Mapping[str, Definition], *, sealed: bool = False
) -> None:
    """Write instructions and definitions into a config directory that the service alone can reach yet."""
    if sealed:
        _write(config / "settings.json", SEALED_SETTINGS)
    for name, text in texts.items():
        _write(config / name, text)
    for definition in definitions.values():
        _write(config / "agents" / f"{definition.name}.md", definition.text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8", newline="") as file:  # nothing is there yet, least of all a symlink
        file.write(text)


def trusts_fully(workspace: Workspace) -> bool:
    """Whether the repository's own settings, hooks and servers count on this workspace's ref."""
    if workspace.trust != "full":
        return False
    names = {_plain_ref(ref) for ref in workspace.trusted_refs}
    return _plain_ref(workspace.ref or "HEAD") in names


def _plain_ref(ref: str) -> str:
    return ref.removeprefix("refs/heads/")
