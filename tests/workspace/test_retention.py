import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from steadyhand.ports import JobPaths
from steadyhand.workspace.retention import trim

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def kept_job(jobs: Path, job_id: str, age: timedelta, size: int = 4096) -> JobPaths:
    files = JobPaths(jobs / job_id)
    for folder in (files.config_dir, files.run_output(1)):
        folder.mkdir(parents=True)
    (files.config_dir / ".claude.json").write_text("{}")
    (files.run_output(1) / "stdout").write_bytes(b"x" * size)
    for path in (files.transcript, files.diff, files.bundle):
        path.write_text("kept")
    prepared = files.root / "prepared"
    prepared.write_bytes(b"")
    moment = (NOW - age).timestamp()
    os.utime(prepared, (moment, moment))
    return files


def test_after_its_time_a_job_loses_its_record_and_keeps_what_it_changed(tmp_path: Path) -> None:
    old, young = kept_job(tmp_path, "old", 31 * DAY), kept_job(tmp_path, "young", 29 * DAY)
    assert trim(tmp_path, now=NOW, transcripts=30 * DAY, max_bytes=None) == 1
    assert not old.transcript.exists()
    assert not old.config_dir.exists()
    assert not old.run_output(1).exists()
    assert old.diff.exists()
    assert old.bundle.exists()
    assert young.transcript.exists()
    assert young.config_dir.exists()


def test_over_the_limit_the_oldest_go_first_and_only_as_many_as_must(tmp_path: Path) -> None:
    files = [kept_job(tmp_path, f"job{age}", age * DAY, size=1_000_000) for age in (9, 8, 7)]
    assert trim(tmp_path, now=NOW, transcripts=None, max_bytes=2_200_000) == 1
    assert [file.artifacts.exists() for file in files] == [False, True, True]


def test_what_was_made_within_a_day_is_spared_however_much_it_is(tmp_path: Path) -> None:
    files = kept_job(tmp_path, "now", timedelta(hours=1), size=1_000_000)
    assert trim(tmp_path, now=NOW, transcripts=None, max_bytes=1) == 0
    assert files.artifacts.exists()


def test_what_a_turn_waits_for_is_spared_by_age_and_by_size(tmp_path: Path) -> None:
    awaited, old = (kept_job(tmp_path, name, 40 * DAY, size=1_000_000) for name in ("awaited", "old"))
    assert trim(tmp_path, now=NOW, transcripts=30 * DAY, max_bytes=1, spared={"awaited"}) == 2
    assert awaited.config_dir.exists()
    assert awaited.artifacts.exists()
    assert not old.config_dir.exists()
    assert not old.artifacts.exists()


def test_a_link_in_place_of_a_folder_is_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    files = kept_job(tmp_path / "jobs", "linked", 31 * DAY)
    (files.config_dir / ".claude.json").unlink()
    files.config_dir.rmdir()
    files.config_dir.symlink_to(outside)
    trim(tmp_path / "jobs", now=NOW, transcripts=30 * DAY, max_bytes=None)
    assert (outside / "precious").exists()
    assert not files.config_dir.is_symlink()


def test_trimming_again_finds_nothing_more(tmp_path: Path) -> None:
    kept_job(tmp_path, "old", 31 * DAY)
    trim(tmp_path, now=NOW, transcripts=30 * DAY, max_bytes=None)
    assert trim(tmp_path, now=NOW, transcripts=30 * DAY, max_bytes=None) == 0
    assert trim(tmp_path / "nowhere", now=NOW, transcripts=30 * DAY, max_bytes=1) == 0
