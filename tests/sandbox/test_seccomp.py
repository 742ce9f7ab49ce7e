"""The filter of system calls: as a program of its own, by a tiny machine, and by the kernel."""

import ast
import errno
import struct
from pathlib import Path

import pytest
from tests.sandbox.bwrap_harness import BwrapHarness

from steadyhand.sandbox import seccomp

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOWED = 0x7FFF0000
KILLED = 0x80000000


def judge(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel would."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    record = struct.pack("=IIQ6Q", number, architecture, 0, *(each % 2**64 for each in arguments))
    steps = list(struct.iter_unpack("=HBBI", code))
    at, value = 0, 0
    while True:
        operation, when_true, when_false, operand = steps[at]
        at += 1
        if operation == 0x20:
            value = struct.unpack_from("=I", record, operand)[0]
        elif operation == 0x06:
            return int(operand)
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
            at += when_true if holds else when_false


def refused(error: int) -> int:
    return 0x00050000 | error


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_every_call_of_the_list_is_refused_and_the_usual_ones_are_not(
    machine: str, architecture: int
) -> None:
    code = seccomp.build_filter(machine)
    column = ("x86_64", "aarch64").index(machine)
    for name, numbers in seccomp._DENIED_SYSCALLS.items():
        number = numbers[column]
        if number is not None:
            assert judge(code, architecture, number) == refused(errno.EPERM), name
    usual = {
        "x86_64": (0, 1, 2, 9, 39, 59, 101, 202, 257),
        "aarch64": (63, 64, 56, 222, 172, 221, 117, 98, 291),
    }
    for number in usual[machine]:
        assert judge(code, architecture, number) == ALLOWED
    assert judge(code, architecture, 435) == refused(errno.ENOSYS)


@pytest.mark.parametrize(("machine", "architecture"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_arguments_are_judged_by_the_half_that_the_kernel_takes(machine: str, architecture: int) -> None:
    code = seccomp.build_filter(machine)
    clone, ioctl, personality, opened, pair = {
        "x86_64": (56, 16, 135, 41, 53),
        "aarch64": (220, 29, 92, 198, 199),
    }[machine]
    high = 0xDEAD << 32
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(code, architecture, clone, namespace | 17) == refused(errno.EPERM)
    assert judge(code, architecture, clone, 0x3D0F00) == ALLOWED
    for request in (0x5412, 0x541C, high | 0x5412):
        assert judge(code, architecture, ioctl, 0, request) == refused(errno.EPERM)
    assert judge(code, architecture, ioctl, 0x5412, 0x5401) == ALLOWED
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert judge(code, architecture, personality, value) == ALLOWED
    assert judge(code, architecture, personality, 0x40000) == refused(errno.EPERM)
    for call in (opened, pair):
        for family in (1, 2, 10, 16):
            assert judge(code, architecture, call, family) == ALLOWED
        for family in (0, 3, 17, 38, 40, high | 40):
            assert judge(code, architecture, call, family) == refused(errno.EAFNOSUPPORT)


def test_calls_of_another_architecture_end_the_process_and_x32_is_not_there() -> None:
    assert judge(seccomp.build_filter("x86_64"), I386, 20) == KILLED
    assert judge(seccomp.build_filter("aarch64"), X86_64, 39) == KILLED
    assert judge(seccomp.build_filter("x86_64"), X86_64, 0x40000000 | 39) == refused(errno.ENOSYS)


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert seccomp.build_filter("riscv64") == b""


INSIDE = r"""
import ctypes, errno, socket
library = ctypes.CDLL(None, use_errno=True)
said = {}
def call(name, *words):
    answer = library.syscall(*[ctypes.c_long(word) for word in words])
    said[name] = "did" if answer >= 0 else errno.errorcode[ctypes.get_errno()]
for name, number in dict(keyctl=250, add_key=248, bpf=321, perf=298, userfaultfd=323, mount=165, setns=308,
                         open_tree=428, fsopen=430, kexec=246, init_module=175, by_handle=304, uring=425).items():
    call(name, number, 0, 0, 0, 0, 0)
call("unshare", 272, 0x10000000)
call("clone", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("clone3", 435, 0, 0)
call("TIOCSTI", 16, 0, 0x5412, 0)
call("personality", 135, 0x40000)
call("getpid", 39)
for name, family, kind in (("packet", 17, socket.SOCK_RAW), ("alg", 38, 5), ("vsock", 40, 1), ("inet", 2, 1),
                           ("unix", 1, 1)):
    try:
        socket.socket(family, kind).close()
        said[name] = "did"
    except OSError as error:
        said[name] = errno.errorcode[error.errno]
print(said)
"""


def test_the_kernel_refuses_them_inside(world_dir: Path, standin: Path) -> None:
    if not seccomp.build_filter() or seccomp.build_filter() != seccomp.build_filter("x86_64"):
        pytest.skip("the numbers in this test are those of x86_64")
    done = BwrapHarness(world_dir, standin).run("/usr/bin/python3", "-c", INSIDE)
    said = ast.literal_eval(done.stdout.decode())
    assert {name: said.pop(name) for name in ("getpid", "inet", "unix")} == dict.fromkeys(
        ("getpid", "inet", "unix"), "did"
    )
    assert said.pop("clone3") == "ENOSYS"
    assert {said.pop(name) for name in ("packet", "alg", "vsock")} == {"EAFNOSUPPORT"}
    assert set(said.values()) == {"EPERM"}, said
