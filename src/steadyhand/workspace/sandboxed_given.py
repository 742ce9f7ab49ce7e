"""Record the files of a new checkout whose bytes are not those of their blobs. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox. A harvest compares with these bytes: a
file that is as it was given is no change, whatever git makes of its line endings, its encoding or its filter.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steadyhand.workspace.sandboxed_command import git
from steadyhand.workspace.sandboxed_files import GITLINK, format_given, nul_terminated, raw_entry

_ATTRIBUTES = ("eol", "crlf", "ident", "filter", "working-tree-encoding")
_WORDS = (b"eol", b"crlf", b"ident", b"filter", b"encoding", b"[attr]")
_UNSET = frozenset({b"unspecified", b"unset"})
_ATTRIBUTES_FILE = b".gitattributes"


def read_given(tree: Path) -> bytes:
    """Return the entries of files that are converted at checkout, and the submodules; see `sandboxed_files.Given`."""
    entries: dict[bytes, tuple[bytes, bytes]] = {}
    submodules = []
    for line in git("ls-files", "-z", "--stage", cwd=tree).split(b"\x00"):
        head, _, name = line.partition(b"\t")
        fields = head.split()
        if name and fields[0] == GITLINK:
            submodules.append((name, GITLINK, fields[1], fields[1]))
        elif name:
            entries[name] = (fields[0], fields[1])
    return format_given([*submodules, *_converted(tree, entries)])


def _converted(
    tree: Path, entries: Mapping[bytes, tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
    for name in _names_with_attributes(tree, entries):
        mode, blob = entries[name]
        raw = raw_entry(tree / os.fsdecode(name), len(blob))
        if raw is not None and raw != (mode, blob):
            yield name, mode, blob, raw[1]


def _names_with_attributes(tree: Path, names: Iterable[bytes]) -> list[bytes]:
    """Return the names that have an attribute by which git converts at checkout, in their order."""
    attributes = [name for name in names if name.rpartition(b"/")[2] == _ATTRIBUTES_FILE]
    if not any(_has_words(tree / os.fsdecode(name)) for name in attributes):
        return []  # a look at each name costs a second in a large repository
    out = git("check-attr", "-z", "--stdin", *_ATTRIBUTES, cwd=tree, stdin=nul_terminated(names)).split(
        b"\x00"
    )
    found = {name: True for name, value in zip(out[::3], out[2::3], strict=False) if value not in _UNSET}
    return list(found)


def _has_words(path: Path) -> bool:
    try:
        text = path.read_bytes() if path.is_file() else b""
    except OSError:
        return False
    return any(word in text for word in _WORDS)


def given(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:  # noqa: ARG001  # a command's signature
    """Return what `read_given` found in the current directory."""
    return {}, [read_given(Path.cwd())]
