"""The runs that an earlier service left, as a start finds them."""

import asyncio
from pathlib import Path

import pytest

from steadyhand.config.settings import Settings, load_settings
from steadyhand.runner.process.held_record import held_dir
from steadyhand.serve.reattach import FoundRuns, held_runs_of, orphaned_runs, without_reattach


def settings_for(data_dir: Path, **environment: str) -> Settings:
    environ = {"STEADYHAND_DATA_DIR": str(data_dir), "HOME": str(data_dir), **environment}
    return load_settings(None, environ=environ)


def find(settings: Settings) -> FoundRuns:
    async def look() -> FoundRuns:
        async with orphaned_runs(settings) as found:
            return found

    return asyncio.run(look())


def leave_files(data_dir: Path, *, left: bool) -> Path:
    folder = held_dir(data_dir) / "0123456789ab-2"
    folder.mkdir(parents=True)
    (folder / "stdout").write_text("secret output")
    if left:
        (folder / "left").touch()
    return folder


@pytest.mark.parametrize("left", [False, True])
def test_a_run_that_cannot_be_taken_up_is_named_and_its_files_are_removed(
    tmp_path: Path, *, left: bool
) -> None:
    folder = leave_files(tmp_path, left=left)
    found = find(settings_for(tmp_path, STEADYHAND_SERVICE__REATTACH_SECONDS="5"))
    assert (found.orphans, found.lost) == ([], [("0123456789ab", 2)])
    assert found.ended_after_stop == ([("0123456789ab", 2)] if left else [])
    assert not folder.exists()


def test_a_service_that_holds_no_runs_keeps_no_output_of_an_earlier_one(tmp_path: Path) -> None:
    leave_files(tmp_path, left=False)
    assert find(settings_for(tmp_path)) == FoundRuns()
    assert not held_dir(tmp_path).exists()


def test_no_run_is_held_in_the_classic_profile_or_without_the_setting(tmp_path: Path) -> None:
    on = {"STEADYHAND_SERVICE__REATTACH_SECONDS": "5"}
    assert held_runs_of(settings_for(tmp_path, **on)) is not None
    assert held_runs_of(without_reattach(settings_for(tmp_path, **on))) is None
    assert held_runs_of(settings_for(tmp_path, STEADYHAND_PROFILE="classic", **on)) is None
    assert held_runs_of(settings_for(tmp_path)) is None
