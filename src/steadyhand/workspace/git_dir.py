"""Write git directories by hand, without templates and hooks."""

import contextlib
import shutil
from pathlib import Path

from steadyhand.workspace.filesystem import PRIVATE, make_dir
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.mirror import Mirror

_SHA256_DIGITS = 64


def core_config(commit: str) -> str:
    """Return the beginning of the configuration of a git directory that holds `commit`."""
    if len(commit) != _SHA256_DIGITS:
        return "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n"
    return "[extensions]\n\tobjectFormat = sha256\n[core]\n\trepositoryformatversion = 1\n\tfilemode = true\n"


def make_bare_repository(folder: Path, alternates: Path | None, commit: str) -> None:
    """Create a bare git directory that reads `alternates`, an objects folder, as if it were its own.

    The length of the id of `commit` decides the object format.
    """
    make_dir(folder, PRIVATE)
    for name in ("objects/info", "objects/pack", "refs/heads"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
    (folder / "config").write_text(core_config(commit), encoding="utf-8")
    if alternates is not None:
        (folder / "objects" / "info" / "alternates").write_text(f"{alternates}\n", encoding="utf-8")
        shallow = alternates.parent / "shallow"
        if shallow.is_file():
            (folder / "shallow").write_bytes(shallow.read_bytes())


def write_git_dir(
    folder: Path, mirror: Mirror, settings: GitSettings, branch: str, *, refs: Path, commit: str
) -> None:
    """Write the `.git` of a checkout whose objects are in place or come from alternates; blocks.

    It sets the author of commits and has the mirror's branches as those of `origin`, but no remote to fetch from.
    `refs` is the file with these refs; `commit` is the one to check out.
    """
    (folder / "refs" / "heads").mkdir(parents=True)
    (folder / "info").mkdir()
    (folder / "HEAD").write_text(f"ref: refs/heads/{branch}\n", encoding="utf-8")
    shutil.copyfile(refs, folder / "packed-refs")
    origin = "file:///nonexistent" if mirror.source.folder is not None else mirror.source.display_name
    config = (
        f"{core_config(commit)}\tbare = false\n\tlogallrefupdates = true\n"
        f"[user]\n\tname = {_quoted(settings.author_name)}\n\temail = {_quoted(settings.author_email)}\n"
        f'[remote "origin"]\n\turl = {_quoted(origin)}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n'
    )
    (folder / "config").write_text(config, encoding="utf-8")
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(mirror.folder / "shallow", folder / "shallow")


def _quoted(value: str) -> str:
    """Quote a value for git's configuration, without newlines."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").replace("\r", " ")
    return f'"{escaped}"'
