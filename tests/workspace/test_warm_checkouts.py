import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.errors import WorkspaceError
from steadyhand.job import Job
from steadyhand.ports import Checkout
from steadyhand.testing.contracts.checkouts import Repository, make_repository
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.live_folders import paths_in
from steadyhand.workspace.warm_checkouts import WarmCheckouts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")


@pytest.fixture
def sealed(world_dir: Path) -> SandboxedCheckouts:
    return SandboxedCheckouts(world_dir)


@pytest.fixture(scope="module")
def shared_world() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def shared_sealed(shared_world: Path) -> SandboxedCheckouts:
    """Return checkouts for the tests that do not count what is made."""
    return SandboxedCheckouts(shared_world)


@pytest.fixture(scope="module")
def shared_repository(shared_world: Path) -> Repository:
    return make_repository(shared_world / "repository")


def warm_of(sealed: SandboxedCheckouts) -> WarmCheckouts:
    assert sealed.checkouts.factory.warm is not None
    return sealed.checkouts.factory.warm


def kept(world: Path) -> set[str]:
    return {path.name for folder in paths_in(world / "data" / "warm") for path in paths_in(folder)}


def test_jobs_of_one_commit_share_a_warm_checkout_that_is_made_once(
    sealed: SandboxedCheckouts, repository: Repository
) -> None:
    async def work() -> None:
        places = await asyncio.gather(*(sealed.prepare(repository.workspace(), slot) for slot in range(4)))
        assert warm_of(sealed).build_count == 1
        lowers = {place.layers.lower for place in places if place.layers is not None}
        assert len(lowers) == 1
        await sealed.run_as_agent(
            places[0], "echo mine > mine.txt && rm readme.txt && git checkout -q -b other"
        )
        said = await sealed.run_as_agent(
            places[1], "ls && git status --porcelain --branch && whoami && stat -c %U readme.txt"
        )
        assert said == "readme.txt\nsrc\n## steadyhand/work\nagent\nagent\n"

    run_async(work())


def test_nothing_that_an_agent_does_reaches_the_warm_checkout_or_the_mirror(
    shared_sealed: SandboxedCheckouts, shared_repository: Repository, shared_world: Path
) -> None:
    sealed, repository = shared_sealed, shared_repository

    def stamps() -> dict[str, tuple[int, int]]:
        folders = (shared_world / "data" / "warm", shared_world / "data" / "mirrors")
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
            for folder in folders
            for path in folder.rglob("*")
            if path.name != "whole"
        }

    async def work() -> None:
        place = await sealed.prepare(repository.workspace())
        before = stamps()
        await sealed.run_as_agent(
            place,
            "rm -rf src && echo x > readme.txt && chmod 777 . && touch -d 2020-01-01 .git/config && git gc -q\n"
            "! touch /mirror/x 2>/dev/null && ! rm -rf /mirror/pack 2>/dev/null && git fsck --strict",
        )
        await sealed.checkouts.harvest(place)
        await sealed.checkouts.release(place)
        assert stamps() == before

    run_async(work())


def test_the_index_is_prepared_so_that_status_reads_no_file_again(
    shared_sealed: SandboxedCheckouts, shared_repository: Repository
) -> None:
    sealed = shared_sealed

    async def work() -> None:
        place = await sealed.prepare(shared_repository.workspace())
        # This plumbing believes the index alone: it names every file whose owner, inode or times are others than there.
        assert await sealed.run_as_agent(place, "git diff-files --name-only") == ""
        before = "stat -c '%Y %s' .git/index"
        said = await sealed.run_as_agent(place, f"{before} && git status --porcelain && {before}")
        assert len(set(said.splitlines())) == 1

    run_async(work())


def test_setup_runs_once_and_what_it_makes_is_no_jobs_work(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path
) -> None:
    secret = world_dir / "secret key"
    secret.write_text("word\n", encoding="utf-8")
    secret.chmod(0o600)
    command = (
        f"mkdir 'built *' && cat '{secret}' > 'built */out' && date +%N > stamp && git status > /dev/null"
    )
    workspace = repository.workspace(setup=(command,), setup_secrets=(str(secret),))

    async def work() -> None:
        first = await sealed.prepare(workspace, 0)
        second = await sealed.prepare(workspace, 1)
        assert warm_of(sealed).build_count == 1
        stamp = await sealed.run_as_agent(first, "cat stamp")
        assert await sealed.run_as_agent(second, "cat stamp") == stamp
        assert await sealed.run_as_agent(second, "cat 'built *'/out && git status --porcelain") == "word\n"
        assert (await sealed.try_as_agent(second, f"cat '{secret}'")).exit_code != 0
        harvest = await sealed.checkouts.harvest(second)
        assert harvest.changes is None
        assert harvest.warnings == ()
        plain = await sealed.prepare(repository.workspace(), 2)
        assert await sealed.run_as_agent(plain, "ls") == "readme.txt\nsrc\n"

    run_async(work())


def test_a_setup_command_that_fails_is_named_with_its_last_line_and_leaves_nothing(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path
) -> None:
    workspace = repository.workspace(setup=("echo fine", "echo first; echo 'no such key' >&2; exit 3"))
    with pytest.raises(WorkspaceError, match="no such key") as caught:
        run_async(sealed.prepare(workspace))
    assert "exit 3" in caught.value.detail
    assert kept(world_dir) == set()


def test_setup_has_no_network(shared_sealed: SandboxedCheckouts, shared_repository: Repository) -> None:
    script = "python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 2)' 2>&1 | grep -q unreachable"
    run_async(shared_sealed.prepare(shared_repository.workspace(setup=(script,))))


def test_filters_that_setup_defines_are_used_for_what_is_left_uncommitted(
    sealed: SandboxedCheckouts, repository: Repository
) -> None:
    repository.commit(".gitattributes", "secret.txt filter=rot\n")
    repository.commit("secret.txt", "Uryyb\n")
    rot = "tr A-Za-z N-ZA-Mn-za-m"
    setup = (
        f"git config filter.rot.clean '{rot}' && git config filter.rot.smudge '{rot}'"
        " && git config filter.rot.required true && rm secret.txt && git checkout -q secret.txt"
    )

    async def work() -> None:
        place = await sealed.prepare(repository.workspace(setup=(setup,)))
        assert await sealed.run_as_agent(place, "cat secret.txt && git status --porcelain") == "Hello\n"
        # What an agent defines by itself is not: it would be its own harm, but it is not what the repository means.
        await sealed.run_as_agent(
            place, "echo 'Hello there' > secret.txt && git config filter.rot.clean 'echo no'"
        )
        harvest = await sealed.checkouts.harvest(place)
        assert harvest.warnings == ()
        diff = place.paths.diff.read_text(encoding="utf-8")
        assert "+Uryyb gurer" in diff
        assert "Hello" not in diff

    run_async(work())


def test_the_oldest_that_nobody_uses_go_and_one_in_use_stays(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path
) -> None:
    sealed.checkouts.factory.warm = WarmCheckouts(
        world_dir / "data" / "warm",
        sealed.sandbox_exec,
        warm_of(sealed).settings,
        owner=63_999,
        max_checkouts=1,
    )

    async def work() -> None:
        old = await sealed.prepare(repository.workspace(ref="v1"), 0)
        new = await sealed.prepare(repository.workspace(ref="main"), 1)
        assert kept(world_dir) == {old.commit, new.commit}
        assert await sealed.run_as_agent(old, "cat readme.txt") == "one\ntwo\nthree\n"
        await sealed.checkouts.release(new)
        await sealed.checkouts.release(old)
        assert kept(world_dir) == {old.commit}
        again = await sealed.prepare(repository.workspace(ref="main"), 1)
        assert await sealed.run_as_agent(again, "ls") == "readme.txt\nsrc\n"

    run_async(work())


def test_one_that_goes_while_it_is_asked_for_is_made_anew(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path
) -> None:
    warm = WarmCheckouts(
        world_dir / "data" / "warm",
        sealed.sandbox_exec,
        warm_of(sealed).settings,
        owner=63_999,
        max_checkouts=0,
    )
    sealed.checkouts.factory.warm = warm

    async def one(slot: int) -> None:
        for _ in range(3):
            place = await sealed.prepare(repository.workspace(), slot)
            assert await sealed.run_as_agent(place, "cat readme.txt") == "one\ntwo\nthree\n"
            await sealed.checkouts.release(place)

    async def work() -> None:
        await asyncio.gather(*(one(slot) for slot in range(3)))
        assert kept(world_dir) == set()
        assert warm.build_count >= 1

    run_async(work())


def test_what_an_earlier_life_left_half_made_is_removed_and_the_rest_used_again(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path
) -> None:
    outside = world_dir / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x", encoding="utf-8")

    async def work() -> None:
        place = await sealed.prepare(repository.workspace())
        await sealed.run_as_agent(place, "echo x > x.txt")
        assert place.layers is not None
        of_mirror = place.layers.lower.parent.parent
        half = of_mirror / ".build-0123" / "checkout"
        half.mkdir(parents=True)
        (half / "link").symlink_to(outside)
        (of_mirror / "unfinished").mkdir()
        (of_mirror.parent / "stray").symlink_to(outside)
        later = SandboxedCheckouts(world_dir)
        await later.checkouts.remove_leftovers()
        assert kept(world_dir) == {place.commit}
        assert (outside / "kept").is_file()
        assert {path.name for path in place.paths.root.iterdir()} == {"config", "kept", "prepared"}
        again = await later.prepare(repository.workspace())
        assert warm_of(later).build_count == 0
        assert await later.run_as_agent(again, "ls") == "readme.txt\nsrc\n"

    run_async(work())


CACHES = [
    *(
        pytest.param(*cache, marks=pytest.mark.long)
        for cache in [
            ("pip", "~/.cache/pip"),
            ("npm", "~/.npm"),
            ("cargo", "~/.cargo/registry"),
            ("cargo", "~/.cargo/git"),
        ]
    ),
    pytest.param("go", "~/go/pkg/mod", marks=pytest.mark.long),
    ("go", "~/.cache/go-build"),
]


@pytest.mark.parametrize(("cache", "where"), CACHES)
def test_a_cache_is_shared_by_the_jobs_of_a_workspace_and_by_no_other(
    shared_sealed: SandboxedCheckouts, shared_repository: Repository, cache: str, where: str
) -> None:
    sealed, repository = shared_sealed, shared_repository
    workspace = repository.workspace(caches=(cache,))

    async def work() -> None:
        first = await sealed.prepare(workspace, 0)
        await sealed.run_as_agent(first, f"echo one > {where}/f")
        second = await sealed.prepare(workspace, 1)
        assert await sealed.run_as_agent(second, f"cat {where}/f && echo more >> {where}/f") == "one\n"
        assert await sealed.run_as_agent(first, f"cat {where}/f") == "one\nmore\n"
        other = await sealed.prepare(replace(workspace, name="other"), 2)
        assert await sealed.run_as_agent(other, f"ls {where}") == ""
        without = await sealed.prepare(repository.workspace(), 3)
        assert await sealed.run_as_agent(without, f"ls {where} 2>/dev/null || echo none") == "none\n"

    run_async(work())


def test_a_prepare_that_is_given_up_leaves_no_warm_checkout_in_use(
    sealed: SandboxedCheckouts, repository: Repository, world_dir: Path
) -> None:
    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await sealed.prepare(repository.workspace(setup=("sleep 30",)))
        assert kept(world_dir) == set()
        place = await sealed.prepare(repository.workspace())
        await sealed.checkouts.release(place)

    run_async(work())


def test_no_process_of_git_is_needed_when_commit_and_warm_checkout_are_there(
    sealed: SandboxedCheckouts, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hot(job: Job) -> Checkout:
        return await sealed.prepare(repository.workspace(), job=job)

    async def work() -> None:
        await sealed.checkouts.release(await hot(make_job()))
        calls: list[str] = []
        monkeypatch.setattr("steadyhand.workspace.git._spawn", lambda argv, *_: calls.append(argv[1]))
        sealed.checkouts.mirrors.get(str(repository.folder))._debounce = 600
        place = await hot(make_job())
        assert calls == []
        assert await sealed.run_as_agent(place, "cat readme.txt") == "one\ntwo\nthree\n"

    run_async(work())
