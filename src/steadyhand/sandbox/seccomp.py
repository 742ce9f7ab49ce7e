"""The filter of system calls for a sandboxed agent. Pure.

The filter is a classic BPF program (Linux `Documentation/userspace-api/seccomp_filter.rst`): instructions of 8 bytes
over a record of the call, whose number is at 0, its architecture at 4 and its arguments from 16 on, 8 bytes each.
It refuses calls that reach far into the kernel and that no tool of an agent needs; all others stay allowed.
"""

import errno
import functools
import platform
import struct
from collections.abc import Iterable

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
"""Bit of the numbers of a second set of system calls on x86_64, which nothing uses."""

_DENIED_SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    # keys of the kernel, which know no namespace
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # programs and probes in the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "kcmp": (312, 272),
    "syslog": (103, 116),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    # the machine itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # long dead
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}
"""The name of each call with its number on x86_64 and on aarch64; None if there is none."""

_CLONE3 = (435, 435)
_CLONE = (56, 220)
_IOCTL = (16, 29)
_PERSONALITY = (135, 92)
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)

_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_TERMINAL_INPUT_IOCTLS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, which type for the user."""
_ALLOWED_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""The personalities that are allowed: Linux, 32 bits, both with a fixed uname, and a query."""
_ALLOWED_SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK. AF_VSOCK knows no network namespace, AF_PACKET and AF_ALG reach deep."""

_LOAD, _RETURN, _EQUAL, _AT_LEAST, _ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERROR = 0x00050000
_NUMBER, _ARCHITECTURE, _ARG0, _ARG1 = 0, 4, 16, 24
"""The offsets in the record; of arguments the lower half, which the kernel uses for these calls."""


@functools.cache
def build_filter(machine: str | None = None) -> bytes:
    """Return the filter for a machine (None is this one) in the form of bwrap's `--seccomp`; empty if there is none."""
    machine = platform.machine() if machine is None else machine
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        return b""
    column = 0 if machine == "x86_64" else 1
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_instruction(_AT_LEAST, _X32, 0, 1), _return_errno(errno.ENOSYS)]
    for numbers in _DENIED_SYSCALLS.values():
        number = numbers[column]
        if number is not None:
            code += [_instruction(_EQUAL, number, 0, 1), _return_errno(errno.EPERM)]
    # Its flags are behind a pointer and cannot be looked at; the C library then falls back to clone.
    code += [_instruction(_EQUAL, _CLONE3[column], 0, 1), _return_errno(errno.ENOSYS)]
    code += _check_argument(
        _CLONE[column], _ARG0, [_instruction(_ANY_BIT, _NAMESPACE_FLAGS, 0, 1), _return_errno(errno.EPERM)]
    )
    code += _check_argument(_IOCTL[column], _ARG1, _deny_values(_TERMINAL_INPUT_IOCTLS, errno.EPERM))
    code += _check_argument(_PERSONALITY[column], _ARG0, _allow_only(_ALLOWED_PERSONALITIES, errno.EPERM))
    for call in (_SOCKET, _SOCKETPAIR):
        code += _check_argument(
            call[column], _ARG0, _allow_only(_ALLOWED_SOCKET_FAMILIES, errno.EAFNOSUPPORT)
        )
    code.append(_instruction(_RETURN, _ALLOW))
    return b"".join(code)


def _instruction(operation: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    """Return one instruction; a jump is the number of instructions to skip."""
    return struct.pack("=HBBI", operation, when_true, when_false, value)


def _return_errno(error: int) -> bytes:
    return _instruction(_RETURN, _ERROR | error)


def _check_argument(call: int, argument: int, instructions: Iterable[bytes]) -> list[bytes]:
    """Check one call by an argument; if the check passes, the call is allowed."""
    inner = [_instruction(_LOAD, argument), *instructions, _instruction(_RETURN, _ALLOW)]
    return [_instruction(_EQUAL, call, 0, len(inner)), *inner]


def _deny_values(values: tuple[int, ...], error: int) -> list[bytes]:
    code = []
    for value in values:
        code += [_instruction(_EQUAL, value, 0, 1), _return_errno(error)]
    return code


def _allow_only(values: tuple[int, ...], error: int) -> list[bytes]:
    # A match jumps over the matches that are left and the refusal.
    code = [_instruction(_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [*code, _return_errno(error)]
