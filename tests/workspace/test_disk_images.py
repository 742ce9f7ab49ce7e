import asyncio
import os
from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.agents import Workspace
from steadyhand.testing.contracts.checkouts import Repository
from steadyhand.workspace.disk_images import DiskImages, copy_sparse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root")
MIB = 1024 * 1024


def loops() -> set[str]:
    """Give the files behind this machine's loop devices."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.add(path.read_text("utf-8").strip())
        except OSError:
            continue
    return found


def test_this_machine_can_make_them() -> None:
    assert DiskImages.is_supported()


def test_a_copy_of_a_large_one_takes_no_disk(world_dir: Path) -> None:
    images = DiskImages(world_dir / "images")
    asyncio.run(images.create(world_dir / "one", 4096 * MIB))
    asyncio.run(images.create(world_dir / "two", 4096 * MIB))
    found = (world_dir / "two").stat()
    assert found.st_size == 4096 * MIB
    assert found.st_blocks * 512 < 64 * MIB
    assert len(list((world_dir / "images").iterdir())) == 1


def test_holes_stay_holes_and_bytes_stay_bytes(world_dir: Path) -> None:
    source = world_dir / "source"
    with source.open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"in the middle")
        file.truncate(9 * MIB)
    copy_sparse(source, world_dir / "copy")
    assert (world_dir / "copy").read_bytes() == source.read_bytes()
    assert (world_dir / "copy").stat().st_blocks * 512 < MIB


def test_a_job_writes_no_more_than_its_disk_has_and_its_work_is_kept(
    world_dir: Path, repository: Repository
) -> None:
    sealed = SandboxedCheckouts(world_dir, disk_limit_of=lambda _: 48 * MIB)

    async def work() -> None:
        place = await sealed.prepare(repository.workspace())
        image = place.paths.root / "disk.ext4"
        assert image.is_file()
        fill = "{ head -c 100000000 /dev/zero > %s 2>&1 || echo full; }"
        said = await sealed.run_as_agent(
            place,
            f"echo mine >> readme.txt && git mv src moved && {fill % '~/big'} && rm ~/big && {fill % 'big'}",
        )
        assert said.count("full") == 2
        # It is looked at as it was left: with no room for anything.
        harvest = await sealed.checkouts.harvest(place)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        assert (harvest.changes.files, harvest.changes.insertions) == (3, 1)
        await sealed.checkouts.release(place)
        assert not image.exists()
        assert str(image) not in loops()

    run_async(work())


def test_a_scratch_checkout_with_a_limit_is_one_too(world_dir: Path) -> None:
    sealed = SandboxedCheckouts(world_dir, disk_limit_of=lambda _: 48 * MIB)

    async def work() -> None:
        place = await sealed.prepare(Workspace("scratch"))
        said = await sealed.run_as_agent(place, "ls -A; head -c 100000000 /dev/zero > big 2>&1 || echo full")
        assert said.splitlines()[-1] == "full"
        assert "big" not in said.splitlines()
        harvest = await sealed.checkouts.harvest(place)
        assert harvest.changes is None
        await sealed.checkouts.release(place)
        assert {path.name for path in place.paths.root.iterdir()} == {"config", "kept", "prepared"}

    run_async(work())


@pytest.mark.parametrize(
    "fill",
    [
        "head -c 100000000 /dev/zero > big$N || true; i=0; while echo x > ~/$N-$i; do i=$((i+1)); done",
        pytest.param("i=0; while true > ~/$N-$i; do i=$((i+1)); done", marks=pytest.mark.long),
    ],
    ids=["its bytes", "its number of files"],
)
def test_a_disk_that_every_run_fills_again_can_always_be_looked_at(
    world_dir: Path, repository: Repository, fill: str
) -> None:
    sealed = SandboxedCheckouts(world_dir, disk_limit_of=lambda _: 48 * MIB)

    async def work() -> None:
        place = await sealed.prepare(repository.workspace())
        await sealed.run_as_agent(place, "echo mine >> readme.txt")
        for number in range(5):
            assert (
                await sealed.run_as_agent(place, f"N={number}; {{ {fill}; }} 2>/dev/null; echo full")
                == "full\n"
            )
        harvest = await sealed.checkouts.harvest(place)
        assert harvest.warnings == ()
        assert harvest.changes is not None
        await sealed.checkouts.release(place)

    run_async(work())
