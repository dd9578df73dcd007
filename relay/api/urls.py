"""Functions that take any address: :func:`target`, :func:`connect` and :func:`listen`."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from ..addresses.hops import Command, Listen, ProxyListen, Route, check_route, listens_at_tor
from ..addresses.https import HTTPSListen
from ..addresses.i2p import I2PListen, I2PTarget
from ..addresses.parse import parse_hops, parse_listen, parse_target
from ..addresses.printable import shown
from ..addresses.resume import ResumeListen
from ..addresses.ssh import SSHListen
from ..addresses.values import (
    ListenAtPort,
    SystemdListen,
    Target,
    TCPAddress,
    TLSListen,
    TLSTarget,
    UnixAddress,
    UnixListen,
    is_i2p,
)
from ..errors import AddressError
from ..streams.checks import check_time
from ..streams.dialer import Dialer

if TYPE_CHECKING:  # a factory alone needs no listener
    from ..transports.resume.server import Bounds
    from ..transports.tcp import Inherited

_TEXT = (str, bytes, bytearray, memoryview)  # one address, right or wrong, and no list of ports

# The parameters of each function are the fields of the address; functions that hops can lead to also have ``via``.
# :mod:`relay.transports.chain` makes the dialers for addresses after hops, and for those that need a carrier.
SENDERS: dict[type, str] = {
    TCPAddress: "transports.tcp:tcp",
    UnixAddress: "transports.unix:unix",
    TLSTarget: "transports.tls.client:tls",
}
LISTENERS: dict[type, str] = {
    TCPAddress: "transports.tcp:listen_tcp",
    UnixListen: "transports.unix:listen_unix",
    TLSListen: "transports.tls.listener:listen_tls",
    SSHListen: "api.ssh:listen_ssh",
    I2PListen: "api.i2p:listen_i2p",
    ProxyListen: "transports.proxies.protocols:listen_proxy",
    HTTPSListen: "transports.proxies.https_server:listen_https",
    SystemdListen: "transports.activated:listen_systemd",
}


def target(
    url: str | int | Sequence[str | int],
    via: Sequence[str] | Sequence[Sequence[str]] = (),
    *,
    policy: Literal["first", "spread", "fastest"] = "first",
) -> Dialer:
    """Return a factory for any address, after any chain of hops; or for several of which one gets each stream.

    :param url: ``host:port``, ``port`` (of 127.0.0.1; also an ``int``), ``tcp://host:port``, ``unix:///path``,
        ``tls://host:port?servername=…&ca=…&cert=…&key=…&groups=…``, ``exec:command`` (its standard input and output;
        words are quoted as in a shell, but relay uses no shell), ``port:program {port}`` (a program that opens a local
        port; see below) or ``i2p://name.i2p[:port]?sam=…&…``, with the address
        of a destination (``….b32.i2p``), or the whole of it in base64, instead of a name; the parameters are those of
        :func:`relay.i2p`. ``name.i2p:port`` also uses I2P: relay never looks such a name up in the DNS.
    :param via: the hops, the nearest first, in any order that is possible:

        - ``ssh://[user@]host[:port]?…``, an SSH server; the parameters are those of :func:`relay.ssh`;
        - ``i2p:`` or ``i2p:?sam=…``, an I2P router; what follows is a name in ``.i2p``;
        - ``socks5://[user@]host:port``, ``http://[user@]host:port`` (CONNECT) and ``https://[user@]host[:port]?…``
          (the same over TLS, with the parameters of ``tls://``), a proxy; ``password_file=…`` or ``password_env=…``
          gives the password;
        - ``tor:`` or ``tor:?socks=host:port``, a tor, whose streams have no half-close: use it for names in ``.onion``;
        - ``resume:ADDRESS``, a ``relay resume-server`` at a target address, such as ``resume:tls://host:port?cert=…``:
          streams outlive the loss of their connection;
        - ``exec:command %h %p``, a program like a ``ProxyCommand``: on this machine as the first hop, on the server
          directly after ``ssh://``;
        - ``port:program {port}``, as the first hop: a program of this machine that listens at the port that relay
          chooses for ``{port}``, at ``{host}``, or at the Unix socket ``{path}``. All streams share one start of it.
          Each goes to where the program leads; ``%h`` and ``%p``, if it has them, are what follows.

        The last hop connects to the address: it resolves names, and Unix paths, commands and the SAM bridge are on that
        machine. TLS runs end to end, from this process to the target.

        A list of addresses is a list of targets, and a list of such lists has several routes to each. Each stream then
        goes to one of them by ``policy``, and to the next one if that fails. One that fails gets no more streams until
        a connect of relay's own to it has succeeded, which is tried after 0.5 to 30 s.
    :param policy: the order of several targets that are up: ``first`` is that of the list, ``spread`` begins with the
        one with the fewest streams, ``fastest`` with the one whose connects take the least time on average. relay
        connects to each target of ``fastest`` every 30 s for that, as long as it is used.
    :returns: a callable for :class:`relay.Tunnel` that returns a connected :class:`relay.Stream`; its ``target`` is the
        address. A factory of your own can call it with the keywords that it has got itself: ``peer`` (the client's
        address, which changes nothing here), ``deadline`` (monotonic seconds, ``None`` for no limit) and ``cancel``
        (an object with ``is_set()`` and ``fileno()``, which gives the attempt up).
    :raises AddressError: if an address cannot be understood, or a hop cannot lead to what follows it.
    :raises ValueError: if ``policy`` is another word, or there is no target.
    :raises TypeError: if an address is neither a ``str`` nor an ``int``.
    :raises OSError: if a file that the address names cannot be read.
    """
    given: Any = url if isinstance(url, Iterable) and not isinstance(url, _TEXT) else [url]
    urls = [as_text(one) for one in given]
    routes: list[Any] = [via]
    if not isinstance(via, str) and any(isinstance(route, (list, tuple)) for route in via):
        routes = list(via)
    routed = [(parse_hops(route, each), each) for each in urls for route in routes]
    return dialer_of_routes([(hops, parse_target(each, hops[-1] if hops else None)) for hops, each in routed], policy)


def as_text(url: str | int) -> str:
    """Return an address as text: an ``int`` is a port of the loopback."""
    return str(url) if type(url) is int else url  # type: ignore[return-value]  # the parser rejects any other type


def dialer_of_routes(
    routed: Sequence[tuple[Route, Target | I2PTarget | Command]], policy: str = "first", name: str = "relay"
) -> Dialer:
    """Return a factory for one of several targets.

    :param routed: the hops to each of them, and the target.
    :param policy: as for :func:`target`.
    :param name: of the tunnel, for the log.
    :raises AddressError: if a hop cannot lead to what follows it.
    :raises ValueError: if there is no target, or ``policy`` is unknown.
    :raises OSError: if a file that an address names cannot be read.
    """
    if len(routed) == 1 and policy == "first":
        return dialer(*routed[0])
    from ..targets.group import Selection, TargetGroup

    made: list[Dialer] = []
    try:
        selection = Selection(policy)
    except ValueError:
        raise ValueError(f"policy: expected first, spread or fastest, got '{shown(str(policy))}'") from None
    try:
        made += [dialer(*one) for one in routed]
        return TargetGroup(made, selection, name=name, names=_names_of(routed))
    except BaseException:
        for each in made:
            each.close()
        raise


def _names_of(routed: Sequence[tuple[Route, Target | I2PTarget | Command]]) -> list[str]:
    """Return a name for each target: its address, its route if it has several, a number if it is there twice."""
    routes: dict[str, set[Route]] = {}
    for route, end in routed:
        routes.setdefault(str(end), set()).add(tuple(route))
    counts: dict[str, int] = {}
    names = []
    for route, end in routed:
        name = str(end)
        if len(routes[name]) > 1:
            name += f" via {', '.join(map(str, route))}" if route else " directly"
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return names


def dialer(route: Route, address: Target | I2PTarget | Command) -> Dialer:
    """Return a factory for an address, as :func:`target` does.

    :param route: the hops, the nearest first.
    :param address: as seen from the last one.
    :raises AddressError: if a hop cannot lead to what follows it.
    :raises OSError: if a file that the address names cannot be read.
    """
    if not route and type(address) in SENDERS and not is_i2p(getattr(address, "host", "")):
        direct: Dialer = _make(SENDERS, address)
        return direct
    from ..transports.chain import chain

    return chain(route, address)


def connect(url: str | int, via: Sequence[str] = (), timeout: float | None = 30.0) -> socket.socket:
    """Connect to any address, after any chain of hops.

    :param url: as in :func:`target`.
    :param via: as in :func:`target`.
    :param timeout: seconds for the whole attempt; ``None`` for as long as the system tries. Over I2P, a new session may
        take a minute: give it 90.
    :returns: a connected, blocking socket; closing it releases its carrier. If relay knows that the transfer
        was cut (a truncated TLS stream, a lost carrier, a program that failed), reading raises ConnectionResetError
        after the bytes that came before. :mod:`relay.eventloop.unix_reset` has the exceptions: not Linux, after
        ``SHUT_WR``, and a socket that was passed to another process. The interpreter's exit closes the socket and, as
        long as bytes leave, waits until what was sent has arrived: for at most 10 s without progress over TLS and at an
        I2P router, 60 s at an SSH server and at a program. An I2P router may drop what it has not delivered when the
        last socket over a session is closed: wait for the peer's reply before that.
    :raises AddressError: if an address cannot be understood or is not available in this version.
    :raises ValueError: if ``timeout`` is not positive.
    :raises TypeError: if ``timeout`` is not a number, or ``url`` neither a ``str`` nor an ``int``.
    :raises ConnectError: refused, unreachable, timed out or denied; ``.reason`` tells.
    :raises HostKeyError: or :class:`AuthenticationError`, :class:`CarrierError`: what went wrong at a hop.
    :raises SAMError: what a router said.
    :raises OSError: if a file that the address names cannot be read.
    """
    seconds = check_time("timeout", timeout)
    deadline = None if seconds is None else time.monotonic() + seconds
    connected = target(url, via).open_socket(deadline)
    connected.setblocking(True)
    return connected


def listen(address: str | int, via: Sequence[str] = ()) -> Any:
    """Listen on any address; without a host, on 127.0.0.1.

    :param address: ``:port``, ``port`` (also an ``int``), ``host:port``, ``tcp://host:port``, ``unix:///path`` with
        ``?mode=…&group=…`` for clients of other users, ``systemd:NAME`` (a socket that systemd has opened),
        ``tls://host:port?cert=…&key=…&client_ca=…&alpn=…&groups=…``, ``ssh://[user@]host[:port]?listen=…`` with the
        ``HOST:PORT`` or ``/PATH`` on which the server listens (default: 127.0.0.1:0), ``i2p:?keys=…&…`` with the
        parameters of :func:`relay.i2p_listen`, ``tor:?…`` with those of :func:`relay.tor_listen`, or
        ``socks5://[user@]host:port?password_file=…&password_env=…`` or ``http://…`` or ``https://…?cert=…`` for clients
        that name their targets (see :func:`relay.dynamic`), ``sni://host:port`` for clients of TLS, which get the
        server of their rule, or ``redirect://host:port`` for connections that a firewall redirects, which get where
        they were going (Linux), or ``resume:ADDRESS`` for a resume server at ``unix://``, ``i2p:``, or ``tls://`` or
        ``wss://`` with ``client_ca=…``; port 0 picks a free one.
    :param via: the hops to an SSH server, or to the bridge to I2P, as in :func:`target`.
    :returns: for TCP and Unix a bound, listening :class:`socket.socket`; for TLS, SSH and proxies an object with
        ``accept()``, ``close()``, ``address`` and ``getsockname()``, for I2P one with ``accept()``, ``close()`` and
        ``address``. The caller owns it, until a tunnel takes it over.
    :raises AddressError: if an address cannot be understood or is not available in this version.
    :raises OSError: if it is not available (in use, not on this machine, a name that does not resolve), or a file that
        it names cannot be read. Over SSH: :class:`ConnectError`, :class:`HostKeyError`, :class:`AuthenticationError` or
        :class:`ForwardError`. Over I2P: :class:`ConnectError`, :class:`SAMError` or :class:`AuthenticationError`.
    """
    address = as_text(address)
    hops = parse_hops(via, address)
    return listener(parse_listen(address), hops)


def listener(
    address: Listen,
    route: Route = (),
    opening: Callable[[Any], object] | None = None,
    inherited: Inherited | None = None,
) -> Any:
    """Return a listener, as :func:`listen` does.

    :param address: the address to listen on.
    :param route: the hops to it, the nearest first.
    :param opening: called with a listener on an SSH server or on I2P before it starts. The listener then retries while
        the server or the router cannot be reached; closing it ends that. ``None`` for one attempt.
    :param inherited: sockets of this machine, of which it may take one over; ``None`` for none.
    :raises AddressError: if a hop cannot lead to what follows it.
    :raises OSError: as :func:`listen` does; with ``opening`` only what a retry cannot fix.
    """
    if isinstance(address, ResumeListen):
        return resume_listener(address, route, opening, inherited)
    if listens_at_tor(address):
        if route:
            raise AddressError(f"listen address '{address}': tor connects to this machine; leave the hops out")
        return _made("api.tor:listen_tor", address, opening=opening)
    if isinstance(address, (SSHListen, I2PListen)):
        check_route(route, address.server if isinstance(address, SSHListen) else address.router)
        return _make(LISTENERS, address, via=route, opening=opening)
    _refuse_hops(address, route)
    if isinstance(address, SystemdListen):
        return _make(LISTENERS, address)
    if isinstance(address, ListenAtPort) or type(address) not in LISTENERS:
        return _listen_websocket(address, inherited)
    return _make(LISTENERS, address, inherited=inherited)


def resume_listener(
    address: ResumeListen,
    route: Route = (),
    opening: Callable[[Any], object] | None = None,
    inherited: Inherited | None = None,
    bounds: Bounds | None = None,
) -> Any:
    """Return a listener for resumable streams; the other parameters and the errors are those of :func:`listener`.

    :param bounds: of its sessions; ``None`` for the usual ones.
    """
    from ..transports.resume.server import Bounds
    from ..transports.resume_server.listen import listen_resume, make_i2p, usual_kept

    bounds = bounds or Bounds(usual_kept(address))
    if isinstance(address.place, I2PListen):
        check_route(route, address.place.router)
        return _make(LISTENERS, address.place, via=route, opening=opening, make=make_i2p(bounds))
    _refuse_hops(address, route)
    return listen_resume(address, bounds=bounds, inherited=inherited)


def _refuse_hops(address: Listen, route: Route) -> None:
    if route:
        problem = "it is on this machine; hops lead to ssh:// and i2p: ones only"
        raise AddressError(f"listen address '{address}': {problem}")


def _listen_websocket(address: Any, inherited: Inherited | None) -> Any:
    from ..extras import needed

    needed("websocket", str(address))
    if isinstance(address, ProxyListen):
        from ..transports.proxies.websocket_server import listen_proxy_websocket

        return listen_proxy_websocket(address, inherited)  # type: ignore[arg-type]  # it is no other one
    from ..transports.websocket.listener import listen_websocket

    return listen_websocket(address, inherited)


def _make(table: dict[type, str], address: Any, **more: Any) -> Any:
    return _made(table[type(address)], address, **more)


def _made(function: str, address: Any, **more: Any) -> Any:
    module, name = function.split(":")
    fields = {field.name: getattr(address, field.name) for field in dataclasses.fields(address)}
    return getattr(import_module(f"relay.{module}"), name)(**fields, **more)
