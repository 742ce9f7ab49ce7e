"""System calls for mounts, and single mounts: the lower half of `sandbox_child.py`.

It is not imported there: its code runs first in the same namespace.
"""

from __future__ import annotations

import _ctypes
import fcntl
import os
import sys

TYPE_CHECKING = False  # `typing` is large; checkers know the name
if TYPE_CHECKING:
    from typing import Any

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every machine
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, 0o2000000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_IDMAP = 1, 2, 4, 0x100000
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_EBUSY = 16
_NEWNS_TYPE = 0x00020000  # of `setns`: the descriptor must be one of a mount namespace
_MAX_LOOP_ATTEMPTS = 64  # another run may take the device that was free a moment ago
_RESERVE_FILES, _RESERVE_BYTES = 8, 128 * 1024  # an overlay needs a few inodes and blocks


if TYPE_CHECKING:
    _Int = Any
else:

    class _Int(_ctypes._SimpleCData):  # noqa: SLF001  # what `ctypes.c_int` is
        _type_ = "i"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


def libc_call(name: str, *arguments: int | bytes | None) -> int:
    """Call a function of the C library and return its result. Raises `OSError` if it fails."""
    library = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # None is the process itself
    result: int = _Function(_ctypes.dlsym(library, name))(*arguments)
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None) -> None:
    libc_call("mount", source, target, kind, flags, options)


def make_mount_point(path: bytes, *, folder: bool) -> None:
    if folder:
        os.makedirs(path, 0o755, exist_ok=True)  # noqa: PTH103  # pathlib is large
        return
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)  # noqa: PTH103, PTH120  # the same
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def bind_mount(source: bytes, point: bytes, id_map_fd: int | None, *, writable: bool) -> None:
    """Mount the tree at `source` on `point`.

    With a user namespace `id_map_fd`, the owners of its files are mapped as that namespace does.
    """
    recursive = _AT_RECURSIVE if id_map_fd is None else 0  # a mount below may not support a map
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | recursive
    tree = libc_call("syscall", _OPEN_TREE, _AT_FDCWD, source, flags)
    try:
        attribute_flags = _ATTR_NOSUID | _ATTR_NODEV | (0 if writable else _ATTR_RDONLY)
        attribute_flags |= 0 if id_map_fd is None else _ATTR_IDMAP
        words = (
            attribute_flags,
            0,
            0,
            id_map_fd or 0,
        )  # struct mount_attr: set, clear, propagation, user namespace
        attributes = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
        at_flags = _AT_EMPTY_PATH | recursive
        libc_call("syscall", _MOUNT_SETATTR, tree, b"", at_flags, attributes, len(attributes))
        libc_call("syscall", _MOVE_MOUNT, tree, b"", _AT_FDCWD, point, _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def join_mount(source: bytes, point: bytes, namespace: int) -> None:
    """Mount on `point` what another mount namespace, a descriptor, has at `source`."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc_call("setns", namespace, _NEWNS_TYPE)
        try:
            flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
            tree = libc_call("syscall", _OPEN_TREE, _AT_FDCWD, source, flags)
        finally:
            libc_call("setns", own, _NEWNS_TYPE)
            os.fchdir(root)
            os.chroot(".")  # the service may have a root of its own
        try:
            libc_call("syscall", _MOVE_MOUNT, tree, b"", _AT_FDCWD, point, _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    finally:
        os.close(own)
        os.close(root)


def bind_mount_at(source: bytes, point: bytes, id_map_fd: int | None) -> None:
    """Create a folder and mount the tree at `source` there, read-only."""
    make_mount_point(point, folder=True)
    bind_mount(source, point, id_map_fd, writable=False)


def mount_image(image: bytes, point: bytes, *, writable: bool) -> None:
    device, name = _attach_loop(image, writable=writable)
    try:
        flags = _MS_NOSUID | _MS_NODEV | (0 if writable else _MS_RDONLY)
        mount(name, point, b"ext4", flags, None)
    finally:
        os.close(device)  # the mount holds it now; without a mount it detaches


def _attach_loop(image: bytes, *, writable: bool) -> tuple[int, bytes]:
    mode = os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
    file = os.open(image, mode | os.O_NOFOLLOW)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return _configure_loop(
                file, control, mode, _LO_FLAGS_AUTOCLEAR | (0 if writable else _LO_FLAGS_READ_ONLY)
            )
        finally:
            os.close(control)
    finally:
        os.close(file)


def _configure_loop(file: int, control: int, mode: int, flags: int) -> tuple[int, bytes]:
    # struct loop_config: file, block size, then loop_info64 (232 bytes, its flags at 52), then 64 bytes.
    config = bytearray(8 + 232 + 64)
    config[0:4] = file.to_bytes(4, sys.byteorder)
    config[8 + 52 : 8 + 56] = flags.to_bytes(4, sys.byteorder)
    for _ in range(_MAX_LOOP_ATTEMPTS):
        name = b"/dev/loop%d" % fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        device = os.open(name, mode)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
        except OSError as error:
            os.close(device)
            if error.errno != _EBUSY:
                raise
        else:
            return device, name
    raise OSError(_EBUSY, "no loop device is free")


def chown_layers(image: bytes, user: int) -> None:
    """Change the owner of the layers on an image; no link is followed. The file system's own folders stay root's."""
    for name in os.listdir(image):  # noqa: PTH208  # pathlib is large
        if name in (b"lost+found", b"reserve"):
            continue
        top = os.path.join(image, name)  # noqa: PTH118  # the same
        for _, folders, files, handle in os.fwalk(top, follow_symlinks=False):
            for entry in (*folders, *files):
                os.chown(entry, user, user, dir_fd=handle, follow_symlinks=False)
        os.chown(top, user, user, follow_symlinks=False)


def allocate_reserve(image: bytes) -> None:
    """Reserve a little space on an image: on a full one no overlay can be mounted, not even to read it.

    The reserve that file systems have for root does not help, because an overlay writes as the user that mounted it.
    """
    folder = image + b"/reserve"
    try:
        os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103  # pathlib is large
        for number in range(_RESERVE_FILES):
            file = os.open(folder + b"/%d" % number, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, _RESERVE_BYTES)
            finally:
                os.close(file)
    except OSError:
        return  # it is full already; a partial reserve is kept


def free_reserve(image: bytes) -> None:
    for number in range(_RESERVE_FILES):
        try:
            os.unlink(image + b"/reserve/%d" % number)  # noqa: PTH108  # pathlib is large
        except OSError:
            continue


def clear_volatile_mark(work: bytes) -> None:
    """Remove the mark of a volatile overlay, which prevents another mount of its layers.

    The mark exists because a crash of the machine may lose unwritten files. A checkout that is used again after such a
    crash is used as it was left.
    """
    mark = os.path.join(work, b"work/incompat/volatile")  # noqa: PTH118  # pathlib is large
    try:
        os.unlink(mark + b"/dirty")  # noqa: PTH108  # the same
        os.rmdir(mark)  # noqa: PTH106  # the same
    except OSError:
        return  # it was never mounted
