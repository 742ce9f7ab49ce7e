"""Makes the program of an agent one that the agents' user can run."""

import os
import shutil
import stat
from pathlib import Path

_READ_EXECUTE = 0o005


def accessible_program(program: Path, name: str, data_dir: Path, uid: int | None) -> Path:
    """Return a path to an agent's program that `uid` can run: its own path if possible, else one in `<data-dir>/bin`.

    There it is a hard link, or a copy on another file system. Its name has the size and time of the original, so an
    upgrade gets a new one. A script stays in its place, as it needs the files beside it. If `uid` is None it is the
    service's own user.
    """
    if uid is None or can_execute(program, uid):
        return program
    original = program.resolve()
    if _is_script(original):
        return program
    info = original.stat()
    folder = data_dir.absolute() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    target = folder / f"{name}-{info.st_size}-{info.st_mtime_ns}"
    if not target.exists():
        _install_copy(original, target)
    return target


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _install_copy(original: Path, target: Path) -> None:
    # Under another name first: an incomplete copy must never be used as the program.
    part = target.with_name(f"{target.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    if original.stat().st_mode & _READ_EXECUTE == _READ_EXECUTE:
        try:
            part.hardlink_to(original)
        except OSError:
            shutil.copyfile(original, part)
    else:
        shutil.copyfile(original, part)  # a link would require a change of the original's mode
    if part.stat().st_mode & _READ_EXECUTE != _READ_EXECUTE:
        part.chmod(0o755)
    part.replace(target)


def can_execute(program: Path, uid: int) -> bool:
    """Return True if a user without groups may run a program, by the modes of it and of every folder above it."""
    try:
        resolved = program.resolve(strict=True)
        paths = [resolved, *program.absolute().parents, *resolved.parents]
        modes = [(path.stat(), 0o5 if path == resolved else 0o1) for path in paths]
    except OSError:
        return False
    return all(_permission_bits(info, uid) & needed == needed for info, needed in modes)


def _permission_bits(info: os.stat_result, uid: int) -> int:
    mode = stat.S_IMODE(info.st_mode)
    return (mode >> 6 if info.st_uid == uid else mode >> 3 if info.st_gid == uid else mode) & 0o7
