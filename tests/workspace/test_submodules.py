"""Submodules by setting: fetched over loopback at the pinned commits, refused by the rules, and kept in a harvest."""

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.workspace.git_http_server import GitHttpServer
from tests.workspace.pointers import add_lfs_file, add_submodule
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async, told_at_once

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job_warnings import WarningCode
from steadyhand.testing.contracts.checkouts import Repository, make_repository, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts, submodule_mirror, submodules
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.remote_hosts import RemoteHosts
from steadyhand.workspace.repository_source import parse_source

LOGIN = "Basic YW5uOnNlY3JldA=="
NAMES = ("deep", "lib", "main")


class Forge:
    """Repositories on loopback: `main` has `lib` as the submodule `libs/lib`, and `lib` has `deep` as `inner/deep`."""

    def __init__(self, root: Path, server: GitHttpServer) -> None:
        self.root = root
        self.server = server
        shutil.copytree(_make_template(), root, symlinks=True, dirs_exist_ok=True)
        self.deep, self.lib, self.main = (Repository(root / name) for name in NAMES)

    def add(self, repository: Repository, path: str, url: str, commit: str) -> None:
        _add(repository, path, url, commit)

    def publish(self, *names: str) -> None:
        for name in names:
            run_shell(f"git -C {name} push -q {self.root}/served/{name}.git --all", self.root)

    def workspace(self, *hosts: str, login: str = "") -> Workspace:
        url = self.server.url.replace("://", f"://{login}")
        return Workspace("main", repository=f"{url}/main.git", submodules=True, fetch_hosts=hosts)


@functools.cache
def _make_template() -> Path:
    """Make the repositories that those of all tests are copies of."""
    root = Path(tempfile.mkdtemp(prefix="sh-forge-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    root.chmod(0o755)
    (root / "served").mkdir()
    deep, lib, main = (make_repository(root / name) for name in NAMES)
    deep.commit("deep.txt", "deep\n")
    _add(lib, "inner/deep", "../deep.git", deep.head())
    _add(main, "libs/lib", "../lib.git", lib.head())
    for name in NAMES:
        run_shell(f"git clone -q --bare {name} served/{name}.git", root)
    return root


def _add(repository: Repository, path: str, url: str, commit: str) -> None:
    add_submodule(repository, path, url, commit)
    repository.run("git commit -qm 'Add a submodule'")


@pytest.fixture
def forge(world_dir: Path) -> Iterator[Forge]:
    with GitHttpServer(world_dir / "served") as server:
        yield Forge(world_dir, server)


@pytest.mark.parametrize(
    "overlay", [True, pytest.param(False, marks=pytest.mark.long)], ids=["overlay", "clone"]
)
def test_submodules_are_there_with_those_inside_them_and_their_work_is_kept(
    forge: Forge, world_dir: Path, *, overlay: bool
) -> None:
    async def scene() -> None:
        made = SandboxedCheckouts(world_dir, overlay=overlay)
        workspace = forge.workspace(login="ann:secret@")
        place = await made.prepare(workspace)
        assert place.warnings == ()
        tree = await made.tree(place)
        assert {"libs/lib/readme.txt", "libs/lib/inner/deep/deep.txt"} <= set(tree)
        state = (
            "git status --porcelain; git submodule status --recursive; git -C libs/lib remote get-url origin"
        )
        assert (await made.run_as_agent(place, state)).splitlines() == [
            f" {forge.lib.head()} libs/lib (remotes/origin/pinned)",
            f" {forge.deep.head()} libs/lib/inner/deep (remotes/origin/pinned)",
            f"{forge.server.url}/lib.git",
        ]
        everything = await made.run_as_agent(place, "grep -rl secret . || true; env")
        assert "secret" not in everything
        asked = forge.server.requests
        assert {path.split("/")[1] for path, login in asked if login == LOGIN} == {
            "main.git",
            "lib.git",
            "deep.git",
        }
        # Another job of the commit needs nothing of the server but the refs of the main repository.
        del asked[:]
        again = await made.prepare(workspace, slot=1)
        assert {path.split("/")[1] for path, _ in asked} == {"main.git"}
        assert await made.tree(again) == tree
        await made.run_as_agent(
            place,
            "cd libs/lib; git config user.name Ann; git config user.email a@example.org;"
            " echo more >> readme.txt; git commit -qam More",
        )
        harvest = await made.checkouts.harvest(place)
        assert harvest.changes is not None
        assert harvest.changes.files == 1
        assert "+Subproject commit" in place.paths.diff.read_text()
        unchanged = await made.checkouts.harvest(again)
        assert (unchanged.changes, unchanged.warnings) == (None, ())

    run_async(scene())


def test_the_job_that_fetches_a_submodule_and_the_one_that_waits_are_told_how_far_it_is(
    forge: Forge, world_dir: Path
) -> None:
    hosts = RemoteHosts(parse_source(f"{forge.server.url}/main.git"), ())
    remote = hosts.check(f"{forge.server.url}/lib.git")
    mirror = submodule_mirror.SubmoduleMirrors(world_dir / "submodules", GitSettings()).get(remote, None)

    async def scene() -> None:
        for told in await told_at_once(lambda _: mirror.fetch(forge.lib.head())):
            assert told[0] == "fetching"
            assert "submodules: compressing objects 100 %" in told, told

    run_async(scene())


def test_a_submodule_elsewhere_is_refused_by_name_and_the_job_goes_on(forge: Forge, world_dir: Path) -> None:
    others = {
        "other": (
            "https://git.example.org/x.git",
            "its host git.example.org is not in the workspace's fetch_hosts",
        ),
        "file": ("file:///etc", "only https and ssh are fetched from, not file"),
        "path": (str(forge.lib.folder), "it is a path on this machine"),
        "up": ("../../../../x.git", "its address leads out of the repository's host"),
        "ext": ("ext::sh -c id", "its address is malformed"),
    }
    for path, (url, _) in others.items():
        forge.add(forge.main, path, url, forge.lib.head())
    forge.main.run(f"git update-index --add --cacheinfo 160000,{forge.lib.head()},none; git commit -qm none")
    forge.publish("main")

    async def scene() -> None:
        made = SandboxedCheckouts(world_dir)
        place = await made.prepare(forge.workspace())
        messages = [each.message for each in place.warnings if each.code is WarningCode.SUBMODULES_EMPTY]
        assert len(messages) == len(place.warnings) == len(others) + 1
        for path, reason in (
            *((path, reason) for path, (_, reason) in others.items()),
            ("none", ".gitmodules"),
        ):
            assert any(f"are empty: {path} ({reason}" in message for message in messages), (path, messages)
        tree = await made.tree(place)
        assert "libs/lib/readme.txt" in tree
        assert not any(name.startswith(tuple(f"{path}/" for path in others)) for name in tree)

    run_async(scene())


def test_a_submodule_is_fetched_over_no_redirect_and_its_absence_fails_the_job(
    forge: Forge, world_dir: Path
) -> None:
    async def scene() -> None:
        made = SandboxedCheckouts(world_dir)
        with GitHttpServer(world_dir / "served") as elsewhere:
            forge.server.redirects["/lib.git"] = f"{elsewhere.url}/lib.git"
            with pytest.raises(WorkspaceError, match="The submodule 'libs/lib' could not be fetched"):
                await made.prepare(forge.workspace(login="ann:secret@"))
            assert elsewhere.requests == []
            forge.server.redirects.clear()
            # A listed host is asked, without the password of the workspace.
            forge.add(forge.main, "libs/more", f"{elsewhere.url}/lib.git", forge.lib.head())
            forge.publish("main")
            place = await made.prepare(forge.workspace(elsewhere.host, login="ann:secret@"))
            assert place.warnings == ()
            assert elsewhere.requests
            assert {login for _, login in elsewhere.requests} == {None}
        forge.main.run(f"git update-index --cacheinfo 160000,{'7' * 40},libs/lib; git commit -qm gone")
        forge.publish("main")
        with pytest.raises(
            WorkspaceError, match="the commit 777777777777 is not in the repository"
        ) as caught:
            await made.prepare(forge.workspace(elsewhere.host))
        assert not caught.value.retryable

    run_async(scene())


def test_the_bounds_hold_on_depth_count_and_size(
    forge: Forge, world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        for number, (module, name, value, reason) in enumerate(
            (
                (submodules, "MAX_DEPTH", 1, "they are more than 1 inside each other"),
                (submodules, "MAX_SUBMODULES", 1, "there are more than 1"),
            )
        ):
            with monkeypatch.context() as bounds:
                bounds.setattr(module, name, value)
                (world_dir / str(number)).mkdir()
                (world_dir / str(number)).chmod(0o755)
                place = await SandboxedCheckouts(world_dir / str(number)).prepare(forge.workspace())
                [warning] = place.warnings
                assert f"are empty: libs/lib/inner/deep ({reason})" in warning.message
        made = SandboxedCheckouts(world_dir)
        for module, name in ((submodule_mirror, "MAX_BYTES"), (submodules, "MAX_TOTAL_BYTES")):
            with monkeypatch.context() as bounds:
                bounds.setattr(module, name, 1)
                with pytest.raises(WorkspaceError, match="MiB") as caught:
                    await made.prepare(forge.workspace())
                assert not caught.value.retryable

    run_async(scene())


def test_a_server_that_gives_no_commit_by_its_id_is_asked_for_its_branches(
    forge: Forge, world_dir: Path
) -> None:
    pinned = forge.lib.head()
    forge.lib.commit("later.txt", "later\n")
    forge.publish("lib")
    forge.server.refuses_ids = True

    async def scene() -> None:
        made = SandboxedCheckouts(world_dir)
        place = await made.prepare(forge.workspace())
        assert (await made.run_as_agent(place, "git -C libs/lib rev-parse HEAD")).strip() == pinned
        assert "libs/lib/later.txt" not in await made.tree(place)

    run_async(scene())


def test_lfs_files_inside_a_submodule_are_named(forge: Forge, world_dir: Path) -> None:
    (forge.lib.folder / ".gitattributes").write_text("*.bin filter=lfs\n")
    forge.lib.run("git add .gitattributes")
    add_lfs_file(forge.lib, "model.bin", b"the model")
    forge.lib.run("git commit -qm model")
    forge.main.run(f"git update-index --cacheinfo 160000,{forge.lib.head()},libs/lib; git commit -qm model")
    forge.publish("lib", "main")

    async def scene() -> None:
        place = await SandboxedCheckouts(world_dir).prepare(forge.workspace())
        assert [each.code for each in place.warnings] == [WarningCode.LFS_POINTERS]
        assert "libs/lib/model.bin" in place.warnings[0].message

    run_async(scene())


def test_without_a_sandbox_the_setting_says_what_it_needs(forge: Forge, checkouts: GitCheckouts) -> None:
    place = asyncio.run(checkouts.prepare(make_job(), forge.workspace(), 0))
    [warning] = place.warnings
    assert "need isolation 'bwrap'" in warning.message
    assert not any((place.directory / "libs/lib").iterdir())
