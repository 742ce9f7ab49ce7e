"""Reading a folder while another thread makes and removes what is in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from steadyhand.testing.live_folders import (
    contents_below,
    files_below,
    paths_below,
    paths_in,
    stats_below,
)

LOOKS = 100


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Path]:
    """A folder with files that stay, and with folders that come and go."""
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "stays.txt").write_text("stays")
    (tmp_path / "a" / "link.txt").symlink_to(tmp_path / "a" / "deep" / "stays.txt")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    ended = Event()

    def change() -> None:
        while not ended.is_set():
            for name in range(20):
                (tmp_path / f"goes-{name}" / "deep").mkdir(parents=True)
                (tmp_path / f"goes-{name}" / "deep" / "goes.txt").write_text("goes")
            for name in range(20):
                shutil.rmtree(tmp_path / f"goes-{name}")

    thread = Thread(target=change)
    thread.start()
    yield tmp_path
    ended.set()
    thread.join(60)
    assert not thread.is_alive()


def test_what_stays_is_always_found_and_what_goes_is_passed_over(changing: Path) -> None:
    stays = changing / "a" / "deep" / "stays.txt"
    for _ in range(LOOKS):
        assert stays in paths_below(changing)
        assert files_below(changing, "stays*") == [stays]
        assert list(contents_below(changing, "st*.txt")) == [(stays, b"stays")]
        assert dict(contents_below(changing))[stays] == b"stays"
        assert dict(stats_below(changing))[stays].st_size == 5
        assert changing / "a" in paths_in(changing)
        for path in paths_in(changing):
            paths_in(path)


def test_a_link_is_found_and_neither_read_nor_followed(changing: Path) -> None:
    links = {changing / "a" / "link.txt", changing / "a" / "loop"}
    assert links <= set(paths_below(changing))
    assert not links & set(files_below(changing))
    assert not [path for path in paths_below(changing) if changing / "a" / "loop" in path.parents]


def test_a_folder_that_is_gone_has_nothing_in_it(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert paths_in(gone) == paths_below(gone) == []
    assert list(contents_below(gone)) == []
