"""The socket on which a server of this service listens."""

import socket
from collections.abc import Callable

from steadyhand.errors import ConfigError


def bind_socket(host: str, port: int, remedy: Callable[[OSError], str]) -> socket.socket:
    """Return the bound socket. A port that is in use fails here, before anything is changed.

    Raise `ConfigError` with the remedy for the error.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only for a socket that names its protocol: without it an answer takes 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror}. {remedy(error)}") from error
    sock.set_inheritable(False)
    return sock
