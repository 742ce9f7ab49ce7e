"""Write git directories by hand, without templates and hooks."""

import contextlib
import shutil
from pathlib import Path

from steadyhand.workspace.filesystem import PRIVATE, make_dir
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.mirror import Mirror

_CORE = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n"


def make_bare_repository(folder: Path, alternates: Path | None) -> None:
    """Create a bare git directory that reads `alternates`, an objects folder, as if it were its own."""
    make_dir(folder, PRIVATE)
    for name in ("objects/info", "objects/pack", "refs/heads"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="utf-8")
    (folder / "config").write_text(_CORE, encoding="utf-8")
    if alternates is not None:
        (folder / "objects" / "info" / "alternates").write_text(f"{alternates}\n", encoding="utf-8")
        shallow = alternates.parent / "shallow"
        if shallow.is_file():
            (folder / "shallow").write_bytes(shallow.read_bytes())


async def write_git_dir(folder: Path, mirror: Mirror, settings: GitSettings, branch: str) -> None:
    """Write the `.git` of a checkout whose objects are in place or come from alternates.

    It sets the author of commits and has the mirror's branches as those of `origin`, but no remote to fetch from.
    """
    (folder / "refs" / "heads").mkdir(parents=True)
    (folder / "info").mkdir()
    (folder / "HEAD").write_text(f"ref: refs/heads/{branch}\n", encoding="utf-8")
    lines = []
    for name, value in await mirror.refs():
        branch_name = name.removeprefix("refs/heads/")
        lines.append(f"{value} {name if branch_name == name else f'refs/remotes/origin/{branch_name}'}\n")
    (folder / "packed-refs").write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    origin = "file:///nonexistent" if mirror.source.folder is not None else mirror.source.display_name
    config = (
        f"{_CORE}\tbare = false\n\tlogallrefupdates = true\n"
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
