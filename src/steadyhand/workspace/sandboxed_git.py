"""The program that runs git on an agent's files inside the sandbox. It is sent as text: standard library only.

Code that an agent left may run here (a filter, a driver, a `.git`), but it stays inside the sandbox. The output is
one line of JSON and then bytes; the service trusts none of it (see `sandboxed_git_client`).
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from steadyhand.workspace.sandboxed_command import GitError
from steadyhand.workspace.sandboxed_given import read_given

MIB = 1024 * 1024
BASE_DIR = Path("/harvest")
"""The mount of the service's own copy of the base: `index`, and of a warm checkout `filters` and `exclude`."""
LFS_DIR = Path("/lfs")
"""The mount of the content of LFS files, by their SHA-256."""
INDEX_CLOCK_SECONDS = 1.1
"""Git trusts an index only for files that are older than it by a whole second of its clock."""
_MAX_REASON_LENGTH = 300
_UNFINISHED = ("rebase-merge", "rebase-apply", "sequencer", "BISECT_LOG")


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


class RefUpdates(NamedTuple):
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
    """Check the commit out and run the setup commands. Return index, excludes, filters and given files."""
    if request["progress"]:
        _git_with_progress("checkout", "--quiet", "-B", request["branch"], request["commit"])
    else:
        _git("checkout", "--quiet", "-B", request["branch"], request["commit"])
    packed_refs = _read_packed_refs_file()
    _place_lfs_files(request["lfs"])
    given = read_given(Path.cwd())
    for number, command in enumerate(request["setup"]):
        if request["progress"]:
            sys.stderr.write(f"\nsetup {number}\n")
            sys.stderr.flush()
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
    return {}, [index, exclude, _filters(), given]


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


# --- a later run ---------------------------------------------------------------------------------


def restore_work(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Apply a bundle, which the service made, to the commit that is checked out; restore branches, tags and stash.

    The bundle is opened as a file. A fetch would take its path for an address, which the repository's configuration
    may rewrite.
    """
    ids = _unbundle(request["bundle"])
    jobs = os.fsencode(request["jobs"])
    restored = {name.removeprefix(jobs): value for name, value in ids.items() if name.startswith(jobs)}
    refs = {
        b"refs/" + name: value for name, value in restored.items() if name.startswith((b"heads/", b"tags/"))
    }
    current = read_packed_refs(_git("for-each-ref", "--format=%(objectname) %(refname)"))
    changes = plan_ref_updates(current, {}, refs).changes  # without those that the repository has by now
    if changes:
        _git("update-ref", "--stdin", "-z", stdin=changes)
    stashes = [name for name in restored if name.startswith(b"stash/")]
    for name in sorted(stashes, key=lambda name: int(name.rpartition(b"/")[2]), reverse=True):
        _git("stash", "store", "--message", "restored", _decode_line(restored[name]))
    commit = ids.get(os.fsencode(request["ref"]))  # none if the run committed nothing and changed no file
    if commit is not None:  # last: a reset that fails costs no branch and no stash
        _git("reset", "--quiet", "--hard", _decode_line(commit))
    return {}, []


def settle_work(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Let the branch of the checkout have the harvested commit, as after `restore_work`, and change no file.

    The commit has the content of the files already.
    """
    git_dir = Path(".git")
    if any((git_dir / name).exists() for name in _UNFINISHED):
        raise GitError("a command of git is unfinished")
    ids = {} if request["bundle"] is None else _unbundle(request["bundle"])
    commit = ids.get(os.fsencode(request["ref"]))
    _git("symbolic-ref", "HEAD", request["branch"])
    _git("reset", "--quiet", request["base"] if commit is None else _decode_line(commit))
    return {}, []


def _unbundle(bundle: str) -> dict[bytes, bytes]:
    """Store the objects of a bundle; return the ids by name of its refs."""
    lines = _git("bundle", "unbundle", bundle).split(b"\n")
    return {name: value for value, _, name in (line.partition(b" ") for line in lines) if name}


COMMANDS: dict[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[bytes]]]] = {
    "warm": build_checkout,
    "restore": restore_work,
    "settle": settle_work,
    "refs": update_refs,
}
