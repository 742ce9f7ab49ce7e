"""Repositories that are not like most: no HEAD, no commit, SHA-256, partial clones, odd names, and permanent faults."""

import asyncio
import os
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.errors import WorkspaceError
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, make_repository, run_as_agent, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts, GitSettings
from steadyhand.workspace.fetch_errors import explain
from steadyhand.workspace.mirror import Mirror
from steadyhand.workspace.repository_source import parse_source

_ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")
ODD_NAMES = (
    "line\u2028end",
    "paragraph\u2029end",
    "next\u0085line",
    "\u00a0",
    "\u3000x",
    "\u200b",
    "z\udcff",
)


def mirror_of(repository: Repository, world_dir: Path) -> Mirror:
    folder = world_dir / "mirrors" / "example.git"
    return Mirror(parse_source(str(repository.folder)), folder, GitSettings(), debounce_seconds=0)


def test_a_repository_whose_head_names_no_branch_is_used_by_its_branches(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    repository.run("git symbolic-ref HEAD refs/heads/nowhere")

    async def work() -> None:
        place = await checkouts.prepare(make_job(ref="main"), repository.workspace(), 0)
        assert place.commit == repository.head("main")
        with pytest.raises(WorkspaceError, match=r"HEAD of the repository names no branch.*'main'") as caught:
            await checkouts.prepare(make_job(), repository.workspace(), 1)
        assert not caught.value.retryable
        repository.run("git symbolic-ref HEAD refs/heads/side")
        assert (await checkouts.prepare(make_job(), repository.workspace(), 1)).commit == repository.head(
            "side"
        )

    asyncio.run(work())


def test_a_head_that_is_gone_is_not_used_any_more(world_dir: Path, repository: Repository) -> None:
    mirror = mirror_of(repository, world_dir)

    async def work() -> None:
        await mirror.resolve(None)
        repository.run("git symbolic-ref HEAD refs/heads/nowhere")
        with pytest.raises(WorkspaceError, match="names no branch"):
            await mirror.resolve(None)

    asyncio.run(work())


def test_a_repository_without_a_commit_is_said_to_have_none(world_dir: Path) -> None:
    empty = Repository(world_dir / "empty")
    run_shell(f"git init -q {empty.folder}", world_dir)
    with pytest.raises(WorkspaceError, match="has no commit yet") as caught:
        asyncio.run(mirror_of(empty, world_dir).resolve(None))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"overlay": True}, marks=_ROOT_ONLY),
        pytest.param({"overlay": False}, marks=[_ROOT_ONLY, pytest.mark.long]),
        pytest.param(None, marks=pytest.mark.long),
    ],
)
def test_branches_and_tags_with_any_name_that_git_allows_break_nothing(
    world_dir: Path, repository: Repository, options: dict[str, bool] | None
) -> None:
    for name in ODD_NAMES:
        quoted = f"'{name}'"
        repository.run(f"git branch {quoted} && git tag t{quoted}")
    names = sorted(
        repository.run("git for-each-ref --format='%(refname)' refs/heads refs/tags")
        .replace("refs/heads/", "refs/remotes/origin/").split("\n")
    )  # fmt: skip

    async def work() -> None:
        (world_dir / "data").mkdir()
        made = None if options is None else SandboxedCheckouts(world_dir, **options)
        checkouts = made.checkouts if made is not None else bare_checkouts(world_dir)
        place = await checkouts.prepare(make_job(), repository.workspace(), 0)
        script = "git for-each-ref --format='%(refname)' refs/remotes refs/tags && git fsck --strict 1>&2"
        seen = await made.run_as_agent(place, script) if made is not None else run_as_agent(place, script)
        assert sorted(seen.split("\n")) == names
        odd = await checkouts.prepare(make_job(ref=ODD_NAMES[0]), repository.workspace(), 1)
        assert odd.commit == place.commit

    run_async(work())


def bare_checkouts(world_dir: Path) -> GitCheckouts:
    return GitCheckouts(
        world_dir / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
    )


def make_sha256(world_dir: Path) -> Repository:
    repository = Repository(world_dir / "sha256")
    run_shell(f"git init -q -b main --object-format=sha256 {repository.folder}", world_dir)
    repository.run("git config user.name Ann && git config user.email ann@example.org")
    repository.commit("readme.txt", "one\n")
    repository.run("git tag -a -m note v1")
    return repository


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"overlay": True}, marks=_ROOT_ONLY),
        pytest.param({"overlay": False}, marks=[_ROOT_ONLY, pytest.mark.long]),
        pytest.param({"overlay": False, "shares_objects": True}, marks=[_ROOT_ONLY, pytest.mark.long]),
        pytest.param(None, marks=pytest.mark.long),
    ],
)
def test_a_repository_with_sha_256_is_checked_out_harvested_and_continued(
    world_dir: Path, options: dict[str, bool] | None
) -> None:
    repository = make_sha256(world_dir)

    async def work() -> None:
        (world_dir / "data").mkdir()
        made = None if options is None else SandboxedCheckouts(world_dir, **options)
        checkouts = made.checkouts if made is not None else bare_checkouts(world_dir)
        for ref in (None, "v1", repository.head(), repository.head()[:50]):
            place = await checkouts.prepare(make_job(ref=ref), repository.workspace(), 0)
            assert place.commit == repository.head()
            assert place.warnings == ()
        job = make_job(publish="branch")
        place = await checkouts.prepare(job, repository.workspace(), 1)
        script = (
            "git describe && echo two > two.txt && git add -A && git commit -qm two && echo three > three.txt"
        )
        seen = await made.run_as_agent(place, script) if made is not None else run_as_agent(place, script)
        assert seen == "v1\n"
        harvest = await checkouts.harvest(place)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert (harvest.changes.files, harvest.changes.published) == (2, True)
        pushed = repository.run(f"git show --format= --name-only main..{harvest.changes.branch}")
        assert pushed.split() == ["three.txt", "two.txt"]
        assert len(harvest.changes.head) == 64

    run_async(work())


def test_a_repository_that_changes_its_object_format_is_a_permanent_fault(world_dir: Path) -> None:
    repository = make_sha256(world_dir)
    mirror = mirror_of(repository, world_dir)

    async def work() -> None:
        await mirror.resolve(None)
        repository.folder.rename(world_dir / "before")
        make_repository(repository.folder)
        with pytest.raises(WorkspaceError, match="object format") as caught:
            await mirror.resolve(None)
        assert not caught.value.retryable

    asyncio.run(work())


def test_a_partial_clone_is_named_as_the_cause_and_not_as_retryable(
    world_dir: Path, repository: Repository
) -> None:
    repository.run("git config uploadpack.allowFilter true")
    partial = Repository(world_dir / "partial")
    run_shell(
        f"git clone -q --filter=blob:none --no-checkout file://{repository.folder} {partial.folder}",
        world_dir,
    )
    with pytest.raises(WorkspaceError, match="partial clone") as caught:
        asyncio.run(mirror_of(partial, world_dir).resolve(None))
    assert not caught.value.retryable


def test_a_folder_that_is_missing_or_no_repository_is_a_permanent_fault(
    world_dir: Path, repository: Repository
) -> None:
    (world_dir / "plain").mkdir()
    for name in ("missing", "plain"):
        with pytest.raises(WorkspaceError, match=f"'{name}' could not be fetched") as caught:
            asyncio.run(mirror_of(Repository(world_dir / name), world_dir).resolve(None))
        assert not caught.value.retryable


PERMANENT = (
    "fatal: could not read Username for 'https://example.org': terminal prompts disabled",
    "fatal: Authentication failed for 'https://example.org/x/'",
    "fatal: unable to access 'https://example.org/x/': The requested URL returned error: 403",
    "remote: Repository not found.\nfatal: repository 'https://example.org/x/' not found",
    "git@example.org: Permission denied (publickey).\nfatal: Could not read from remote repository.",
    "Host key verification failed.\nfatal: Could not read from remote repository.",
    "fatal: unable to access 'https://example.org/x/': SSL certificate problem: certificate has expired",
)
PASSING = (
    "fatal: unable to access 'https://example.org/x/': Could not resolve host: example.org",
    "fatal: unable to access 'https://example.org/x/': The requested URL returned error: 503",
    "fatal: unable to access 'https://example.org/x/': The requested URL returned error: 429",
    "ssh: connect to host example.org port 22: Connection refused",
    "fatal: early EOF\nfatal: fetch-pack: invalid index-pack output",
)


@pytest.mark.parametrize("stderr", [*PERMANENT, *PASSING])
def test_only_faults_that_time_may_mend_are_retryable(stderr: str) -> None:
    assert explain("reason", stderr).retryable is (stderr in PASSING)
