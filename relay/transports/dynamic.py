"""Dynamic forwarding to the target that each client names, over hops that rules choose."""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..addresses.hops import Hop, Route, check_route
from ..addresses.i2p import SAM, I2PRouter, I2PTarget
from ..addresses.i2p_parser import parse_sam
from ..addresses.parse import parse_hops, parse_target
from ..addresses.printable import shown
from ..addresses.values import TCPAddress, UnixAddress, is_i2p
from ..errors import AddressError, ConnectError, can_retry
from ..eventloop.sockets import Endpoint
from ..streams.checks import check_time
from ..streams.connect import SocketDialer
from ..streams.dialer import Dialer
from ..streams.lookups import Name, resolved
from ..streams.promise import Abort, Cancel, OnResult
from ..streams.stream import Request, Stream
from .chain import chain, network
from .tcp import tcp

_REMEMBERED = 1024  # places whose factories are kept
_WORST_FIRST = ("failed", "backing off", "connecting", "closed")
_BETWEEN_HOPS = re.compile(r",(?=(?:ssh|i2p|socks5|https?|wss?|tor|exec|port):)", re.IGNORECASE)
_TARGET = re.compile(r"(?:(?P<hops>.*),)?(?P<target>(?:tcp|unix)://.*)", re.IGNORECASE | re.DOTALL)
_BRACKETED = re.compile(r"\[(?P<host>[0-9A-Fa-f:.]+)\](?P<bits>/[0-9]{1,3})?(?::(?P<port>[0-9]{1,5}))?")
_PLAIN = re.compile(r"(?P<host>[A-Za-z0-9_.*?-]{1,255})(?P<bits>/[0-9]{1,2})?(?::(?P<port>[0-9]{1,5}))?")
_ALLOWED = "allowed are *, *.corp.example, 10.0.0.0/8 and [fd00::]/8, each with :PORT if wanted"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Rule:
    """The route to the places that match a pattern.

    :param text: the pattern as it was written.
    :param network: the addresses that it is about; ``None`` for names.
    :param names: the names, and addresses as text, otherwise.
    :param port: the port that it is about; ``None`` for every one.
    :param route: the hops; none for a direct connection; ``None`` to refuse.
    :param target: where the route leads; ``None`` for what the client asks for.
    """

    text: str
    network: _Network | None
    names: re.Pattern[str] | None
    port: int | None
    route: Route | None
    target: TCPAddress | UnixAddress | None = None

    def matches(self, host: str, address: _Address | None, port: int) -> bool:
        """Return true if the rule applies to a place.

        :param host: in lower case, without the dot of the root; empty for that of a client that names none.
        :param address: the same as an address, if it is one: names are not looked up to know.
        """
        if self.port is not None and port != self.port:
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return self.names is not None and self.names.match(host) is not None

    @property
    def leads_anywhere(self) -> bool:
        """True if it leads each name to where the client wants."""
        is_any = self.names is not None and self.names.pattern == fnmatch.translate("*")
        return is_any and self.route is not None and self.target is None

    def names_network_of(self, address: _Address, port: int) -> bool:
        """Return true if the rule names a network with this address."""
        return self.network is not None and address in self.network and self.port in (None, port)


def parse_rule(text: str, named: Mapping[str, Hop] | None = None) -> Rule:
    """Read a rule.

    :param text: ``PATTERN=ROUTE``; see :func:`dynamic`.
    :param named: hops that the rule may name, instead of their addresses.
    :raises AddressError: in one line: what, where, and what is allowed.
    :raises TypeError: if ``text`` is not a ``str``.
    """
    if not isinstance(text, str):
        raise TypeError(f"rule: expected a str such as '*.corp.example=ssh://bastion', got {type(text).__name__}")
    pattern, sign, route = text.partition("=")
    what = f"rule '{shown(pattern)}=…'"
    if not sign or not route:
        forms = "write PATTERN=direct, PATTERN=refuse, PATTERN=HOP,HOP or PATTERN=tcp://HOST:PORT"
        raise AddressError(f"rule '{shown(pattern)}': no route is given; {forms}")
    found = _BRACKETED.fullmatch(pattern) or _PLAIN.fullmatch(pattern)
    if found is None:
        raise AddressError(f"{what}: the pattern cannot be read; {_ALLOWED}")
    host, port = found["host"].lower(), int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise AddressError(f"{what}: port {port}; a port is a number from 1 to 65535")
    network = _network(host, found["bits"] or "", what)
    names = re.compile(fnmatch.translate(host.removesuffix("."))) if network is None else None
    words, end = split_target(route)
    hops = _route(words, what, named or {})
    target = None if end is None or hops is None else _target(hops, end, what)
    return Rule(pattern, network, names, port, hops, target)


def split_target(route: str) -> tuple[str, str | None]:
    """Return the hops of a rule, and the target after them; ``None`` for none."""
    found = _TARGET.fullmatch(route)
    return (route, None) if found is None else (found["hops"] or "direct", found["target"])


def _target(route: Route, text: str, what: str) -> TCPAddress | UnixAddress:
    try:
        found = parse_target(text, route[-1] if route else None)
        if isinstance(found, I2PTarget):
            found = TCPAddress(found.dest, found.port or 1)
        check_route(route, found)
    except AddressError as error:
        raise AddressError(f"{what}: {error}") from None
    assert isinstance(found, TCPAddress | UnixAddress)
    return found


def _network(host: str, bits: str, what: str) -> _Network | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if bits:
            raise AddressError(f"{what}: '{host}' is no address, so that it has no network; {_ALLOWED}") from None
        return None
    try:
        return ipaddress.ip_network(f"{address}{bits}")
    except ValueError as error:
        raise AddressError(f"{what}: {error}; {_ALLOWED}") from None


def _route(text: str, what: str, named: Mapping[str, Hop]) -> Route | None:
    if text.lower() == "refuse":
        return None
    if text.lower() == "direct":
        return ()
    try:
        # A comma may also be part of an option of a hop; only one before a scheme separates two.
        words = text.split(",") if named and ":" not in text else _BETWEEN_HOPS.split(text)
        route = parse_hops(words, named=named)
        chain(route, _somewhere(route))  # what cannot be is refused now
    except AddressError as error:
        raise AddressError(f"{what}: {error}") from None
    return route


def dynamic(via: Sequence[str] = (), rules: Sequence[str] = (), *, sam: str | Sequence[str] = SAM) -> Dynamic:
    """A factory that leads where each client wants, for listeners whose clients say so: ``ssh -D``, and more.

    A host is resolved at the end of its route, and by this machine where there are no hops. One in ``.i2p`` goes over
    I2P, by the router at ``sam``, unless a rule says otherwise, and never to the DNS.

    :param via: the hops to everything that no rule is about, the nearest first.
    :param rules: texts ``PATTERN=ROUTE``, the first that matches wins. ``PATTERN`` is a name with ``*`` and ``?``
        (``*.corp.example``), an address or a network (``10.0.0.0/8``, ``[fd00::]/8``), which match what clients give as
        an address, or ``*``; all with ``:PORT`` if wanted. ``ROUTE`` is ``direct``, ``refuse`` or hops, the nearest
        first, with commas between them. ``tcp://HOST:PORT`` or ``unix:///PATH``, alone or after the hops, is where it
        leads instead of what the client asks for. What no rule is about goes over ``via``; where there is none, it is
        refused if there are rules, and else connected to directly. A network that is refused is also refused to names
        that resolve into it, where a later rule connects to them directly.
    :param sam: the SAM bridge of the router on this machine: ``host:port`` or ``tls://host:port?ca=…``, or those of
        several routers, as for :func:`relay.i2p`.
    :returns: a callable for :class:`relay.Tunnel`, with ``ready(timeout)``, ``subscribe(watcher)`` and ``close()``. It
        keeps the carriers of each route. A call needs the keyword ``destination``, may have ``peer``,
        ``deadline`` and ``cancel`` (see :func:`relay.target`), and returns a connected :class:`relay.Stream`.
    :raises AddressError: if a hop or a rule cannot be understood.
    :raises TypeError: if an argument has the wrong type.
    :raises OSError: if a file that a hop names cannot be read.

    Source: ssh(1), ``-D``.
    """
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise TypeError(f"rules: expected a list of texts, got {type(rules).__name__}")
    return Dynamic(parse_hops(via), tuple(parse_rule(text) for text in rules), (I2PRouter(sam=parse_sam(sam)),))


class Dynamic(Dialer):
    """Leads where each client wants; made by :func:`dynamic`.

    :param via: the hops to everything that no rule is about.
    :param rules: the first that matches wins.
    :param over_i2p: the hops to what is in ``.i2p``.
    """

    def __init__(self, via: Route, rules: tuple[Rule, ...], over_i2p: Route) -> None:
        super().__init__("anywhere")
        self.rules = rules
        self._over_i2p = over_i2p
        self._otherwise: Route | None = via if via or not rules else None
        written = [via, *(rule.route for rule in rules)]
        # One for all targets of a route: behind tor they share circuits.
        self._networks = {route: network(route) for route in (*written, over_i2p) if route}
        self._routes = {route: chain(route, _somewhere(route), last=last) for route, last in self._networks.items()}
        self.per_route = tuple(self._routes[route] for route in dict.fromkeys(written) if route)
        self._lock = threading.Lock()
        self._held: set[Route] = set()
        self._made: OrderedDict[tuple[object, ...], Dialer] = OrderedDict()

    def select(self, request: Request | None) -> Dialer:
        """Return the dialer for what a client asks for; see :meth:`Dialer.select`.

        :raises ConnectError: if it is refused, or there cannot be such a place.
        """
        if request is None:
            text = "the client names no target; use a listener of relay.socks_listen or relay.http_listen"
            raise ConnectError(text, reason="denied")
        key = request.host, request.port, request.here
        with self._lock:
            made = self._made.get(key)
            if made is not None:
                self._made.move_to_end(key)
                return made
        # Without the lock: it may open carriers, and read files that an address names.
        made = self._make(request)
        with self._lock:
            self._made[key] = made
            oldest = self._made.popitem(last=False)[1] if len(self._made) > _REMEMBERED else None
        if oldest is not None:
            # Its streams go on; the carriers stay, as the routes hold them.
            oldest.close_when_idle()
        return made

    def __call__(
        self,
        *,
        peer: Any = None,
        destination: Request | None = None,
        deadline: float | None = None,
        cancel: Cancel | None = None,
    ) -> Stream:
        """Make a stream to where a client wants, and wait for it.

        :param peer: the client's address; it changes nothing here.
        :param destination: has a ``host`` and a ``port``.
        :param deadline: monotonic seconds; ``None`` for as long as it takes.
        :param cancel: gives it up when set.
        :returns: a connected stream.
        :raises OSError: as the factories of :func:`relay.target` do; :class:`ConnectError` with reason ``denied`` for
            what a rule refuses.
        """
        return self.select(destination)(deadline=deadline, cancel=cancel)

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Raise, because it is not known where to: :meth:`select` returns the dialers.

        :raises ConnectError: always; the reason is ``denied``.
        """
        return self.select(None).dial(deadline, done)

    def ready(self, timeout: float | None = 30.0) -> None:
        """Open the carriers of every route that the rules name side by side, and wait for one attempt of each.

        :param timeout: seconds for all of them; ``None`` for as long as it takes.
        :raises OSError: the error of the first route that cannot be opened; one that no retry can fix goes first.
        """
        seconds = check_time("timeout", timeout)
        deadline = None if seconds is None else time.monotonic() + seconds
        for route, dialer in self._routes.items():
            # All are begun before the first is waited for, so that they connect side by side.
            if dialer in self.per_route:
                self._hold(route)
        first: OSError | None = None
        for dialer in self.per_route:
            try:
                dialer.ready(None if deadline is None else max(0.001, deadline - time.monotonic()))
            except OSError as error:
                if first is None or (can_retry(first) and not can_retry(error)):
                    first = error
        if first is not None:
            raise first

    @property
    def state(self) -> str:
        """The worst state of a carrier of a route that the rules name; see :attr:`Dialer.state`."""
        states = {dialer.state for dialer in self.per_route}
        return next((state for state in _WORST_FIRST if state in states), "up")

    @property
    def last_error(self) -> str | None:
        """The reason why some streams cannot be made for now; empty if none is known."""
        return next((problem for dialer in self.per_route if (problem := dialer.last_error)), None)

    def subscribe(self, watcher: Callable[[Any, Exception | None], object]) -> None:
        """Call ``watcher(state, error)`` at each change of a carrier of a route that the rules name.

        :raises OSError: if the system has no thread or descriptor left.
        """
        for dialer in self.per_route:
            dialer.subscribe(watcher)

    def close(self) -> None:
        """Release all carriers. Idempotent; the next call opens them again."""
        with self._lock:
            made = list(self._made.values())
            self._made.clear()
            self._held.clear()
        # Without the lock: closing may wait.
        for factory in made:
            factory.close_when_idle()
        for dialer in self._routes.values():
            dialer.close()

    def _make(self, request: Request) -> Dialer:
        place, address = _place(request.host, request.port) if request.host else (None, None)
        number, rule = self._rule(request, place, address)
        route, end = rule.route, rule.target or place
        if route is None or end is None:
            raise ConnectError(f"{place or 'a client names no server'}: the rules refuse it", reason="denied")
        is_over_i2p = isinstance(end, TCPAddress) and is_i2p(end.host)
        if place is not None and rule.target is None and not route and not is_over_i2p:
            try:
                direct = tcp(place.host, place.port)
            except AddressError as error:
                raise ConnectError(str(error), reason="denied") from None
            if direct.name is None:
                return direct
            # An address that is written out was matched by the rules already; a name may resolve to any.
            return _guarded(direct.target, direct.name, request, self.rules[:number])
        if route := route or (self._over_i2p if is_over_i2p else ()):
            self._hold(route)
        try:
            return chain(route, end, last=self._networks.get(route))
        except AddressError as error:
            raise ConnectError(f"{end}: its route does not lead there: {error}", reason="denied") from None

    def _rule(self, request: Request, place: TCPAddress | None, address: _Address | None) -> tuple[int, Rule]:
        """Return the rule about a place, and its number."""
        name = place.host.lower().removesuffix(".") if place is not None else ""
        for number, rule in enumerate(self.rules):
            if rule.matches(name, address, request.port):
                return number, rule
        otherwise = None if request.here is not None else self._over_i2p if is_i2p(name) else self._otherwise
        return len(self.rules), Rule("", None, None, None, otherwise)

    def _hold(self, route: Route) -> None:
        """Keep the carriers of a route, for all places behind it."""
        with self._lock:
            if route in self._held:
                return
            # Before the subscription, so that a second client of the same moment does not hold it twice.
            self._held.add(route)
        try:
            self._routes[route].subscribe(_hear_nothing)
        except BaseException:
            with self._lock:
                self._held.discard(route)
            raise

    def __repr__(self) -> str:
        return f"<relay factory to anywhere, {len(self.rules)} rules, {len(self._routes)} routes over hops>"


class _Guarded:
    """A name that relay connects to directly: its addresses are checked, because the owner of a name chooses them.

    :param name: looks it up.
    :param request: of the client.
    :param rules: those that come before the one that leads there. The first about an address decides.
    """

    __slots__ = ("host", "_name", "_port", "_here", "_rules")

    def __init__(self, name: Name, request: Request, rules: tuple[Rule, ...]) -> None:
        self.host = name.host
        self._name = name
        self._port = request.port
        self._here = request.here
        self._rules = rules

    def look_up(self) -> Sequence[Endpoint]:
        return self._name.look_up()

    def endpoints(self, found: Sequence[Endpoint] | BaseException) -> Sequence[Endpoint]:
        endpoints = self._name.endpoints(found)
        admitted = [endpoint for endpoint in endpoints if self._admits(str(endpoint.address[0]))]
        if endpoints and not admitted:
            place = TCPAddress(self.host, self._port)
            if any(self._is_here(str(endpoint.address[0])) for endpoint in endpoints):
                raise ConnectError(f"{place}: it is the listener itself; give its rule a target", reason="denied")
            raise ConnectError(f"{place}: the rules refuse every address that it resolves to", reason="denied")
        return admitted

    def _admits(self, text: str) -> bool:
        address = _as_meant(ipaddress.ip_address(text.partition("%")[0]))
        if _is_nowhere(address) or self._is_here(str(address)):
            return False
        rules = (rule for rule in self._rules if rule.names_network_of(address, self._port))
        return (first := next(rules, None)) is None or first.route is not None

    def _is_here(self, address: str) -> bool:
        """Return whether this is where the client has come from: it would come again, and again."""
        if self._here is None or self._port != self._here[1]:
            return False
        from ..eventloop.own_addresses import is_same  # few clients say a name alone

        return is_same(address, self._here[0])


def _guarded(target: str, name: Name, request: Request, rules: tuple[Rule, ...]) -> SocketDialer:
    guarded = _Guarded(name, request, rules)
    return SocketDialer(target, functools.partial(resolved, guarded), literal=False, name=guarded)


def _as_meant(address: _Address) -> _Address:
    """An IPv4 address that is written as one of IPv6 is meant as it is, so that rules find it."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _is_nowhere(address: _Address) -> bool:
    """Return true for an address that is no target; systems take the unspecified address for the loopback."""
    return address.is_unspecified or address.is_multicast


def _hear_nothing(state: object, error: Exception | None) -> None:
    pass


def _somewhere(route: Route) -> TCPAddress:
    """A place behind a route, for its carriers alone. No stream connects there."""
    return TCPAddress("somewhere.i2p" if isinstance(route[-1], I2PRouter) else "localhost", 1)


def _place(host: str, port: int) -> tuple[TCPAddress, _Address | None]:
    """Check the place that a client requests; return it with its address if it is one. Clients may be hostile.

    :raises ConnectError: if there cannot be such a place.
    """
    try:
        address = _as_meant(ipaddress.ip_address(host))
    except ValueError:
        return _named(host, port), None
    if _is_nowhere(address):
        raise ConnectError(f"{TCPAddress(host, port)}: must not be unspecified or multicast", reason="denied")
    return TCPAddress(str(address), port), address


def _named(host: str, port: int) -> TCPAddress:
    try:
        # With its scheme, so that no client's text is ever read as another kind of address, such as a command.
        found = parse_target(f"tcp://{host.removesuffix('.') if is_i2p(host) else host}:{port}")
    except AddressError as error:
        raise ConnectError(f"a client asks for an invalid target: {error}", reason="denied") from None
    if isinstance(found, I2PTarget):
        return TCPAddress(found.dest, port)
    assert isinstance(found, TCPAddress)
    return found
