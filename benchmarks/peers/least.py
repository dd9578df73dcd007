"""The least relay that Python allows, on sockets and epoll: no limits, no names, no records.

Started as ``python least.py PORT TARGET_PORT``. What relay costs above this is the price of what else it does.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable

HOST = "127.0.0.1"
SIZE = 65536
IN, OUT = select.EPOLLIN, select.EPOLLOUT
poller = select.epoll()
handlers: dict[int, Callable[[int], None]] = {}


class End:
    """One socket of a connection."""

    __slots__ = ("descriptor", "ended", "other", "pending", "socket")
    other: End

    def __init__(self, made: socket.socket) -> None:
        self.socket, self.descriptor = made, made.fileno()
        self.ended = False  # no more bytes come from here
        self.pending = b""  # what the other end has sent, and this one does not take yet
        handlers[self.descriptor] = self.on_event

    def on_event(self, event: int) -> None:
        try:
            if event & OUT:
                self.write(b"")
            if event & ~OUT and not self.ended and not self.other.pending:
                self.read()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def read(self) -> None:
        if data := self.socket.recv(SIZE):
            return self.other.write(data)
        self.ended = True
        if self.other.ended:
            return self.close()
        self.other.socket.shutdown(socket.SHUT_WR)
        poller.modify(self.descriptor, 0)

    def write(self, data: bytes) -> None:
        waited, data = bool(self.pending), self.pending + data
        try:
            data = data[self.socket.send(data) :]
        except BlockingIOError:
            pass
        self.pending = data
        if waited != bool(data):
            poller.modify(self.descriptor, (0 if self.ended else IN) | (OUT if data else 0))
            poller.modify(self.other.descriptor, 0 if data or self.other.ended else IN)

    def close(self) -> None:
        for end in (self, self.other):
            if handlers.pop(end.descriptor, None):
                end.socket.close()


def accept(listener: socket.socket, target: tuple[str, int]) -> None:
    client = listener.accept()[0]
    stream = socket.socket()
    for one in (client, stream):
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.connect_ex(target)  # a failure shows as an event
    near, far = End(client), End(stream)
    near.other, far.other = far, near
    poller.register(near.descriptor, IN)
    poller.register(far.descriptor, IN)


def main(port: int, target: int) -> None:
    with socket.create_server((HOST, port), backlog=4096) as listener:
        handlers[listener.fileno()] = lambda _event: accept(listener, (HOST, target))
        poller.register(listener.fileno(), IN)
        while True:
            for descriptor, event in poller.poll():
                if handler := handlers.get(descriptor):
                    handler(event)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
