"""A unified diff of git, parsed for a page: files, hunks and numbered lines. All of it is bounded."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

from steadyhand.web.code_colours import MAX_PAGE_TOKENS, HunkColours, Tokens, language_of
from steadyhand.web.plain_text import visible_text

MAX_FILES = 500
MAX_LINES = 12_000
"""Lines of all files together; of the rest, the files alone are listed."""
MAX_LINE_LENGTH = 2_000
_MAX_DEPTH = 12
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@(.*)")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}

LineKind = Literal["same", "added", "removed"]


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One line of a hunk, with its numbers before and after the change."""

    kind: LineKind
    before: int | None
    after: int | None
    text: str
    tokens: Tokens = ()
    """The parts of the text with their colours; empty if it has none."""


@dataclass(slots=True)
class Hunk:
    """Lines that stand together."""

    header: str
    lines: list[DiffLine] = field(default_factory=list)


@dataclass(slots=True)
class FileDiff:
    """The changes of one file. `omitted_lines` are those that the page leaves out."""

    path: str = ""
    old_path: str = ""
    change: Literal["changed", "added", "deleted", "renamed"] = "changed"
    notes: list[str] = field(default_factory=list)
    hunks: list[Hunk] = field(default_factory=list)
    insertions: int = 0
    deletions: int = 0
    omitted_lines: int = 0


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A row of the tree of files; a folder has no index of a file."""

    name: str
    depth: int
    index: int | None = None


@dataclass(slots=True)
class ParsedDiff:
    """The files of a diff; `omitted_files` more are not listed."""

    files: list[FileDiff] = field(default_factory=list)
    omitted_files: int = 0


def parse_diff(text: str) -> ParsedDiff:
    """Parse the output of `git diff`. Text that is no diff has no files."""
    parsed = ParsedDiff()
    lines = iter(text.split("\n"))
    current: FileDiff | None = None
    shown = 0
    for line in lines:
        if line.startswith("diff --git "):
            current = None
            if len(parsed.files) < MAX_FILES:
                current = FileDiff()
                current.path = current.old_path = _header_path(line.removeprefix("diff --git "))
                parsed.files.append(current)
            else:
                parsed.omitted_files += 1
        elif (match := _HUNK.match(line)) is not None:
            shown += _read_hunk(lines, match, current, MAX_LINES - shown)
        elif current is not None:
            _read_header(current, line)
    return parsed


def _header_path(text: str) -> str:
    """Return the path of `a/PATH b/PATH`; a rename is corrected by the lines below it."""
    if text.startswith('"'):
        return _unquoted(text[: text.find('"', 2) + 1])
    half = (len(text) - 1) // 2
    return _unquoted(text[:half])


def _unquoted(text: str) -> str:
    """Return a path of git without quotes, and without its `a/` or `b/`."""
    text = text.rstrip("\t\r")
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        data = text[1:-1].encode("utf-8", "replace")
        unescaped = _ESCAPE.sub(lambda match: _unescaped(match[1]), data)
        text = unescaped.decode("utf-8", "replace")
    return visible_text(text[2:] if text[:2] in ("a/", "b/") else text).replace("\n", "⏎")


def _unescaped(escape: bytes) -> bytes:
    return bytes([int(escape, 8) & 255]) if len(escape) > 1 else _LETTERS.get(escape, escape)


def _read_header(file: FileDiff, line: str) -> None:
    name, _, rest = line.partition(" ")
    if name == "---" and rest != "/dev/null":
        file.old_path = _unquoted(rest)
    elif name == "+++" and rest != "/dev/null":
        file.path = _unquoted(rest)
    elif line.startswith("new file"):
        file.change = "added"
    elif line.startswith("deleted file"):
        file.change = "deleted"
    elif line.startswith(("rename from ", "copy from ")):
        file.change, file.old_path = "renamed", _unquoted(line.partition(" from ")[2])
    elif line.startswith(("rename to ", "copy to ")):
        file.path = _unquoted(line.partition(" to ")[2])
    elif line.startswith(("old mode", "new mode", "Binary files", "GIT binary patch")):
        file.notes.append(visible_text(line)[:MAX_LINE_LENGTH])


def _read_hunk(lines: Iterator[str], match: re.Match[str], file: FileDiff | None, room: int) -> int:
    """Read the lines that a hunk's header counts; return the number of those that are shown."""
    before, after = int(match[1]), int(match[3])
    left_before = int(match[2]) if match[2] is not None else 1
    left_after = int(match[4]) if match[4] is not None else 1
    hunk = Hunk(visible_text(match[5].strip())[:MAX_LINE_LENGTH])
    if file is not None and room > 0:
        file.hunks.append(hunk)
    while left_before > 0 or left_after > 0:
        line = next(lines, None)
        if line is None:
            break
        mark, text = line[:1], visible_text(line[1 : MAX_LINE_LENGTH + 1])
        if mark == "\\":
            continue
        kind: LineKind = "added" if mark == "+" else "removed" if mark == "-" else "same"
        old_number = before if kind != "added" else None
        new_number = after if kind != "removed" else None
        if old_number is not None:
            before, left_before = before + 1, left_before - 1
        if new_number is not None:
            after, left_after = after + 1, left_after - 1
        if file is None:
            continue
        file.insertions += kind == "added"
        file.deletions += kind == "removed"
        if len(hunk.lines) < room:
            hunk.lines.append(DiffLine(kind, old_number, new_number, text))
        else:
            file.omitted_lines += 1
    return len(hunk.lines)


def colour_lines(files: Sequence[FileDiff]) -> None:
    """Add the colours of the lines of files in known languages, up to `MAX_PAGE_TOKENS` parts."""
    left = MAX_PAGE_TOKENS
    for file in files:
        language = language_of(file.path)
        if language is None:
            continue
        for hunk in file.hunks:
            colours = HunkColours(language)
            for index, line in enumerate(hunk.lines):
                if left <= 0:
                    return
                tokens = colours.tokens(line.kind, line.text)
                left -= len(tokens)
                hunk.lines[index] = replace(line, tokens=tokens)


def split_rows(hunk: Hunk) -> Sequence[tuple[DiffLine | None, DiffLine | None]]:
    """Return the rows of a hunk side by side: removed lines stand beside the added ones that follow them."""
    rows: list[tuple[DiffLine | None, DiffLine | None]] = []
    removed: list[DiffLine] = []
    added: list[DiffLine] = []
    for line in hunk.lines:
        if line.kind == "removed" and not added:
            removed.append(line)
        elif line.kind == "added":
            added.append(line)
        else:
            rows += zip_longest(removed, added)
            removed, added = ([line], []) if line.kind == "removed" else ([], [])
            if line.kind == "same":
                rows.append((line, line))
    rows += zip_longest(removed, added)
    return rows


def file_tree(files: Sequence[FileDiff]) -> Sequence[TreeRow]:
    """Return the rows of a tree of the files, in the order of their paths."""
    rows: list[TreeRow] = []
    open_folders: list[str] = []
    for index, file in sorted(enumerate(files), key=lambda each: each[1].path.split("/")):
        *folders, name = file.path.split("/")
        shared = 0
        while shared < min(len(folders), len(open_folders)) and folders[shared] == open_folders[shared]:
            shared += 1
        rows += [
            TreeRow(folder, min(depth, _MAX_DEPTH)) for depth, folder in enumerate(folders[shared:], shared)
        ]
        open_folders = folders
        rows.append(TreeRow(name, min(len(folders), _MAX_DEPTH), index))
    return rows
