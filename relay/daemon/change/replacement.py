"""The preparation of a reload: everything is checked and bound here, before anything is touched."""

from __future__ import annotations

import dataclasses
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...access.options import rules_of
from ...addresses.hops import ProxyListen
from ...addresses.i2p import I2PListen
from ...addresses.values import TCPAddress, TLSListen
from ...config import LIMITS, OF_CLIENTS
from ...config.listen_conflicts import exclude_each_other, group_of
from ...engine import changes
from ...engine.tunnel import Tunnel
from ...streams.dialer import Dialer
from ...streams.listener import TunnelListener
from ...transports.tcp import Inherited
from ..disabled_targets import disable, disabled, target_group
from ..failures import describe_error
from ..member import Member, MemberState
from ..plan import Bound
from ..preflight import Preflight
from ..probes import BackgroundCall, WarmUp
from ..verdicts import EFFECTS, Change, Settings, Verdict
from .keyed_sessions import keys_to_targets
from .listener_opening import ListenerOpening

__all__ = ["Call", "Leaving", "Replacement", "end_sessions", "side_by_side", "undo_all"]

logger = logging.getLogger("relay.cli")

_AT_PORT = TCPAddress | TLSListen | ProxyListen
_WARM_UP = 30.0  # seconds at most for which a reload waits for the hops of a new route
_VACATE_TIME = 30.0  # most seconds for the connections of a session that has to end before the next one begins
_CLOSE_TIME = 5.0  # seconds for the session to end after them
_LISTS = ("allow", "deny")
_ACCESS = {"listen", "user", "password", "password_file", "password_env", "allow", "deny"}

_CHANGED = frozenset({Verdict.TUNED, Verdict.REROUTED, Verdict.MOVED})
# Of a tunnel in workers.
_IN_PLACE = frozenset({*LIMITS, *OF_CLIENTS, *_LISTS, "required", "on_reload", "probe", "probe_interval"}) - {"limit"}
_ERRORS = (OSError, ValueError, TypeError, RuntimeError)

Call = Callable[[Callable[[], object]], object]
"""Calls a function in the main thread, and waits for it."""


class Replacement:
    """The change of one tunnel. Used by the thread that reloads, then by the main thread.

    The states of its listener are in :mod:`.listener_opening`.

    :param change: the verdict.
    :param settings: those of the new file; ``None`` for a tunnel that is gone.
    :param member: the tunnel that runs; ``None`` for a new one.
    :param vacated: called with its name after its listener has closed for another one.
    """

    def __init__(
        self,
        change: Change,
        settings: Settings | None,
        member: Member | None,
        vacated: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.change = change
        self.settings = settings
        self.member = member
        self.error: Exception | None = None
        self.bound: Bound | None = None
        """The listener and the factory, once they are open."""
        self.make_send: Dialer | None = None
        """The factory of another route, if only that changes."""
        self.is_deferred = False
        """Whether it opens after the commit, because its predecessor has not opened yet."""
        self.is_vacant = False
        """Whether its listener has closed for another one, and is not open again."""
        self._opening: ListenerOpening | None = None
        self._warm_up: WarmUp | None = None
        self._tunings: list[Callable[[], object]] = []
        self._on_vacated = vacated
        self._vacated: list[Replacement] = []

    @property
    def is_replaced(self) -> bool:
        """True if another tunnel takes its place, perhaps with its socket: in workers only limits change in place."""
        if self.member is None or self.settings is None or self.verdict not in _CHANGED:
            return False
        in_workers = self.member.plan.in_workers is not None or self.settings.plan.in_workers is not None
        return in_workers and not _IN_PLACE.issuperset(self.change.keys)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the tunnel."""
        return self.change.verdict

    @property
    def listens_anew(self) -> bool:
        """True if it needs another listener."""
        if self.verdict is Verdict.NEW or self.is_replaced:
            return True
        return self.verdict is Verdict.MOVED and not self._stays_in_place

    @property
    def leaves(self) -> bool:
        """True if the listener of the tunnel that runs is closed."""
        return self.verdict is Verdict.GONE or (self.verdict in _CHANGED and self.listens_anew)

    @property
    def _stays_in_place(self) -> bool:
        """True if the listener can take the new identity: TLS keys at the same address."""
        assert self.settings is not None
        assert self.member is not None
        assert self.member.settings is not None
        old, new = self.member.settings.entry.listen, self.settings.entry.listen
        both = isinstance(old, TLSListen) and isinstance(new, TLSListen)
        if not both or _socket_kind(old) != _socket_kind(new):
            return False
        return old.port == new.port and self.member.opened is not None  # type: ignore[union-attr]

    @property
    def _changes_route(self) -> bool:
        keys = self.change.keys
        return any(EFFECTS[key] is Verdict.REROUTED for key in keys) or "sam" in keys or "mptcp" in keys

    # -- before anything is touched -----------------------------------------------------------------------------------

    def prepare(self, preflight: Preflight, leaving: Leaving) -> None:
        """Check it, open its listener and its factory; :attr:`error` has what goes wrong.

        :param preflight: does the checks.
        :param leaving: the listeners that the reload closes, which may be in the way of the new one.
        """
        if self.verdict in (Verdict.SAME, Verdict.GONE):
            return
        assert self.settings is not None
        plan = self.settings.plan
        try:
            if self.member is not None and self.member.state.is_before:
                plan.check(preflight)
                self.is_deferred = True
            elif self.listens_anew:
                self._listen(preflight, leaving)
            else:
                plan.check(preflight)
                self._tunings = list(self._access())
                if self._changes_route:
                    self.make_send = plan.make_send()
                    self._begin_warm_up()
        except _ERRORS as error:
            self.error = error

    def _begin_warm_up(self) -> None:
        """Connect the hops of the new route, so that clients need not wait for them while the old ones are up."""
        assert self.settings is not None
        plan, opened = self.settings.plan, self.member.opened if self.member is not None else None
        # A session of the same keys can begin only when the old one has ended.
        if opened is not None and opened.make_send.state == "up" and not keys_to_targets(plan.routes):
            seconds = min(plan.options.connect_timeout or _WARM_UP, _WARM_UP)
            assert self.make_send is not None, "its route changes"
            self._warm_up = WarmUp(plan.name, self.make_send, seconds)

    def must_vacate(self, leaving: Leaving) -> bool:
        """Return whether an old listener must close before this one's can open."""
        return any(not _same_port(self._listen_address, other.old_address) for other in self._in_its_way(leaving))

    def _in_its_way(self, leaving: Leaving) -> Iterator[Replacement]:
        """Return the changes whose old listeners exclude the new one."""
        if self.settings is None or not self.listens_anew:
            return
        entry = self.settings.entry
        for other in leaving.near(entry.listen, entry.tunnel):
            old = other.member.settings if other.member is not None else None
            if old and exclude_each_other(entry.listen, entry.tunnel, other.old_address, old.entry.tunnel):
                yield other

    @property
    def _listen_address(self) -> object:
        return self.settings.entry.listen if self.settings is not None else None

    @property
    def old_address(self) -> Any:
        """The address at which the tunnel that runs listens, with the port that it has got."""
        if self.member is None or self.member.settings is None:
            return None
        listen: Any = self.member.settings.entry.listen
        if isinstance(listen, _AT_PORT) and not listen.port and self.member.opened is not None:
            return dataclasses.replace(listen, port=self.member.opened.tunnel.address[1])
        return listen

    def _listen(self, preflight: Preflight, leaving: Leaving) -> None:
        """Begin to open the listener; those in its way hand their sockets over, or close first."""
        assert self.settings is not None
        plan = self.settings.plan
        heirlooms: list[socket.socket] = []
        ending: list[Member] = []
        for other in self._in_its_way(leaving):
            if _same_port(self._listen_address, other.old_address):
                heirlooms += other.sockets()
            else:
                plan.check(preflight)  # all that can be checked while the old listener is open
                self._vacated.append(other)  # first: if it fails, the listener may be closed already
                other.vacate()
                if other.member is not None and isinstance(other.member.plan.routes.where, I2PListen):
                    ending.append(other.member)  # this one needs the keys of its session
        opening = functools.partial(plan.bind, preflight, inherited=Inherited(heirlooms))
        self._opening = ListenerOpening(functools.partial(_open_after, ending, opening))

    def sockets(self) -> list[socket.socket]:
        """Return the TCP socket of the tunnel that runs, if it has one."""
        opened = self.member.opened if self.member is not None else None
        return [opened.receive.listening] if opened is not None and opened.receive.listening is not None else []

    def vacate(self) -> None:
        """Close the listener of the tunnel that runs, because it is in the way of another one. Idempotent.

        A session under it ends with its last connection: see :func:`end_sessions`.

        :raises ValueError: if workers relay it.
        """
        if not self.is_vacant and self.member is not None and self.member.opened is not None:
            changes.listen_nowhere(_in_this_process(self.member.opened.tunnel))
            self.is_vacant = True
            self._on_vacated(self.member.name)

    def _access(self) -> Iterable[Callable[[], object]]:
        """Return what changes the access to the listener in place."""
        assert self.settings is not None
        assert self.member is not None
        opened, where, keys = self.member.opened, self.settings.plan.routes.where, self.settings.entry.tunnel
        if opened is None or not _ACCESS & set(self.change.keys):
            return
        receive = opened.receive
        if self.member.plan.in_workers is None and {"allow", "deny"} & set(self.change.keys):
            options, tunnel = self.settings.plan.options, _in_this_process(opened.tunnel)
            rules = rules_of(options.allow, options.deny)
            yield lambda: changes.set_rules(tunnel, rules)
        if isinstance(where, TLSListen):
            from ...transports.tls.listener import TLSListener, server_credentials

            assert isinstance(receive, TLSListener), "it is not in workers"
            credentials = server_credentials(where.cert, where.key, where.client_ca, where.alpn)
            yield lambda: receive.set_credentials(credentials)
        elif self.settings.entry.is_proxy:
            from ...transports.proxies.listener import ProxyListener, login_of

            assert isinstance(receive, ProxyListener), "its clients name their targets"
            owner: Any = where if isinstance(where, ProxyListen) else keys
            login = login_of(owner.user, owner.password, owner.password_file, owner.password_env)
            yield lambda: receive.set_login(login)

    # -- the opening of the listener, on other threads ----------------------------------------------------------------

    def wait(self) -> None:
        """Wait until the listener is open, postponed or has failed, and until the hops of a new route are up."""
        if self._warm_up is not None:
            self._warm_up.wait()
        if self._opening is not None:
            try:
                self.bound = self._opening.wait()
            except _ERRORS as error:
                self.error = error

    @property
    def is_postponed(self) -> bool:
        """True if the listener waits for its server: it counts as open."""
        return self._opening is not None and self.bound is None and self.error is None

    def hand_over(self, outcome: Callable[[], object], postponed: Callable[[Exception], object]) -> BackgroundCall:
        """Return the call that still opens the listener, and pass its events on from now on."""
        assert self._opening is not None
        return self._opening.hand_over(outcome, postponed)

    # -- the end ------------------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Close what was opened, and wait for nothing any more."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.give_up()
        if self.make_send is not None:
            self.make_send.close()

    def return_to_listener(self, call: Call) -> str:
        """Listen again by the old plan; return why that fails, empty if it does not. Not in the main thread."""
        member = self.member
        if not self.is_vacant or member is None or member.opened is None:
            return ""
        try:
            receive = member.plan.listen(None, None)
            try:
                call(functools.partial(self._take_back, _in_this_process(member.opened.tunnel), receive))
            except BaseException:
                receive.close()
                raise
        except _ERRORS as error:
            return f"{member.name}: cannot listen again: {describe_error(error)}"
        self.is_vacant = False
        return ""

    def _take_back(self, tunnel: Tunnel, receive: TunnelListener) -> None:
        assert self.member is not None
        changes.relisten(tunnel, receive, None)
        self.member.relisten(receive)

    def apply(self) -> None:
        """Change the tunnel that runs: its access, its limits, its route and its listener, in the main thread.

        :raises RuntimeError: if the system has no thread left; all is closed then that was opened for it.
        :raises OSError: and others: what a worker raises, such as for a file of rules that has gone since the check.
        """
        member, settings = self.member, self.settings
        assert member is not None
        assert settings is not None
        opened, options = member.opened, settings.plan.options
        if opened is None or not (member.state.accepts or member.state is MemberState.WAITING):
            return self.discard()  # it has ended, or drains, since the reload has begun
        drain, limits = settings.drain_on_reload, options.of_tunnel(member.name)
        del limits["name"]
        if member.plan.in_workers is not None:
            tunnel: Any = opened.tunnel
            tunnel.update(**limits)
            return member.change(settings, opened.receive, opened.make_send)
        tunnel = _in_this_process(opened.tunnel)
        make_send, receive = self.make_send, None
        if self.bound is not None:
            receive = self.bound.receive
            if self._changes_route:
                make_send = self.bound.make_send
            else:
                self.bound.make_send.close()
        if make_send is not None:
            disable(make_send, disabled(opened.make_send))  # by name: also those to which another way leads now
            if (group := target_group(make_send)) is not None and (old := target_group(opened.make_send)) is not None:
                group.take_over(old)
        limits = {name: value for name, value in limits.items() if name not in _LISTS}
        try:
            changes.replace(
                tunnel,
                limits,
                self._tune,
                make_send=make_send,
                receive=receive,
                drain=drain,
                spread=options.drain_spread,
            )
        except RuntimeError:
            self.discard()
            raise
        member.change(settings, receive or opened.receive, make_send or opened.make_send)
        return None

    def _tune(self) -> None:
        for tune in self._tunings:
            tune()


class Leaving:
    """The listeners that a reload closes, in groups: there may be hundreds, and as many new ones.

    :param changes: all of the reload.
    """

    def __init__(self, changes: Iterable[Replacement]) -> None:
        self._groups: dict[object, list[Replacement]] = {}
        for each in changes:
            if each.leaves and each.member is not None and each.member.settings is not None:
                group = group_of(each.old_address, each.member.settings.entry.tunnel)
                self._groups.setdefault(group, []).append(each)

    def near(self, listen: object, tunnel: Any) -> Sequence[Replacement]:
        """Return those that may exclude an address with its tunnel."""
        group = group_of(listen, tunnel)
        return self._groups.get(group, ()) if group is not None else ()


def _same_port(one: object, other: object) -> bool:
    """Return whether a socket of one address can serve the other."""
    return isinstance(one, _AT_PORT) and isinstance(other, _AT_PORT) and _socket_kind(one) == _socket_kind(other)


def _socket_kind(address: Any) -> tuple[str, bool]:
    return address.host, getattr(address, "mptcp", False)


def undo_all(replacements: Sequence[Replacement], call: Call) -> list[str]:
    """Close what was opened for changes, and open again what was closed. Not in the main thread.

    :param call: calls a function in the main thread, and waits for it.
    :returns: the problems with that.
    """
    for each in replacements:
        each.discard()
    vacated = list(dict.fromkeys(other for each in replacements for other in each._vacated))
    return list(filter(None, side_by_side([functools.partial(other.return_to_listener, call) for other in vacated])))


def side_by_side(calls: Sequence[Callable[[], str]]) -> list[str]:
    """Call functions that may take long, each on a thread of its own, and wait for them.

    :param calls: they must not raise.
    :returns: their results, in the order of the functions.
    """
    results = [""] * len(calls)

    def run(number: int) -> None:
        results[number] = calls[number]()

    threads = []
    for number in range(len(calls)):
        thread = threading.Thread(target=run, args=(number,), name="relay-listen", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            run(number)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join()
    return results


def end_sessions(members: Iterable[Member]) -> None:
    """Wait for the ends of sessions under listeners that were closed; reset the connections that hold them longer.

    :param members: the tunnels, side by side. Their connections have the time of their ``drain``, 30 s at most.
    """
    begun = time.monotonic()
    joins = []
    for member in sorted(members, key=lambda one: one.plan.options.drain):
        assert member.opened is not None, "it has listened"
        if member.opened.receive.has_session:
            join = member.opened.receive.join
            joins.append(join)
            join(max(0.0, begun + min(member.plan.options.drain, _VACATE_TIME) - time.monotonic()))
            for record in member.opened.tunnel.connections():
                member.opened.tunnel.kill(record.id)
    until = time.monotonic() + _CLOSE_TIME
    for join in joins:
        join(max(0.0, until - time.monotonic()))


def _open_after(ending: Sequence[Member], opening: Callable[..., Bound], begin: Callable[[Any], object]) -> Bound:
    """Open a listener once sessions have ended that are in its way; see :class:`ListenerOpening`."""
    end_sessions(ending)
    return opening(begin)


def _in_this_process(tunnel: Any) -> Tunnel:
    """Return a tunnel that is not in workers.

    :raises ValueError: if it is.
    """
    if not isinstance(tunnel, Tunnel):
        # An upgrade hands a Unix socket over; it does not for TCP addresses that only overlap.
        remedy = "run relay ctl upgrade" if isinstance(tunnel.address, str) else "restart relay"
        raise ValueError(f"the workers of {tunnel.name} listen at an address that has to be free first; {remedy}")
    return tunnel
