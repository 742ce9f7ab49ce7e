"""Tests of every way to make checkouts, with real git and, as root, with agents of a uid of their own."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.ports import Checkout, Checkouts
from steadyhand.testing.cli import SYSTEM_PATH
from steadyhand.testing.contracts.samples import async_test, make_job

_SECONDS = 60
_ENVIRONMENT = {
    "PATH": SYSTEM_PATH,
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}
DEFINITION = "---\nname: helper\ndescription: Helps.\ntools: Read\nhooks:\n  Stop: []\n---\nYou help.\n"


def run_shell(script: str, cwd: Path, *, user: int | None = None, home: Path | None = None) -> str:
    """Run a shell script, as `user` (uid and gid) unless that is None, and return its output."""
    env = {**_ENVIRONMENT, **({} if home is None else {"HOME": str(home), **_config_of(home)})}
    identity = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    result = subprocess.run(  # type: ignore[call-overload]  # a test's own script
        ["/bin/sh", "-ec", script], cwd=cwd, env=env, check=False, capture_output=True, timeout=_SECONDS, **identity
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode("utf-8", "replace")
    return str(result.stdout.decode("utf-8", "surrogateescape"))


def _config_of(home: Path) -> dict[str, str]:
    return {"CLAUDE_CONFIG_DIR": str(home.with_name("config"))}


def run_as_agent(checkout: Checkout, script: str) -> str:
    """Do in a place what an agent would do there: as its user, with its home."""
    return run_shell(script, checkout.directory, user=checkout.uid, home=checkout.home)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository to make checkouts of; it has a branch `main`, a branch `side` and a tag `v1`."""

    folder: Path

    def run(self, script: str) -> str:
        """Run a shell script in it."""
        return run_shell(script, self.folder)

    def commit(self, name: str, text: str) -> str:
        """Commit a file on the branch that is checked out and return the commit's id."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        self.run(f"git add -A && git commit -qm 'Change {path.name}'")
        return self.head()

    def head(self, ref: str = "HEAD") -> str:
        """Return a commit's id."""
        return self.run(f"git rev-parse {ref}").strip()

    def workspace(self, **fields: object) -> Workspace:
        """Return the repository as a workspace."""
        return Workspace("example", repository=str(self.folder), **fields)  # type: ignore[arg-type]


def make_repository(folder: Path) -> Repository:
    """Make a repository with a little history."""
    shutil.copytree(_make_template(), folder, symlinks=True)
    return Repository(folder)


@functools.cache
def _make_template() -> Path:
    """Make the repository that all others are copies of: making one starts a dozen processes."""
    parent = Path(tempfile.mkdtemp(prefix="sh-repository-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    folder = parent / "repository"
    folder.mkdir()
    repository = Repository(folder)
    repository.run("git init -q -b main && git config user.name Ann && git config user.email ann@example.org")
    repository.commit("readme.txt", "one\ntwo\nthree\n")
    repository.run("git tag v1 && git checkout -q -b side")
    repository.commit("side.txt", "aside\n")
    repository.run("git checkout -q main")
    repository.commit("src/code.txt", "".join(f"line {number}\n" for number in range(40)))
    return folder


def list_tree(folder: Path) -> dict[str, str]:
    """Return every file below a directory, `.git` apart: its kind, its executable bit and its content."""
    tree = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/", maxsplit=1)[0] == ".git" or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            tree[name] = f"link {path.readlink()}"
        else:
            tree[name] = f"{path.stat().st_mode & 0o100:o} {path.read_bytes().hex()}"
    return tree


class CheckoutsContract:
    """Subclass it and define `open`; fetches must not be debounced there."""

    root: Path
    """A directory that every user can enter."""

    def open(self) -> AbstractAsyncContextManager[Checkouts]:
        """Open checkouts in a data directory of their own below `world`."""
        raise NotImplementedError

    async def run_as_agent(self, place: Checkout, script: str) -> str:
        """Run a script in a checkout as an agent would, here without a sandbox, and return its output."""
        return run_as_agent(place, script)

    async def tree(self, place: Checkout) -> dict[str, str]:
        """Return every file of a checkout as the agent sees it; see `list_tree`."""
        return list_tree(place.directory)

    def remaining_names(self, place: Checkout) -> set[str]:
        """Return the names in a job's directory."""
        return {path.name for path in place.paths.root.iterdir()}

    def repository(self) -> Repository:
        """Make a repository."""
        return make_repository(self.root / "repository")

    @async_test
    async def test_a_branch_a_tag_and_a_commit_can_each_be_checked_out(self) -> None:
        repository = self.repository()
        commit = repository.head("main~1")
        async with self.open() as checkouts:
            for slot, ref in enumerate(["side", "v1", commit, commit[:10], "refs/heads/side", None]):
                place = await checkouts.prepare(make_job(ref=ref), repository.workspace(), slot)
                assert place.commit == repository.head(ref or "main")
                assert (await self.run_as_agent(place, "git rev-parse HEAD")).strip() == place.commit
                assert await self.run_as_agent(place, "git status --porcelain") == ""

    @async_test
    async def test_an_unknown_ref_is_named_in_the_error(self) -> None:
        repository = self.repository()
        async with self.open() as checkouts:
            for ref in ("no-such-branch", "f" * 40, "--upload-pack=x", "main..side", "v1^{/x}"):
                with pytest.raises(WorkspaceError) as caught:
                    await checkouts.prepare(make_job(ref=ref), repository.workspace(), 0)
                assert ref in caught.value.detail

    @async_test
    async def test_a_repository_that_is_not_there_is_an_error_without_its_path(self) -> None:
        missing = self.root / "missing"
        async with self.open() as checkouts:
            with pytest.raises(WorkspaceError) as caught:
                await checkouts.prepare(make_job(), Workspace("example", repository=str(missing)), 0)
        assert "missing" in caught.value.detail
        assert str(self.root) not in caught.value.detail

    @async_test
    async def test_the_next_job_sees_a_new_commit(self) -> None:
        repository = self.repository()
        async with self.open() as checkouts:
            before = await checkouts.prepare(make_job(), repository.workspace(), 0)
            commit = repository.commit("new.txt", "new\n")
            after = await checkouts.prepare(make_job(), repository.workspace(), 1)
            assert before.commit != commit
            assert after.commit == commit
            assert await self.run_as_agent(after, "cat new.txt") == "new\n"
            assert await self.run_as_agent(before, "test ! -e new.txt") == ""

    @async_test
    async def test_uncommitted_work_of_the_repository_is_not_in_a_checkout(self) -> None:
        repository = self.repository()
        (repository.folder / "draft.txt").write_text("draft\n", encoding="utf-8")
        (repository.folder / "readme.txt").write_text("edited\n", encoding="utf-8")
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), repository.workspace(), 0)
            assert (
                await self.run_as_agent(place, "test ! -e draft.txt && cat readme.txt") == "one\ntwo\nthree\n"
            )

    @async_test
    async def test_what_one_job_does_is_unknown_to_another_and_to_the_repository(self) -> None:
        repository = self.repository()
        async with self.open() as checkouts:
            first = await checkouts.prepare(make_job(), repository.workspace(), 0)
            second = await checkouts.prepare(make_job(), repository.workspace(), 1)
            await self.run_as_agent(
                first, "echo mine > mine.txt && git add -A && git commit -qm mine && git branch -f main HEAD"
            )
            await self.run_as_agent(
                first, "chmod -R u+w .git && for f in $(find .git/objects -type f); do echo broken > $f; done"
            )
            third = await checkouts.prepare(make_job(), repository.workspace(), 2)
            for place in (second, third):
                await self.run_as_agent(place, "test ! -e mine.txt")
                await self.run_as_agent(place, "git fsck --strict")
        repository.run("git fsck --strict && test ! -e mine.txt")

    @async_test
    async def test_the_diff_applies_and_gives_the_tree_that_the_agent_left(self) -> None:
        repository = self.repository()
        repository.run(
            "echo gone > gone.txt && printf 'a\\0b' > binary && echo run > run.sh && ln -s readme.txt link"
        )
        repository.commit("ignored-list", "x\n")
        repository.commit(".gitignore", "*.log\n")
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), repository.workspace(), 0)
            await self.run_as_agent(
                place,
                "rm gone.txt && printf 'c\\0d\\377' > binary && chmod +x run.sh && ln -sf run.sh link\n"
                "git mv src/code.txt moved.txt && echo extra >> moved.txt && git commit -qam renamed\n"
                "echo 'new' > 'n\u00e4me with space.txt' && mkdir deep && printf 'no newline' > deep/file\n"
                "echo hidden > noise.log && : > empty && ln -s /etc/passwd away && echo four >> readme.txt",
            )
            harvest = await checkouts.harvest(place)
            assert harvest.changes is not None
            assert harvest.warnings == ()
            await self.run_as_agent(place, "rm noise.log")
            wanted = await self.tree(place)
            copy = self.root / "copy"
            run_shell(
                f"git clone -q {repository.folder} {copy} && cd {copy} && git checkout -q {place.commit}",
                self.root,
            )
            run_shell(f"git apply --index {place.paths.diff}", copy)
        assert list_tree(copy) == wanted
        assert "a/away" in place.paths.diff.read_text(encoding="utf-8", errors="replace")

    @async_test
    async def test_a_file_a_link_and_a_folder_that_took_each_others_place_are_kept_without_a_warning(
        self,
    ) -> None:
        repository = self.repository()
        repository.run("ln -s readme.txt link && ln -s src folder-link")
        repository.commit("plain", "x\n")
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), repository.workspace(), 0)
            await self.run_as_agent(
                place,
                "for name in readme.txt link folder-link; do rm $name; mkdir $name; echo in > $name/file; done\n"
                "mkdir readme.txt/deep && ln -s ../file readme.txt/deep/link\n"
                "rm -r src && echo out > src && rm plain && ln -s src plain",
            )
            harvest = await checkouts.harvest(place)
            assert harvest.warnings == ()
            assert harvest.changes is not None
            wanted = await self.tree(place)
            copy = self.root / "copy"
            run_shell(
                f"git clone -q {repository.folder} {copy} && git -C {copy} apply --index {place.paths.diff}",
                self.root,
            )
        assert list_tree(copy) == wanted

    @async_test
    async def test_commits_and_uncommitted_work_are_kept_when_the_checkout_is_gone(self) -> None:
        repository = self.repository()
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), repository.workspace(), 0)
            await self.run_as_agent(place, "echo a > a.txt && git add -A && git commit -qm 'First of mine'")
            await self.run_as_agent(
                place, "echo b > b.txt && git add -A && git commit -qm 'Second of mine' && echo c > c.txt"
            )
            harvest = await checkouts.harvest(place)
            await checkouts.release(place)
        changes = harvest.changes
        assert changes is not None
        assert (changes.base, changes.files, changes.insertions, changes.deletions) == (place.commit, 3, 3, 0)
        assert self.remaining_names(place) == {"config", "kept", "prepared"}
        repository.run(f"git fetch -q {place.paths.bundle} 'refs/heads/*:refs/heads/*'")
        log = repository.run(f"git log --format=%s {changes.base}..{changes.head}").split("\n")[:-1]
        assert log[1:] == ["Second of mine", "First of mine"]
        assert repository.run(f"git show {changes.head}:c.txt") == "c\n"

    @async_test
    async def test_a_job_that_changes_nothing_has_no_changes(self) -> None:
        repository = self.repository()
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), repository.workspace(), 0)
            await self.run_as_agent(place, "touch readme.txt && git status > /dev/null")
            harvest = await checkouts.harvest(place)
        assert harvest.changes is None
        assert harvest.warnings == ()
        assert not place.paths.diff.exists()

    @async_test
    async def test_a_second_run_of_a_job_starts_over_and_leaves_nothing_of_the_first(self) -> None:
        repository = self.repository()
        job = make_job()
        async with self.open() as checkouts:
            first = await checkouts.prepare(job, repository.workspace(), 0)
            await self.run_as_agent(
                first,
                "echo x > x.txt && touch ~/left && cd $CLAUDE_CONFIG_DIR && mkdir -p projects/p && echo {} > x",
            )
            await checkouts.harvest(first)
            await checkouts.release(first)
            again = await checkouts.prepare(job, repository.workspace(), 1)
            harvest = await checkouts.harvest(again)
        assert harvest.changes is None
        assert not again.paths.diff.exists()
        assert not (again.home / "left").exists()
        assert not (again.paths.config_dir / "x").exists()

    @async_test
    async def test_scratch_is_an_empty_directory_of_the_agent(self) -> None:
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), Workspace("scratch"), 0)
            assert await self.run_as_agent(place, "ls -A && touch made") == ""
            harvest = await checkouts.harvest(place)
            assert place.commit is None
            assert harvest.changes is None
            await checkouts.release(place)
            assert self.remaining_names(place) == {"config", "kept", "prepared"}

    @async_test
    async def test_release_keeps_what_was_kept_and_forget_keeps_nothing(self) -> None:
        repository = self.repository()
        job = make_job()
        async with self.open() as checkouts:
            place = await checkouts.prepare(job, repository.workspace(), 0)
            await self.run_as_agent(
                place,
                "echo x > x.txt && mkdir -p $CLAUDE_CONFIG_DIR/projects/p && cd $CLAUDE_CONFIG_DIR/projects/p"
                " && echo '{}' > s.jsonl",
            )
            await checkouts.harvest(place)
            await checkouts.release(place)
            assert self.remaining_names(place) == {"config", "kept", "prepared"}
            assert place.paths.diff.is_file()
            assert place.paths.transcript.read_text(encoding="utf-8") == "{}\n"
            await checkouts.release(place)
            assert await checkouts.has_session(job.id)
            assert await checkouts.list_job_ids() == [job.id]
            await checkouts.delete_job(job.id)
            assert await checkouts.list_job_ids() == []
            assert not await checkouts.has_session(job.id)
            assert not checkouts.job_paths(job.id).root.exists()
            await checkouts.delete_job(job.id)

    @async_test
    async def test_sweep_removes_checkouts_that_an_earlier_life_left_and_keeps_the_rest(self) -> None:
        repository = self.repository()
        async with self.open() as checkouts:
            place = await checkouts.prepare(make_job(), repository.workspace(), 0)
            await self.run_as_agent(place, "echo x > x.txt && echo y > $CLAUDE_CONFIG_DIR/session")
            await checkouts.harvest(place)
            await checkouts.remove_leftovers()
            assert self.remaining_names(place) == {"config", "kept", "prepared"}
            assert place.paths.diff.is_file()
            assert (place.paths.config_dir / "session").is_file()

    @async_test
    async def test_definitions_come_by_the_trust_of_the_workspace(self) -> None:
        repository = self.repository()
        repository.commit(".claude/agents/helper.md", DEFINITION)
        async with self.open() as checkouts:
            none = await checkouts.agent_definitions(repository.workspace(trust="none"))
            some = await checkouts.agent_definitions(repository.workspace(trust="instructions"))
            listed = await checkouts.agent_definitions(
                repository.workspace(trust="full", trusted_refs=("main",), ref="main")
            )
            other = await checkouts.agent_definitions(
                repository.workspace(trust="full", trusted_refs=("side",), ref="main")
            )
        assert none == {}
        assert list(some) == ["helper"]
        assert "hooks" not in some["helper"].text
        assert "tools: Read" in some["helper"].text
        assert "hooks" in listed["helper"].text
        assert other == some
