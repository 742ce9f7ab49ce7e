"""The repositories of generated histories, and plain clones of them."""

import os
import shlex
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

from tests.workspace.histories import BASE_FILES
from tests.workspace.history_git import Entry, git, read_entries, read_refs

from steadyhand.testing.contracts.checkouts import run_shell
from steadyhand.workspace.sandboxed_git import INDEX_CLOCK_SECONDS

PLAIN_USER = 64_999
"""The uid of a plain clone: what file modes forbid an agent, they forbid it too."""
JOB_BRANCH = "steadyhand/work"
_ATTRIBUTES = """\
*.txt text
*.auto text=auto
*.bat text eol=crlf
*.raw -text
*.bin binary
*.id ident
*.u16 text working-tree-encoding=UTF-16LE-BOM
"""
_IDENTITY = (
    "export GIT_AUTHOR_NAME=Ann GIT_AUTHOR_EMAIL=ann@example.org GIT_AUTHOR_DATE='1600000000 +0000'"
    " GIT_COMMITTER_NAME=Ann GIT_COMMITTER_EMAIL=ann@example.org GIT_COMMITTER_DATE='1600000000 +0000'\n"
)
_EXTRA_COMMITS: Mapping[str, str] = {
    "plain": "",
    # The blobs stay as they are: under `text` they are such as git would not make.
    "attributes": (
        f"printf %s {shlex.quote(_ATTRIBUTES)} > .gitattributes && printf 'wide\\n' > given.u16\n"
        "blob=$(git hash-object -w --no-filters given.u16)\n"
        "git update-index --add --cacheinfo 100644,$blob,given.u16 && git add .gitattributes\n"
        "git commit -qm Attributes && rm given.u16 && git checkout -q -- given.u16\n"
    ),
    "modules": (
        "printf '[submodule \"sub\"]\\n\\tpath = sub\\n\\turl = https://localhost/sub.git\\n' > .gitmodules\n"
        f"git update-index --add --cacheinfo 160000,{'5' * 40},sub\n"
        f"git update-index --add --cacheinfo 160000,{'6' * 40},src/unnamed\n"
        "git add .gitmodules && git commit -qm Submodules && mkdir -p sub src/unnamed\n"
    ),
}
BASES = tuple(_EXTRA_COMMITS)

Snapshot = Mapping[bytes, tuple[int, bytes]]
"""Files by their path: the mode as git has it, and a digest of the bytes (a link's target, as it is)."""


@dataclass(frozen=True, slots=True)
class Base:
    """A repository, its commit, an untouched copy of its objects, a template of a plain clone, and that one's files."""

    folder: Path
    commit: str
    pristine: Path
    template: Path
    packed_refs: str
    """The repository's own refs, in the form of git's packed-refs."""
    plain_refs: Mapping[str, str]
    """The refs of the template."""
    given: Snapshot
    entries: Mapping[bytes, Entry]
    """The entries of the commit's tree."""


def make_base(name: str, folder: Path) -> Base:
    """Make the repository of that name, and a plain clone that looks as a job's checkout does."""
    source, pristine, template = folder / name, folder / f"{name}.pristine", folder / f"{name}.template"
    source.mkdir()
    write = "".join(
        f"mkdir -p ./{shlex.quote(PurePosixPath(path).parent.as_posix())}; printf '{text}' > ./{shlex.quote(path)}\n"
        for path, text in BASE_FILES.items()
    )
    run_shell(
        f"{_IDENTITY}git init -q -b main && {write}"
        "chmod +x run.sh && ln -s readme.txt link && printf '*.log\\nbuild/\\n' > .gitignore\n"
        "git add -A && git commit -qm First && git tag v1\n"
        "git checkout -q -b side && printf 'aside\\n' > side.md && git add -A && git commit -qm Side\n"
        "git checkout -q main && printf 'two\\n' >> src/code.txt && git commit -qam Second\n"
        f"printf 'three\\n' >> src/code.txt && git commit -qam Third\n{_EXTRA_COMMITS[name]}",
        source,
    )
    shutil.copytree(source / ".git", pristine, symlinks=True)
    run_shell(
        f"git clone -q --no-checkout {source} {template} && cd {template} && git remote set-head origin -d\n"
        f"git symbolic-ref HEAD refs/heads/{JOB_BRANCH} && git update-ref -d refs/heads/main && rm -rf .git/logs\n"
        f"git checkout -q -B {JOB_BRANCH} $(git rev-parse origin/main)\n"
        "git config user.name Steadyhand && git config user.email steadyhand@localhost\n"
        # A copy of a file has another inode and another time of change; its index has to trust it all the same.
        f"git config core.trustctime false && git config core.checkStat minimal && sleep {INDEX_CLOCK_SECONDS}\n"
        "git update-index -q --really-refresh --force-write-index || :",
        folder,
    )
    commit = run_shell("git rev-parse HEAD", template).strip()
    packed_refs = "".join(f"{value} {name}\n" for name, value in read_refs(source / ".git").items())
    return Base(
        folder=source,
        commit=commit,
        pristine=pristine,
        template=template,
        packed_refs=packed_refs,
        plain_refs=read_refs(template / ".git"),
        given=take_snapshot(template),
        entries=read_entries(git("ls-files", "-s", "-z", cwd=template)),
    )


def make_plain(base: Base, folder: Path) -> Path:
    """Make a plain clone with a home around it, as an agent has one, and give its path."""
    clone = folder / "work"
    run_shell(f"cp -a {base.template} {clone} && chown -R {PLAIN_USER}:{PLAIN_USER} {folder}", folder)
    return clone


def take_snapshot(top: Path, skip: frozenset[bytes] = frozenset()) -> Snapshot:
    """Return the files below a folder as git would see them, without any `.git` and without the folders in `skip`."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = Path(folder) / name
            info = path.lstat()
            key = os.fsencode(path.relative_to(top))
            if stat.S_ISLNK(info.st_mode):
                found[key] = (0o120000, os.fsencode(path.readlink()))
            elif stat.S_ISREG(info.st_mode) and name != ".git":
                mode = 0o100755 if info.st_mode & 0o100 else 0o100644
                found[key] = (mode, sha256(path.read_bytes()).digest())
        here = Path(folder).relative_to(top)
        folders[:] = [name for name in folders if name != ".git" and os.fsencode(here / name) not in skip]
    return found
