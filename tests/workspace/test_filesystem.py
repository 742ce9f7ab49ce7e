import os
import subprocess
from pathlib import Path

import pytest

from steadyhand.errors import WorkspaceError
from steadyhand.testing.contracts.checkouts import run_shell
from steadyhand.workspace.filesystem import chown_tree, copy_objects, remove_tree


def _make_deep_tree(tree: Path, depth: int) -> None:
    tree.mkdir()
    script = f"import os\nfor _ in range({depth}):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)\nopen('x', 'w')\n"
    subprocess.run(["/usr/bin/python3", "-c", script], cwd=tree, check=True, timeout=60)


def test_a_tree_deeper_than_any_path_may_be_is_removed(world_dir: Path) -> None:
    _make_deep_tree(world_dir / "tree", 1500)  # also deeper than Python may call itself
    remove_tree(world_dir / "tree")
    assert list(world_dir.iterdir()) == []


@pytest.mark.long
def test_a_tree_of_five_thousand_folders_in_each_other_is_removed(world_dir: Path) -> None:
    _make_deep_tree(world_dir / "tree", 5000)
    remove_tree(world_dir / "tree")
    assert list(world_dir.iterdir()) == []


def test_no_symlink_is_followed_out_of_the_tree(world_dir: Path) -> None:
    outside = world_dir / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = world_dir / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    (tree / "loop").symlink_to(tree)
    (tree / "file-link").symlink_to(outside / "kept")
    remove_tree(tree)
    assert (outside / "kept").exists()
    assert not tree.exists()


def test_a_symlink_in_the_trees_own_place_is_removed_and_its_target_kept(world_dir: Path) -> None:
    outside = world_dir / "outside"
    outside.mkdir()
    (world_dir / "tree").symlink_to(outside)
    remove_tree(world_dir / "tree")
    assert outside.is_dir()
    assert not (world_dir / "tree").is_symlink()


def test_folders_and_files_that_are_shut_are_removed(world_dir: Path) -> None:
    run_shell(
        "mkdir -p tree/a/b tree/c && touch tree/a/b/f && mkfifo tree/c/p && chmod 000 tree/a/b/f", world_dir
    )
    run_shell("chmod 000 tree/a/b tree/a && chmod 500 tree/c && chmod 000 tree", world_dir)
    remove_tree(world_dir / "tree")
    assert list(world_dir.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_shut_folders_are_removed_by_a_service_that_is_not_root(world_dir: Path) -> None:
    script = "mkdir -p tree/a/b tree/c && touch tree/a/b/f"
    script += " && chmod 000 tree/a/b tree/a && chmod 500 tree/c && chmod 000 tree"
    world_dir.chmod(0o777)
    run_shell(script, world_dir, user=64123)
    pid = os.fork()
    if pid == 0:  # the child becomes the service of another user and says by its exit code how it went
        os.setgroups([])
        os.setresgid(64123, 64123, 64123)
        os.setresuid(64123, 64123, 64123)
        try:
            remove_tree(world_dir / "tree")
        except BaseException:  # noqa: BLE001  # whatever it was, the parent reports it
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(world_dir.iterdir()) == []


def test_a_removal_that_was_cut_off_is_finished_by_the_next(world_dir: Path) -> None:
    tree = world_dir / "tree"
    run_shell("mkdir -p tree/a/b/c && touch tree/a/b/c/f", world_dir)
    with pytest.raises(WorkspaceError):
        remove_tree(tree, seconds=-1)
    assert not tree.exists()
    remove_tree(tree)
    run_shell("mkdir -p tree/again", world_dir)
    remove_tree(tree)
    assert list(world_dir.iterdir()) == []


def test_removing_what_is_not_there_is_nothing(world_dir: Path) -> None:
    remove_tree(world_dir / "never")
    assert list(world_dir.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_handing_over_gives_the_symlink_and_not_its_target(world_dir: Path) -> None:
    outside = world_dir / "outside"
    outside.touch()
    tree = world_dir / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    (tree / "file").touch()
    chown_tree(tree, 64001)
    assert outside.stat().st_uid == 0
    assert {(tree / name).lstat().st_uid for name in (".", "link", "file")} == {64001}


def test_copied_objects_are_files_of_their_own_and_leave_temporary_ones_behind(world_dir: Path) -> None:
    source = world_dir / "source"
    for name in (
        "ab/cdef",
        "pack/pack-1.pack",
        "pack/pack-1.idx",
        "pack/tmp_pack_x",
        "pack/pack-1.keep",
        "info/x",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name, encoding="utf-8")
    target = world_dir / "target"
    target.mkdir()
    copy_objects(source, target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {"ab/cdef", "pack/pack-1.pack", "pack/pack-1.idx"}
    assert (target / "ab/cdef").stat().st_ino != (source / "ab/cdef").stat().st_ino
