"""A tunnel with an I2P destination at one of its ends: :class:`TunnelServer` and :class:`TunnelClient`."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Unpack

from ..addresses.destinations import b32_of, is_base64
from ..addresses.i2p import CONNECT_TIMEOUT, LINGER, SAM, I2PRouter
from ..addresses.options import options_of
from ..addresses.signatures import shows_options
from ..carriers.carrier_set import SharedCarrier
from ..carriers.link import Watcher
from ..engine.options import TunnelOptions, made_of
from ..engine.tunnel import Tunnel
from ..errors import ConnectError
from ..streams.peer_source import check_source
from ..transports.i2p.session import Session
from ..transports.tcp import listen_tcp, tcp
from .i2p import OnState, i2p, i2p_listen
from .keywords import ClientKeywords, ServerKeywords

NOT_OF_A_SERVER = ("warm", "warm_for", "accept_proxy")
"""The options of tunnels that a :class:`TunnelServer` does not take."""
NOT_OF_A_CLIENT = ("source", "accept_proxy")
"""Those that a :class:`TunnelClient` does not take."""

_DEFAULTS = {"connect_timeout": CONNECT_TIMEOUT, "linger": LINGER}


@shows_options(
    TunnelOptions,
    I2PRouter,
    own=("sam", "session", *NOT_OF_A_SERVER),
    takes_others=True,
    brief=TunnelOptions,
    defaults=_DEFAULTS,
)
class TunnelServer(Tunnel):
    """Publish a local service as an I2P destination: incoming SAM streams → ``host:port``.

    It blocks until the session is created and accepts streams, or the tunnel stands by. Some seconds later others can
    find the destination (state ``published``); relay checks this with a stream from a second session, now and from time
    to time. It re-creates the session with the same destination when the router returns after a loss. The ``peer`` of a
    stream's record is its origin's destination, also in the log.

    :param session: its name. **A name keeps its destination**: without ``keys`` relay stores its private key in the
        user's data directory under this name. Empty for a new destination that is not stored.
    :param port: of the local service, from 1 to 65535.
    :param samaddr: the router's SAM bridge: ``host:port`` or ``tls://host:port?ca=…``. Of several, the session is at
        the first router that answers. When it is lost, the next router has the next one.
    :param nconnect: maximum number of open connections, as for :class:`relay.Tunnel`.
    :param timeout: maximum lifetime of a connection in seconds; ``None`` for no limit.
    :param host: of the local service.
    :param allow: only these may connect: destinations (base64 or ``….b32.i2p``), or files of them, which are read again
        when they change; ``None`` for all.
    :param deny: these may not connect, in the same form; it wins over ``allow``.
    :param admit: called with the identity of each client that the lists allow; see :class:`relay.Tunnel`.
    :param accept: how streams come in: ``'accept'`` (the bridge hands them over one by one), ``'forward'`` (it connects
        to a local port, so it must be on this machine), ``None`` for what the router and the kernel support; see
        :func:`relay.i2p_listen`.
    :param standby: whether other machines have the same keys. This one stands by while another one serves the
        destination, and takes over when that does not answer three times in a row. Needs ``session`` or ``keys``.
    :param via: the hops to the bridge, the nearest first, as for :func:`relay.target`.
    :param on_state: called with each state of the session (``connecting``, ``up``, ``published``, ``backing off``,
        ``standing by``, ``failed``, ``closed``), on a thread of relay. It must not block; relay logs what it raises.
    :param source: ``"peer"`` for an address of the loopback that stands for the client's destination, as i2pd has it;
        see :class:`relay.Tunnel`.
    :param send_proxy: the version of the header of the PROXY protocol that relay sends to the service before the first
        byte of each client; with ``"v2"`` it has the client's destination. See :class:`relay.Tunnel`.
    :param options: {options}
    :param others: further options of the session, as in ``**{"inbound.quantity": 5}``: ``i2cp.``, ``inbound.`` and
        ``outbound.`` ones. ``i2cp.leaseSetEncType`` is ``4,0`` unless given, so that every application can connect.
    :raises ConnectError: if there is no bridge, or it does not answer.
    :raises SAMError: if the address is not that of a SAM bridge of version 3, if the bridge creates no session, or if
        the file of the keys is damaged (relay never overwrites it) or in use.
    :raises AuthenticationError: if it rejects the user and the password.
    :raises TypeError: if an argument has the wrong type, or a keyword is unknown.
    :raises ValueError: if an argument has a value that is not allowed.

    Source: ``i2p.tunnel.TunnelServer`` of the I2P project's Python library, without the keyword-only parameters.
    """

    def __init__(
        self,
        session: str,
        port: int,
        samaddr: str | Sequence[str] = SAM,
        nconnect: int = -1,
        timeout: float | None = None,
        *,
        host: str = "127.0.0.1",
        accept: str | None = None,
        standby: bool = False,
        via: Sequence[str] = (),
        on_state: OnState | None = None,
        **options: Unpack[ServerKeywords],
    ) -> None:
        make_send = tcp(host, port)
        check_source(options.get("source"), make_send)
        own, others = _divided(session, NOT_OF_A_SERVER, nconnect=nconnect, timeout=timeout, **options)
        self._listener = i2p_listen(
            session, sam=samaddr, accept=accept, standby=standby, via=via, on_state=on_state, **others
        )
        try:
            super().__init__(self._listener, make_send, **own)
        except BaseException:
            self._listener.close()
            raise

    @property
    def dest(self) -> str:
        """The destination of this server, in base64."""
        return self._listener.dest

    @property
    def b32(self) -> str:
        """Its address for other users, ``….b32.i2p``."""
        return self._listener.b32

    @property
    def session(self) -> str:
        """The session's name, as it was given."""
        return self._listener.session

    @property
    def state(self) -> str:
        """The state of the session; see ``on_state``."""
        return self._listener.state

    def wait_published(self, timeout: float | None = None) -> bool:
        """Wait until a stream from outside has come through.

        :param timeout: seconds; ``None`` for as long as it takes.
        :returns: whether that is so; ``False`` if the time is over or the tunnel is closed.
        """
        return self._listener.wait_published(timeout)


@shows_options(
    TunnelOptions,
    I2PRouter,
    own=("sam", "session", *NOT_OF_A_CLIENT),
    takes_others=True,
    brief=TunnelOptions,
    defaults=_DEFAULTS,
)
class TunnelClient(Tunnel):
    """Make an I2P destination a local port: ``127.0.0.1:port`` → destination.

    It blocks until the session for its streams is created. Factories and clients of this process share one session if
    they have the same bridge, session, keys and options over the same hops. relay re-creates it when it is lost.

    :param session: its name. Without ``keys`` it has a new destination, and may get another one after a loss.
    :param port: the local port, from 0 to 65535; with 0 the system picks one, see ``address``.
    :param dest: a destination in base64, its address ``….b32.i2p``, or a name in ``.i2p`` that the router knows. It
        need not be reachable yet: relay retries each stream until ``connect_timeout``.
    :param samaddr: and the others: as for :class:`TunnelServer`.
    :param send_proxy: the version of the header of the PROXY protocol that relay sends to the destination before the
        first byte of each client; see :class:`relay.Tunnel`. The server there must expect it.
    :param options: {options}
    :param others: further options of the session, as for :class:`TunnelServer`.
    :raises OSError: if the port is not available, and as for :class:`TunnelServer`.

    Source: ``i2p.tunnel.TunnelClient`` of the I2P project's Python library, without the keyword-only parameters.
    """

    def __init__(
        self,
        session: str,
        port: int,
        dest: str,
        samaddr: str | Sequence[str] = SAM,
        nconnect: int = -1,
        timeout: float | None = None,
        *,
        via: Sequence[str] = (),
        on_state: OnState | None = None,
        **options: Unpack[ClientKeywords],
    ) -> None:
        own, others = _divided(session, NOT_OF_A_CLIENT, nconnect=nconnect, timeout=timeout, **options)
        self._session = session
        self._sender = i2p(dest, sam=samaddr, session=session, via=via, **others)
        self._last_dest: deque[str] = deque([""], maxlen=1)
        self._remotedest = dest.strip() if is_base64(dest.strip()) else ""
        with contextlib.ExitStack() as undo:
            undo.callback(self._sender.close)
            receive = undo.enter_context(listen_tcp("127.0.0.1", port))
            if on_state is not None:
                self._sender.subscribe(lambda state, _: on_state(state.value))
            self._sender.subscribe(_remember(self._sender.carrier(), self._last_dest))
            self._sender.ready()
            super().__init__(receive, self._sender, **own)
            undo.pop_all()

    @property
    def dest(self) -> str:
        """The local destination that the streams come from, in base64; without a session, that of the last one."""
        return self._sender.dest or self._last_dest[0]

    @property
    def b32(self) -> str:
        """Its address, ``….b32.i2p``."""
        return b32_of(self.dest)

    @property
    def remotedest(self) -> str:
        """The remote destination, in base64. A name is looked up when this is first asked.

        :raises ConnectError: if the router cannot find it, or not within a minute; it is asked again next time.
        :raises RelayError: if there is no session.
        """
        if not self._remotedest:
            if self._relay.is_closing:
                raise ConnectError(f"{self._sender.target}: the tunnel was closed before the name was looked up")
            self._remotedest = self._sender.look_up()
        return self._remotedest

    @property
    def session(self) -> str:
        """The session's name, as it was given."""
        return self._session

    @property
    def state(self) -> str:
        """The state of the session: ``connecting``, ``up``, ``backing off``, ``failed`` or ``closed``."""
        return self._sender.state


def _remember(carrier: SharedCarrier[Session], last: deque[str]) -> Watcher:
    """A watcher that keeps the destination of the last session; it holds neither the tunnel nor the factory."""

    def remember(*_: object) -> None:
        link = carrier.link
        if link is not None:
            last.append(link.destination)

    remember()  # a session that is shared may be up already
    return remember


def _divided(session: str, left_out: Collection[str], **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the tunnel, checked before anything is opened, and those of the session.

    :param left_out: the options of tunnels that it does not take.
    """
    names = options_of(TunnelOptions).keys() - left_out
    own = {**_DEFAULTS, **{name: value for name, value in given.items() if name in names}}
    for what, text in (("name", own.get("name") or ""), ("session", session)):
        if not isinstance(text, str):
            raise TypeError(f"{what}: expected a str, got {type(text).__name__}")
    own["name"] = own.get("name") or session or None
    made_of("Tunnel.__init__", **own).policy()
    return own, {name: value for name, value in given.items() if name not in names}
