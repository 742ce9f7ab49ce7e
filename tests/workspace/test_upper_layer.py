"""What an overlay's upper layer says, and that a harvest looks at nothing else."""

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.agents import Workspace
from steadyhand.ports import Checkout, Harvest
from steadyhand.testing.contracts.checkouts import Repository, make_repository
from steadyhand.workspace import upper_layer
from steadyhand.workspace.upper_layer import read_changes

_MAX_ENTRIES = 100
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """Give an empty upper layer, and a lower one with a few files."""
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in (upper, lower / "src" / "deep", lower / ".git"):
        folder.mkdir(parents=True)
    for name in ("readme.txt", "src/code.txt", "src/deep/other.md", ".git/HEAD"):
        (lower / name).write_text("given\n", encoding="ascii")
    return upper, lower


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def opaque(path: Path) -> None:
    path.mkdir(parents=True)
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def changed(layers: tuple[Path, Path]) -> set[str] | None:
    changes = read_changes(*layers)
    return None if changes is None else {os.fsdecode(name) for name in changes.names}


# --- one entry after the other -------------------------------------------------------------------


def test_folders_alone_are_no_change(layers: tuple[Path, Path]) -> None:
    (layers[0] / "src" / "deep").mkdir(parents=True)
    (layers[0] / ".git" / "objects" / "aa").mkdir(parents=True)
    changes = read_changes(*layers)
    assert changes is not None
    assert changes.is_empty


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda upper: (upper / "new.txt").touch(), {"new.txt"}),
        (lambda upper: (upper / "link").symlink_to("/etc"), {"link"}),
        (lambda upper: whiteout(upper / "readme.txt"), {"readme.txt"}),
        (lambda upper: whiteout(upper / "src"), {"src", "src/code.txt", "src/deep/other.md"}),
        (lambda upper: (upper / "src").symlink_to("deep"), {"src", "src/code.txt", "src/deep/other.md"}),
        (lambda upper: opaque(upper / "src" / "deep"), {"src/deep/other.md"}),
        (lambda upper: opaque(upper / "readme.txt"), {"readme.txt"}),
        (lambda upper: (upper / "readme.txt").mkdir(), {"readme.txt"}),
        (lambda upper: (upper / os.fsdecode(b"a\n\xff")).touch(), {os.fsdecode(b"a\n\xff")}),
    ],
    ids=["file", "link", "deleted", "no folder", "folder to link", "emptied", "file to folder", "the same", "name"],
)  # fmt: skip
def test_each_path_that_may_differ_is_named_and_no_other(
    layers: tuple[Path, Path], make: Callable[[Path], None], names: set[str]
) -> None:
    make(layers[0])
    assert changed(layers) == names


def _redirect(upper: Path) -> None:
    (upper / "moved").mkdir()
    os.setxattr(upper / "moved", "trusted.overlay.redirect", b"src")


def _fill(upper: Path) -> None:
    for number in range(_MAX_ENTRIES + 1):
        (upper / f"{number}").symlink_to("x")


def _nest(upper: Path) -> None:
    upper.joinpath(*["d"] * (upper_layer.MAX_DEPTH + 2)).mkdir(parents=True)


@pytest.mark.parametrize(
    "make",
    [
        _redirect,
        _fill,
        _nest,
        lambda upper: (upper / "src").mkdir(mode=0o300),
        lambda upper: upper.chmod(0),
        lambda upper: os.mkfifo(upper / "pipe"),
        lambda upper: (upper / ".gitignore").touch(),
        lambda upper: ((upper / "src").mkdir(), (upper / "src" / ".gitattributes").touch()),
        lambda upper: (upper / "inner" / ".git").mkdir(parents=True),
        lambda upper: (upper / ".git").symlink_to("elsewhere"),
        lambda upper: whiteout(upper / ".git"),
    ],
    ids=["renamed folder", "too many", "too deep", "closed", "closed top", "pipe", "ignores", "attributes",
         "repository inside", "git dir moved", "git dir deleted"],
)  # fmt: skip
def test_what_reaches_further_than_its_path_is_not_answered(
    layers: tuple[Path, Path], make: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upper_layer, "MAX_ENTRIES", _MAX_ENTRIES)
    make(layers[0])
    assert read_changes(*layers) is None


def test_hidden_files_of_a_repository_inside_the_lower_layer_are_not_answered(
    layers: tuple[Path, Path],
) -> None:
    (layers[1] / "src" / "deep" / ".git").mkdir()
    whiteout(layers[0] / "src")
    assert read_changes(*layers) is None


@pytest.mark.parametrize(
    "make",
    [lambda git: (git / "index").touch(), lambda git: opaque(git / "refs"), lambda git: whiteout(git / "HEAD")],
    ids=["file", "emptied", "deleted"],
)  # fmt: skip
def test_a_change_of_the_repository_is_told_apart(
    layers: tuple[Path, Path], make: Callable[[Path], None]
) -> None:
    (layers[0] / ".git").mkdir()
    make(layers[0] / ".git")
    changes = read_changes(*layers)
    assert changes is not None
    assert changes.git_dir
    assert not changes.names


def test_a_symlink_in_the_place_of_a_layer_is_not_followed(layers: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(layers[0])
    assert read_changes(link, layers[1]) is None
    assert read_changes(layers[0], link) is None


# --- harvests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def sealed(world: Path) -> SandboxedCheckouts:
    return SandboxedCheckouts(world)


@pytest.fixture(scope="module")
def repository(world: Path) -> Repository:
    made = make_repository(world / "repository")
    made.commit(".gitignore", "out/\n*.log\n")
    return made


def harvest_counted(
    sealed: SandboxedCheckouts, workspace: Workspace, script: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Harvest, list[Mapping[str, Any]], int]:
    """Give a harvest after an agent did this, what was asked of the sandbox for it, and the processes beside."""
    spawned = 0
    spawn = asyncio.create_subprocess_exec

    async def count(*argv: Any, **options: Any) -> Any:
        nonlocal spawned
        spawned += 1
        return await spawn(*argv, **options)

    async def work() -> tuple[Harvest, list[Mapping[str, Any]], int]:
        place = await sealed.prepare(workspace)
        await sealed.run_as_agent(place, script)
        assert place.layers is not None
        # Nobody but the layers says so: a look at the tree would find another file.
        readme = place.layers.lower / "readme.txt"
        given = readme.read_bytes()
        readme.write_bytes(b"changed behind it\n")
        sealed.recorded.requests.clear()
        monkeypatch.setattr(asyncio, "create_subprocess_exec", count)
        harvest = await sealed.checkouts.harvest(place)
        monkeypatch.undo()
        readme.write_bytes(given)
        return harvest, list(sealed.recorded.requests), spawned

    return run_async(work())


@pytest.mark.parametrize(
    "script", ["true", "cat src/* >/dev/null; mkdir -p src/deep empty; git --no-optional-locks status"]
)
def test_a_harvest_of_an_unchanged_checkout_starts_no_process(
    sealed: SandboxedCheckouts, repository: Repository, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest, requests, spawned = harvest_counted(sealed, repository.workspace(), script, monkeypatch)
    assert harvest == Harvest(None)
    assert requests == []
    assert spawned == 0


@pytest.mark.parametrize(
    ("script", "git_dir"),
    [("echo new > new.txt; rm -r src", False), ("echo new > new.txt; git rm -qr src; git add -A", True)],
    ids=["files", "files and index"],
)
def test_a_harvest_looks_at_the_changed_paths_alone(
    sealed: SandboxedCheckouts,
    repository: Repository,
    script: str,
    *,
    git_dir: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harvest, (request,), _ = harvest_counted(sealed, repository.workspace(), script, monkeypatch)
    assert harvest.changes is not None
    assert harvest.changes.files == 2
    assert request["git_dir"] is git_dir
    assert request["changed"] == ["new.txt", "src", "src/code.txt"]


def test_a_commit_is_harvested_with_the_paths_that_no_file_was_written_for(
    sealed: SandboxedCheckouts, repository: Repository
) -> None:
    script = (
        "git rm -qr --cached src; blob=$(echo other | git hash-object -w --stdin)\n"
        "git update-index --cacheinfo 100644,$blob,readme.txt;"
        " git commit -qm 'Files stay as they are'; echo new > new.txt"
    )

    async def work() -> None:
        place, harvest = await sealed.run_and_harvest(repository.workspace(), script)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert harvest.changes.files == 1  # the others are there again, as they were
        assert "new.txt" in place.paths.diff.read_text("utf-8")
        assert sealed.recorded.requests[-1]["changed"] == ["new.txt"]

    run_async(work())


def test_names_that_git_could_read_as_patterns_or_options_are_kept(
    sealed: SandboxedCheckouts, repository: Repository
) -> None:
    names = [":(exclude)x", ":/y", "-dash", "*.glob", "?", "two\nlines", " ", "back\\slash", "ends "]
    script = "mkdir ':'\n" + "".join(f"printf x > './{name}'\n" for name in names)

    async def work() -> None:
        _, harvest = await sealed.run_and_harvest(repository.workspace(), script)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert harvest.changes.files == len(names)
        assert sealed.recorded.requests[-1]["changed"] == sorted(names)

    run_async(work())


def test_ignored_files_and_touched_files_are_no_work(
    sealed: SandboxedCheckouts, repository: Repository
) -> None:
    async def work() -> None:
        script = "mkdir out && echo x > out/x && echo x > src/trace.log && touch readme.txt && chmod 600 readme.txt"
        _, harvest = await sealed.run_and_harvest(repository.workspace(), script)
        assert harvest == Harvest(None)
        assert sealed.recorded.requests[-1]["changed"] == ["out/x", "readme.txt", "src/trace.log"]

    run_async(work())


@pytest.mark.parametrize(
    ("script", "files"),
    [
        ("mv src moved", 1),
        ("echo '*.txt' > .gitignore; echo x > new.txt; echo x > new.log", 2),
        ("mkdir inner && cd inner && git init -q && echo x > x && git add x", 1),
    ],
    ids=["renamed folder", "ignore file", "repository inside"],
)
def test_where_the_layer_does_not_say_all_the_whole_tree_is_looked_at(
    sealed: SandboxedCheckouts, repository: Repository, script: str, files: int
) -> None:
    async def work() -> None:
        _, harvest = await sealed.run_and_harvest(repository.workspace(), script)
        assert harvest.changes is not None
        assert harvest.changes.files == files
        assert sealed.recorded.requests[-1]["changed"] is None

    run_async(work())


@pytest.mark.parametrize(
    ("setup", "clean"),
    [
        ("mkdir built && echo x > built/x", True),
        pytest.param("echo more >> readme.txt", False, marks=pytest.mark.long),
        ("git tag made", False),
    ],
    ids=["untracked files", "a tracked file", "a tag"],
)
def test_a_setup_that_leaves_work_keeps_the_look_at_the_whole_tree(
    sealed: SandboxedCheckouts, repository: Repository, setup: str, *, clean: bool
) -> None:
    async def work() -> Checkout:
        place = await sealed.prepare(repository.workspace(setup=(setup,)))
        sealed.recorded.requests.clear()
        harvest = await sealed.checkouts.harvest(place)
        assert (harvest.changes is None) is clean
        assert len(sealed.recorded.requests) == (0 if clean else 1)
        return place

    run_async(work())
