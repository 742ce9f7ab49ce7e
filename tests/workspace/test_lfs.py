"""Files of Git LFS by setting: fetched over loopback and checked, refused by the rules, and kept in a harvest."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.workspace.git_http_server import GitHttpServer
from tests.workspace.pointers import add_lfs_file, lfs_pointer
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async, told_at_once

from steadyhand.agents import Workspace
from steadyhand.errors import WorkspaceError
from steadyhand.job_warnings import WarningCode
from steadyhand.testing.contracts.checkouts import make_repository, run_shell
from steadyhand.workspace import lfs
from steadyhand.workspace.external_content import LfsFile
from steadyhand.workspace.git import GitSettings
from steadyhand.workspace.lfs import LfsStore, endpoint_of
from steadyhand.workspace.remote_hosts import RemoteHosts, UrlRefused
from steadyhand.workspace.repository_source import parse_source

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays need root")

MODEL, OTHER = b"the model\n" * 1000, b"\x00other\xff"


def oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Forge:
    """A repository with two files of Git LFS, on loopback."""

    def __init__(self, root: Path, server: GitHttpServer) -> None:
        self.root = root
        self.server = server
        (root / "served").mkdir()
        self.main = make_repository(root / "main")
        (self.main.folder / ".gitattributes").write_text("*.bin filter=lfs -text\n")
        self.main.run("git add .gitattributes")
        add_lfs_file(self.main, "data/model.bin", MODEL)
        add_lfs_file(self.main, "o t.bin", OTHER)
        server.lfs = {oid(MODEL): MODEL, oid(OTHER): OTHER}
        run_shell("git clone -q --bare main served/main.git", root)
        self.commit()

    def commit(self) -> None:
        self.main.run("git commit -qm 'Add files'")
        run_shell("git -C main push -q ../served/main.git --all", self.root)

    def workspace(self, *hosts: str) -> Workspace:
        url = self.server.url.replace("://", "://ann:secret@")
        return Workspace("main", repository=f"{url}/main.git", lfs=True, fetch_hosts=hosts)

    def asked(self) -> set[tuple[str, str | None]]:
        return {(path, login) for path, login in self.server.requests if "/lfs/" in path}


@pytest.fixture
def forge(world_dir: Path) -> Iterator[Forge]:
    with GitHttpServer(world_dir / "served") as server:
        yield Forge(world_dir, server)


@pytest.mark.parametrize(
    "overlay", [True, pytest.param(False, marks=pytest.mark.long)], ids=["overlay", "clone"]
)
def test_the_files_are_there_and_only_what_the_agent_changed_is_its_work(
    forge: Forge, world_dir: Path, *, overlay: bool
) -> None:
    async def scene() -> None:
        made = SandboxedCheckouts(world_dir, overlay=overlay)
        workspace = forge.workspace()
        place = await made.prepare(workspace)
        assert place.warnings == ()
        tree = await made.tree(place)
        assert tree["data/model.bin"].endswith(MODEL.hex())
        assert tree["o t.bin"].endswith(OTHER.hex())
        login = "Basic YW5uOnNlY3JldA=="
        assert forge.asked() == {
            ("/main.git/info/lfs/objects/batch", login),
            *((f"/lfs/{oid(each)}?x=1", login) for each in (MODEL, OTHER)),
        }
        forge.server.requests.clear()
        again = await made.prepare(workspace, slot=1)
        assert await made.tree(again) == tree
        assert forge.asked() == set()
        assert (
            await made.run_as_agent(
                again, "git status --porcelain; touch data/model.bin; git status --porcelain"
            )
            == ""
        )
        unchanged = await made.checkouts.harvest(again)
        assert (unchanged.changes, unchanged.warnings) == (None, ())
        # New content is the agent's own, and kept whole; the old content put back is no change.
        await made.run_as_agent(place, "cp data/model.bin m; echo new > data/model.bin; cp m 'o t.bin'; rm m")
        harvest = await made.checkouts.harvest(place)
        assert harvest.changes is not None
        assert (harvest.changes.files, harvest.warnings) == (2, ())
        run_shell(f"git apply --unsafe-paths {place.paths.diff}", forge.main.folder)
        assert (forge.main.folder / "data/model.bin").read_text() == "new\n"
        assert (forge.main.folder / "o t.bin").read_text() == lfs_pointer(MODEL)

    run_async(scene())


def test_the_job_that_fetches_files_and_the_one_that_waits_are_told_how_far_it_is(
    forge: Forge, world_dir: Path
) -> None:
    hosts = RemoteHosts(parse_source(f"{forge.server.url}/main.git"), ())
    endpoint = endpoint_of(hosts, f"{forge.server.url}/main.git", None)
    files = [LfsFile("a", oid(MODEL), len(MODEL)), LfsFile("b", oid(OTHER), len(OTHER))]
    store = LfsStore(world_dir / "lfs", GitSettings())

    async def scene() -> None:
        for told in await told_at_once(lambda _: store.fetch(files, endpoint, None)):
            assert told[0] == "fetching"
            assert len(told) == 1 + len(files)
            assert told[-1] == "files of Git LFS 100 %"

    run_async(scene())


def test_a_download_elsewhere_gets_the_headers_of_its_server_and_no_credential(
    forge: Forge, world_dir: Path
) -> None:
    async def scene() -> None:
        with GitHttpServer(world_dir / "served") as elsewhere:
            elsewhere.lfs = forge.server.lfs
            forge.server.lfs_url = f"{forge.server.url}/moved/lfs"
            forge.server.redirects["/moved"] = elsewhere.url
            place = await SandboxedCheckouts(world_dir).prepare(forge.workspace())
            assert (await SandboxedCheckouts(world_dir).tree(place))["o t.bin"].endswith(OTHER.hex())
            assert {login for path, login in forge.server.requests if path.startswith("/moved")} == {None}
            assert len(elsewhere.requests) == 2
            assert {login for _, login in elsewhere.requests} == {None}

    run_async(scene())


def test_content_that_is_not_what_its_pointer_says_fails_the_job(forge: Forge, world_dir: Path) -> None:
    async def scene() -> None:
        made = SandboxedCheckouts(world_dir)
        for content in (b"the MODEL\n" * 1000, MODEL + b"x", MODEL[:-1]):
            forge.server.lfs[oid(MODEL)] = content
            with pytest.raises(WorkspaceError, match="is not what its pointer says") as caught:
                await made.prepare(forge.workspace())
            assert not caught.value.retryable
        del forge.server.lfs[oid(MODEL)]
        with pytest.raises(WorkspaceError, match=f"does not have {oid(MODEL)[:12]}"):
            await made.prepare(forge.workspace())
        forge.server.lfs[oid(MODEL)] = MODEL
        forge.server.lfs_url = "file:///etc"
        with pytest.raises(WorkspaceError, match="an address that is not of https"):
            await made.prepare(forge.workspace())
        forge.server.redirects["/main.git/info/lfs"] = f"{forge.server.url}/other"
        with pytest.raises(WorkspaceError, match="answered 302"):
            await made.prepare(forge.workspace())

    run_async(scene())


def test_the_bounds_hold_on_count_and_size(
    forge: Forge, world_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        made = SandboxedCheckouts(world_dir)
        for name in ("MAX_FILES", "MAX_FILE_BYTES", "MAX_TOTAL_BYTES", "_MAX_ANSWER_BYTES"):
            with monkeypatch.context() as bounds:
                bounds.setattr(lfs, name, 1)
                with pytest.raises(WorkspaceError) as caught:
                    await made.prepare(forge.workspace())
                assert not caught.value.retryable
        assert not list((world_dir / "data/mirrors").rglob(".part-*"))

    run_async(scene())


def test_a_server_elsewhere_and_a_pointer_in_an_unusual_form_are_named(forge: Forge, world_dir: Path) -> None:
    (forge.main.folder / ".lfsconfig").write_text("[lfs]\n\turl = https://evil.example.org/lfs\n")
    (forge.main.folder / "odd.bin").write_text(
        lfs_pointer(b"odd").replace("oid", f"ext-0-x sha256:{'0' * 64}\noid")
    )
    forge.main.run("git -c filter.lfs.clean=cat add .lfsconfig odd.bin")
    forge.commit()

    async def scene() -> None:
        place = await SandboxedCheckouts(world_dir).prepare(forge.workspace())
        assert {each.code for each in place.warnings} == {WarningCode.LFS_POINTERS}
        odd, elsewhere = (each.message for each in place.warnings)
        assert "odd.bin (their pointers have an unusual form)" in odd
        assert (
            "data/model.bin, o t.bin (of the address of their server: its host evil.example.org is not"
            in elsewhere
        )
        assert forge.asked() == set()

    run_async(scene())


@pytest.mark.parametrize(
    ("repository", "configured", "endpoint"),
    [
        ("https://h/org/main.git", None, "https://h/org/main.git/info/lfs"),
        ("https://h/org/main", None, "https://h/org/main.git/info/lfs"),
        ("https://h:8443/main", None, "https://h:8443/main.git/info/lfs"),
        ("git@h:org/main.git", None, "https://h/org/main.git/info/lfs"),
        ("git@h:org/main.git", "https://h/custom", "https://h/custom"),
        ("https://h/main", "ssh://git@h/x", None),
        ("https://h/main", "file:///x", None),
        ("/srv/main", None, None),
    ],
)
def test_the_server_is_that_of_the_repository(
    repository: str, configured: str | None, endpoint: str | None
) -> None:
    source = parse_source(repository)
    hosts = RemoteHosts(source)
    if endpoint is None:
        with pytest.raises(UrlRefused):
            endpoint_of(hosts, source.url, configured)
    else:
        assert endpoint_of(hosts, source.url, configured).url == endpoint


def test_the_credential_of_the_service_is_for_its_own_host_alone(world_dir: Path) -> None:
    file = world_dir / "credentials"
    file.write_text("https://ann:p%40ss@other:8443\nhttps://bob:x@h\n")
    store = lfs.LfsStore(world_dir / "lfs", GitSettings(credential_file=file))
    for host, expected in {"h": "Authorization: Basic Ym9iOng=", "other": None, "nobody": None}.items():
        hosts = RemoteHosts(parse_source(f"https://{host}/main.git"))
        remote = endpoint_of(hosts, f"https://{host}/main.git", None)
        assert store.stored_login(remote) == expected
