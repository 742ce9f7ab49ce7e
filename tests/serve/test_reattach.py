"""The runs that an earlier service left, as a start finds them."""

import asyncio
from pathlib import Path

import pytest

from steadyhand.config.settings import Settings, load_settings
from steadyhand.runner.process.held_record import held_dir
from steadyhand.serve.reattach import (
    FoundRuns,
    ends_with_container,
    held_runs_of,
    orphaned_runs,
    without_reattach,
)


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
    off = settings_for(tmp_path, STEADYHAND_SERVICE__REATTACH_SECONDS="0")
    assert find(off) == FoundRuns()
    assert not held_dir(tmp_path).exists()


def test_runs_are_held_but_in_the_classic_profile_and_where_the_setting_is_0(tmp_path: Path) -> None:
    assert held_runs_of(settings_for(tmp_path)) is not None
    assert held_runs_of(without_reattach(settings_for(tmp_path))) is None
    assert held_runs_of(settings_for(tmp_path, STEADYHAND_SERVICE__REATTACH_SECONDS="0")) is None
    classic = settings_for(tmp_path, STEADYHAND_PROFILE="classic")
    assert classic.tables.service.reattach_seconds == 0
    asked = {"STEADYHAND_SERVICE__REATTACH_SECONDS": "5"}
    assert held_runs_of(settings_for(tmp_path, STEADYHAND_PROFILE="classic", **asked)) is None


@pytest.mark.parametrize(
    ("pid", "parent", "first", "ends"),
    [
        (1, 0, "steadyhand", True),
        (7, 1, "docker-init", True),
        (7, 1, "sh", True),
        (7, 0, "pause", True),  # the processes of a pod are in one namespace
        (700, 1, "systemd", False),
        (700, 650, "docker-init", False),  # a shell in a container has started it
    ],
)
def test_a_service_that_a_container_ends_with_holds_no_runs(
    pid: int, parent: int, first: str, *, ends: bool
) -> None:
    assert ends_with_container(pid, parent, first) is ends
