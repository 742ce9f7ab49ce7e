"""Disk images: a file system of a fixed size in a file, which bounds the bytes that a job writes over its checkout."""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from steadyhand.errors import WorkspaceError
from steadyhand.ports import DEFAULT_PATH
from steadyhand.workspace.filesystem import PRIVATE, make_dir
from steadyhand.workspace.git import KILL_SECONDS, scrub

MIN_BYTES = 32 * 1024 * 1024
MKFS_SECONDS = 60.0
_INODE_BYTES = 8192
_INODES = (65_536, 524_288)
_LOOP_CONTROL = Path("/dev/loop-control")


class DiskImages:
    """Empty file systems to copy from, one for each size, in `folder`. A copy takes milliseconds and no disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = asyncio.Lock()

    @staticmethod
    def is_supported() -> bool:
        """Return true if this machine can create and mount images: as root, with e2fsprogs and loop devices."""
        return (
            os.geteuid() == 0
            and _LOOP_CONTROL.exists()
            and shutil.which("mkfs.ext4", path=DEFAULT_PATH) is not None
        )

    async def create(self, target: Path, size: int) -> None:
        """Create an empty file system of `size` bytes in the file `target`. Raise `WorkspaceError`."""
        size = max(size, MIN_BYTES) // 4096 * 4096
        template = self._folder / f"{size}.ext4"
        if not template.is_file():
            async with self._lock:
                if not template.is_file():
                    await self._make_template(template, size)
        await asyncio.to_thread(copy_sparse, template, target)

    async def _make_template(self, template: Path, size: int) -> None:
        make_dir(self._folder, PRIVATE)
        part = template.with_suffix(".part")
        with part.open("wb") as file:
            file.truncate(size)
        inodes = min(max(size // _INODE_BYTES, _INODES[0]), _INODES[1])
        # Without a journal and with blocks of a page: small ones would have blocks that a loop device cannot serve.
        process = await asyncio.create_subprocess_exec(
            "mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-N", str(inodes),
            "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", str(part),
            env={"PATH": DEFAULT_PATH}, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(MKFS_SECONDS):
                _, stderr = await process.communicate()
        except TimeoutError as error:
            raise WorkspaceError("The disk image for the job's limit took too long to create.") from error
        finally:
            if process.returncode is None:
                process.kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KILL_SECONDS):
                        await process.wait()
        if process.returncode != 0:
            reason = scrub(stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])
            raise WorkspaceError(f"The disk image for the job's limit could not be created: {reason}")
        part.rename(template)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy the written parts of a file and keep its holes."""
    with source.open("rb") as origin, target.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        size = os.fstat(origin.fileno()).st_size
        copy.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(origin.fileno(), at, os.SEEK_DATA)
            except OSError:
                return  # nothing but a hole is left
            end = os.lseek(origin.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += os.copy_file_range(origin.fileno(), copy.fileno(), end - at, at, at)
