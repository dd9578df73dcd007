"""Streams that go on over other carriers, for each kind of carrier, and what cuts these."""

from __future__ import annotations

import contextlib
import functools
import random
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers import WAIT, Server, wait_until
from i2p_times import set_times
from i2p_world import Networks, Routers
from listener_rig import make_prompt
from resume_carriers import Carrier
from sshd import Sshd, server_url

import relay
from relay.process import start
from relay.transports.resume.figures import BUDGET, NEAR

from .relays import Rig, open_tunnel, target_socket

_KEPT = 30.0  # seconds for which the far end keeps a stream without a carrier
# Bytes, as powers of 2, after which a carrier is cut. With the first number one of two would be cut in the handshakes
# of TLS or SSH, and a stream be lost after some pauses in a row.
_LEAST, _LEAST_WITH_HANDSHAKES, _MOST = 1, 8, 20


class Cutter:
    """Cuts each carrier after a number of bytes, in whatever direction they go; what is under way is lost.

    A stream that has not begun is not kept, so nothing is cut while there is one; :attr:`lock` lets none come then. A
    session at a SAM bridge stays: a stream that begins before the near end has noticed its loss would fail.

    :param chance: decides the numbers.
    :param least: the smallest of them, as a power of 2.
    :param near: where it listens.
    :param far: where it leads.
    """

    def __init__(self, chance: random.Random, least: float, near: Any, far: Any) -> None:
        self._far = far
        self._chance = chance
        self._least = least
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self.cuts = 0
        self.lock = threading.Lock()
        self.have_begun: Callable[[], bool] = lambda: False
        """Whether each stream has."""
        self._server = Server(self._carry, near)
        self.address: Any = self._server.address

    def _carry(self, near: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self._far, str) else socket.AF_INET
        with socket.socket(family) as far, contextlib.suppress(OSError):
            far.settimeout(WAIT)
            far.connect(self._far)
            ends = near, far
            self._open.add(ends)
            try:
                self._copy(ends)
            finally:
                self._open.discard(ends)
                _end(ends)

    def _copy(self, ends: tuple[socket.socket, socket.socket]) -> None:
        other = dict(zip(ends, reversed(ends), strict=True))
        by_number = {end.fileno(): end for end in ends}
        poller = select.poll()  # descriptors of 100 connections are beyond those of select
        for number in by_number:
            poller.register(number, select.POLLIN)
        left = self._some()
        while True:
            for number, _ in poller.poll():
                end = by_number[number]
                data = end.recv(min(left, 1 << 16))
                if not data:
                    return
                other[end].sendall(data)
                if b"SESSION CREATE" in data:
                    self._open.discard(ends)
                    left = sys.maxsize
                left -= len(data)
                if left <= 0:
                    with self.lock:
                        if self.have_begun():
                            self.cuts += 1
                            return _end(ends)
                    left = self._some()

    def _some(self) -> int:
        return int(2 ** self._chance.uniform(self._least, _MOST))

    def cut(self) -> None:
        """Cut every carrier now."""
        with self.lock:
            for ends in tuple(self._open) if self.have_begun() else ():
                self.cuts += 1
                _end(ends)

    def close(self) -> None:
        """Cut all, and take no more."""
        for ends in tuple(self._open):
            _end(ends)
        self._server.close()


def _end(ends: tuple[socket.socket, socket.socket]) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class _OverSSH(Carrier):
    """A resume server at a Unix socket of a real sshd.

    :param backend: of the near end. The other parameters are those of the class.
    """

    def __init__(self, backend: str, folder: Path, **options: Any) -> None:
        self._backend = backend
        (folder / "sshd").mkdir()
        self._sshd = Sshd(folder / "sshd").start()
        super().__init__("unix", folder, **options)

    def _ends(self) -> tuple[Any, Any]:
        return ("127.0.0.1", 0), ("127.0.0.1", self._sshd.port)

    def hops(self) -> list[str]:
        port = self.cutter.address[1]
        known = self.folder / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {self._sshd.host_key_line}\n")
        url = server_url(self._sshd.server, backend=self._backend, known_hosts=known, resume=f"{self.folder}/far.sock")
        return [url.replace(f":{self._sshd.port}?", f":{port}?")]

    def close(self) -> None:
        super().close()
        self._sshd.stop()


class _BehindProxy(Carrier):
    """One at TLS, to which a SOCKS proxy leads. The parameters are those of the class."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._proxy = relay.Tunnel(relay.socks_listen("127.0.0.1", 0), relay.dynamic(), timeout=None)
        super().__init__("tls", folder, **options)

    def hops(self) -> list[str]:
        return [f"socks5://127.0.0.1:{self._proxy.address[1]}", *super().hops()]

    def close(self) -> None:
        super().close()
        self._proxy.close()


class AtRouters(Carrier):
    """One at I2P, by two real routers. The parameters are those of the class."""

    networks: ClassVar[Networks]
    routers: ClassVar[Routers]

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__("i2p", folder, routers=self.routers, **options)

    def close(self) -> None:
        super().close()
        # For a later schedule: the routers have some for each hundred.
        for files, name in zip(self.routers.files, ("far", "one"), strict=True):
            files.insert(0, self.keys[name])


@contextlib.contextmanager
def routers() -> Iterator[None]:
    """Two real routers for ``resume-i2pd``."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Networks({"i2p_routers"}, lambda name: Path(tempfile.mkdtemp(dir=folder))) as networks,
    ):
        AtRouters.networks, AtRouters.routers = networks, networks.world("i2p_routers")
        yield


def crash_of_router(name: str) -> str:
    """Return what one of the routers of a relay has said before it crashed, which is no failure of relay; or nothing.

    It runs again then.
    """
    try:
        if name == "resume-i2pd":
            AtRouters.networks.check({"i2p_routers"})
    except AssertionError as error:
        return str(error)
    return ""


class _ResumeRig(Rig):
    """One whose carriers are cut.

    :param cutter: cuts them. The other parameters are those of the class.
    """

    def __init__(self, cutter: Cutter, outer: relay.Tunnel, *options: Any) -> None:
        self._cutter = cutter
        self._outer = outer
        cutter.have_begun = lambda: all(one.state != "connecting" for one in outer.connections())
        super().__init__(self._begin, *options)

    def _begin(self) -> socket.socket:
        with self._cutter.lock:
            accepted = self._outer.stats().accepted
            client = socket.create_connection(self._outer.address, WAIT)
            wait_until(lambda: self._outer.stats().accepted > accepted)
            return client

    def disturb(self, chance: random.Random) -> bool:
        """Cut all carriers, or do what is done to any tunnel."""
        if chance.randrange(2):
            self._cutter.cut()
            return False
        return super().disturb(chance)

    def faults(self) -> dict[str, int]:
        """Return the number of cuts, and of the streams that went on after one."""
        return {"cuts": self._cutter.cuts, "resumed": NEAR.resumes}


def _resumed(
    make: Callable[..., Carrier], least: float = _LEAST_WITH_HANDSHAKES, *, are_doubles: bool = True
) -> Callable[[Path, int], contextlib.AbstractContextManager[Rig]]:
    @contextlib.contextmanager
    def resumed(folder: Path, seed: int) -> Iterator[Rig]:
        from relay.transports.resume.server import Bounds

        with start(["true"]) as process:  # the thread that makes all children outlives the check for leaks
            process.wait()
        with pytest.MonkeyPatch.context() as patches:
            if are_doubles:
                make_prompt(functools.partial(set_times, patches))
            cutter = functools.partial(Cutter, random.Random(seed), least)
            carrier = make(folder=folder, make_cutter=cutter, bounds=Bounds(_KEPT))
            try:
                with target_socket() as far:
                    host, port = far.getsockname()
                    dialer = relay.target(f"{host}:{port}", via=carrier.hops())
                    with open_tunnel(relay.listen("127.0.0.1:0"), dialer) as outer:
                        yield _ResumeRig(carrier.cutter, outer, far, [outer, carrier.tunnel])
                # Each end has the last word of the other, or has waited for it.
                wait_until(lambda: BUDGET.offered == BUDGET.held == 0)
            finally:
                carrier.close()

    return resumed


RESUMED = {
    **{f"resume-{kind}": _resumed(functools.partial(Carrier, kind)) for kind in ("tls", "wss", "i2p")},
    **{f"resume-{kind}": _resumed(functools.partial(Carrier, kind), _LEAST) for kind in ("unix", "exec", "port")},
    "resume-socks": _resumed(_BehindProxy),
    "resume-paramiko": _resumed(functools.partial(_OverSSH, "paramiko")),
    "resume-openssh": _resumed(functools.partial(_OverSSH, "openssh")),
    "resume-i2pd": _resumed(AtRouters, are_doubles=False),
}
"""Those of resumable streams, by the kind of their carriers."""
