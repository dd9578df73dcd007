"""A far end at a Unix socket, a proxy in front of it that cuts carriers, and a near end."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

from helpers import WAIT, Server, Thread, receive_all, wait_until

import relay
from relay.addresses.hops import Proxy
from relay.addresses.values import TCPAddress
from relay.transports.proxies.dialer import Proxied
from relay.transports.proxies.socks_client import request_of
from relay.transports.resume.client import Resuming
from relay.transports.resume.figures import BUDGET, FAR, NEAR
from relay.transports.resume.server import Bounds
from relay.transports.resume_server.unix import ResumeListener
from relay.transports.unix import listen_unix, unix

PROXY = Proxy("socks5", "far", 1)


class Cutter:
    """Passes the bytes of each carrier on, until it is cut; or lets none through."""

    def __init__(self, path: Any, far: Any) -> None:
        self._far = far
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.carriers = 0
        self.is_down = False
        """Whether carriers are closed as soon as they come."""
        self.losses = 0
        """How many of the next ones are closed so."""
        self.is_silent = False
        """Whether nothing is passed on of a carrier that comes."""
        self.dead: set[socket.socket] = set()
        """The ends of carriers that are open, and bring nothing any more."""
        self._server = Server(self._carry, path)
        self.address: Any = self._server.address
        """Where the near end connects to: a path, or a host and a port."""

    def _carry(self, near: socket.socket) -> None:
        self.carriers += 1
        if self.is_down:
            return
        if self.losses:
            self.losses -= 1
            return
        if self.is_silent:
            self._pairs.append((near, near))
            receive_all(near)
            return
        with socket.socket(socket.AF_UNIX if isinstance(self._far, str) else socket.AF_INET) as far:
            far.connect(self._far)
            far.settimeout(WAIT)
            self._pairs.append((near, far))
            back = Thread(self._copy, far, near)
            self._copy(near, far)
            back.result()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if sink not in self.dead:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cut every carrier; bytes that are under way are lost."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """Let every carrier that there is bring nothing any more, as a network does that is gone."""
        self.dead.update(end for pair in self._pairs for end in pair)

    def close(self) -> None:
        self.cut()
        self._server.close()


class Rig:
    """A near and a far end. The target is a server of the test."""

    def __init__(self, folder: Path, target: Any, near: Any = None, **options: Any) -> None:
        NEAR.clear()
        FAR.clear()
        self.folder = folder
        self.target = TCPAddress(*target)
        self.options = options
        self.cutter = Cutter(str(folder / "near.sock"), str(folder / "far.sock"))
        self.resuming = Resuming(unix(str(folder / "near.sock")), "far relay", **near or {})
        asking = self.resuming.saying(request_of(self.target))
        self.dialer = Proxied(self.resuming, PROXY, self.target, (), asking=asking)
        self._streams: list[Any] = []
        self.start()

    def start(self) -> None:
        """Start the far end."""
        self.listener = ResumeListener(listen_unix(str(self.folder / "far.sock")), Bounds(**self.options))
        self.tunnel = relay.Tunnel(self.listener, relay.dynamic(rules=["*=direct"]), name="far")

    def stop(self) -> None:
        """End the far end, as a killed program does: all of its carriers are cut first."""
        self.cutter.is_down = True
        self.cutter.cut()
        sessions = self.listener.sessions._sessions
        wait_until(lambda: not any(far.joint.is_attached for far in tuple(sessions.values())))
        self.tunnel.close()

    def dial(self) -> socket.socket:
        """Return a stream to the target."""
        self._streams.append(self.dialer(deadline=time.monotonic() + WAIT))
        made: socket.socket = self._streams[-1].socket
        made.settimeout(WAIT)
        return made

    def failure(self) -> Any:
        """Return why the last stream has failed."""
        return self._streams[-1].failure()

    def close(self) -> None:
        for stream in self._streams:
            stream.reset()
        if self._streams:
            wait_until(lambda: BUDGET.offered == BUDGET.held == 0)  # the last words have arrived
        self.tunnel.close()
        self.dialer.close()
        self.cutter.close()
        wait_until(lambda: BUDGET.offered == BUDGET.held == 0)
