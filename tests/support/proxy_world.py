"""Real proxies for the tests, each on a port of 127.0.0.1 that stays its own, and ones that the test plays itself."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import WAIT, Certificates, receive_exactly, wait_until

import relay
from relay.addresses.hops import Proxy
from relay.addresses.values import TCPAddress
from relay.eventloop.background import IOThread
from relay.process import DEVNULL, end, start
from relay.streams.dialer import Dialer
from relay.streams.promise import Abort, OnResult
from relay.streams.stream import Stream
from relay.transports.proxies.dialer import Proxied

LOOPBACK = "127.0.0.1"
FORBIDDEN = "127.0.0.9"  # what dante does not lead to
USER, PASSWORD = "me", "a secret: pässword"

# Debian's package of each.
PACKAGES = {
    "danted": "dante-server",
    "microsocks": "microsocks",
    "tinyproxy": "tinyproxy-bin",
    "squid": "squid-openssl",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "apache2": "apache2-bin",
    "caddy": "caddy",
    "websockify": "websockify",
}


class RealProxy:
    """A program that runs.

    :param scheme: ``socks5`` or ``http``.
    :param argv: the program and its arguments; ``{port}`` is its port.
    :param folder: a directory that exists, for its configuration.
    :param configuration: lines of it; ``{port}`` is its port, and its path is ``{file}`` in ``argv``.
    :param login: the user and the password that it wants, if it wants any.
    """

    def __init__(
        self,
        scheme: str,
        argv: Sequence[str],
        folder: Path,
        configuration: Sequence[str] = (),
        login: tuple[str, str] | None = None,
    ) -> None:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        self._program = shutil.which(argv[0], path=path)
        if self._program is None:
            pytest.skip(f"there is no {argv[0]} (Debian: {PACKAGES[argv[0]]})")
        self.name = argv[0]
        self.scheme = scheme
        self.login = login
        # A socket that is bound and never listens: it reserves the port, and connections to it are refused.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind((LOOPBACK, 0))
        self.port: int = self._reservation.getsockname()[1]
        file = folder / f"{self.name}-{self.port}.conf"
        file.write_text("".join(f"{line.format(port=self.port)}\n" for line in configuration))
        self._argv = [str(self._program), *(word.format(port=self.port, file=file) for word in argv[1:])]
        self._process: Any = None

    @property
    def address(self) -> str:
        """The proxy as a hop, without the login that it wants."""
        return f"{self.scheme}://{LOOPBACK}:{self.port}"

    def hop(self, **login: Any) -> Proxy:
        """The proxy as a hop, with the login that it wants, or another one."""
        if not login and self.login is not None:
            login = dict(zip(("user", "password"), self.login, strict=True))
        return Proxy(self.scheme, LOOPBACK, self.port, **login)  # type: ignore[arg-type]

    def to(self, place: Any, **login: Any) -> Proxied:
        """Ours that leads through it."""
        return Proxied(relay.tcp(LOOPBACK, self.port), self.hop(**login), TCPAddress(*place[:2]), ())

    def start(self) -> RealProxy:
        """Start it; returns when it listens."""
        self._process = start(self._argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        try:
            wait_until(self._listens)
        except BaseException:
            self.stop()
            raise
        return self

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"{self.name} has ended"
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.port)) == 0

    def kill(self) -> None:
        """End it; :meth:`start` brings it back on the same port. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            end(process, WAIT, group=True)

    def stop(self) -> None:
        """End it and give up the port. Idempotent."""
        self.kill()
        self._reservation.close()


def microsocks(folder: Path, login: tuple[str, str] | None = None) -> RealProxy:
    """SOCKS5; it names no half-close."""
    who = () if login is None else ("-u", login[0], "-P", login[1])
    return RealProxy("socks5", ["microsocks", "-i", LOOPBACK, "-p", "{port}", *who], folder, login=login)


def dante(folder: Path) -> RealProxy:
    """SOCKS5 that keeps half-close, and does not lead to :data:`FORBIDDEN`."""
    rules = (
        "logoutput: /dev/null",
        "internal: 127.0.0.1 port = {port}",
        "external: 127.0.0.1",
        "external: ::1",
        "external.rotation: route",
        "clientmethod: none",
        "socksmethod: none",
        "client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}",
        f"socks block {{{{ from: 0.0.0.0/0 to: {FORBIDDEN}/32 }}}}",
        "socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 command: connect }}",
        "socks pass {{ from: 0.0.0.0/0 to: ::/0 command: connect }}",
    )
    return RealProxy("socks5", ["danted", "-f", "{file}", "-p", "{file}.pid"], folder, rules)


def tinyproxy(folder: Path, login: tuple[str, str] | None = None) -> RealProxy:
    """HTTP."""
    who = () if login is None else (f"BasicAuth {login[0]} {login[1]}",)
    rules = (f"Listen {LOOPBACK}", "Port {port}", "Timeout 600", "MaxClients 100", f"Allow {LOOPBACK}", *who)
    return RealProxy("http", ["tinyproxy", "-d", "-c", "{file}"], folder, rules, login)


def squid(folder: Path, certificates: Certificates) -> RealProxy:
    """HTTP over TLS."""
    rules = (
        f"https_port {LOOPBACK}:{{port}} tls-cert={certificates.cert} tls-key={certificates.key}",
        "acl all_ports port 1-65535",
        "http_access allow all_ports",
        "cache deny all",
        "access_log none",
        "cache_log /dev/null",
        "pid_filename none",
        "pinger_enable off",
        "shutdown_lifetime 0 seconds",
        "half_closed_clients on",
        f"coredump_dir {folder}",
        "cache_effective_user proxy" if os.geteuid() == 0 else "",
        "max_filedescriptors 1024",
    )
    return RealProxy("https", ["squid", "-N", "-n", "relay{port}", "-f", "{file}"], folder, rules)


PLACE = TCPAddress("db.internal", 5432)
SOCKS = Proxy("socks5", "proxy", 1080)
SOCKS_LOGIN = Proxy("socks5", "proxy", 1080, USER, password=PASSWORD)
HTTP = Proxy("http", "proxy", 3128)
HTTP_LOGIN = Proxy("http", "proxy", 3128, USER, password=PASSWORD)

HELLO = b"\x05\x01\x00"  # no login
HELLO_LOGIN = b"\x05\x02\x00\x02"  # or user and password
WELCOME = b"\x05\x00"
ASKED = b"\x05\x01\x00\x03\x0bdb.internal\x15\x38"
GRANTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"
CONNECT = b"CONNECT db.internal:5432 HTTP/1.1\r\nHost: db.internal:5432\r\n\r\n"
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Way(Dialer):
    """A way to a proxy that the test plays itself.

    :param kind: ``tcp``, or ``unix`` for a socketpair.
    :param error: why there is none.
    """

    def __init__(self, kind: str = "tcp", error: OSError | None = None) -> None:
        super().__init__("proxy:1080")
        self.kind = kind
        self.error = error
        self.asked: list[tuple[float | None, bool, bool]] = []
        self.streams: list[Stream] = []
        self.calls: list[object] = []  # of what is handed on
        self.silent = False  # True: no replies
        self.over: list[str] = []  # of its streams
        self.prepare: Callable[[Stream], object] = lambda stream: None
        self._ends: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._open: list[socket.socket] = []

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        self.asked.append((deadline, self_contained, wait_for_reconnect))
        if self.error is not None:
            done(self.error)
        elif not self.silent:
            done(self._stream())
        return lambda: self.calls.append("given up")

    def _stream(self) -> Stream:
        near, far = socket.socketpair() if self.kind == "unix" else tcp_pair()
        near.setblocking(False)
        far.settimeout(WAIT)
        stream = Stream(near, target=self.target, on_close=lambda: self.over.append("closed"))
        self.prepare(stream)
        self.streams.append(stream)
        self._open.append(far)
        self._ends.put(far)
        return stream

    def end(self) -> socket.socket:
        """The proxy's end of the next stream."""
        return self._ends.get(timeout=WAIT)

    def ready(self, timeout: float | None = 30.0) -> None:
        self.calls.append(("ready", timeout))
        if self.error is not None:
            raise self.error

    @property
    def state(self) -> str:
        return "backing off"

    @property
    def last_error(self) -> str | None:
        return "there is a problem"

    def subscribe(self, watcher: Any) -> None:
        self.calls.append(("subscribe", watcher))

    def close_when_idle(self) -> None:
        self.calls.append("release")

    def close(self) -> None:
        self.calls.append("close")

    def clean_up(self) -> None:
        """Close everything."""
        for one in (*self._open, *self.streams):
            one.close()


class Begun:
    """A stream on its way.

    :param proxied: through what.
    :param seconds: that it may take; ``None`` for as long as it takes.
    """

    def __init__(self, proxied: Dialer, seconds: float | None = WAIT, **how: Any) -> None:
        self._told: queue.SimpleQueue[Stream | OSError] = queue.SimpleQueue()
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.give_up = proxied.dial(self.deadline, self._told.put, **how)

    def outcome(self) -> Stream | OSError:
        """Wait for the result."""
        return self._told.get(timeout=WAIT)

    def stream(self) -> Stream:
        """The stream, whose socket has a time-out."""
        outcome = self.outcome()
        assert isinstance(outcome, Stream), outcome
        outcome.socket.settimeout(WAIT)
        return outcome

    def error(self) -> OSError:
        """The error: one line that can be read."""
        outcome = self.outcome()
        assert isinstance(outcome, relay.RelayError), outcome
        assert str(outcome).isprintable() and len(str(outcome)) < 400
        assert PASSWORD not in str(outcome) and PASSWORD not in repr(outcome)
        return outcome

    @property
    def told(self) -> bool:
        """Return true if there is a result so far."""
        return not self._told.empty()


def hear(far: socket.socket, data: bytes) -> None:
    """Return the next message for the proxy."""
    assert receive_exactly(far, len(data)) == data


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far = listening.accept()[0]
    for one in (near, far):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def members() -> int:
    """The number of users of the io_thread."""
    return len(IOThread.clients())


def converse(dialogue, data, step=1):
    """Let a proxy say ``data``, so many bytes at a time; returns the bytes it received and those left unread.

    This is how :class:`relay.transports.proxies.negotiation.Negotiation` reads.
    """
    said, answer = b"", None
    while True:
        try:
            question = next(dialogue) if answer is None else dialogue.send(answer)
        except StopIteration:
            return said, data
        said, answer = said + question.data, b""
        while True:
            if not data:
                raise EOFError(question.late)
            length = question.length(answer + data[:step])
            assert length <= len(answer + data[:step])
            taken = length - len(answer) if length else step
            assert taken > 0
            answer, data = answer + data[:taken], data[taken:]
            if length:
                break
