"""The connection to the SSH server under :mod:`relay.compat.sshtunnel`: its host key, its login, the way to it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import shlex
import socket
import time
from typing import Any

from ..addresses.hops import Command, Hop, Route
from ..addresses.i2p import I2PTarget
from ..addresses.values import Target, TCPAddress
from ..api.local import listen_privately
from ..engine.tunnel import Tunnel
from ..errors import AddressError, ConnectError, RelayError
from ..eventloop.sockets import is_tls
from ..streams.dialer import Dialer, Network
from ..streams.promise import Abort, OnResult
from ..streams.stream import Stream
from ..streams.trace import SILENT
from ..transports.chain import network
from ..transports.ssh.config.identities import key_type
from ..transports.ssh.config.known_hosts import fingerprint
from ..transports.ssh.connection import Settings
from ..transports.tcp import tcp

__all__ = ["HOST_KEYS", "Login", "Pin", "way_to"]

HOST_KEYS = ("strict", "accept-new", "off")


@dataclasses.dataclass(frozen=True, slots=True)
class Pin:
    """The only host key that a server may have.

    :param fingerprint: ``SHA256:…``.
    :param type: of the key; empty if it is not known.
    """

    fingerprint: str
    type: str = ""

    @classmethod
    def of(cls, key: Any) -> Pin:
        """Return the pin for a key.

        :param key: a line of a ``known_hosts`` file, its last two fields or its last one; a fingerprint; or a key of
            paramiko.
        :raises ValueError: if it is none of these.
        """
        if isinstance(key, str):
            for word in key.split():
                if word.startswith("SHA256:"):
                    return cls(word)
                with contextlib.suppress(binascii.Error, ValueError):
                    blob = base64.b64decode(word, validate=True)
                    if kind := key_type(blob):
                        return cls(fingerprint(blob), kind)
        elif callable(asbytes := getattr(key, "asbytes", None)):
            return cls(fingerprint(asbytes()), key_type(asbytes()))
        raise ValueError(
            "ssh_host_key: no host key in it; give a line of known_hosts, a fingerprint (SHA256:…) or a key of paramiko"
        )

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The host key algorithms to request, so that the server shows this key and no other one."""
        from ..transports.ssh.paramiko.host_keys import ALGORITHMS

        return ALGORITHMS.get(self.type, ())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Login:
    """The changes that arguments make to the settings of a server. Each start has its own, and so its own connection.

    :param keys: the private keys to offer.
    :param agent: whether to offer those of the agent, too.
    :param pin: the host key that the server must have; ``None`` for one of ``known_hosts``.
    :param host_keys: one of :data:`HOST_KEYS`.
    :param proxied: whether to follow ``ProxyCommand`` and ``ProxyJump`` of the configuration.
    :param command: the ``ProxyCommand`` otherwise.
    """

    keys: tuple[Any, ...]
    agent: bool
    pin: Pin | None
    host_keys: str
    proxied: bool
    command: str | None

    def __call__(self, settings: Settings) -> Settings:
        changes: dict[str, Any] = {"keys": self.keys, "identities": (), "identities_only": False}
        if not self.agent:
            changes["agent"] = None
        if not self.proxied:
            changes |= {"command": self.command, "jumps": ()}
        if self.pin is not None:
            changes["host_key_algorithms"] = self.pin.algorithms or settings.host_key_algorithms
        elif self.host_keys == "off":
            # With no file to look in every key is unknown, so it is accepted, and with read_only it is not stored.
            changes |= {"known_hosts": (), "accept_new": True, "read_only": True}
        elif self.host_keys == "accept-new":
            changes["accept_new"] = True
        return dataclasses.replace(settings, **changes)


def way_to(proxy: Any) -> tuple[str | None, Network]:
    """Return the ``ProxyCommand`` and the network for an ``ssh_proxy``.

    :param proxy: ``None``; the address of a forwarder to the server, ``(host, port)``; a ``ProxyCommand`` of paramiko;
        or a socket, or anything with its methods, connected or to be connected.
    """
    if proxy is None:
        return None, network()
    if isinstance(proxy, tuple):
        return None, _Behind(tcp(*proxy))
    if (words := getattr(proxy, "cmd", None)) is None:
        return None, _Behind(_GivenSocket(proxy))
    # It runs already, for one connection. relay starts the program itself, again for each connection.
    with contextlib.suppress(OSError):
        proxy.process.kill()
        proxy.process.communicate()
    return shlex.join(words), network()


class _Behind(Network):
    """The network behind a proxy that leads to one server.

    :param dialer: connects to it.
    """

    route: Route = ()
    trace = SILENT

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def to(self, place: Target | I2PTarget | Command) -> Dialer:
        if isinstance(self._dialer, _GivenSocket) and isinstance(place, TCPAddress):
            self._dialer.place = place
        return self._dialer

    def beyond(self, hop: Hop) -> Network:
        raise AddressError(f"{hop}: no hop can follow an ssh_proxy")


class _GivenSocket(Dialer):
    """A dialer for the one socket that the caller has made.

    :param given: the socket, or anything with its methods.
    """

    place = TCPAddress("localhost", 22)
    """The address to connect it to, unless it is connected."""

    def __init__(self, given: Any) -> None:
        super().__init__("the ssh_proxy")
        self._given = given

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Return the socket once. It blocks, in the thread that connects to the server."""
        given, self._given = self._given, None
        if given is None:
            done(RelayError("ssh_proxy: its socket cannot be used again; give a ProxyCommand, which relay can restart"))
        elif not isinstance(given, socket.socket) or is_tls(given):
            done(_bridged(given))
        else:
            try:
                if not _is_connected(given):
                    given.settimeout(None if deadline is None else max(0.1, deadline - time.monotonic()))
                    given.connect((self.place.host, self.place.port))
            except OSError as error:
                given.close()
                done(ConnectError(f"{self.place} by ssh_proxy: {error}"))
            else:
                done(Stream(socket.socket(fileno=given.detach())))
        return lambda: None


def _is_connected(given: socket.socket) -> bool:
    try:
        given.getpeername()
    except OSError:
        return False
    return True


def _bridged(given: Any) -> Stream:
    """Return a kernel socket for an object with the methods of one, such as a channel of paramiko."""
    with contextlib.ExitStack() as made:
        receive = made.enter_context(listen_privately())
        made.enter_context(Tunnel(receive, lambda: given, nconnect=1, timeout=None, linger=None, name="ssh_proxy"))
        client = made.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(receive.getsockname())
        kept = made.pop_all()
    return Stream(client, on_close=kept.close)
