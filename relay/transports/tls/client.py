"""The dialer for TLS: TCP, and on it a verified session."""

from __future__ import annotations

import errno
import functools
import ssl
from collections.abc import Callable

from ...addresses.values import TCPAddress, TLSTarget, check_host_port, is_i2p
from ...errors import ConnectError
from ...eventloop.background import Home
from ...streams.dialer import Dialer, Upgrade
from ...streams.promise import OnResult
from ...streams.stream import Stream
from ...streams.trace import SILENT, Stage, Trace
from ..tcp import tcp
from .context import Credentials, Path, load_chain, set_groups, trusting
from .handshake import Handshake
from .records import is_denial
from .session import Session

_VAIN = 3  # tickets in a row that were of no use until none is offered any more


def tls(
    host: str,
    port: int,
    *,
    servername: str | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    groups: str | None = None,
    mptcp: bool = False,
) -> TLS:
    """A factory that connects over TLS 1.2 or later, verifies the server, and keeps half-close.

    :param host: an IPv4 or IPv6 address (no brackets, a zone is allowed) or a name, looked up for every connection.
    :param port: from 1 to 65535.
    :param servername: the name or address that the server's certificate must be for, and that the server is asked for
        (RFC 6066, section 3); ``None`` for ``host``.
    :param ca: a PEM file with the only authorities to trust; ``None`` for the system's.
    :param cert: a PEM file with a client certificate, and those of the authorities between it and the root.
    :param key: a PEM file with its private key, not encrypted; ``None`` if it is in ``cert``.
    :param groups: the groups in which relay agrees on keys, such as ``X25519``, the preferred one first, with commas
        between them; Python before 3.15 can set one. ``None`` for those of OpenSSL.
    :param mptcp: as for :func:`relay.tcp`.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`. It raises
        :class:`relay.ConnectError` if it cannot; the reason is ``denied`` if one side does not accept the other's
        certificate.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument cannot be right, or a file does not hold what it should.
    :raises OSError: if a file cannot be read.
    """
    return TLS(host, port, servername, ca, cert, key, groups, mptcp=mptcp)


class Client:
    """The client of one TLS server: its certificate, its trust and its session ticket.

    :param host: of the server.
    :param port: and the others: as for :func:`tls`.
    :param trace: observes the handshakes.
    :param name: of the server, for errors and records; ``None`` for its address.
    """

    def __init__(
        self,
        host: str,
        port: int,
        servername: str | None,
        ca: Path | None,
        cert: Path | None,
        key: Path | None,
        groups: str | None = None,
        trace: Trace = SILENT,
        name: str | None = None,
    ) -> None:
        self._trace = trace
        self.name = f"tls://{TCPAddress(host, port)}" if name is None else name
        self._credentials = Credentials(functools.partial(_client_context, groups), ca, cert, key)
        self._groups = groups
        self._servername = _checked(host if servername is None else servername)
        self._encoded_name = self._servername.encode("idna")  # as ssl would do for each connection
        # Verified with the same context and name as any other, so that taking it up again verifies as much.
        self._ticket: tuple[ssl.SSLContext, ssl.SSLSession] | None = None
        self._vain = 0  # tickets in a row that were of no use

    def over(self, inner: Dialer) -> Upgrade:
        """Return a dialer that shakes hands on the streams of another one."""
        return Upgrade(inner, self.name, begin=self.upgrade, begin_on=self.upgrade_on, has_session=True)

    def upgrade(self, stream: Stream, deadline: float | None, done: OnResult) -> Callable[[], object]:
        """Shake hands on a connected stream, without waiting; see :class:`~relay.streams.dialer.Upgrade`."""
        return self.upgrade_on(None, stream, deadline, done)

    def upgrade_on(
        self, home: Home | None, stream: Stream, deadline: float | None, done: OnResult
    ) -> Callable[[], object]:
        """Do the same in the thread of an engine, which relays through the session itself; ``None`` for no engine."""
        session = self.session(stream)
        step = self._trace.begin(Stage.TLS, self.name, servername=self._servername)

        def explain(outcome: Stream | OSError) -> None:
            if isinstance(outcome, OSError):
                error = _explained(self.name, outcome, self._groups)
                error.__cause__ = outcome
                step.failed(error, connection=session.records.tls)
                done(error)
            else:
                step.done(connection=session.records.tls)
                done(outcome)

        return Handshake(session, deadline, explain, home=home).cancel

    def session(self, stream: Stream) -> Session:
        """A session over a connected stream, whose handshake is to be made."""
        context = self._credentials.current(self.name)
        kept = self._ticket
        # A ticket of another context was verified by other authorities, or shows another certificate.
        ticket = kept[1] if kept is not None and kept[0] is context else None
        return Session(
            stream,
            context,
            peer="target",
            name=self.name,
            servername=self._encoded_name,
            ticket=ticket,
            heard_first=functools.partial(self._remember, kept),
        )

    def _remember(self, kept: tuple[ssl.SSLContext, ssl.SSLSession] | None, tls: ssl.SSLObject) -> None:
        """Keep what a later session can take up. Servers send it before their first data.

        Reading it costs half a handshake, and so does offering it: a server that does not honour it is soon not asked.
        """
        if tls.session_reused:
            self._vain = 0
        elif kept is self._ticket:  # else another connection has brought a newer one
            self._ticket = None
            if self._vain < _VAIN:
                self._vain += 1
                made = tls.session
                self._ticket = (tls.context, made) if made is not None and made.has_ticket else None


def client_of(target: TLSTarget, trace: Trace = SILENT, name: str | None = None) -> Client:
    """Return the client for an address; see :class:`Client`.

    :raises ValueError: as :func:`tls` does.
    :raises OSError: if a file cannot be read.
    """
    files = (target.ca, target.cert, target.key)
    return Client(target.host, target.port, target.servername, *files, target.groups, trace, name)


class TLS(Upgrade):
    """A dialer for one TLS server, made by :func:`tls`: a connect, and a handshake on it."""

    def __init__(
        self,
        host: str,
        port: int,
        servername: str | None,
        ca: Path | None,
        cert: Path | None,
        key: Path | None,
        groups: str | None,
        *,
        mptcp: bool,
    ) -> None:
        direct = tcp(host, port, mptcp=mptcp)
        client = Client(host, port, servername, ca, cert, key, groups)
        direct.target = client.name
        super().__init__(direct, begin=client.upgrade, begin_on=client.upgrade_on, has_session=True)


def _client_context(groups: str | None, ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    context = trusting(ssl.Purpose.SERVER_AUTH, "ca", ca)
    set_groups(context, groups)
    if cert is not None:
        load_chain(context, cert, key)
    elif key is not None:
        raise ValueError("key: no certificate is given for it; add cert=")
    return context


def _checked(servername: str) -> str:
    """A name as a certificate has it: without a zone, without the root's dot."""
    if not isinstance(servername, str):
        raise TypeError(f"servername: expected a str, got {type(servername).__name__}")
    name = servername.partition("%")[0].removesuffix(".")
    try:
        check_host_port("name" if is_i2p(name) else name, 443)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (ValueError, ssl.SSLError):  # a UnicodeError is a ValueError
        raise ValueError(f"servername: {servername!r} is neither a name nor an address") from None
    return name


def _explained(name: str, error: OSError, groups: str | None) -> ConnectError:
    """The error of a handshake as one sentence with its reason."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"the server's certificate was not accepted: {error.verify_message}; {_advice(error.verify_code)}"
        return ConnectError(f"{name}: {text}", reason="denied")
    if isinstance(error, TimeoutError):
        return ConnectError(
            f"{name}: no TLS handshake in time; check that the port speaks TLS", reason="connect_timeout"
        )
    if error.errno == errno.ECANCELED:
        return ConnectError(f"{name}: the attempt was given up")
    if not isinstance(error, ssl.SSLError):
        text = error.strerror or str(error)
        return ConnectError(f"{name}: the TLS handshake failed ({text}); check that the port speaks TLS")
    if is_denial(error):
        text = f"the server does not accept this client ({error.reason}); check whether it needs cert=, or another one"
        if groups is not None:
            text += f", or other groups than {groups}"
        return ConnectError(f"{name}: {text}", reason="denied")
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE"):
        return ConnectError(f"{name}: what answers there does not speak TLS ({error.reason}); check the port")
    return ConnectError(f"{name}: the TLS handshake failed ({error.reason}); the server must speak TLS 1.2 or later")


def _advice(code: int) -> str:
    """Return the remedy for a rejected certificate; the codes are those of OpenSSL, x509_vfy.h."""
    if code in (9, 10):  # not yet, no longer
        return "the server needs a new one (or a clock is wrong)"
    if code in (62, 64):  # another name, another address
        return "servername= says which name it must be for"
    return "ca= names the file of the authority to trust"
