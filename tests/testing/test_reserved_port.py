"""A port that is reserved for a server which is started later, and again."""

import socket

import pytest

from steadyhand.testing.reserved_port import ReservedPort


def listen(number: int) -> socket.socket:
    """Listen as servers do."""
    return socket.create_server(("127.0.0.1", number), reuse_port=False)


def test_a_server_listens_on_a_reserved_port_and_again_after_its_end() -> None:
    with ReservedPort() as port:
        assert not port.is_served()
        for _ in range(2):
            with listen(port.number):
                assert port.is_served()
                with pytest.raises(OSError, match="in use"):
                    listen(port.number)
            assert not port.is_served()


def test_a_reserved_port_is_chosen_for_nobody_else() -> None:
    with ReservedPort() as port, socket.socket() as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port.number))  # without SO_REUSEADDR
        low, high = _ephemeral_range()
        assert low <= port.number <= high
        chosen = [ReservedPort() for _ in range(200)]
        try:
            numbers = {port.number, *(each.number for each in chosen)}
            assert len(numbers) == len(chosen) + 1
        finally:
            for each in chosen:
                each.close()


def _ephemeral_range() -> tuple[int, int]:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:  # noqa: PTH123  # of the kernel
        low, high = file.read().split()
    return int(low), int(high)
