"""A program that leads to a Unix socket, or to a host and a port: what ``nc`` is, with half-close both ways."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading


def outward(far: socket.socket) -> None:
    """All of standard input, and the end of it."""
    while data := os.read(0, 1 << 16):
        far.sendall(data)
    far.shutdown(socket.SHUT_WR)


def inward(far: socket.socket) -> None:
    """All that comes to standard output, and the end of it: of a pipe by a close, of a socket by a shutdown."""
    while data := far.recv(1 << 16):
        while data:
            data = data[os.write(1, data) :]
    with contextlib.suppress(OSError):
        output = socket.socket(fileno=1)
        output.shutdown(socket.SHUT_WR)
        output.detach()
    os.close(1)
    os.close(2)  # a server of OpenSSH passes the end of the output on when there is nothing more of either


if __name__ == "__main__":
    if len(sys.argv) == 2:
        far = socket.socket(socket.AF_UNIX)
        far.connect(sys.argv[1])
    else:
        far = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    threading.Thread(target=outward, args=(far,)).start()
    inward(far)
