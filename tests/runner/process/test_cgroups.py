"""Which groups are chosen, from the kernel's tables as they are on other machines.

Real ones are in test_sandboxed_run.py.
"""

import asyncio
import os
from pathlib import Path

import pytest

from steadyhand.ports import ResourceLimits
from steadyhand.runner.process import cgroups
from steadyhand.runner.process.cgroups import (
    Cgroups,
    cgroup_name,
    delegate_controllers,
    delegate_own_cgroup,
    find_cgroups,
)

CEILING = ResourceLimits(memory=1 << 30, processes=99)


def mount(kind: str, point: Path, root: str = "/", options: str = "rw") -> str:
    return f"31 23 0:28 {root} {point} rw,relatime - {kind} {kind} {options}\n"


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_version_2_with_its_controllers_holds_all(tmp_path: Path) -> None:
    own = folder(tmp_path / "unit")
    found = find_cgroups(mount("cgroup2", tmp_path), "0::/unit\n")
    assert found == Cgroups(own, own, own, version=2)
    assert found.limits("n", CEILING) == [
        (
            str(own / "n"),
            [
                ("memory.max", b"1073741824", True),
                ("memory.swap.max", b"0", False),
                ("pids.max", b"99", True),
            ],
        )
    ]
    assert [file for _, file, _ in found.counters("n")] == [
        str(own / "n" / "memory.events"),
        str(own / "n" / "pids.events"),
    ]


def test_version_1_holds_the_limits_below_the_services_own_groups(tmp_path: Path) -> None:
    memory, processes = folder(tmp_path / "memory" / "box"), folder(tmp_path / "pids")
    mounts = mount("cgroup", tmp_path / "memory", options="rw,memory")
    mounts += mount("cgroup", tmp_path / "pids", options="rw,pids") + mount("cgroup2", tmp_path / "gone")
    found = find_cgroups(mounts, "4:memory:/box\n8:pids:/\n0::/\n")
    assert found == Cgroups(memory, processes, None)
    assert found.limits("n", CEILING) == [
        (
            str(memory / "n"),
            [
                ("memory.limit_in_bytes", b"1073741824", True),
                ("memory.memsw.limit_in_bytes", b"1073741824", False),
            ],
        ),
        (str(processes / "n"), [("pids.max", b"99", True)]),
    ]


def test_groups_are_found_at_a_mount_point_with_a_line_separator_in_its_name(tmp_path: Path) -> None:
    root = tmp_path / "x\u2028y\x85z"
    own = folder(root / "unit\u2029a")
    found = find_cgroups(mount("cgroup2", root), "1:name=a:/\n0::/unit\u2029a\n")
    assert found == Cgroups(own, own, own, version=2)


def test_in_a_container_a_groups_path_begins_where_its_mount_does(tmp_path: Path) -> None:
    own = folder(tmp_path / "memory" / "inner")
    mounts = mount("cgroup", tmp_path / "memory", root="/docker/abc", options="rw,memory")
    assert find_cgroups(mounts, "4:memory:/docker/abc/inner\n").memory == own


def test_without_limits_the_groups_are_made_all_the_same(tmp_path: Path) -> None:
    own = folder(tmp_path / "unit")
    assert find_cgroups(mount("cgroup2", tmp_path), "0::/unit\n").limits("n", ResourceLimits()) == [
        (str(own / "n"), [])
    ]


@pytest.mark.parametrize("tables", [("", ""), ("31 23 0:28 / /x rw - tmpfs tmpfs rw\n", "0::/\n")])
def test_where_there_are_none_nothing_is_held(tables: tuple[str, str]) -> None:
    assert find_cgroups(*tables) == Cgroups()
    assert find_cgroups(*tables).limits("n", CEILING) == []


def kernel_files(group: Path, members: list[int], controllers: str = "cpu memory pids") -> None:
    """Write what the kernel shows of a group; what is written to it is then seen in the files."""
    (group / "cgroup.controllers").write_text(controllers)
    (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in members))
    (group / "cgroup.subtree_control").write_text("")


def test_a_group_that_is_the_services_alone_is_made_to_hand_controllers_on(tmp_path: Path) -> None:
    kernel_files(tmp_path, [os.getpid()])
    assert delegate_controllers(tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / "steadyhand-service" / "cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("others", "controllers"), [([1], "memory pids"), ([0], "memory pids"), ([], "cpu"), ([], "memory")]
)
def test_a_group_with_others_in_it_or_without_controllers_is_left_alone(
    tmp_path: Path, others: list[int], controllers: str
) -> None:
    kernel_files(tmp_path, [os.getpid(), *others], controllers)
    assert not delegate_controllers(tmp_path)
    assert not (tmp_path / "steadyhand-service").exists()


def test_a_start_after_a_claim_finds_the_group_above(tmp_path: Path) -> None:
    folder(tmp_path / "unit" / "steadyhand-service")
    assert (
        find_cgroups(mount("cgroup2", tmp_path), "0::/unit/steadyhand-service\n").memory == tmp_path / "unit"
    )


def undelegated_group(root: Path) -> tuple[Path, tuple[str, str]]:
    """Make a group that is this process's alone, where no group with limits can be made yet; with its tables."""
    group = folder(root / "unit")
    kernel_files(group, [os.getpid()])
    (group / cgroup_name(os.getpid(), cgroups.start_ticks(os.getpid()) or 0)).write_text(
        "in the way of a group"
    )
    return group, (mount("cgroup2", root), "0::/unit\n")


def test_looking_for_groups_leaves_the_service_in_its_own(tmp_path: Path) -> None:
    group, tables = undelegated_group(tmp_path)
    assert find_cgroups(*tables) == Cgroups()
    assert (group / "cgroup.subtree_control").read_text() == ""
    assert not (group / "steadyhand-service").exists()


def test_the_service_moves_below_its_own_group_when_that_hands_no_limits_on(tmp_path: Path) -> None:
    group, tables = undelegated_group(tmp_path)
    assert delegate_own_cgroup(*tables)
    assert (group / "steadyhand-service" / "cgroup.procs").read_text() == str(os.getpid())


def test_the_service_stays_where_limits_can_be_had_already(tmp_path: Path) -> None:
    group = folder(tmp_path / "unit")
    kernel_files(group, [os.getpid()])
    assert not delegate_own_cgroup(mount("cgroup2", tmp_path), "0::/unit\n")
    assert not (group / "steadyhand-service").exists()


@pytest.mark.parametrize("own_cgroups", ["0::/unit/steadyhand-service\n", "4:memory:/\n"])
def test_a_service_that_has_moved_or_has_no_version_2_does_not_move(tmp_path: Path, own_cgroups: str) -> None:
    group, (mounts, _) = undelegated_group(tmp_path)
    kernel_files(folder(group / "steadyhand-service"), [os.getpid()])
    assert not delegate_own_cgroup(mounts, own_cgroups)
    assert not (group / "steadyhand-service" / "steadyhand-service").exists()


def test_what_holds_the_limits_is_said_in_a_sentence() -> None:
    here = Path("/x")
    assert Cgroups(here, here, here, version=2).description == (
        "Memory and processes are held by control groups (version 2); cgroup.kill ends what is left."
    )
    assert Cgroups().description.startswith("No control group holds memory or processes here")
    assert cgroup_name(12, 345) == f"steadyhand-12-345-{Path('/proc/self/ns/pid').stat().st_ino}"


def test_the_sweep_of_another_service_leaves_the_group_of_a_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "detect_cgroups", lambda: cgroups.Cgroups(kill=tmp_path))
    swept: list[int] = []
    write_text = Path.write_text

    def sweep_and_write(path: Path, text: str) -> int:
        swept.append(asyncio.run(cgroups.sweep_cgroups()))
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", sweep_and_write)
    assert cgroups._is_usable(tmp_path, "pids.max")
    assert swept == [0]
