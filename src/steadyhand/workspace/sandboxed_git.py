"""The program that runs git on an agent's files inside the sandbox. It is sent as text: standard library only.

Code that an agent left may run here (a filter, a driver, a `.git`), but it stays inside the sandbox. The output is
one line of JSON and then bytes; the service trusts none of it (see `sandboxed_git_client`).
"""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
FILE_BYTES = 64 * MIB
TOTAL_BYTES = 256 * MIB
BASE_DIR = Path("/harvest")
"""The mount of the service's own copy of the base: `index`, and of a warm checkout `filters` and `exclude`."""
LFS_DIR = Path("/lfs")
"""The mount of the content of LFS files, by their SHA-256."""
INDEX_CLOCK_SECONDS = 1.1
"""Git trusts an index only for files that are older than it by a whole second of its clock."""
_MAX_REMOTE_REFS = 200
_SHA256_DIGITS = 64
_MAX_EXAMPLES = 3
_MAX_REASON_LENGTH = 300


class GitError(Exception):  # the result of git, not a bug of this program
    """A git command failed; the text is the line of its stderr that names the cause."""


# --- files, in bounds --------------------------------------------------------------------------


def classify_names(
    tree: Path, names: Sequence[bytes], file_bytes: int, total_bytes: int
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return the names that exist, those that are gone and those that are too large, without opening a file.

    A file behind a folder that became a symlink is gone, and so is one that became a folder: the files in it have names
    of their own. Only a repository in the place of a file counts as the entry itself, as it does for git.
    """
    chosen: list[bytes] = []
    missing: list[bytes] = []
    oversized: list[bytes] = []
    total = 0
    folders: dict[Path, bool] = {tree: True}
    for name in names:
        if name.endswith(b"/"):
            continue
        path = tree / os.fsdecode(name)
        try:
            info = path.lstat()
        except OSError:
            missing.append(name)
            continue
        is_plain_folder = stat.S_ISDIR(info.st_mode) and not os.path.lexists(path / ".git")
        if is_plain_folder or not _is_real(path.parent, folders):
            missing.append(name)
            continue
        size = info.st_size if stat.S_ISREG(info.st_mode) else 0
        if size > file_bytes or total + size > total_bytes:
            oversized.append(name)
            continue
        total += size
        chosen.append(name)
    return chosen, missing, oversized


def _is_real(folder: Path, checked: dict[Path, bool]) -> bool:
    """Return true if no part of the folder's path is a symlink; `checked` holds earlier results and the tree's root."""
    if folder not in checked:
        checked[folder] = _is_real(folder.parent, checked) and not folder.is_symlink()
    return checked[folder]


def nul_terminated(names: Sequence[bytes]) -> bytes:
    """Return the names in the form that git reads with `-z`."""
    return b"".join(name + b"\x00" for name in names)


# --- git ---------------------------------------------------------------------------------------


def _git(
    *arguments: str,
    stdin: bytes = b"",
    stdout_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> bytes:
    """Run git and return its stdout, or write it to `stdout_file`. Raise `GitError`."""
    with contextlib.ExitStack() as stack:
        out = subprocess.PIPE if stdout_file is None else stack.enter_context(stdout_file.open("wb"))
        try:
            result = subprocess.run(
                ["git", *arguments], input=stdin, stdout=out, stderr=subprocess.PIPE,
                env={**os.environ, **(env or {})}, check=False, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise GitError(f"git {arguments[0]} took longer than {seconds:g} s") from error
    if result.returncode != 0:
        raise _git_error(arguments[0], result.stderr)
    return result.stdout or b""


def _git_with_progress(*arguments: str) -> None:
    """Run git and pass its stderr on as it comes, with the progress in it. Raise `GitError`."""
    argv = ["git", arguments[0], "--progress", *arguments[1:]]
    tail = b""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None  # noqa: S101  # it is a pipe
        while chunk := os.read(process.stderr.fileno(), 1 << 16):
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()
            tail = (tail + chunk)[-(1 << 16) :]
    if process.returncode != 0:
        raise _git_error(arguments[0], tail)


def _git_error(verb: str, stderr: bytes) -> GitError:
    lines = _text_lines(stderr)
    error_lines = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines
    return GitError((error_lines or [f"git {verb} failed"])[-1][:_MAX_REASON_LENGTH])


def _text_lines(out: bytes) -> list[str]:
    """Return the lines of an output that are not blank. `bytes.splitlines` splits at newlines alone."""
    lines = (line.decode("utf-8", "replace").strip() for line in out.splitlines())
    return [line for line in lines if line]


def _decode_line(out: bytes) -> str:
    return out.decode("ascii", "replace").strip()


# --- refs --------------------------------------------------------------------------------------


def read_packed_refs(content: bytes) -> dict[bytes, bytes]:
    """Return the ids by name in a `packed-refs` file. Its names hold no newline, but other characters of all kinds."""
    pairs = (line.partition(b" ") for line in content.split(b"\n") if line and line[:1] not in b"#^")
    return {name: value for value, _, name in pairs}


@dataclass(frozen=True)
class RefUpdates:
    """The input of two `git update-ref --stdin -z`, and the names that cannot be made beside the agent's own refs."""

    deletions: bytes
    changes: bytes
    skipped: Sequence[bytes]


def plan_ref_updates(
    current: Mapping[bytes, bytes], old: Mapping[bytes, bytes], new: Mapping[bytes, bytes]
) -> RefUpdates:
    """Return the updates that bring a repository from the refs `old` to `new`, where it still has those of `old`."""
    deleted = [name for name in old if name not in new and current.get(name) == old[name]]
    names = set(current).difference(deleted)
    parents = set(_parent_names(names))
    changes, skipped = [], []
    for name, value in new.items():
        present = current.get(name)
        if present == value or present != old.get(name):
            continue
        if present is None and (name in parents or any(each in names for each in _parent_names([name]))):
            skipped.append(name)  # git cannot have a ref `a` beside a ref `a/b`
            continue
        changes.append(b"update %s\0%s\0%s\0" % (name, value, present or b"0" * len(value)))
    deletions = (b"delete %s\0%s\0" % (name, old[name]) for name in deleted)
    return RefUpdates(b"".join(deletions), b"".join(changes), skipped)


def _parent_names(names: Iterable[bytes]) -> Iterator[bytes]:
    for name in names:
        parent = name.rpartition(b"/")[0]
        while parent:
            yield parent
            parent = parent.rpartition(b"/")[0]


def update_refs(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Bring the refs of the repository up to date, except those that the agent changed."""
    old, new = (read_packed_refs((BASE_DIR / request[name]).read_bytes()) for name in ("old", "new"))
    pack = (BASE_DIR / request["pack"]).read_bytes()
    if pack:
        _git("index-pack", "--stdin", stdin=pack)
    listing = _git("for-each-ref", "--format=%(objectname) %(refname)")
    updates = plan_ref_updates(read_packed_refs(listing), old, new)
    for commands in (updates.deletions, updates.changes):
        if commands:
            _git("update-ref", "--stdin", "-z", stdin=commands)
    return {}, [b"\0".join(updates.skipped)]


# --- a warm checkout ---------------------------------------------------------------------------


def build_checkout(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Check the commit out and run the setup commands. Return the index, the excludes and the filters."""
    if request["progress"]:
        _git_with_progress("checkout", "--quiet", "-B", request["branch"], request["commit"])
    else:
        _git("checkout", "--quiet", "-B", request["branch"], request["commit"])
    packed_refs = _read_packed_refs_file()
    _place_lfs_files(request["lfs"])
    for command in request["setup"]:
        line = _run_setup_command(command)
        if line is not None:
            return {"failed": command, "line": line}, []
    _unpack_refs(packed_refs)
    exclude = _exclude_setup_files() if request["setup"] else b""
    if request["settle"]:
        time.sleep(INDEX_CLOCK_SECONDS)
    with contextlib.suppress(GitError):  # it fails when a setup command changed a tracked file
        _git("update-index", "-q", "--really-refresh", "--force-write-index")
    index = Path(".git/index").read_bytes()
    return {}, [index, exclude, _filters()]


def _read_packed_refs_file() -> dict[bytes, bytes]:
    with contextlib.suppress(FileNotFoundError):
        return read_packed_refs(Path(".git/packed-refs").read_bytes())
    return {}


def _unpack_refs(before: Mapping[bytes, bytes]) -> None:
    """Write refs that a setup command packed as single files: each job has a `packed-refs` of its own over this one."""
    for name, value in _read_packed_refs_file().items():
        file = Path(".git", os.fsdecode(name))
        if before.get(name) != value and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(value + b"\n")


# Content that is as it was fetched becomes its pointer again. Other content stays as it is: nobody else has it.
_LFS_CLEAN = (
    'f=$(mktemp .git/lfs-XXXXXX 2>/dev/null || mktemp) && cat >"$f" && h=$(sha256sum <"$f" | cut -c1-64) && '
    'if grep -qxF "$h" .git/lfs-fetched 2>/dev/null; then '
    'printf \'version https://git-lfs.github.com/spec/v1\\noid sha256:%s\\nsize %s\\n\' "$h" "$(wc -c <"$f")"; '
    'else cat "$f"; fi; s=$?; rm -f "$f"; exit $s'
)


def _place_lfs_files(files: Sequence[Mapping[str, str]]) -> None:
    """Put the content of LFS files in the place of their pointers, and define the filter that makes them again."""
    if not files:
        return
    tree = Path.cwd().resolve()
    placed = []
    for file in files:
        name = bytes.fromhex(file["path"])
        path = tree / os.fsdecode(name)
        if path.resolve() == path and path.is_file():  # no part of it is a symlink
            shutil.copyfile(LFS_DIR / file["oid"], path)
            placed.append(name + b"\x00")
    oids = sorted({file["oid"] for file in files})
    Path(".git/lfs-fetched").write_text("".join(f"{oid}\n" for oid in oids), encoding="ascii")
    _git("config", "filter.lfs.clean", _LFS_CLEAN)
    # The index holds the size of the pointers: git takes a file of another size for changed, without a look.
    _git("update-index", "-z", "--stdin", stdin=b"".join(placed))


def _run_setup_command(command: str) -> str | None:
    """Run one setup command; return its last line if it failed."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    log = Path("/tmp/setup.log")  # noqa: S108  # the sandbox's own
    with log.open("wb") as file:
        result = subprocess.run(  # the operator's command
            ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, check=False
        )  # fmt: skip
    if result.returncode == 0:
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = _text_lines(file.read())
    return (lines or [f"exit code {result.returncode}"])[-1][:_MAX_REASON_LENGTH]


def _exclude_setup_files() -> bytes:
    """Exclude the files of the setup commands from git: they are not the work of a job."""
    names = _git("ls-files", "-z", "--others", "--exclude-standard", "--directory").split(b"\x00")
    lines = b"".join(b"/" + _escape_pattern(name) + b"\n" for name in names if name and b"\n" not in name)
    info = Path(".git/info")
    info.mkdir(exist_ok=True)
    with (info / "exclude").open("ab") as file:
        file.write(lines)
    return lines


def _escape_pattern(name: bytes) -> bytes:
    for character in (b"\\", b"*", b"?", b"["):
        name = name.replace(character, b"\\" + character)
    return name[:-1] + b"\\ " if name.endswith(b" ") else name


def _filters() -> bytes:
    """Return the content filters that a setup command defined (such as git-crypt's), as configuration."""
    try:
        pairs = _git("config", "--local", "-z", "--get-regexp", r"^filter\.").split(b"\x00")
    except GitError:
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


def pack_work(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Return the agent's commits and its uncommitted files as two packs, and the tree of its files."""
    base, limit = request["base"], request["limit"]
    tree = Path.cwd()
    scratch = Path("/tmp/harvest")  # noqa: S108  # the sandbox's own
    scratch.mkdir()
    reply: dict[str, Any] = {"head": base}
    commits = scratch / "commits.pack"
    if request["commits"]:
        try:
            reply["head"] = _pack_commits(tree, base, commits, limit, request["commits_seconds"])
        except GitError as error:
            reply["commits_lost"] = str(error)
            commits.unlink(missing_ok=True)
    folder = scratch / "snapshot"
    _make_snapshot(folder, tree, base)
    if reply["head"] != base:
        objects = os.pathsep.join([str(tree / ".git" / "objects"), "/mirror"])
        _git(
            "read-tree", f"--index-output={folder / 'index'}", "-i", "-m", base, reply["head"],
            env={"GIT_DIR": str(folder), "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects},
        )  # fmt: skip
    os.environ.update(GIT_DIR=str(folder), GIT_WORK_TREE=str(tree))
    _stage_changes(tree, reply, request["file_bytes"], request["all_bytes"])
    reply["tree"] = _decode_line(_git("write-tree", "--missing-ok"))
    object_ids = _git("cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)")
    files = scratch / "files.pack"
    if object_ids:
        _pack(files, object_ids, limit)
    return reply, [part.read_bytes() if part.exists() else b"" for part in (commits, files)]


def _pack_commits(tree: Path, base: str, pack: Path, limit: int, seconds: float) -> str:
    env = {"GIT_DIR": str(tree / ".git"), "GIT_NO_REPLACE_OBJECTS": "1"}
    head = _decode_line(_git("rev-parse", "--verify", "--quiet", "HEAD^{commit}", env=env, seconds=seconds))
    if head != base:
        remote_commits = _git("rev-parse", "--remotes=origin", env=env, seconds=seconds).split()[
            :_MAX_REMOTE_REFS
        ]
        revisions = b"".join(b"^" + commit + b"\n" for commit in [base.encode(), *remote_commits])
        _pack(pack, head.encode() + b"\n" + revisions, limit, "--revs", env=env, seconds=seconds)
    return head


def _pack(pack: Path, stdin: bytes, limit: int, *options: str, **git: Any) -> None:
    _git("pack-objects", "--quiet", "--stdout", *options, stdin=stdin, stdout_file=pack, **git)
    if pack.stat().st_size > limit:
        pack.unlink()
        raise GitError(f"it is larger than {limit // MIB} MiB")


def _make_snapshot(folder: Path, tree: Path, base: str) -> None:
    """Create a git directory without hooks, with the service's own copy of the filters and of the base's index."""
    for name in ("objects/info", "objects/pack", "refs/heads", "info"):
        (folder / name).mkdir(parents=True)
    (folder / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
    config = b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n"
    if len(base) == _SHA256_DIGITS:
        config += b"\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n"
    if (BASE_DIR / "filters").is_file():
        config += (BASE_DIR / "filters").read_bytes()
        shutil.copyfile(BASE_DIR / "exclude", folder / "info" / "exclude")
    (folder / "config").write_bytes(config)
    shutil.copyfile(BASE_DIR / "index", folder / "index")
    if (tree / ".git" / "git-crypt").is_dir():
        (folder / "git-crypt").symlink_to(tree / ".git" / "git-crypt")


def _stage_changes(tree: Path, reply: dict[str, Any], file_bytes: int, total_bytes: int) -> None:
    listing = _git("ls-files", "-z", "--modified", "--others", "--exclude-standard", "--deduplicate")
    names = [name for name in listing.split(b"\x00") if name]
    chosen, missing, oversized = classify_names(tree, names, file_bytes, total_bytes)
    nested = [name for name in names if name.endswith(b"/")]
    for reason, skipped in (("large", oversized), ("nested", nested)):
        if skipped:
            reply[reason] = [
                name.decode("utf-8", "replace")[:_MAX_REASON_LENGTH] for name in skipped[:_MAX_EXAMPLES]
            ]
            reply[f"{reason}_count"] = len(skipped)
    if missing:
        _git("update-index", "--force-remove", "-z", "--stdin", stdin=nul_terminated(missing))
    if not chosen:
        return
    try:
        # It removes a file in whose place a repository is.
        options = ("--add", "--replace", "--remove", "-z", "--stdin")
        _git("update-index", *options, stdin=nul_terminated(chosen))
    except GitError as error:
        # One unreadable path makes git fail for all, so the remaining paths are added one by one.
        reply["files_lost"] = str(error)
        with contextlib.suppress(GitError):
            _git(
                "--literal-pathspecs", "add", "--all", "--ignore-errors",
                "--pathspec-from-file=-", "--pathspec-file-nul", stdin=nul_terminated(chosen),
            )  # fmt: skip


def restore_commits(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Apply the commits of a bundle, which the service made, to the commit that is checked out."""
    _git("fetch", "--quiet", str(BASE_DIR / request["bundle"]), request["ref"])
    _git("reset", "--quiet", "--hard", "FETCH_HEAD")
    return {}, []


def compare_in_place(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Return the diff of a directory in place against a commit, and its size; its index and objects do not change."""
    tree = Path.cwd()
    if Path(os.fsdecode(_git("rev-parse", "--show-toplevel").rstrip(b"\n"))) != tree:
        raise GitError("the directory is not the top of its repository")
    reply: dict[str, Any] = {"head": _decode_line(_git("rev-parse", "--verify", "--quiet", "HEAD^{commit}"))}
    scratch = Path("/tmp/compare")  # noqa: S108  # the sandbox's own
    (scratch / "objects").mkdir(parents=True)
    objects = tree / os.fsdecode(_git("rev-parse", "--git-path", "objects").rstrip(b"\n"))
    os.environ.update(
        GIT_INDEX_FILE=str(scratch / "index"),
        GIT_OBJECT_DIRECTORY=str(scratch / "objects"),
        GIT_ALTERNATE_OBJECT_DIRECTORIES=str(objects),
    )
    _git("read-tree", reply["head"])
    _stage_changes(tree, reply, request["file_bytes"], request["all_bytes"])
    patch, command = scratch / "patch", [*request["diff"], "--cached"]
    _git(*command, "--binary", "--full-index", request["base"], "--", stdout_file=patch)
    reply["cut"] = patch.stat().st_size > request["limit"]
    counts = _git(*command, "--shortstat", request["base"], "--")
    return reply, [b"" if reply["cut"] else patch.read_bytes(), counts]


COMMANDS: dict[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[bytes]]]] = {
    "warm": build_checkout,
    "harvest": pack_work,
    "compare": compare_in_place,
    "restore": restore_commits,
    "refs": update_refs,
}


def main() -> None:
    """Run the request on stdin and print the reply."""
    request = json.loads(sys.stdin.buffer.read())
    try:
        reply, parts = COMMANDS[request["verb"]](request)
    except (GitError, OSError) as error:
        reply, parts = {"error": str(error)[:_MAX_REASON_LENGTH]}, []
    reply["parts"] = [len(part) for part in parts]
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
