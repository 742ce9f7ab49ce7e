import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from steadyhand.errors import WorkspaceError
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts, GitSettings, git
from steadyhand.workspace.mirror import Mirror, Mirrors
from steadyhand.workspace.repository_source import parse_source


def mirror_of(repository: Repository, world_dir: Path, **options: float) -> Mirror:
    folder = world_dir / "mirrors" / "example.git"
    return Mirror(parse_source(str(repository.folder)), folder, GitSettings(), **options)


def test_twenty_checkouts_at_once_share_one_fetch(world_dir: Path, repository: Repository) -> None:
    (world_dir / "data").mkdir()
    checkouts = GitCheckouts(
        world_dir / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
    )

    async def prepare_all() -> None:
        async with asyncio.TaskGroup() as group:
            for slot in range(20):
                group.create_task(checkouts.prepare(make_job(), repository.workspace(), slot))

    asyncio.run(prepare_all())
    assert checkouts.mirrors.get(str(repository.folder)).fetches == 1
    assert len(list((world_dir / "data" / "jobs").glob("*/checkout/readme.txt"))) == 20


def test_a_young_fetch_is_not_repeated_but_for_a_ref_that_is_not_known(
    world_dir: Path, repository: Repository
) -> None:
    mirror = mirror_of(repository, world_dir, debounce_seconds=600)

    async def resolve() -> None:
        before = await mirror.resolve("main")
        after = repository.commit("later.txt", "later\n")
        assert await mirror.resolve("main") == before
        assert mirror.fetches == 1
        assert await mirror.resolve(after) == after
        assert mirror.fetches == 2
        with pytest.raises(WorkspaceError, match="'nowhere'"):
            await mirror.resolve("nowhere")
        assert mirror.fetches == 3

    asyncio.run(resolve())


def test_a_fetch_that_finds_nothing_new_is_one_git_command_and_one_that_does_is_seen(
    world_dir: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = mirror_of(repository, world_dir, debounce_seconds=0)
    verbs: list[str] = []
    run_process = git.run_process

    async def recorded(argv: list[str], **options: Any) -> Any:
        verbs.append(argv[1])
        return await run_process(argv, **options)

    monkeypatch.setattr(git, "run_process", recorded)

    async def resolve() -> None:
        commit = await mirror.resolve("main")
        refs = (await mirror.refs_file()).read_bytes()
        verbs.clear()
        assert await mirror.resolve("main") == commit
        assert (await mirror.refs_file()).read_bytes() == refs
        assert verbs == ["fetch"]
        for change in ("git branch new", "git tag new", "git branch -D new", "git pack-refs --all"):
            repository.run(change)
            assert await mirror.resolve("main") == commit
            listed = repository.run(
                "git for-each-ref --format='%(objectname) %(refname)' refs/heads refs/tags"
            )
            kept = mirror_refs(await mirror.refs_file())
            assert kept == {
                line.replace(" refs/heads/", " refs/remotes/origin/") for line in listed.splitlines()
            }
        moved = repository.commit("later.txt", "later\n")
        assert await mirror.resolve("main") == moved

    asyncio.run(resolve())
    assert mirror.fetches == 7


def mirror_refs(file: Path) -> set[str]:
    return {line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")}


def test_a_commit_that_is_known_needs_no_fetch(world_dir: Path, repository: Repository) -> None:
    mirror = mirror_of(repository, world_dir, debounce_seconds=0)

    async def resolve() -> None:
        commit = await mirror.resolve("main")
        repository.folder.rename(world_dir / "elsewhere")
        assert await mirror.resolve(commit) == commit

    asyncio.run(resolve())


def test_those_who_wait_for_a_fetch_that_fails_share_its_failure(world_dir: Path) -> None:
    broken = world_dir / "broken"
    broken.mkdir()
    mirror = Mirror(parse_source(str(broken)), world_dir / "mirrors" / "broken.git", GitSettings())

    async def resolve_all() -> list[BaseException | str]:
        return await asyncio.gather(*(mirror.resolve("main") for _ in range(10)), return_exceptions=True)

    results = asyncio.run(resolve_all())
    assert all(isinstance(result, WorkspaceError) for result in results)
    assert mirror.fetches == 1
    assert all("broken" in str(result) and str(world_dir) not in str(result) for result in results)


def test_a_deleted_branch_goes_and_a_rewritten_one_is_followed(
    world_dir: Path, repository: Repository
) -> None:
    mirror = mirror_of(repository, world_dir, debounce_seconds=0)

    async def resolve() -> None:
        await mirror.resolve("side")
        repository.run("git branch -qD side && git commit -q --amend -m rewritten")
        assert await mirror.resolve("main") == repository.head("main")
        with pytest.raises(WorkspaceError, match="'side'"):
            await mirror.resolve("side")

    asyncio.run(resolve())


def test_a_detached_head_that_no_branch_leads_to_is_what_head_means(
    world_dir: Path, repository: Repository
) -> None:
    repository.run("git checkout -q --detach")
    commit = repository.commit("detached.txt", "x\n")
    mirror = mirror_of(repository, world_dir)
    assert asyncio.run(mirror.resolve(None)) == commit


def test_a_shallow_repository_can_be_checked_out_and_harvested(
    world_dir: Path, repository: Repository
) -> None:
    shallow = Repository(world_dir / "shallow")
    run_shell(f"git clone -q --depth 1 file://{repository.folder} {shallow.folder}", world_dir)
    (world_dir / "data").mkdir()
    checkouts = GitCheckouts(world_dir / "data", agent_files=ClaudeFiles(), redactor=NO_REDACTION)

    async def run() -> None:
        place = await checkouts.prepare(make_job(), shallow.workspace(), 0)
        run_shell("echo x > x.txt && git add -A && git commit -qm x", place.directory, user=place.uid)
        harvest = await checkouts.harvest(place)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert harvest.changes.files == 1

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
def test_a_repository_of_another_user_is_read_as_that_user(world_dir: Path, repository: Repository) -> None:
    run_shell(f"chown -R 64321:64321 {repository.folder}", world_dir)
    commit = run_shell("git -c safe.directory='*' rev-parse HEAD", repository.folder).strip()
    assert asyncio.run(mirror_of(repository, world_dir).resolve("main")) == commit


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of another user")
def test_a_repository_cannot_borrow_what_only_the_service_may_read(
    world_dir: Path, repository: Repository
) -> None:
    secret = repository.head()
    repository.folder.chmod(0o700)
    thief = Repository(world_dir / "thief")
    run_shell(f"git init -q -b main {thief.folder}", world_dir)
    (thief.folder / ".git" / "objects" / "info" / "alternates").write_text(
        f"{repository.folder}/.git/objects\n"
    )
    (thief.folder / ".git" / "refs" / "heads" / "main").write_text(f"{secret}\n")
    run_shell(f"chown -R 64321:64321 {thief.folder}", world_dir)
    with pytest.raises(WorkspaceError):
        asyncio.run(mirror_of(thief, world_dir).resolve("main"))


@pytest.mark.parametrize(
    "repository", ["ext::sh -c id", "fd::3", "-c", "", "ftp://example.org/x", "a\x00b", "ext://sh"]
)
def test_what_is_no_repository_is_refused_before_git_sees_it(repository: str) -> None:
    with pytest.raises(WorkspaceError):
        parse_source(repository)


def test_a_password_in_a_url_is_kept_off_the_command_line() -> None:
    source = parse_source("https://ann:s3cret@git.example.org/x.git")
    assert source.url == "https://git.example.org/x.git"
    assert "s3cret" not in source.display_name
    assert source.authorization is not None


def test_the_same_url_with_another_password_is_another_mirror(world_dir: Path) -> None:
    mirrors = Mirrors(world_dir, GitSettings())
    one = mirrors.get("https://ann:one@git.example.org/x.git")
    two = mirrors.get("https://ann:two@git.example.org/x.git")
    bare = mirrors.get("https://git.example.org/x.git")
    assert len({one.folder, two.folder, bare.folder}) == 3
    assert mirrors.get("https://git.example.org/x.git") is bare


def test_a_lock_that_a_killed_git_left_long_ago_does_not_stop_a_fetch(
    world_dir: Path, repository: Repository
) -> None:
    asyncio.run(mirror_of(repository, world_dir).resolve("main"))
    lock = world_dir / "mirrors" / "example.git" / "refs" / "heads" / "main.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    commit = repository.commit("more.txt", "more\n")
    assert asyncio.run(mirror_of(repository, world_dir).resolve("main")) == commit


def test_a_prepare_that_fails_or_is_cancelled_leaves_no_checkout(
    world_dir: Path, repository: Repository
) -> None:
    (world_dir / "data").mkdir()
    checkouts = GitCheckouts(
        world_dir / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
    )
    job = make_job()

    async def run() -> None:
        with pytest.raises(WorkspaceError):
            await checkouts.prepare(make_job(id=job.id, ref="nowhere"), repository.workspace(), 0)
        assert {path.name for path in checkouts.job_paths(job.id).root.iterdir()} == {"kept", "prepared"}
        for delay in (0.0, 0.02, 0.04, 0.06):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await checkouts.prepare(job, repository.workspace(), 0)
            await checkouts.remove_leftovers()
        place = await checkouts.prepare(job, repository.workspace(), 0)
        assert place.commit == repository.head()

    asyncio.run(run())


def test_a_data_directory_may_be_named_by_a_relative_path(
    world_dir: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world_dir / "data").mkdir()
    monkeypatch.chdir(world_dir)
    checkouts = GitCheckouts(Path("data"), agent_files=ClaudeFiles(), redactor=NO_REDACTION)

    async def run() -> None:
        place = await checkouts.prepare(make_job(), repository.workspace(), 0)
        run_shell("echo x > x.txt", place.directory, user=place.uid)
        harvest = await checkouts.harvest(place)
        assert harvest.changes is not None
        assert harvest.warnings == ()

    asyncio.run(run())
