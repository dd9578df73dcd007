"""The contract of both backends: the settings of a server, and an open SSH connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ...addresses.hops import Place
from ...addresses.ssh import SSHServer
from ...addresses.values import TCPAddress, UnixAddress
from ...errors import CarrierError, RelayError
from ...streams.promise import Cancel
from ...streams.stream import Stream
from ...streams.trace import SILENT, Trace

__all__ = [
    "GREETING",
    "KEY_EXCHANGE",
    "LOGIN",
    "OVERLOADED",
    "Accepted",
    "Adapt",
    "Address",
    "CLIENT_HINT",
    "CLOSED",
    "Connect",
    "Connection",
    "OnResult",
    "IncompatibleError",
    "Lost",
    "Place",
    "Settings",
]

# How far a connection has come: the ``stage`` of a :class:`CarrierError`.
GREETING = "it has not sent an SSH version"
KEY_EXCHANGE = "the key exchange was not finished"
LOGIN = "the login was not finished"

CLOSED = "the server has closed the connection"

CLIENT_HINT = "backend='openssh' (in an address: ?backend=openssh)"
"""The remedy in errors for what only the OpenSSH client supports."""

OVERLOADED = ("Exceeded MaxStartups", "Not allowed at this time")
"""Texts that sshd(8) sends instead of its version if a client may retry later (MaxStartups, PerSourcePenalties)."""

Address = TCPAddress | UnixAddress
OnResult = Callable[[Stream | OSError], object]
Accepted = Callable[[Stream, object], object]
Lost = Callable[[CarrierError], object]


class IncompatibleError(RelayError):
    """A backend and the server have no algorithm in common."""

    reason = "denied"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings for a server, plain data: the caller's parameters, then the user's configuration.

    :param server: the server as the caller has given it.
    :param hostname: the name or address to connect to (``HostName``).
    :param port: the port to connect to.
    :param user: the user name.
    :param identities: private key files to offer, in this order. Missing files of the configuration are left out.
    :param keys: private keys that the caller has loaded, of paramiko's classes; only that backend has them. They are
        offered first.
    :param identities_only: whether the agent's keys are offered only if they are among ``identities``.
    :param agent: the path of the agent's socket; ``None`` for no agent.
    :param certificates: certificate files (``CertificateFile``).
    :param known_hosts: files with host keys, the user's first.
    :param host_key_name: the name of the server in these files: ``HostKeyAlias``, else ``hostname``, as ``[host]:port``
        if the port is not 22.
    :param accept_new: whether the key of an unknown host is stored and trusted (``accept-new``).
    :param hash_known_hosts: whether its name is stored as a hash (``HashKnownHosts``).
    :param jumps: the servers of ``ProxyJump`` in the configuration, the nearest first.
    :param command: the configuration's ``ProxyCommand``, percent signs expanded; ``None`` for none.
    :param ciphers: an OpenSSH list (``Ciphers``), plus and minus resolved; empty for the backend's own order.
    :param kex: the same for ``KexAlgorithms``.
    :param macs: the same for ``MACs``.
    :param host_key_algorithms: the same for ``HostKeyAlgorithms``.
    :param added: algorithms of all four kinds that the configuration adds to the backend's own (``+…``).
    :param gssapi_key_exchange: whether Kerberos may identify the server without a host key (``GSSAPIKeyExchange``, only
        in the clients of Debian and Fedora).
    :param compress: whether to compress.
    :param read_only: whether no file is changed: the key of an unknown host that is trusted is then not stored.
    :param requires_openssh: why only the OpenSSH client supports the server; empty if paramiko does, too.
    """

    server: SSHServer
    hostname: str
    port: int
    user: str
    identities: tuple[str, ...] = ()
    keys: tuple[Any, ...] = ()
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
    read_only: bool = False
    requires_openssh: str = ""

    @property
    def name(self) -> str:
        """The name of the server in errors and in the log."""
        return str(self.server)

    @property
    def host_key_names(self) -> tuple[str, ...]:
        """The names of the server in ``known_hosts``: a name with a port also without it, as in the OpenSSH client."""
        name = self.host_key_name
        if name.lower() == f"[{self.hostname}]:{self.port}".lower():
            return name, self.hostname
        return (name,)


Adapt = Callable[[Settings], Settings]


class Connection(Protocol):
    """An open SSH connection. Every method may be called from any thread."""

    def open(
        self,
        place: Place,
        deadline: float | None,
        done: OnResult,
        *,
        self_contained: bool = False,
        confirmed: bool = False,
    ) -> Callable[[], object]:
        """Begin to open a stream to a target that the server can reach, or to a command at the server. Never blocks.

        A command runs in its own session (RFC 4254, section 6.5), without a terminal, agent forwarding or environment
        variables. Its words are quoted for a POSIX shell. The stream is its standard input and output and ends with it;
        a status other than 0, or none, is a failure of the stream (``target_reset``). Lines of its standard error are
        logged, within bounds. After a reset of the stream the command gets SIGTERM, if the backend and the server
        support that. After a close its input ends; a command that continues keeps the connection for a minute.

        :param place: the target as seen from the server, or the command.
        :param deadline: monotonic seconds after which ``done`` gets a :class:`ConnectError` (``connect_timeout``).
        :param done: called exactly once, in any thread, perhaps before this method returns; must not block. It gets a
            connected stream over a non-blocking kernel socket, which the caller then owns (for a command as soon as the
            server has accepted it); or a :class:`ConnectError` with the reason ``refused``, ``unreachable``,
            ``connect_timeout`` or ``denied``; or the :class:`CarrierError` of a lost connection. Later failures are
            returned by the stream's ``failure``.
        :param self_contained: the caller uses only the stream's socket, and neither its ``failure`` nor its
            ``on_close``. A target that refuses must be an error here, and closing the socket must release the stream.
        :param confirmed: whether a target that refuses must be an error here, and not of the stream's ``failure``.
        :returns: cancels the attempt: ``done`` is not called any more, and nothing remains. Idempotent.
        """

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Request a remote forward (RFC 4254, section 7.1). Blocks until the server has replied.

        :param place: the address to listen at; the server chooses a port for port 0.
        :param accepted: called with each stream and its peer (``(host, port)``, or a text if the server does not report
            it), in any thread; must not block. No stream is lost between the server's reply and the return of this
            method.
        :param deadline: monotonic seconds.
        :returns: the address at which the server listens.
        :raises ForwardError: if the server does not allow it, or cannot bind the address.
        :raises CarrierError: if the connection was lost meanwhile.
        """

    def stop_listening(self, place: Address) -> None:
        """Cancel a remote forward; accepted streams continue. Never raises; waits for a second at most.

        :param place: the result of :meth:`listen`, or an address that a lost connection of this process may still hold.
        """

    @property
    def streams(self) -> int:
        """The number of streams that are open or being opened. Read from any thread."""

    @property
    def rtt(self) -> float | None:
        """The seconds until the last keepalive probe got its reply; ``None`` if the backend does not know it."""

    @property
    def is_doubtful(self) -> bool:
        """``True`` if the last keepalive probe has got no reply in time; ``False`` if the backend does not know it."""

    @property
    def router(self) -> str:
        """Empty: an SSH connection has no I2P router; see :class:`relay.carriers.link.Link`."""

    def when_idle(self, call: Callable[[], object]) -> None:
        """Call ``call`` once, in any thread, as soon as no stream is open or being opened; perhaps at once.

        A stream of :meth:`open` or :meth:`listen` is over when its owner has closed its socket and its data were sent,
        or when the connection is lost or closed.

        :param call: must not block; it replaces that of an earlier call of this method.
        """

    def confirm(self, done: Callable[[], object]) -> None:
        """Call ``done``, in any thread, once the server has answered a request after the login.

        A server may end a connection right after the login, for example because the user has too many. It is called at
        once if the backend cannot send a request.
        """

    def check(self) -> None:
        """Send a keepalive probe; the carrier calls this every ``keepalive`` seconds. Never blocks.

        ``lost`` is called if the server has sent nothing for three times ``keepalive``.
        """

    def probe(self, why: str) -> None:
        """Ask the server's system for an answer, over TCP alone; see :meth:`relay.carriers.link.Link.probe`.

        Over hops the connection below is asked, and the loss of that one is the loss of this one.
        """

    def close(self) -> None:
        """Close the connection and its streams, within a second. Idempotent; ``lost`` is not called."""

    def abandon(self) -> None:
        """In a forked child: close only the descriptors; every lock may be held for ever."""


class Connect(Protocol):
    """The function of a backend that makes a connection; it blocks."""

    def __call__(
        self,
        settings: Settings,
        stream: Stream | None,
        deadline: float,
        cancel: Cancel,
        lost: Lost,
        trace: Trace = SILENT,
    ) -> Connection:
        """Connect, verify the host key, and log in after that.

        :param settings: the server and how to connect to it.
        :param stream: a connected stream to the server, which the connection owns, also if this raises an error;
            ``None`` if the backend connects itself.
        :param deadline: monotonic seconds for the whole attempt.
        :param cancel: ends the attempt at once when set.
        :param lost: called exactly once, in any thread, if the connection ends without :meth:`Connection.close`.
        :param trace: observes the steps of the login, if the backend knows them.
        :returns: the open connection.
        :raises HostKeyError: if the host key is not trusted; final.
        :raises AuthenticationError: if the server accepts none of the credentials; final.
        :raises IncompatibleError: if backend and server have no algorithm in common; final for this backend.
        :raises ConnectError: if the server is unreachable or does not reply in time; can be retried.
        :raises CarrierError: if the connection was lost meanwhile, or the peer is no SSH server; can be retried.
        """
