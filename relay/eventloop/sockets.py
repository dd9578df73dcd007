"""Sockets: resets, keepalive probes, and what is still unread or unsent."""

from __future__ import annotations

import array
import fcntl
import os
import socket as sockets
import struct
import sys
import termios

from .unix_reset import leave_unread

__all__ = ["close_for_good", "is_tls", "keep_alive", "reset", "set_to_reset", "unread", "unsent"]

_RESET = struct.pack("ii", 1, 0)


def is_tls(socket: object) -> bool:
    """Whether this is an :class:`ssl.SSLSocket`; does not import :mod:`ssl` for those who have no use for it."""
    module = sys.modules.get("ssl")
    return module is not None and isinstance(socket, module.SSLSocket)


def reset(socket: sockets.SocketType) -> None:
    """Close ``socket`` so that its peer sees a reset and not an end of file, where its transport can say so.

    TCP sends RST (``SO_LINGER`` with a time of zero). For Unix sockets see :mod:`relay.eventloop.unix_reset`.
    """
    set_to_reset(socket)
    close_for_good(socket)


def close_for_good(socket: sockets.SocketType) -> None:
    """Close, also where a file of ``makefile()`` would keep the socket open, and its peer waiting."""
    socket.close()
    if socket.fileno() >= 0:
        os.close(socket.detach())


def set_to_reset(socket: sockets.SocketType) -> None:
    """Make the close that follows a reset."""
    if socket.family == sockets.AF_UNIX:
        far = leave_unread(socket) if not unread(socket) else None
        if far is not None:
            far.close()
        return
    try:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
    except OSError:
        pass  # it is closed, or of a kind that has no such thing


def unread(socket: sockets.SocketType) -> int:
    """Bytes that have come and that nobody has read yet (FIONREAD of ioctl(2)); 0 if that is not known."""
    return _queued(socket, termios.FIONREAD)


def unsent(socket: sockets.SocketType) -> int:
    """How much of what was sent the peer's system has not taken yet (SIOCOUTQ of tcp(7)); 0 if that is not known.

    Bytes for TCP. Of a Unix socket it is what the peer has not read, together with the system's own share.
    """
    return _queued(socket, termios.TIOCOUTQ)


def keep_alive(socket: sockets.SocketType) -> None:
    """Notice a TCP peer that has vanished: after 60 s of silence, and three probes 10 s apart without an answer."""
    if socket.family not in (sockets.AF_INET, sockets.AF_INET6):
        return
    socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        option = getattr(sockets, name, None)
        if option is not None:
            socket.setsockopt(sockets.IPPROTO_TCP, option, value)


def _queued(socket: sockets.SocketType, request: int) -> int:
    number = array.array("i", [0])
    try:
        fcntl.ioctl(socket.fileno(), request, number)
    except (OSError, ValueError):  # it is closed, or of a kind that does not tell
        return 0
    return number[0]
