"""Uncommitted changes of a caller: taken into the mirror once they are whole, refused by their reason if not."""

import asyncio
import base64
import hashlib
import subprocess
import zlib
from dataclasses import replace

import pytest

from steadyhand.agents import Workspace
from steadyhand.cli.local_repository import pack_changes, read_state
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job, UncommittedChanges
from steadyhand.testing.contracts.checkouts import Repository, list_tree, run_as_agent
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts, uncommitted
from steadyhand.workspace.uncommitted import without_repository_rights


def local_changes(repository: Repository, *, is_local: bool = True) -> UncommittedChanges:
    """What `run --with-changes` sends from this repository."""
    state = read_state(repository.folder)
    assert state is not None
    packed = pack_changes(state, is_local=is_local)
    assert packed is not None
    return UncommittedChanges(packed.base, packed.commit, base64.b64encode(packed.pack).decode())


def job_on(changes: UncommittedChanges) -> Job:
    return make_job(uncommitted=changes, ref=changes.ref)


def pack_of(*objects: tuple[int, bytes]) -> str:
    """A pack of these objects, each a type (commit 1, tree 2, blob 3) and a content."""
    data = b"PACK" + (2).to_bytes(4, "big") + len(objects).to_bytes(4, "big")
    for kind, content in objects:
        size, byte = len(content) >> 4, kind << 4 | len(content) & 15
        while size:
            data += bytes([byte | 0x80])
            byte, size = size & 0x7F, size >> 7
        data += bytes([byte]) + zlib.compress(content)
    return base64.b64encode(data + hashlib.sha1(data).digest()).decode()  # noqa: S324  # git's own


def object_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()  # noqa: S324  # git's own


def commit_of(tree: str, *parents: str) -> bytes:
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += ["author A <a@example.org> 1 +0000", "committer A <a@example.org> 1 +0000"]
    return "\n".join([*lines, "", "x\n"]).encode()


def test_a_checkout_has_the_changes_and_the_work_on_them_is_compared_with_them(
    repository: Repository, checkouts: GitCheckouts
) -> None:
    async def scene() -> None:
        repository.run(
            "echo mine >> readme.txt; echo new > new.txt; chmod +x src/code.txt; ln -s new.txt link"
        )
        expected = list_tree(repository.folder)
        changes = local_changes(repository)
        job = job_on(changes)
        place = await checkouts.prepare(job, repository.workspace(), 0)
        assert place.commit == changes.commit
        assert list_tree(place.directory) == expected
        assert run_as_agent(place, "git status --porcelain") == ""
        run_as_agent(place, "echo more >> new.txt")
        harvest = await checkouts.harvest(place)
        assert harvest.changes is not None
        assert (harvest.changes.base, harvest.changes.files, harvest.warnings) == (changes.commit, 1, ())
        await checkouts.release(place)
        repository.run(f"git apply {place.paths.diff}")
        repository.run(f"git fetch -q {place.paths.bundle} 'refs/heads/*:refs/imported/*'")
        # The next turn, and a run long after, find the commit without the pack.
        turn = make_job(ref=job.ref, commit=changes.commit)
        later = await checkouts.prepare(replace(turn, begin="fresh"), repository.workspace(), 1)
        assert later.commit == changes.commit
        await checkouts.release(later)
        mirror = checkouts.mirrors.get(str(repository.folder))
        await checkouts.delete_job(job.id)
        assert await mirror.find_commit(changes.ref) is None

    asyncio.run(scene())


def test_commits_that_are_not_pushed_come_with_the_changes(
    repository: Repository, checkouts: GitCheckouts
) -> None:
    async def scene() -> None:
        origin = Repository(repository.folder.with_name("origin.git"))
        repository.run(
            f"git clone -q --bare . {origin.folder}; git remote add origin {origin.folder}; git fetch -q origin"
        )
        repository.commit("second.txt", "not pushed\n")
        repository.run("echo changed > readme.txt")
        changes = local_changes(repository, is_local=False)
        place = await checkouts.prepare(job_on(changes), origin.workspace(), 0)
        assert list_tree(place.directory) == list_tree(repository.folder)
        assert run_as_agent(place, "git log --format=%s -2") == "Uncommitted changes\nChange second.txt\n"
        repository.commit("third.txt", "not pushed either\n")
        repository.run(
            "git fetch -q . main:refs/remotes/origin/main; echo more > readme.txt"
        )  # it claims to be pushed, and is not
        changes = local_changes(repository, is_local=False)
        with pytest.raises(WorkspaceError, match="push it first"):
            await checkouts.prepare(job_on(changes), origin.workspace(), 1)

    asyncio.run(scene())


def test_a_pack_that_is_not_what_it_says_is_refused_for_good_and_leaves_nothing(
    repository: Repository, checkouts: GitCheckouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = repository.head()
    blob, tree = b"x\n", repository.head("HEAD^{tree}")
    entry = bytes.fromhex
    missing = b"100644 a\0" + b"\x11" * 20
    nested = b"40000 .git\0" + entry(tree)
    unrelated = commit_of(tree)
    orphan, dotgit, broken = (
        (commit_of(object_id("tree", missing), base), missing),
        (commit_of(object_id("tree", nested), base), nested),
        (commit_of(tree, base, "1" * 40), b""),
    )

    def changes(commit: bytes, *objects: tuple[int, bytes], base: str = base) -> UncommittedChanges:
        return UncommittedChanges(base, object_id("commit", commit), pack_of((1, commit), *objects))

    good = changes(commit_of(tree, base))
    hostile = {
        "does not hold their commit": UncommittedChanges(base, object_id("blob", blob), pack_of((3, blob))),
        "not based on the commit": changes(unrelated),
        "did not receive expected object": changes(orphan[0], (2, orphan[1])),
        "fsck error": changes(dotgit[0], (2, dotgit[1])),
        "index-pack": changes(broken[0]),
        "pack signature mismatch": UncommittedChanges(
            base, good.commit, base64.b64encode(bytes(64)).decode()
        ),
        "not base64": UncommittedChanges(base, good.commit, "AAA"),
    }

    async def scene() -> None:
        mirror = checkouts.mirrors.get(str(repository.folder))
        for reason, each in hostile.items():
            with pytest.raises(WorkspaceError) as caught:
                await checkouts.prepare(job_on(each), repository.workspace(), 0)
            assert reason in caught.value.detail, (reason, caught.value.detail)
            assert not caught.value.retryable
            assert await mirror.find_commit(each.ref) is None
        for name, limit in (
            ("MAX_OBJECTS", 0),
            ("MAX_OBJECT_BYTES", 1),
            ("MAX_TREE_BYTES", 1),
            ("_MAX_LIST_BYTES", 10),
        ):
            with monkeypatch.context() as bounds:
                bounds.setattr(uncommitted, name, limit)
                with pytest.raises(WorkspaceError, match="more than"):
                    await checkouts.prepare(job_on(good), repository.workspace(), 0)
        assert (await checkouts.prepare(job_on(good), repository.workspace(), 0)).commit == good.commit

    asyncio.run(scene())


def test_trees_that_hold_each_other_without_end_are_refused(
    repository: Repository, checkouts: GitCheckouts
) -> None:
    trees, below = (
        [],
        b"".join(b"100644 %02d\0" % n + bytes.fromhex(object_id("blob", b"x")) for n in range(20)),
    )
    for _ in range(6):  # 20 to the power of 7 files
        trees.append((2, below))
        below = b"".join(b"40000 %02d\0" % n + bytes.fromhex(object_id("tree", below)) for n in range(20))
    base = repository.head()
    commit = commit_of(object_id("tree", below), base)
    pack = pack_of((3, b"x"), *trees, (2, below), (1, commit))
    changes = UncommittedChanges(base, object_id("commit", commit), pack)

    async def scene() -> None:
        with pytest.raises(WorkspaceError, match="git ls-tree printed more than"):
            await checkouts.prepare(job_on(changes), repository.workspace(), 0)

    asyncio.run(scene())


def test_what_no_commit_of_the_repository_holds_has_none_of_its_rights() -> None:
    workspace = Workspace(
        "shop", repository="/x", ref="main", trust="full", setup=("make",), setup_secrets=("/token",),
        caches=("pip",), trusted_refs=("main",),
    )  # fmt: skip
    narrowed = without_repository_rights(workspace)
    assert narrowed == replace(workspace, trust="instructions", setup_secrets=(), caches=())
    assert without_repository_rights(replace(workspace, trust="none")).trust == "none"


def test_the_pack_that_git_writes_here_is_the_pack_that_these_tests_write(repository: Repository) -> None:
    commit = commit_of(repository.head("HEAD^{tree}"), repository.head())
    done = subprocess.run(
        ["git", "index-pack", "--strict", "--stdin"], cwd=repository.folder, check=True, timeout=60,
        input=base64.b64decode(pack_of((1, commit))), capture_output=True,
    )  # fmt: skip
    assert done.stdout
    assert repository.run(f"git cat-file commit {object_id('commit', commit)}").encode() == commit
