"""What both backends make: one SSH connection that is up. And what is told to them: :class:`Settings`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...addresses.hops import Place
from ...addresses.ssh import SSHServer
from ...addresses.values import TCPAddress, UnixAddress
from ...errors import CarrierError, RelayError
from ...streams.cancellation import Cancel
from ...streams.stream import Stream

__all__ = [
    "GREETING",
    "KEY_EXCHANGE",
    "LOGIN",
    "OVERLOADED",
    "Accepted",
    "Address",
    "Connect",
    "Connection",
    "OnResult",
    "IncompatibleError",
    "Lost",
    "Place",
    "Settings",
]

# How far a connection has come: the ``stage`` of a :class:`CarrierError`.
GREETING = "it has not said that it speaks SSH"
KEY_EXCHANGE = "the key exchange was not finished"
LOGIN = "the login was not finished"

OVERLOADED = ("Exceeded MaxStartups", "Not allowed at this time")
"""What sshd(8) says in place of its version to a client that may come back later (MaxStartups, PerSourcePenalties)."""

Address = TCPAddress | UnixAddress
OnResult = Callable[[Stream | OSError], object]
Accepted = Callable[[Stream, object], object]
Lost = Callable[[CarrierError], object]


class IncompatibleError(RelayError):
    """A backend and the server have no algorithm in common."""

    reason = "denied"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is to be known to reach and to trust a server: the caller's wishes over the user's configuration.

    :param server: what the caller asked for.
    :param hostname: the name or address to connect to (``HostName``).
    :param port: the port to connect to.
    :param user: who logs in.
    :param identities: private key files to offer, in this order; those that are missing are left out when they are
        the configuration's and not the caller's.
    :param identities_only: whether the agent's keys are offered only where they are among ``identities``.
    :param agent: the path of the agent's socket; ``None`` for none.
    :param certificates: certificate files (``CertificateFile``).
    :param known_hosts: files to look host keys up in, the user's first.
    :param host_key_name: what to look up there (``HostKeyAlias``, else ``hostname``, as ``[host]:port`` where the port
        is not 22).
    :param accept_new: whether the key of an unknown host is written down and trusted (``accept-new``).
    :param hash_known_hosts: whether its name is written there as a hash (``HashKnownHosts``).
    :param jumps: servers on the way that the configuration asks for (``ProxyJump``), the nearest first.
    :param command: the configuration's ``ProxyCommand``, percent signs expanded; ``None`` for none.
    :param ciphers: an OpenSSH list (``Ciphers``), plus and minus resolved; empty for the backend's own order.
    :param kex: likewise (``KexAlgorithms``).
    :param macs: likewise (``MACs``).
    :param host_key_algorithms: likewise (``HostKeyAlgorithms``).
    :param added: algorithms of all four kinds that the configuration adds to the backend's own (``+…``).
    :param gssapi_key_exchange: whether Kerberos may prove who the server is, without a host key (``GSSAPIKeyExchange``,
        of the clients of Debian and Fedora only).
    :param compress: whether to compress.
    :param needs_client: why only the OpenSSH client will do; empty if paramiko does.
    """

    server: SSHServer
    hostname: str
    port: int
    user: str
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    agent: str | None = None
    certificates: tuple[str, ...] = ()
    known_hosts: tuple[str, ...] = ()
    host_key_name: str = ""
    accept_new: bool = False
    hash_known_hosts: bool = False
    jumps: tuple[SSHServer, ...] = ()
    command: str | None = None
    ciphers: tuple[str, ...] = ()
    kex: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    host_key_algorithms: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    gssapi_key_exchange: bool = False
    compress: bool = False
    needs_client: str = ""

    @property
    def name(self) -> str:
        """The server in errors and in the log."""
        return str(self.server)

    @property
    def host_key_names(self) -> tuple[str, ...]:
        """The names to look up in ``known_hosts``: a name with a port also without it, as the OpenSSH client does."""
        name = self.host_key_name
        if name.lower() == f"[{self.hostname}]:{self.port}".lower():
            return name, self.hostname
        return (name,)


class Connection(Protocol):
    """One SSH connection that is up. Every method may be called from any thread."""

    def open(
        self, place: Place, deadline: float | None, done: OnResult, *, self_contained: bool = False
    ) -> Callable[[], object]:
        """Begin to make a stream to a place that the server reaches, or to a command that it runs. Never blocks.

        A command runs in a session of its own (RFC 4254, section 6.5), without a terminal, an agent or variables of
        ours; its words reach it as they are through a POSIX shell of the user there. The stream is its standard input
        and output, and ends when the command has: a status other than 0, or none, is the failure of the stream
        (``target_reset``). What it says on its standard error is logged, line by line and bounded. A stream that is
        reset has it sent SIGTERM, where the backend and the server do that; one that is closed ends its input, and a
        command that does not heed that runs on there, and holds the connection for a minute more.

        :param place: where to, seen from the server; or what to run there.
        :param deadline: monotonic seconds after which ``done`` gets a :class:`ConnectError` (``connect_timeout``).
        :param done: called exactly once, in any thread, perhaps before this returns; must not block. It gets a
            connected stream over a non-blocking kernel socket, which its caller then owns (of a command as soon as the
            server has taken it); or a :class:`ConnectError` whose reason is ``refused``, ``unreachable``,
            ``connect_timeout`` or ``denied``; or the :class:`CarrierError` of a lost connection. The stream's
            ``failure`` tells of what came after.
        :param self_contained: whether the caller uses the socket alone, and neither ``failure`` nor ``on_close`` of the
            stream: a target that refuses is then an error here, and closing the socket releases what is under it.
        :returns: gives the attempt up; ``done`` is then not called any more, and nothing is left. Idempotent.
        """

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Ask the server to listen for us (RFC 4254, section 7.1). Blocks until it has answered.

        :param place: where; port 0 lets the server choose.
        :param accepted: called with each stream that comes and with its peer (``(host, port)``, or a text where the
            server does not tell), in any thread; must not block. Called only for streams of this place, and from the
            first one on: none is lost between the server's answer and this method's return.
        :param deadline: monotonic seconds.
        :returns: where the server listens.
        :raises ForwardError: if the server does not allow it or cannot bind it.
        :raises CarrierError: if the connection was lost meanwhile.
        """

    def stop_listening(self, place: Address) -> None:
        """Ask the server to listen there no more; accepted streams go on. Never raises, waits a second at most.

        :param place: what :meth:`listen` returned, or a place that a dead session of ours may still hold.
        """

    def when_idle(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once, in any thread, as soon as no stream is open or being opened; at once if none is.

        A stream is over when its holder has closed its socket and the rest of what was sent has gone out (of streams of
        :meth:`open` and of :meth:`listen`), and when the connection is lost or closed. ``call`` must not
        block; a later call of this method takes the earlier one's place.
        """

    def check(self) -> None:
        """Called by the carrier every ``keepalive`` seconds. Never blocks.

        It asks the server for a sign of life, and calls ``lost`` if the last one is three times ``keepalive`` old.
        """

    def close(self) -> None:
        """End the connection and everything on it, within a second. Idempotent; ``lost`` is not called for it."""

    def abandon(self) -> None:
        """In a forked child: close this process's descriptors and nothing else; every lock may be held for ever."""


class Connect(Protocol):
    """A backend: makes a connection, blocking in a thread of its own."""

    def __call__(
        self, settings: Settings, stream: Stream | None, deadline: float, cancel: Cancel, lost: Lost
    ) -> Connection:
        """Connect, verify the host's key, and only then log in.

        :param settings: whom, how.
        :param stream: a connected stream to the server, which the connection owns from now on, also if this raises;
            ``None`` if the backend is to connect itself.
        :param deadline: monotonic seconds for all of it.
        :param cancel: ends it at once when set.
        :param lost: called exactly once, in any thread, when the connection ends and nobody has closed it.
        :raises HostKeyError: if the host's key is not to be trusted; final.
        :raises AuthenticationError: if the server takes none of the credentials; final.
        :raises IncompatibleError: if it and the server have no algorithm in common; final, for this backend.
        :raises ConnectError: if it cannot be reached or does not answer in time; worth another try.
        :raises CarrierError: if the connection was lost meanwhile, or what answers does not speak SSH; worth another
            try.
        """
