"""Tor inside the process, for tests without one: a SOCKS port, a control port, and onion services between them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import select
import socket
import tempfile
import threading
from collections.abc import Callable
from types import TracebackType

from ..transports.tor.replies import quoted, words_of
from .pairs import bound_socket

__all__ = ["Tor"]

_CHUNK = 1 << 16
_SERVER = b"Tor safe cookie authentication server-to-controller hash"
_CONTROLLER = b"Tor safe cookie authentication controller-to-server hash"
_FAILED, _NO_DESCRIPTOR, _BAD_ADDRESS = 1, 0xF0, 0xF6


class Tor:
    """A tor without a network: it runs once it is constructed, and listens on the loopback.

    Names in ``.onion`` lead to the services that programs have added at its control port; it connects to other hosts
    itself. A stream has no half-close, as with tor: an end of one direction ends both. Replies for onion services are
    the extended ones::

        with relay.testing.Tor() as tor:
            with relay.Tunnel(relay.tor_listen(control=tor.control), relay.tcp("127.0.0.1", 8000)) as tunnel:
                relay.connect(tunnel.address, via=[tor.hop])

    :param password: that the control port wants; ``None`` for a cookie.
    :param safe: whether it offers SAFECOOKIE, or only the older COOKIE.
    :raises OSError: if it cannot listen.
    """

    def __init__(self, *, password: str | None = None, safe: bool = True) -> None:
        #: The onion services, by their addresses: ports, and where they lead.
        self.services: dict[str, dict[int, tuple[str, int]]] = {}
        #: The logins of SOCKS clients: user and password.
        self.logins: list[tuple[bytes, bytes]] = []
        #: The commands at the control port, without their arguments.
        self.commands: list[str] = []
        self._password = password
        self._methods = "HASHEDPASSWORD" if password is not None else "COOKIE,SAFECOOKIE" if safe else "COOKIE"
        self._folder = tempfile.TemporaryDirectory(prefix="relay-tor-")
        self.cookie_file = os.path.join(self._folder.name, "control_auth_cookie")
        """The path of the file with the cookie."""
        self._lock = threading.Lock()  # for the next ones
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._reserved = [socket.socket() for _ in range(2)]
        for one in self._reserved:  # they keep the ports while it is down
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        self._cookie = b""
        self.restart()

    @property
    def socks(self) -> str:
        """Its SOCKS port: ``host:port``."""
        return "{}:{}".format(*self._reserved[0].getsockname())

    @property
    def control(self) -> str:
        """Its control port: ``host:port``."""
        return "{}:{}".format(*self._reserved[1].getsockname())

    @property
    def hop(self) -> str:
        """It as a hop: ``tor:?socks=…``."""
        return f"tor:?socks={self.socks}"

    def restart(self) -> None:
        """Start again, with another cookie and without services."""
        self._cookie = secrets.token_bytes(32)
        with open(self.cookie_file, "wb", opener=_for_owner) as file:
            file.write(self._cookie)
        for reserved, serve in zip(self._reserved, (self._serve_socks, self._serve_control), strict=True):
            listening = bound_socket(*reserved.getsockname())
            listening.listen()
            self._start(self._accept, listening, serve)

    def kill(self) -> None:
        """End: close every socket; the services are gone. Idempotent."""
        with self._lock:
            opened, self._open = self._open, set()
            threads, self._threads = self._threads, set()
            self.services.clear()
        for one in opened:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """End for good. Idempotent."""
        self.kill()
        for one in self._reserved:
            one.close()
        self._folder.cleanup()

    def __enter__(self) -> Tor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- threads -------------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[..., object], connection: socket.socket, *more: object) -> None:
        def run() -> None:
            with connection, contextlib.suppress(OSError):
                work(connection, *more)
            with self._lock:
                self._open.discard(connection)
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="tor", daemon=True)
        with self._lock:
            self._open.add(connection)
            self._threads.add(thread)
            thread.start()

    def _accept(self, listening: socket.socket, serve: Callable[[socket.socket], object]) -> None:
        while True:
            accepted, _ = listening.accept()
            self._start(serve, accepted)

    # -- control port --------------------------------------------------------------------------------------------------

    def _serve_control(self, connection: socket.socket) -> None:
        added: list[str] = []
        proof: list[bytes] = []
        try:
            with connection.makefile("rwb") as lines:
                for line in lines:
                    command, _, rest = line.decode("latin-1").strip().partition(" ")
                    self.commands.append(command)
                    lines.write(self._reply(command.upper(), rest, added, proof).encode("latin-1"))
                    lines.flush()
        finally:
            with self._lock:
                for host in added:
                    self.services.pop(host, None)

    def _reply(self, command: str, rest: str, added: list[str], proof: list[bytes]) -> str:
        if command == "PROTOCOLINFO":
            file = f" COOKIEFILE={quoted(self.cookie_file)}" if self._password is None else ""
            return (
                f'250-PROTOCOLINFO 1\r\n250-AUTH METHODS={self._methods}{file}\r\n250-VERSION Tor="0.4.8"\r\n250 OK\r\n'
            )
        if command == "AUTHCHALLENGE":
            ours = secrets.token_bytes(32)
            proven = self._cookie + bytes.fromhex(rest.partition(" ")[2]) + ours
            proof[:] = [hmac.digest(_CONTROLLER, proven, "sha256")]
            digest = hmac.digest(_SERVER, proven, "sha256").hex()
            return f"250 AUTHCHALLENGE SERVERHASH={digest} SERVERNONCE={ours.hex()}\r\n"
        if command == "AUTHENTICATE":
            wanted = [quoted(self._password)] if self._password is not None else [one.hex() for one in proof]
            if self._methods == "COOKIE":
                wanted.append(self._cookie.hex())
            if rest not in wanted:
                return "515 Authentication failed\r\n"
            added.append("")  # it is let in
            return "250 OK\r\n"
        if "" not in added:
            return "514 Authentication required.\r\n"
        if command == "GETINFO":
            return f"250-process/uid={os.geteuid()}\r\n250 OK\r\n"
        return self._add(rest, added) if command == "ADD_ONION" else "510 Unrecognized command\r\n"

    def _add(self, rest: str, added: list[str]) -> str:
        blob, _, options = rest.removeprefix("ED25519-V3:").partition(" ")
        port, _, target = words_of(options).get("Port", "").partition(",")
        host, _, number = target.rpartition(":")
        onion = f"{_onion_of(base64.b64decode(blob))}.onion"
        with self._lock:
            if onion in self.services:
                return "550 Onion address collision\r\n"
            self.services[onion] = {int(port): (host, int(number))}
            added.append(onion)
        return f"250-ServiceID={onion.removesuffix('.onion')}\r\n250 OK\r\n"

    # -- SOCKS port ----------------------------------------------------------------------------------------------------

    def _serve_socks(self, connection: socket.socket) -> None:
        with connection.makefile("rb", buffering=0) as data:

            def read(size: int) -> bytes:
                got = b""
                while len(got) < size:
                    if not (more := data.read(size - len(got))):
                        raise ConnectionResetError
                    got += more
                return got

            methods = read(read(2)[1])
            if 2 not in methods:
                connection.sendall(b"\5\xff")
                return
            connection.sendall(b"\5\2")
            login = [read(read(2)[1]), read(read(1)[0])]
            self.logins.append((login[0], login[1]))
            connection.sendall(b"\1\0")
            kind = read(4)[3]
            raw = read(4 if kind == 1 else 16 if kind == 4 else read(1)[0])
            host = (
                raw.decode() if kind == 3 else socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, raw)
            )
            code, far = self._dial(host, int.from_bytes(read(2), "big"))
        with far or contextlib.nullcontext():
            connection.sendall(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))
            if far is not None:
                _copy(connection, far)

    def _dial(self, host: str, port: int) -> tuple[int, socket.socket | None]:
        place: tuple[str, int] | None = (host, port)
        if host.endswith(".onion"):
            with self._lock:
                ports = self.services.get(host)
            if ports is None:
                return (_NO_DESCRIPTOR if len(host) == 62 else _BAD_ADDRESS), None
            place = ports.get(port)
        try:
            return (_FAILED, None) if place is None else (0, socket.create_connection(place, 10))
        except OSError:
            return _FAILED, None


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _onion_of(secret: bytes) -> str:
    """Return a name for a key, of the length of an onion address; it is not the one that tor gives it."""
    return base64.b32encode(hashlib.sha512(secret).digest()[:35]).decode().lower()


def _copy(one: socket.socket, other: socket.socket) -> None:
    """Copy both directions until one of them ends."""
    while True:
        for source in select.select([one, other], [], [])[0]:
            data = source.recv(_CHUNK)
            if not data:
                return
            (other if source is one else one).sendall(data)
