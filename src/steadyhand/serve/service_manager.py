"""Notifications to the service manager that started this process (`Type=notify` of systemd)."""

import os
import socket

import structlog

READY, STOPPING, RELOADING = "READY=1", "STOPPING=1", "RELOADING=1"


def is_managed() -> bool:
    """Return True if a manager started this process and is told its state."""
    return os.environ.get("NOTIFY_SOCKET", "").startswith(("/", "@"))


def notify(state: str) -> None:
    """Send a state to the manager that `NOTIFY_SOCKET` names; without one, do nothing.

    A manager that does not take it is logged: the service works without it.
    """
    if not is_managed():
        return
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(2)
            sock.connect(address)
            sock.send(state.encode("ascii"))
    except OSError as error:
        structlog.get_logger("steadyhand").warning(
            "service_manager.not_told", state=state, error=str(error.strerror or error)
        )
