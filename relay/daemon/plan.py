"""Plans of tunnels, from command lines and files, and their opening."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..addresses.hops import (
    Command,
    Listen,
    ProxyListen,
    Route,
    is_slow,
    keeps_half_close,
    listens_at_server,
    listens_at_tor,
    to_i2p,
)
from ..addresses.i2p import Bridges, I2PListen, I2PRouter, I2PTarget, router_of
from ..addresses.printable import shown
from ..addresses.resume import ResumeListen
from ..addresses.ssh import SSHListen
from ..addresses.values import ListenAtPort, SystemdListen, Target, TCPAddress, UnixAddress, is_ip_address, is_loopback
from ..api.urls import dialer_of_routes, listener, resume_listener
from ..engine.acceptor import own_listener
from ..engine.managed_tunnel import ManagedTunnel
from ..engine.outlets import Outlets
from ..engine.tunnel import Tunnel, check_streams
from ..errors import AddressError, ConnectError
from ..streams.listener import TunnelListener
from .failures import carriers_quiet, configuration_read
from .options import Options
from .probes import HopProbe, SessionProbe
from .routed_targets import RoutedTarget, over, over_routes, targets_of, with_bridge
from .worker_processes import listen_for_workers

if TYPE_CHECKING:  # a command starts faster without them
    from ..config import Entry
    from ..spawning.pool_tunnel import PoolTunnel
    from ..streams.dialer import Dialer
    from ..transports.dynamic import Rule
    from ..transports.resume.server import Bounds
    from ..transports.tcp import Inherited
    from .preflight import Preflight, Routes

logger = logging.getLogger("relay.cli")

Opening = Callable[[Any], object]

RESUME_SESSION = "resume-server"
"""The session of a resume server at I2P that has no other one."""

_LINGER = 86400.0  # seconds


@dataclass(frozen=True, slots=True)
class Ends:
    """The live parts of a tunnel. The thread that opens them hands them over to the main thread, which owns them then.

    :param receive: its listener, which listens already.
    :param make_send: its factory.
    :param relay: what relays between the two; ``None`` before that: no client is accepted yet.
    """

    receive: TunnelListener
    make_send: Dialer
    relay: Tunnel | PoolTunnel | None = None

    def close(self) -> None:
        """Close all of them."""
        if self.relay is not None:
            return self.relay.close()  # it has the other two
        self.receive.close()
        return self.make_send.close()


@dataclass(frozen=True, slots=True)
class Plan:
    """A tunnel before it is opened: plain data. Making a plan opens nothing; opening it may take a while.

    :param name: of the tunnel.
    :param options: the limits, with their defaults, and what is printed.
    :param listen: makes the listener; gets ``opening`` and ``inherited`` of :func:`relay.api.urls.listener`.
    :param make_send: makes the factory.
    :param routes: its hops and its ends.
    :param on: the text after the listening address in titles, such as the server.
    :param over: the text after the target in titles: the hops.
    :param at_i2p: whether it listens on I2P, which may take a minute.
    :param trial: the probe of the hops at the start.
    :param route_key: a key; tunnels with the same key share one probe.
    :param elsewhere: the names of the carriers under the listener.
    :param configured: the title before it is open: the addresses as they are written.
    :param rules: the number of rules of a proxy.
    :param any_name: the pattern of the rule by which clients of ``sni://`` choose any server; empty if none does.
    :param in_workers: the values with which it runs in worker processes; ``None`` if it runs in this process.
    :param user: the only one who can log in at a proxy; ``None`` if it has no login, or is none.
    :param is_required: whether all tunnels of the group end if it cannot start.
    :param entry: its table in the file; ``None`` for a command line.
    :param files: the identity of each file that is read when it opens, by the key of the table that names the file: a
        reload compares them.
    """

    name: str
    options: Options
    listen: Callable[[Opening | None, Inherited | None], TunnelListener]
    make_send: Callable[[], Dialer]
    routes: Routes
    on: str = ""
    over: str = ""
    at_i2p: bool = False
    trial: Callable[..., HopProbe] = HopProbe
    route_key: Hashable = None
    elsewhere: tuple[str, ...] = ()
    configured: str = ""
    rules: int = 0
    any_name: str = ""
    in_workers: object = None
    user: str | None = None
    is_required: bool = False
    entry: Entry | None = None
    files: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    @property
    def table(self) -> Entry:
        """Its table; only of a plan that comes from a file."""
        assert self.entry is not None, "it is of a file"
        return self.entry

    @property
    def on_reload(self) -> str:
        """``keep``, ``drain`` or ``cut``: what a reload does to its open connections."""
        return self.table.tunnel.on_reload or "keep"

    @property
    def drain_on_reload(self) -> float | None:
        """The seconds after which a reload resets its open connections; ``None`` for never."""
        return {"keep": None, "drain": self.options.drain, "cut": 0.0}[self.on_reload]

    @property
    def workers(self) -> int:
        """The number of worker processes in which it runs; 1 if it runs in this process."""
        return 1 if self.in_workers is None else self.options.workers or 1

    @property
    def opens_alone(self) -> bool:
        """True if it needs no answer of another program to open: it listens at an IP address or a path here.

        The files that it names are read in turn with those of other tunnels in any case (:class:`.Preflight`).
        """
        where = self.routes.where
        if self.in_workers is not None or listens_at_server(where):
            return False
        return isinstance(where, UnixAddress | SystemdListen) or is_ip_address(where.host)

    def open(
        self,
        preflight: Preflight,
        opening: Opening | None = None,
        *,
        inherited: Inherited | None = None,
        outlets: Outlets | None = None,
        paused: bool = False,
    ) -> Ends:
        """Check what can be checked on this machine, then listen and relay.

        A listener on a server that cannot be reached retries, unless the options have ``fail_fast``.

        :param preflight: does the check; several plans may share it.
        :param opening: called with the listener before it starts, if that retries; closing the listener ends that.
        :param inherited: sockets of which the listener may take one over; ``None`` for none.
        :param outlets: of this process, for a tunnel that runs in it; ``None`` for none.
        :param paused: whether no client is accepted at first.
        :raises ValueError: if the user has to change something first.
        :raises OSError: if it cannot be opened.
        """
        return self.start(self.bind(preflight, opening, inherited), outlets=outlets, paused=paused)

    def bind(self, preflight: Preflight, opening: Opening | None = None, inherited: Inherited | None = None) -> Ends:
        """Check what can be checked on this machine, and listen; no client is accepted yet.

        The parameters and the errors are those of :meth:`open`.
        """
        made: list[Dialer] = []
        try:
            self._check(preflight, lambda: made.append(self.make_send()))
            if not made:  # a name could not be looked up before, which a retry can fix
                made.append(self.make_send())
            receive = self._listen(opening, inherited)
        except BaseException:
            for one in made:
                one.close()
            raise
        (make_send,) = made
        warn_if_open(receive, self.any_name)
        warn_if_unsure(self.routes.where)
        return Ends(receive, make_send)

    def start(self, bound: Ends, *, outlets: Outlets | None = None, paused: bool = False) -> Ends:
        """Relay between a listener and a factory.

        :param outlets: as for :meth:`open`.
        :param paused: whether no client is accepted at first.
        :raises OSError: if the system has no descriptor left; the listener is closed then.
        :raises RuntimeError: if it has no thread left, or a worker does not start.
        """
        return Ends(bound.receive, bound.make_send, self._tunnel(bound, outlets=outlets, paused=paused))

    def _tunnel(self, bound: Ends, *, outlets: Outlets | None, paused: bool) -> Tunnel | PoolTunnel:
        limits = self.options.of_tunnel(self.name)
        if self.in_workers is None:
            return _tunnel(bound, limits, outlets=outlets, paused=paused)
        processes = self.options.processes
        assert processes is not None, "a plan in workers has them"
        tunnel = processes.open(bound.receive, self.in_workers, self.workers, limits, paused=paused)
        tunnel.on_over(bound.make_send.close)  # it serves the probes
        return tunnel

    def check(self, preflight: Preflight) -> None:
        """Check the files, keys and secrets before anything is opened or connected to.

        :raises ValueError: if the user has to change something first.
        """
        self._check(preflight, self.make_send)

    def _check(self, preflight: Preflight, make_send: Callable[[], object]) -> None:
        if self.options.processes is not None:
            self.options.processes.check(self.workers)
        try:
            with configuration_read():
                preflight.check(self.routes, make_send)
        except ConnectError as error:  # a retry can fix it
            logger.debug("%s: %s", self.name, error)

    def _listen(self, opening: Opening | None, inherited: Inherited | None) -> TunnelListener:
        """Listen. The error repeats what the carriers under the listener would log, so that is held back."""
        if self.options.fail_fast:
            with carriers_quiet(logging.WARNING, self.elsewhere):
                return self.listen(None, inherited)
        with carriers_quiet(logging.ERROR, self.elsewhere):
            return self.listen(opening or _nothing, inherited)

    def title(self, address: str, target: str) -> str:
        """Return the title: the listening address and the target."""
        return f"{address}{self.on} → {target}{self.over}"


def make_plan(
    where: Listen,
    end: Target | I2PTarget | Command,
    options: Options,
    *,
    name: str,
    via: Route = (),
    listen_via: Route = (),
    others: Sequence[RoutedTarget] = (),
    policy: str = "first",
) -> Plan:
    """Return the plan of a tunnel from an address to another.

    :param where: the address to listen on.
    :param end: the address to connect to.
    :param options: the limits, and what is printed.
    :param name: of the tunnel.
    :param via: the hops to the target, the nearest first.
    :param listen_via: those to where it listens.
    :param others: further targets and routes.
    :param policy: the order in which they are tried; see :func:`relay.target`.
    """
    from .preflight import Routes

    at_i2p = isinstance(where, I2PListen)
    at_tor = listens_at_tor(where)
    where, options = _with_lists(where, options)
    routed: list[RoutedTarget] = [(via, end), *others]
    in_workers = _workers_values(where, routed, options, name)
    is_i2p = any(isinstance(last, I2PTarget) or to_i2p(hops, last) for hops, last in routed)
    ends_whole = at_i2p or at_tor or not all(keeps_half_close(hops, last) for hops, last in routed)
    return Plan(
        name,
        options.settled(slow=ends_whole or any(is_slow(hops, last) for hops, last in routed), ends_whole=ends_whole),
        lambda opening, inherited: own_listener(
            listener(where, listen_via, opening, inherited)
            if in_workers is None
            else listen_for_workers(where, inherited)
        ),
        lambda: _checked(dialer_of_routes(routed, policy, name), options),
        Routes(where, listen_via, routed, lists=(options.allow, options.deny)),
        f" on {where.server}{over(listen_via)}" if isinstance(where, SSHListen) else over(listen_via),
        over_routes(routed),
        at_i2p,
        SessionProbe if is_i2p else HopProbe,
        (*((hops, router_of(last), last if isinstance(last, Command) else None) for hops, last in routed),),
        tuple(map(str, (*listen_via, getattr(where, "server", where)))) if listens_at_server(where) else (),
        f"{shown(str(where))}{over(listen_via)} → {targets_of(routed)}{over_routes(routed)}",
        in_workers=in_workers,
    )


def _with_lists(where: Listen, options: Options) -> tuple[Listen, Options]:
    """Return an address without its access lists, and the options with them."""
    if not isinstance(where, I2PListen) or (where.allow is None and not where.deny):
        return where, options
    lists = [one for one in (where.allow, options.allow) if one is not None]
    allow = tuple(entry for one in lists for entry in one) if lists else None
    changed = dataclasses.replace(options, allow=allow, deny=(*where.deny, *options.deny))
    return dataclasses.replace(where, allow=None, deny=()), changed


def make_proxy_plan(
    where: Listen,
    options: Options,
    *,
    name: str,
    via: Route = (),
    rules: Sequence[Rule] = (),
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
    bridges: Bridges | None = None,
    listen_via: Route = (),
    bounds: Bounds | None = None,
) -> Plan:
    """Return the plan of a proxy, whose clients name their targets.

    :param where: the address to listen on.
    :param options: the limits, and what is printed.
    :param name: of the tunnel.
    :param via: the hops to all targets that no rule matches, the nearest first.
    :param rules: as for :func:`relay.dynamic`.
    :param user: the only user that is allowed; ``None`` for no login.
    :param password: the user's, and so are the two that follow: a file, and an environment variable, that hold it.
    :param bridges: the SAM bridges of the routers for names of I2P.
    :param listen_via: the hops to where a resume server listens.
    :param bounds: of the sessions of such a server; ``None`` for the usual ones.
    :raises AddressError: if a proxy cannot listen on the address, or it would serve anybody at I2P.
    :raises ValueError: if the user or the password is missing, or given twice.
    """
    from ..transports.dynamic import Dynamic
    from .preflight import Routes

    address: Any
    opener: Callable[[Opening | None, Inherited | None], Any]
    if isinstance(where, ResumeListen):
        resumed, options = _resumed(where, options)
        address = resumed.place
        opener = functools.partial(_listen_resumed, resumed, listen_via, bounds)
    else:
        address, make = _proxy(where, user, password, password_file, password_env)

        def opener(_: Opening | None, inherited: Inherited | None) -> Any:
            return make(inherited)

    any_name = ""
    if getattr(address, "protocol", "") == "sni":  # else its clients could choose any server
        if via:
            raise ValueError("--via: sni:// leads to servers that have a rule only; write the hops into --rule")
        if not rules:
            raise ValueError("--rule: sni:// has no server; name each, as in --rule '*.example.com=direct'")
        any_name = next((rule.text for rule in rules if rule.leads_anywhere), "")
    routes = dict.fromkeys([via, *(rule.route for rule in rules if rule.target is None)])
    router = with_bridge(bridges, I2PRouter())
    out: list[RoutedTarget | tuple[Route, None]] = [(route, None) for route in routes if route]
    out += dict.fromkeys((rule.route, rule.target) for rule in rules if rule.route is not None and rule.target)
    is_direct = not (via or rules) or any(rule.route == () and rule.target is None for rule in rules)
    return Plan(
        name,
        options.settled(slow=True, ends_whole=False),
        lambda opening, inherited: own_listener(opener(opening, inherited)),
        lambda: Dynamic(via, tuple(rules), (router,)),
        Routes(
            address,
            listen_via,
            out,
            [(router,)],
            is_direct,
            [password_file] if password_file else [],
            (options.allow, options.deny),
        ),
        over(listen_via),
        over(via) + _by(len(rules)),
        isinstance(address, I2PListen),
        route_key=name,
        elsewhere=(*map(str, (*listen_via, address)),) if listens_at_server(address) else (),
        configured=f"{shown(str(where))} → anywhere{over(via)}{_by(len(rules))}",
        rules=len(rules),
        any_name=any_name,
        user=user if user is not None else getattr(address, "user", None),
    )


def _resumed(where: ResumeListen, options: Options) -> tuple[ResumeListen, Options]:
    """Return a resume server and its options, with the access lists of its address."""
    place, options = _with_lists(where.place, options)
    if isinstance(place, I2PListen) and options.allow is None:
        # Anybody could have it dial all that this machine reaches.
        raise AddressError(f"listen address '{where}': any destination may begin streams there; name some with allow")
    # The near end's limits of idle directions count: one may be idle here because there is no connection.
    options = dataclasses.replace(options, linger=_LINGER if options.linger is None else options.linger)
    return ResumeListen(place), options


def _listen_resumed(
    where: ResumeListen, via: Route, bounds: Bounds | None, opening: Opening | None, inherited: Inherited | None
) -> Any:
    return resume_listener(where, via, opening, inherited, bounds)


def _checked(made: Dialer, options: Options) -> Dialer:
    """Return a dialer, after a check that its connections can be as the options want them."""
    try:
        check_streams(made, options)
    except BaseException:
        made.close()
        raise
    return made


def _by(rules: int) -> str:
    """Return the number of rules, for a title."""
    return f" by {rules} rule{'s' if rules > 1 else ''}" if rules else ""


def _proxy(
    address: Listen, user: str | None, password: str | None, password_file: str | None, password_env: str | None
) -> tuple[UnixAddress | SystemdListen | ProxyListen, Callable[[Inherited | None], Any]]:
    """Return the address of a proxy, and a function that makes its listener."""
    login: dict[str, Any] = {
        "user": user,
        "password": password,
        "password_file": password_file,
        "password_env": password_env,
    }
    if (user is None) != (password is None and password_file is None and password_env is None):
        problem = "--user: user missing" if user is None else "--user: password missing"
        raise ValueError(f"{problem}; set --user NAME and --password-file FILE or --password-env NAME")
    if isinstance(address, UnixAddress | SystemdListen):
        place = address

        def listen(inherited: Inherited | None) -> Any:
            from ..transports.proxies.listener import login_of
            from ..transports.proxies.socks_server import SOCKSListener

            return SOCKSListener(listener(place, inherited=inherited), login_of(**login))

        return address, listen
    if isinstance(address, TCPAddress) and address.mptcp:
        raise AddressError(f"listen address '{address}': a proxy for programs has no mptcp; leave it out")
    if isinstance(address, TCPAddress):
        address = ProxyListen("socks5", address.host, address.port)
    if isinstance(address, ListenAtPort):
        from ..addresses.websocket import WSListen

        assert isinstance(address, WSListen)
        address = address.as_proxy({})
    if not isinstance(address, ProxyListen):
        proxies = "socks5://host:port, http://host:port, https://host:port?cert=FILE, wss://host:port/path?cert=FILE, "
        proxies += "sni://host:port, redirect://host:port"
        allowed = f"allowed are :port, host:port, unix:///path, {proxies} and systemd:NAME"
        raise AddressError(f"listen address '{address}': a proxy for programs does not listen there; {allowed}")
    if user is not None:
        if address.user is not None:
            raise ValueError("--user: it is in LISTEN already; once is enough")
        address = dataclasses.replace(address, **login)
    proxy = address
    return proxy, lambda inherited: listener(proxy, inherited=inherited)


def _tunnel(bound: Ends, limits: dict[str, Any], *, outlets: Outlets | None, paused: bool) -> Tunnel:
    try:
        return ManagedTunnel(bound.receive, bound.make_send, outlets=outlets, paused=paused, **limits)
    except BaseException:
        bound.receive.close()
        raise


def _workers_values(where: Listen, routed: Sequence[RoutedTarget], options: Options, name: str) -> object:
    """Return the values with which a tunnel runs in workers; ``None`` if it stays in this process."""
    if options.processes is None or (options.workers or 1) == 1:
        return None
    from ..spawning.recipes import why_one_process

    if why := why_one_process(where, routed, options.limit, per_worker=options.carrier_sharing == "per-worker"):
        logger.info("%s: one process relays it, %s", name, why)
        return None
    ((via, end),) = routed
    return where, end, via


def _nothing(_: Any) -> None:
    pass


def warn_if_unsure(where: Any) -> None:
    """Log that an SSH server may listen on another address than requested."""
    if isinstance(where, SSHListen) and isinstance(where.place, TCPAddress) and not is_loopback(where.place.host):
        logger.info("%s listens on its loopback alone unless its sshd has GatewayPorts; it does not say", where.server)


def warn_if_open(listener: TunnelListener, any_name: str) -> None:
    """Warn if other machines can use a proxy without a password, or send one unencrypted.

    :param any_name: as for :class:`Plan`.
    """
    is_proxy = listener.protected is not None or any_name
    address = listener.listening.getsockname() if listener.listening and is_proxy else None
    if not isinstance(address, tuple) or is_loopback(address[0]):
        return
    if any_name:
        text = f"sni:// on %s port %d: {to_any_server(any_name)}"
    elif listener.protected:
        text = "%s port %d: users and passwords cross the network in the clear; use it in a network that you trust"
    else:
        text = (
            "proxy on %s port %d has no password: any host that can connect may use it; set --user and --password-file"
        )
    logger.warning(text, *address[:2])


def to_any_server(any_name: str) -> str:
    """Return the warning of a rule that lets clients of ``sni://`` choose any server."""
    return f"any host that can connect may reach any server, by the rule '{shown(any_name)}'; name the servers"
