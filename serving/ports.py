"""TCP ports: bound at once, so that one in use is known before anything is loaded; listening only when there is
somebody to answer, so that who waits for an open port waits for the models."""

import socket

from isthmus.serving.errors import PortTakenError

__all__ = ["bound_socket", "port_taken"]


def bound_socket(host: str, port: int, *, what: str, flags: str) -> socket.socket:
    """A socket that keeps a port (0: any free one) and refuses connections.

    Args:
        host: address to listen on.
        port: TCP port.
        what: what the port is for, and flags: which flags choose it (for the error text).

    Raises:
        PortTakenError: or the address is unusable.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off where a socket says that it is TCP's, and this one must say so: else an
    # answer's body waits 40 ms for the acknowledgement of its head.
    kept = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        kept.bind((host, port))
    except OSError as error:
        kept.close()
        raise port_taken(f"{host}:{port}", what, flags, error.strerror or str(error)) from error
    return kept


def port_taken(address: str, what: str, flags: str, reason: str) -> PortTakenError:
    """The error of an address that cannot be listened on."""
    return PortTakenError(f"cannot listen on {address} for {what}: {reason}; choose another with {flags}")
