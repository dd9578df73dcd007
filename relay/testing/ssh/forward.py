"""Remote forwards of the embedded SSH server: sockets at which it listens for a client."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from ...addresses.values import TCPAddress, UnixAddress, unix_path

Place = TCPAddress | UnixAddress


class Forward:
    """A socket that listens for a client; always on the loopback, also for other addresses.

    :param place: the requested address.
    :param came: called with the address, each connection and its peer, on the forward's thread.
    :raises OSError: if it cannot listen there.
    :raises ValueError: if the address is invalid.
    """

    def __init__(self, place: Place, came: Callable[[Place, socket.socket, Any], object]) -> None:
        self._came = came
        if isinstance(place, UnixAddress):
            self._listening = _listen_at(place.path)
            self.place: Place = place
        else:
            self._listening = _listen_on(place.host, place.port)
            # The name that the client asked for, although the socket is on the loopback: its cancel request has the
            # same name.
            self.place = TCPAddress(place.host, self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="ssh server forward", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listening.accept()
            except OSError:
                return
            self._came(self.place, sock, peer)

    def close(self) -> None:
        """Stop listening."""
        # A close alone wakes no thread that waits in accept() on Linux.
        hang_up(self._listening)  # wakes accept
        self._thread.join()
        self._listening.close()
        if isinstance(self.place, UnixAddress):
            with contextlib.suppress(OSError):
                os.unlink(self.place.path)


def _listen_at(path: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(unix_path(path))
        # Between bind and listen: a client that connects now is refused, so there is no moment in which others get in.
        os.chmod(path, 0o600)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


def _listen_on(host: str, port: int) -> socket.socket:
    if port > 65535:
        raise ValueError(f"port: {port}")
    if host in ("::1", "::"):
        return socket.create_server(("::1", port), family=socket.AF_INET6, backlog=128)
    return socket.create_server(("127.0.0.1", port), backlog=128)


def send_at_once(sock: socket.socket) -> None:
    """Disable Nagle's algorithm: small messages do not wait for acknowledgements."""
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def hang_up(sock: socket.socket) -> None:
    """Shut down both directions, and wake the threads that wait for the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
