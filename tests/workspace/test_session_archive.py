"""Archives of config directories: what an agent wrote there comes back, and nothing else does."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from steadyhand.errors import WorkspaceError
from steadyhand.workspace.session_archive import pack, signature, unpack

DIRECTORY = Path("/data/jobs/x/checkout")


def make_config(root: Path) -> Path:
    config = root / "config"
    (config / "projects" / "-data-x" / "deep").mkdir(parents=True)
    (config / "empty").mkdir()
    (config / "projects" / "-data-x" / "s.jsonl").write_bytes(b'{"type":"user"}\n')
    (config / "projects" / "-data-x" / "deep" / "ü \udc80").write_bytes(b"\x00\xff")
    os.utime(config / "projects" / "-data-x" / "s.jsonl", (5.25, 5.25))
    (config / "run.sh").write_bytes(b"#!/bin/sh\n")
    (config / "run.sh").chmod(0o4755)
    return config


def test_an_archive_restores_folders_files_times_and_the_working_directory(tmp_path: Path) -> None:
    config, copy = make_config(tmp_path), tmp_path / "copy"
    pack(config, tmp_path / "a", DIRECTORY)
    assert unpack(tmp_path / "a", copy) == DIRECTORY
    for path in config.rglob("*"):
        other = copy / path.relative_to(config)
        assert other.is_dir() == path.is_dir()
        assert path.is_dir() or other.read_bytes() == path.read_bytes()
    assert len(list(copy.rglob("*"))) == len(list(config.rglob("*")))
    assert (copy / "projects" / "-data-x" / "s.jsonl").stat().st_mtime == 5.25
    assert (copy / "run.sh").stat().st_mode & 0o7777 == 0o700  # no user id is set by it


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    before = signature(config)
    pack(config, tmp_path / "a", DIRECTORY)
    pack(config, tmp_path / "b", DIRECTORY)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert signature(config) == before
    with (config / "run.sh").open("ab") as file:
        file.write(b"x")
    assert signature(config) != before


def test_no_link_and_no_special_file_is_followed_or_kept(tmp_path: Path) -> None:
    config, secret = make_config(tmp_path), tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    (config / "link").symlink_to(secret / "key")
    (config / "folder").symlink_to(secret)
    os.mkfifo(config / "fifo")
    pack(config, tmp_path / "a", DIRECTORY)
    unpack(tmp_path / "a", tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").rglob("*")}
    assert names.isdisjoint({"link", "folder", "fifo", "key"})


def make_archive(path: Path, *entries: tuple[str, bytes, bytes], note: bytes | None = None) -> None:
    """Write an archive with entries of a name, a type and a content, as somebody else would."""
    content = json.dumps({"directory": "/x"}).encode() if note is None else note
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name, kind, data in (*entries, ("steadyhand.json", tarfile.REGTYPE, content)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(data), "/etc/passwd"
            archive.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize(
    "entry",
    [
        ("config/../../outside", tarfile.REGTYPE, b"x"),
        ("/config/x", tarfile.REGTYPE, b"x"),
        ("other/x", tarfile.REGTYPE, b"x"),
        ("config/link", tarfile.SYMTYPE, b""),
        ("config/hard", tarfile.LNKTYPE, b""),
        ("config/device", tarfile.CHRTYPE, b""),
        ("config", tarfile.REGTYPE, b"x"),
    ],
)
def test_an_archive_that_names_anything_else_is_refused(
    tmp_path: Path, entry: tuple[str, bytes, bytes]
) -> None:
    make_archive(tmp_path / "a", entry)
    with pytest.raises(WorkspaceError, match="cannot be read"):
        unpack(tmp_path / "a", tmp_path / "copy")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"directory": 5}'])
def test_an_archive_without_its_note_is_refused(tmp_path: Path, note: bytes) -> None:
    make_archive(tmp_path / "a", note=note)
    with pytest.raises(WorkspaceError, match="cannot be read"):
        unpack(tmp_path / "a", tmp_path / "copy")


def test_an_archive_that_is_cut_is_refused(tmp_path: Path) -> None:
    pack(make_config(tmp_path), tmp_path / "a", DIRECTORY)
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkspaceError, match="cannot be read"):
        unpack(tmp_path / "cut", tmp_path / "copy")


def test_more_than_the_limit_is_neither_packed_nor_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path)
    pack(config, tmp_path / "a", DIRECTORY)
    monkeypatch.setattr("steadyhand.workspace.session_archive.MAX_BYTES", 20)
    with pytest.raises(WorkspaceError, match="too large"):
        pack(config, tmp_path / "b", DIRECTORY)
    with pytest.raises(WorkspaceError, match="cannot be read"):
        unpack(tmp_path / "a", tmp_path / "copy")
