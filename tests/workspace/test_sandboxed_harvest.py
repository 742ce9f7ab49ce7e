"""What an agent leaves in a sealed checkout: nothing of it runs outside, and no answer from inside is believed."""

import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha1
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.errors import WorkspaceError
from steadyhand.ports import Checkout, ExecResult, Harvest
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, make_repository, run_shell
from steadyhand.workspace import GitCheckouts, harvest_import
from steadyhand.workspace import git_index as staging
from steadyhand.workspace.sandboxed_git_client import parse_reply

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sealed(world: Path) -> SandboxedCheckouts:
    """Return the checkouts of all jobs here, of which none may do anything to another."""
    return SandboxedCheckouts(world)


@pytest.fixture(scope="module")
def repository(world: Path) -> Repository:
    """Return the repository of all jobs here, with one warm checkout."""
    return make_repository(world / "repository")


def codes(harvest: Harvest) -> list[str]:
    return [notice.code for notice in harvest.warnings]


def diff_of(place: Checkout) -> str:
    return place.paths.diff.read_text(encoding="utf-8", errors="surrogateescape")


# --- a .git that was made to run something, or made to break ------------------------------------

TAINTS = {
    "fsmonitor": "git config core.fsmonitor $HOOK",
    "include": "printf '[core]\\n fsmonitor = %s\\n' $HOOK > ~/inc; git config include.path ~/inc",
    "external diff": "git config diff.external $HOOK",
    "filter": (
        "git config filter.evil.clean $HOOK; git config filter.evil.process $HOOK;"
        " git config filter.evil.required true; echo '* filter=evil' > .gitattributes"
    ),
    "hooks": (
        "mkdir -p .git/hooks; for h in pre-commit post-commit post-index-change reference-transaction; do"
        " cp $HOOK .git/hooks/$h; done; git config core.hooksPath .git/hooks"
    ),
    "gpg": "git config gpg.program $HOOK; git config commit.gpgSign true",
    "ssh": "git config core.sshCommand $HOOK; git config remote.origin.url ssh://localhost/x",
    "uploadpack": "git config uploadpack.packObjectsHook $HOOK; git config remote.origin.uploadpack $HOOK",
    "credential helper": 'git config credential.helper "!$HOOK"',
    "alias": 'for a in add commit status bundle diff log; do git config alias.$a "!$HOOK"; done',
    "alternate refs": "git config core.alternateRefsCommand $HOOK; git config pack.packObjectsHook $HOOK",
}


TOGETHER = [
    "fsmonitor, external diff, gpg, ssh",
    "hooks, uploadpack, alias",
    "include, credential helper, alternate refs",
    "filter",
]
"""All of them, as many at once as do not touch each other; one by one in `make test-long`."""
QUICK = ("hooks, uploadpack, alias", "filter")
"""Those of `make test`: there the tests without a sandbox try all of them."""


def test_each_taint_is_among_those_that_are_tried_together() -> None:
    assert sorted(each for taint in TOGETHER for each in taint.split(", ")) == sorted(TAINTS)


@pytest.mark.parametrize(
    "taint",
    [
        *QUICK,
        *(pytest.param(each, marks=pytest.mark.long) for each in TOGETHER if each not in QUICK),
        *(pytest.param(each, marks=pytest.mark.long) for each in TAINTS if each not in TOGETHER),
    ],
)
def test_a_tainted_git_directory_runs_nothing_outside(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path, taint: str
) -> None:
    commands = "\n".join(TAINTS[each] for each in taint.split(", "))
    marks = world_dir / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    # Inside there is no such folder: a mark that comes to be was made by something that ran outside.
    hook = f"printf '#!/bin/sh\\ntouch {marks}/mark 2>/dev/null\\ncat 2>/dev/null\\n' > ~/hook"
    hook += "; chmod +x ~/hook; HOOK=$HOME/hook"
    script = f"{hook}\necho x > x.txt && git add x.txt\n{commands}\necho more >> readme.txt"
    place, harvest = run_async(sealed.run_and_harvest(repository.workspace(), script))
    assert harvest.changes is not None
    assert "+more" in diff_of(place)
    run_async(sealed.checkouts.release(place))
    assert list(marks.iterdir()) == []


@pytest.mark.parametrize(
    "harm",
    [
        "rm -f .git/HEAD && mkfifo .git/HEAD",
        *(
            pytest.param(harm, marks=pytest.mark.long)
            for harm in (
                "rm -rf .git/objects && ln -s / .git/objects",
                "rm -rf .git",
                "rm -rf .git && mkfifo .git",
                "for f in $(find .git -type f); do chmod u+w $f; echo x > $f; done",
                "echo /nowhere > .git/objects/info/alternates",
            )
        ),
    ],
)
def test_a_broken_git_directory_costs_the_commits_and_not_the_files(
    sealed: SandboxedCheckouts, repository: Repository, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_import, "COMMITS_SECONDS", 3)
    committed = "echo a > a.txt && git add -A && git commit -qm a && echo b > b.txt && "
    place, harvest = run_async(sealed.run_and_harvest(repository.workspace(), committed + harm))
    assert harvest.changes is not None, harvest.warnings
    assert harvest.changes.files == 2
    assert set(codes(harvest)) == {"harvest_partial"}
    assert "b/a.txt" in diff_of(place)
    assert "b/b.txt" in diff_of(place)
    run_shell("git fsck --strict", sealed.checkouts.mirrors.get(str(repository.folder)).folder)


@pytest.mark.long  # each of both has a test without a sandbox
def test_what_is_left_out_is_named(
    sealed: SandboxedCheckouts, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "FILE_BYTES", 1024 * 1024)
    script = (
        "head -c 2000000 /dev/zero > large.bin && echo small > small.txt && git init -q inner && cd inner"
        " && echo x > x && git add x && git -c user.name=a -c user.email=a@b commit -qm x"
    )
    place, harvest = run_async(sealed.run_and_harvest(repository.workspace(), script))
    assert codes(harvest) == ["files_too_large", "nested_repository"]
    assert "large.bin" in harvest.warnings[0].message
    assert "b/small.txt" in diff_of(place)


def test_commits_that_are_larger_than_what_may_come_out_are_refused_by_name_and_the_files_are_kept(
    sealed: SandboxedCheckouts, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_import, "COMMIT_BYTES", 100_000)
    script = "head -c 300000 /dev/urandom > noise && git add noise && git commit -qm noise && echo x > x.txt"
    place, harvest = run_async(sealed.run_and_harvest(repository.workspace(), script))
    assert codes(harvest)[0] == "harvest_partial"
    assert "larger than" in harvest.warnings[0].message
    assert harvest.changes is not None
    assert harvest.changes.files == 2
    assert "b/noise" in diff_of(place)


def test_a_job_that_moves_to_another_branch_of_the_repository_brings_its_work_along(
    sealed: SandboxedCheckouts, repository: Repository
) -> None:
    script = (
        "git checkout -q origin/side && echo x > x.txt && git add x.txt && git commit -qm x && echo y > y.txt"
    )
    place, harvest = run_async(sealed.run_and_harvest(repository.workspace(), script))
    assert codes(harvest) == []
    assert harvest.changes is not None
    assert "b/side.txt" in diff_of(place)
    assert "b/x.txt" in diff_of(place)
    assert "b/y.txt" in diff_of(place)


# --- answers that an attacker wrote -------------------------------------------------------------


def object_head(kind: bytes, size: int) -> bytes:
    number = {b"commit": 1, b"tree": 2, b"blob": 3}[kind]
    head = bytearray()
    head.append((number << 4) | (size & 15))
    size >>= 4
    while size:
        head[-1] |= 128
        head.append(size & 127)
        size >>= 7
    return bytes(head)


def an_object(kind: bytes, body: bytes) -> bytes:
    """Give one object as it stands in a pack."""
    return object_head(kind, len(body)) + zlib.compress(body)


def a_pack(*objects: bytes, count: int | None = None, version: int = 2) -> bytes:
    body = struct.pack(">4sII", b"PACK", version, len(objects) if count is None else count) + b"".join(
        objects
    )
    return body + sha1(body, usedforsecurity=False).digest()


def named(kind: bytes, body: bytes) -> str:
    return sha1(kind + b" %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def an_answer(said: object, *parts: bytes, sizes: object = None) -> bytes:
    if isinstance(said, dict):
        said = {"parts": [len(part) for part in parts] if sizes is None else sizes, **said}
    return json.dumps(said).encode() + b"\n" + b"".join(parts)


def a_frame(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def frames(head: object, *, commits: bytes = b"", files: bytes = b"", tree: object = None) -> bytes:
    """Give the stream of a harvest with these packs."""
    out = a_frame(pack="head", size=len(commits)) + commits if commits else b""
    out += a_frame(section="head", head=head)
    out += a_frame(pack="files", size=len(files)) + files if files else b""
    return out + a_frame(section="files", tree=tree, waiting=[], count=0) + a_frame(section="end")


def a_tree(*entries: tuple[bytes, bytes, str]) -> bytes:
    return b"".join(mode + b" " + name + b"\0" + bytes.fromhex(blob) for mode, name, blob in entries)


BLOB = b"evil\n"
BLOB_ID = named(b"blob", BLOB)
PERSON = b"a <a@b> 1700000000 +0000"
SIGNED = b"\nauthor " + PERSON + b"\ncommitter " + PERSON + b"\n\nx\n"
Z = "0" * 40


def evil_tree(name: bytes, mode: bytes = b"100644") -> tuple[str, bytes]:
    """Give a tree with such an entry: its id, and a pack with it."""
    tree = a_tree((mode, name, BLOB_ID))
    return named(b"tree", tree), a_pack(an_object(b"blob", BLOB), an_object(b"tree", tree))


def evil_commit(body: bytes) -> tuple[str, bytes]:
    tree = a_tree((b"100644", b"x", BLOB_ID))
    commit = body.replace(b"TREE", named(b"tree", tree).encode())
    return named(b"commit", commit), a_pack(
        an_object(b"blob", BLOB), an_object(b"tree", tree), an_object(b"commit", commit)
    )


def forged(which: str, base: str) -> bytes:  # one case after another
    """Give the answer of that name; those with a pack say that it holds the head, or the files."""
    if which in NAMES:
        tree, pack = evil_tree(*NAMES[which])
        return frames(base, files=pack, tree=tree)
    if which in COMMITS:
        head, pack = evil_commit(COMMITS[which])
        return frames(head, commits=pack, tree=Z)
    if which in PACKS:
        return frames(base, files=PACKS[which](), tree=Z)
    return ANSWERS[which](base)


def bomb() -> bytes:
    mebibytes, deflate = 700, zlib.compressobj(wbits=-15)
    piece = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)  # the same each time
    size = mebibytes << 20
    checksum = struct.pack(">HH", size % 65521, 1)
    return a_pack(object_head(b"tree", size) + b"\x78\x9c" + piece * mebibytes + b"\x03\x00" + checksum)


NAMES: dict[str, tuple[bytes, bytes]] = {
    "an entry named dot dot": (b"..", b"100644"),
    "an entry named dot": (b".", b"40000"),
    "an entry named .git": (b".git", b"40000"),
    "an entry named .GIT": (b".GIT", b"40000"),
    "an entry named git~1": (b"git~1", b"40000"),
    "an entry with a slash": (b"a/../../x", b"100644"),
    "an entry without a name": (b"", b"100644"),
    "an entry with a mode that is none": (b"x", b"777777"),
    "a .gitmodules that is a symlink": (b".gitmodules", b"120000"),
}
COMMITS: dict[str, bytes] = {
    "a commit without an author": b"tree TREE\n\nno author\n",
    "a commit with a broken date": b"tree TREE\nauthor a <a@b> x +0000\ncommitter " + PERSON + b"\n\nx\n",
    "a commit whose parent is nowhere": b"tree TREE\nparent " + b"1" * 40 + SIGNED,
    "a commit whose tree is nowhere": b"tree " + b"2" * 40 + SIGNED,
    "a commit that is no commit": b"\0" * 100,
}
PACKS: dict[str, Callable[[], bytes]] = {
    "no pack at all": lambda: b"x" * 1000,
    "a pack of another version": lambda: a_pack(an_object(b"blob", BLOB), version=9),
    "a pack that ends early": lambda: a_pack(an_object(b"blob", BLOB * 1000))[:-40],
    "a pack that promises more": lambda: a_pack(an_object(b"blob", BLOB), count=500),
    "a pack of a billion objects": lambda: a_pack(count=1_000_000_000),
    "a pack with another sum": lambda: a_pack(an_object(b"blob", BLOB))[:-1] + b"x",
    "a pack with a broken stream": lambda: a_pack(b"\x35" + b"garbage" * 9),
    "a pack with a tree whose blob is nowhere": lambda: a_pack(
        an_object(b"tree", a_tree((b"100644", b"x", "3" * 40)))
    ),
    "a small pack of a very large tree": bomb,
}
ANSWERS: dict[str, Callable[[str], bytes]] = {
    "nothing": lambda _: b"",
    "no JSON": lambda _: b"{{{\n",
    "a list": lambda _: b"[1, 2]\n",
    "a deep list": lambda _: b"[" * 100_000 + b"\n",
    "a header without end": lambda _: b"{" + b" " * (2 << 20) + b"}\n",
    "a size that is too much": lambda _: a_frame(pack="files", size=10**12) + b"x",
    "a size below nothing": lambda _: a_frame(pack="files", size=-1) + b"x",
    "a size that is no number": lambda _: a_frame(pack="files", size=True) + b"x",
    "a pack that ends early in its frame": lambda _: a_frame(pack="files", size=100) + b"PACK",
    "more frames than there may be": lambda _: a_frame(section="progress", bytes=1) * 30_000,
    "a head that is an option": lambda _: frames("--output=/tmp/x", tree=Z),
    "a head that nobody has": lambda _: frames("4" * 40, tree=Z),
    "a tree that nobody has": lambda base: frames(base, tree="5" * 40),
    "a tree that is a number": lambda base: frames(base, tree=7),
    "no tree": frames,
    "losses that are no names": lambda base: (
        frames(base) + a_frame(section="losses", reason="lost", names=[1, {}])
    ),
    "a ref outside of all refs": lambda base: (
        frames(base) + a_frame(section="saved", kind="ref", name="../../config", id=base)
    ),
}
FORGED = [*NAMES, *COMMITS, *PACKS, *ANSWERS, "an answer that takes too long"]


class Forging:
    """Errands whose harvest answers with a forgery; what else is asked is done."""

    def __init__(self, errands: object, which: str) -> None:
        self._errands = errands
        self._which = which

    async def run(self, argv: object, checkout: Checkout, agent: object, **options: object) -> ExecResult:
        stdin = options.get("stdin")
        if isinstance(stdin, bytes) and b'"harvest"' in stdin:
            if self._which == "an answer that takes too long":
                return ExecResult(None, b"", b"")
            asked = json.loads(stdin)
            return ExecResult(0, forged(self._which, asked["base"]), b"")
        return await self._errands.run(argv, checkout, agent, **options)  # type: ignore[attr-defined,no-any-return]


def test_there_are_thirty_forgeries_or_more() -> None:
    assert len(FORGED) >= 30


@pytest.mark.parametrize("which", FORGED)
def test_a_forged_answer_is_refused_and_the_services_repositories_are_unharmed(
    sealed: SandboxedCheckouts, repository: Repository, which: str
) -> None:
    async def work() -> tuple[Checkout, Harvest]:
        place = await sealed.prepare(repository.workspace())
        assert place.layers is not None
        (place.layers.upper / "work.txt").touch()  # nothing is asked about a checkout that is as it was given
        harvester = GitCheckouts(
            place.paths.root.parent.parent,
            debounce_seconds=0,
            sandbox_exec=Forging(sealed.sandbox_exec, which),
            overlay=True,
            agent_files=ClaudeFiles(),
            redactor=NO_REDACTION,
        )
        harvest = await harvester.harvest(place)
        await sealed.checkouts.release(place)
        return place, harvest

    place, harvest = run_async(work())
    assert harvest.changes is None
    assert [notice.code for notice in harvest.warnings if notice.code.startswith("harvest_")] != []
    assert not place.paths.diff.exists()
    assert not place.paths.bundle.exists()
    mirror = sealed.checkouts.mirrors.get(str(repository.folder)).folder
    run_shell("git fsck --strict && git cat-file --batch-all-objects --batch-check | wc -l", mirror)
    assert BLOB_ID not in run_shell("git cat-file --batch-all-objects --batch-check", mirror)


def test_a_true_answer_is_read() -> None:
    """The other commands answer in one piece."""
    answer = parse_reply(an_answer({"head": "x"}, b"ab", b"c"), 2)
    assert [bytes(part) for part in answer.parts] == [b"ab", b"c"]
    with pytest.raises(WorkspaceError, match="it broke"):
        parse_reply(an_answer({"error": "it  broke"}), 2)
