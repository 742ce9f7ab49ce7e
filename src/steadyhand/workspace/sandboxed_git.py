"""The program that works beside an agent's files, inside the sandbox; standard library only, sent there as text.

Whatever an agent left may run here (a filter, a driver, a `.git` of its making) and hurts only the sandbox. What is
printed is one line of JSON and then bytes, of which the service believes nothing: see `sealed`.
"""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
FILE_BYTES = 64 * MIB
ALL_BYTES = 256 * MIB
GIVEN = Path("/harvest")
"""Where the service's own copy of the base is bound: `index`, and of a warm checkout `filters` and `exclude`."""
SETTLE_SECONDS = 1.1
"""Git trusts an index only for files that are older than it by its clock's whole second."""
_REMOTES = 200
_SHOWN = 3
_REASON = 300


class Failed(Exception):  # what git came to, not a fault of ours
    """A git command did not work; the text is the line of its stderr that says why."""


# --- files, in bounds --------------------------------------------------------------------------


def sort_names(
    tree: Path, names: Sequence[bytes], file_bytes: int, all_bytes: int
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Part what is there, what is gone and what is too large; sizes are looked at, nothing is opened.

    What lies behind a folder that became a symlink is gone.
    """
    chosen: list[bytes] = []
    gone: list[bytes] = []
    large: list[bytes] = []
    total = 0
    folders: dict[Path, bool] = {tree: True}
    for name in names:
        if name.endswith(b"/"):
            continue
        path = tree / os.fsdecode(name)
        try:
            found = path.lstat()
        except OSError:
            gone.append(name)
            continue
        if not _is_real(path.parent, folders):
            gone.append(name)
            continue
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        if size > file_bytes or total + size > all_bytes:
            large.append(name)
            continue
        total += size
        chosen.append(name)
    return chosen, gone, large


def _is_real(folder: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder is reached without a symlink; `known` holds the tree's root and what was asked before."""
    if folder not in known:
        known[folder] = _is_real(folder.parent, known) and not folder.is_symlink()
    return known[folder]


def joined(names: Sequence[bytes]) -> bytes:
    """Give names as git reads them with `-z`."""
    return b"".join(name + b"\x00" for name in names)


# --- git ---------------------------------------------------------------------------------------


def _git(
    *arguments: str,
    stdin: bytes = b"",
    into: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> bytes:
    """Run git; stdout goes to the file `into` when given. Raises `Failed`."""
    with contextlib.ExitStack() as stack:
        out = subprocess.PIPE if into is None else stack.enter_context(into.open("wb"))
        try:
            ran = subprocess.run(
                ["git", *arguments], input=stdin, stdout=out, stderr=subprocess.PIPE,
                env={**os.environ, **(env or {})}, check=False, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"git {arguments[0]} took longer than {seconds:g} s") from error
    if ran.returncode != 0:
        lines = [line.strip() for line in ran.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        named = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines
        raise Failed((named or [f"git {arguments[0]} failed"])[-1][:_REASON])
    return ran.stdout or b""


def _text(out: bytes) -> str:
    return out.decode("ascii", "replace").strip()


# --- a warm checkout ---------------------------------------------------------------------------


def warm(asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Check the commit out, run the setup commands, and give the index, our excludes and filters."""
    _git("checkout", "--quiet", "-B", asked["branch"], asked["commit"])
    for command in asked["setup"]:
        line = _set_up(command)
        if line is not None:
            return {"failed": command, "line": line}, []
    exclude = _leave_out_what_setup_made() if asked["setup"] else b""
    if asked["settle"]:
        time.sleep(SETTLE_SECONDS)
    with contextlib.suppress(Failed):  # it fails when a setup command changed a tracked file
        _git("update-index", "-q", "--really-refresh", "--force-write-index")
    index = Path(".git/index").read_bytes()
    return {}, [index, exclude, _filters()]


def _set_up(command: str) -> str | None:
    """Run one setup command and give its last line when it failed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    log = Path("/tmp/setup.log")  # noqa: S108  # the sandbox's own
    with log.open("wb") as file:
        ran = subprocess.run(  # the operator's command
            ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, check=False
        )  # fmt: skip
    if ran.returncode == 0:
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return (lines or [f"exit code {ran.returncode}"])[-1][:_REASON]


def _leave_out_what_setup_made() -> bytes:
    """Hide files that a setup command left from git: they are no job's work."""
    names = _git("ls-files", "-z", "--others", "--exclude-standard", "--directory").split(b"\x00")
    lines = b"".join(b"/" + _as_pattern(name) + b"\n" for name in names if name and b"\n" not in name)
    info = Path(".git/info")
    info.mkdir(exist_ok=True)
    with (info / "exclude").open("ab") as file:
        file.write(lines)
    return lines


def _as_pattern(name: bytes) -> bytes:
    for character in (b"\\", b"*", b"?", b"["):
        name = name.replace(character, b"\\" + character)
    return name[:-1] + b"\\ " if name.endswith(b" ") else name


def _filters() -> bytes:
    """Give the content filters that a setup command defined (git-crypt's), as configuration."""
    try:
        pairs = _git("config", "--local", "-z", "--get-regexp", r"^filter\.").split(b"\x00")
    except Failed:
        return b""
    lines = []
    for pair in pairs:
        key, _, value = pair.partition(b"\n")
        name, _, variable = key.removeprefix(b"filter.").rpartition(b".")
        if variable:
            lines.append(b"[filter %s]\n\t%s = %s\n" % (_quoted(name), variable, _quoted(value)))
    return b"".join(lines)


def _quoted(value: bytes) -> bytes:
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'


# --- a harvest ---------------------------------------------------------------------------------


def harvest(asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Give what the agent committed and what it left uncommitted, as two packs, and the tree that it left."""
    base, limit = asked["base"], asked["limit"]
    tree = Path.cwd()
    scratch = Path("/tmp/harvest")  # noqa: S108  # the sandbox's own
    scratch.mkdir()
    said: dict[str, Any] = {"head": base}
    commits = scratch / "commits.pack"
    if asked["commits"]:
        try:
            said["head"] = _pack_commits(tree, base, commits, limit, asked["commits_seconds"])
        except Failed as error:
            said["commits_lost"] = str(error)
            commits.unlink(missing_ok=True)
    folder = scratch / "snapshot"
    _make_snapshot(folder, tree)
    if said["head"] != base:
        objects = os.pathsep.join([str(tree / ".git" / "objects"), "/mirror"])
        _git(
            "read-tree", f"--index-output={folder / 'index'}", "-i", "-m", base, said["head"],
            env={"GIT_DIR": str(folder), "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects},
        )  # fmt: skip
    os.environ.update(GIT_DIR=str(folder), GIT_WORK_TREE=str(tree))
    _stage(tree, said, asked["file_bytes"], asked["all_bytes"])
    said["tree"] = _text(_git("write-tree", "--missing-ok"))
    listed = _git("cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)")
    files = scratch / "files.pack"
    if listed:
        _pack(files, listed, limit)
    return said, [part.read_bytes() if part.exists() else b"" for part in (commits, files)]


def _pack_commits(tree: Path, base: str, pack: Path, limit: int, seconds: float) -> str:
    env = {"GIT_DIR": str(tree / ".git"), "GIT_NO_REPLACE_OBJECTS": "1"}
    head = _text(_git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", env=env, seconds=seconds))
    if head != base:
        known = _git("rev-parse", "--remotes=origin", env=env, seconds=seconds).split()[:_REMOTES]
        revisions = b"".join(b"^" + commit + b"\n" for commit in [base.encode(), *known])
        _pack(pack, head.encode() + b"\n" + revisions, limit, "--revs", env=env, seconds=seconds)
    return head


def _pack(pack: Path, stdin: bytes, limit: int, *options: str, **git: Any) -> None:
    _git("pack-objects", "--quiet", "--stdout", *options, stdin=stdin, into=pack, **git)
    if pack.stat().st_size > limit:
        pack.unlink()
        raise Failed(f"it is larger than {limit // MIB} MiB")


def _make_snapshot(folder: Path, tree: Path) -> None:
    """Make a git directory of our own: no hooks, the filters that the service saw defined, the base's index."""
    for name in ("objects/info", "objects/pack", "refs/heads", "info"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
    config = b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n"
    if (GIVEN / "filters").is_file():
        config += (GIVEN / "filters").read_bytes()
        shutil.copyfile(GIVEN / "exclude", folder / "info" / "exclude")
    (folder / "config").write_bytes(config)
    shutil.copyfile(GIVEN / "index", folder / "index")
    if (tree / ".git" / "git-crypt").is_dir():
        (folder / "git-crypt").symlink_to(tree / ".git" / "git-crypt")


def _stage(tree: Path, said: dict[str, Any], file_bytes: int, all_bytes: int) -> None:
    out = _git("ls-files", "-z", "--modified", "--others", "--exclude-standard", "--deduplicate")
    names = [name for name in out.split(b"\x00") if name]
    chosen, gone, large = sort_names(tree, names, file_bytes, all_bytes)
    nested = [name for name in names if name.endswith(b"/")]
    for what, found in (("large", large), ("nested", nested)):
        if found:
            said[what] = [name.decode("utf-8", "replace")[:_REASON] for name in found[:_SHOWN]]
            said[f"{what}_count"] = len(found)
    if gone:
        _git("update-index", "--force-remove", "-z", "--stdin", stdin=joined(gone))
    if not chosen:
        return
    try:
        _git("update-index", "--add", "--replace", "-z", "--stdin", stdin=joined(chosen))
    except Failed as error:
        # One path that cannot be read fails them all: what is left goes one by one.
        said["files_lost"] = str(error)
        with contextlib.suppress(Failed):
            _git(
                "--literal-pathspecs", "add", "--all", "--ignore-errors",
                "--pathspec-from-file=-", "--pathspec-file-nul", stdin=joined(chosen),
            )  # fmt: skip


def restore(asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Put the commits of a bundle, which the service made, on top of the commit that is checked out."""
    _git("fetch", "--quiet", str(GIVEN / asked["bundle"]), asked["ref"])
    _git("reset", "--quiet", "--hard", "FETCH_HEAD")
    return {}, []


def compare(asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Give the diff of a directory in place against a commit, and its size; its index and objects stay untouched."""
    tree = Path.cwd()
    if Path(os.fsdecode(_git("rev-parse", "--show-toplevel").rstrip(b"\n"))) != tree:
        raise Failed("the directory is not the top of its repository")
    said: dict[str, Any] = {"head": _text(_git("rev-parse", "--verify", "--quiet", "HEAD^{commit}"))}
    scratch = Path("/tmp/compare")  # noqa: S108  # the sandbox's own
    (scratch / "objects").mkdir(parents=True)
    objects = tree / os.fsdecode(_git("rev-parse", "--git-path", "objects").rstrip(b"\n"))
    os.environ.update(
        GIT_INDEX_FILE=str(scratch / "index"),
        GIT_OBJECT_DIRECTORY=str(scratch / "objects"),
        GIT_ALTERNATE_OBJECT_DIRECTORIES=str(objects),
    )
    _git("read-tree", said["head"])
    _stage(tree, said, asked["file_bytes"], asked["all_bytes"])
    patch, command = scratch / "patch", [*asked["diff"], "--cached"]
    _git(*command, "--binary", "--full-index", asked["base"], "--", into=patch)
    said["cut"] = patch.stat().st_size > asked["limit"]
    counts = _git(*command, "--shortstat", asked["base"], "--")
    return said, [b"" if said["cut"] else patch.read_bytes(), counts]


VERBS: dict[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[bytes]]]] = {
    "warm": warm,
    "harvest": harvest,
    "compare": compare,
    "restore": restore,
}


def main() -> None:
    """Do what the request on stdin asks for, and print the answer."""
    asked = json.loads(sys.stdin.buffer.read())
    try:
        said, parts = VERBS[asked["verb"]](asked)
    except (Failed, OSError) as error:
        said, parts = {"error": str(error)[:_REASON]}, []
    said["parts"] = [len(part) for part in parts]
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n")
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
