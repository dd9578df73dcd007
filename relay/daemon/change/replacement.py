"""The preparation of a reload: everything is checked and bound here, before anything is touched.

The opening of a listener has states, because the reload waits for it, and may leave it to the main thread before it is
over:

========= ========= ========= ========================================================================================
state     event     next      action
                    state
========= ========= ========= ========================================================================================
OPENING   postponed POSTPONED end the wait: the listener waits for its server, and counts as open
OPENING   outcome   OVER      end the wait: it is open, or has failed
POSTPONED postponed POSTPONED none
POSTPONED outcome   OVER      none
========= ========= ========= ========================================================================================

After the main thread has taken it over, each event also calls its handler. Events that came before call theirs then.
"""

from __future__ import annotations

import enum
import functools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...access.options import rules_of
from ...addresses.hops import AT_PORT, ProxyListen, owner_of_keys
from ...addresses.https import WITH_CERTIFICATE
from ...addresses.values import TLSListen, has_mptcp
from ...config import LISTS
from ...config.listen_conflicts import exclude_each_other, group_of
from ...engine import changes
from ...engine.command_options import CommandOptions
from ...engine.options import tunnel_options
from ...streams.dialer import Dialer
from ...transports.tcp import Inherited
from ..disabled_targets import disable, disabled, target_group
from ..member import Member, MemberState
from ..plan import Ends, Plan
from ..preflight import Preflight
from ..probes import BackgroundCall, WarmUp
from ..verdicts import EFFECTS, Change, Verdict
from .keyed_sessions import keys_to_targets
from .old_listener import OPENING_ERRORS, OldListener, end_sessions, in_this_process

_WARM_UP = 30.0  # seconds at most for which a reload waits for the hops of a new route
_ACCESS = {"listen", "user", "password", "password_file", "password_env", *LISTS}

_CHANGED = frozenset({Verdict.TUNED, Verdict.REROUTED, Verdict.MOVED})
# Of a tunnel in workers.
_OPTIONS = [
    name for name, one in tunnel_options(CommandOptions).items() if one.effect == "tuned" and one.workers != "one"
]
_IN_PLACE = frozenset({*_OPTIONS, "required", "on_reload", "probe", "probe_interval"})


class Replacement:
    """The change of one tunnel. Used by the thread that reloads, then by the main thread.

    :param change: the verdict.
    :param plan: that of the new file; ``None`` for a tunnel that is gone.
    :param member: the tunnel that runs; ``None`` for a new one.
    """

    def __init__(self, change: Change, plan: Plan | None, member: Member | None) -> None:
        self.change = change
        self.plan = plan
        self.member = member
        self.error: Exception | None = None
        self.bound: Ends | None = None
        """The listener and the factory, once they are open."""
        self.make_send: Dialer | None = None
        """The factory of another route, if only that changes."""
        self.is_deferred = False
        """Whether it opens after the commit, because its predecessor has not opened yet."""
        verdict = self.verdict = change.verdict
        """The verdict on the tunnel."""
        self.is_replaced = self._is_replaced()
        """Whether another tunnel takes its place, perhaps with its socket."""
        self.listens_anew = verdict is Verdict.NEW or self.is_replaced
        """Whether it needs another listener."""
        if verdict is Verdict.MOVED and not self.is_replaced:
            self.listens_anew = not self._stays_in_place()
        self.leaves = verdict is Verdict.GONE or (verdict in _CHANGED and self.listens_anew)
        """Whether the listener of the tunnel that runs is closed."""
        self._opening: ListenerOpening | None = None
        self._warm_up: WarmUp | None = None
        self._tunings: list[Callable[[], object]] = []

    def _is_replaced(self) -> bool:
        """Return whether another tunnel takes its place: in workers only limits change in place."""
        if self.member is None or self.plan is None or self.verdict not in _CHANGED:
            return False
        in_workers = self.member.plan.in_workers is not None or self.plan.in_workers is not None
        return in_workers and not _IN_PLACE.issuperset(self.change.keys)

    def _stays_in_place(self) -> bool:
        """Return whether the listener can take the new identity: TLS keys at the same address."""
        assert self.plan is not None
        assert self.member is not None
        old, new = self.member.plan.table.listen, self.plan.table.listen
        both = isinstance(old, WITH_CERTIFICATE) and type(old) is type(new)
        if not both or _socket_kind(old) != _socket_kind(new):
            return False
        return old.port == new.port and self.member.has_opened  # type: ignore[union-attr]

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
        plan = self.plan
        assert plan is not None
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
        except OPENING_ERRORS as error:
            self.error = error

    def _begin_warm_up(self) -> None:
        """Connect the hops of the new route, so that clients need not wait for them while the old ones are up."""
        assert self.plan is not None
        plan, member = self.plan, self.member
        is_up = member is not None and member.has_opened and member.make_send.state == "up"
        # A session of the same keys can begin only when the old one has ended.
        if is_up and not keys_to_targets(plan.routes):
            seconds = min(plan.options.connect_timeout or _WARM_UP, _WARM_UP)
            assert self.make_send is not None, "its route changes"
            self._warm_up = WarmUp(plan.name, self.make_send, seconds)

    def must_vacate(self, leaving: Leaving) -> bool:
        """Return whether an old listener must close before this one's can open."""
        return any(not _same_port(self._listen_address, other.address) for other in self._in_its_way(leaving))

    def _in_its_way(self, leaving: Leaving) -> Iterator[OldListener]:
        """Return the listeners that exclude the new one."""
        if self.plan is None or not self.listens_anew:
            return
        entry = self.plan.table
        for other in leaving.near(entry.listen, entry.tunnel):
            if exclude_each_other(entry.listen, entry.tunnel, other.address, other.tunnel_keys):
                yield other

    @property
    def _listen_address(self) -> object:
        return self.plan.table.listen if self.plan is not None else None

    def _listen(self, preflight: Preflight, leaving: Leaving) -> None:
        """Begin to open the listener; those in its way hand their sockets over, or close first."""
        plan = self.plan
        assert plan is not None
        heirlooms: list[socket.socket] = []
        ending: list[Member] = []
        for other in self._in_its_way(leaving):
            if _same_port(self._listen_address, other.address):
                heirlooms += other.sockets()  # shareable: both are open until the commit, and no client is refused
            else:
                plan.check(preflight)  # all that can be checked while the old listener is open
                leaving.vacated[other] = None  # first: if it fails, the listener may be closed already
                other.vacate()
                if owner_of_keys(other.member.plan.routes.where) is not None:
                    ending.append(other.member)  # this one needs the keys of its session
        opening = functools.partial(plan.bind, preflight, inherited=Inherited(heirlooms))
        self._opening = ListenerOpening(functools.partial(_open_after, ending, opening))

    def _access(self) -> Iterable[Callable[[], object]]:
        """Return what changes the access to the listener in place."""
        assert self.plan is not None
        assert self.member is not None
        where, keys = self.plan.routes.where, self.plan.table.tunnel
        if not self.member.has_opened or not _ACCESS & set(self.change.keys):
            return
        receive = self.member.receive
        if self.member.plan.in_workers is None and {"allow", "deny"} & set(self.change.keys):
            options, tunnel = self.plan.options, in_this_process(self.member.relay)
            rules = rules_of(options.allow, options.deny)
            yield lambda: changes.set_rules(tunnel, rules)
        if isinstance(where, WITH_CERTIFICATE):
            from ...transports.tls.listener import TLSListener, server_credentials

            assert isinstance(receive, TLSListener), "it is not in workers"
            alpn = where.alpn if isinstance(where, TLSListen) else None
            credentials = server_credentials(where.cert, where.key, where.client_ca, alpn, where.groups)
            yield lambda: receive.set_credentials(credentials)
        if self.plan.table.is_proxy:
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
            except OPENING_ERRORS as error:
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

    def apply(self) -> None:
        """Change the tunnel that runs: its access, its limits, its route and its listener, in the main thread.

        :raises RuntimeError: if the system has no thread left; all is closed then that was opened for it.
        :raises OSError: and others: what a worker raises, such as for a file of rules that has gone since the check.
        """
        member, plan = self.member, self.plan
        assert member is not None
        assert plan is not None
        options = plan.options
        if not member.has_opened or not (member.state.accepts or member.state is MemberState.WAITING):
            return self.discard()  # it has ended, or drains, since the reload has begun
        drain, limits = plan.drain_on_reload, options.of_tunnel(member.name)
        del limits["name"]
        if member.plan.in_workers is not None:
            tunnel: Any = member.relay
            tunnel.update(**limits)
            return member.change(plan, member.receive, member.make_send)
        tunnel = in_this_process(member.relay)
        make_send, receive = self.make_send, None
        if self.bound is not None:
            receive = self.bound.receive
            if self._changes_route:
                make_send = self.bound.make_send
            else:
                self.bound.make_send.close()
        if make_send is not None:
            disable(make_send, disabled(member.make_send))  # by name: also those to which another route leads now
            if (group := target_group(make_send)) is not None and (old := target_group(member.make_send)) is not None:
                group.take_over(old)
        limits = {name: value for name, value in limits.items() if name not in LISTS}
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
        member.change(plan, receive or member.receive, make_send or member.make_send)
        return None

    def _tune(self) -> None:
        for tune in self._tunings:
            tune()


class Leaving:
    """The listeners that a reload closes, in groups: there may be hundreds, and as many new ones.

    :param changes: all of the reload.
    :param on_vacated: called with the name of a tunnel whose listener has closed for another one.
    """

    def __init__(self, changes: Iterable[Replacement], on_vacated: Callable[[str], object] = lambda _: None) -> None:
        self.vacated: dict[OldListener, None] = {}
        """Those that had to close before the commit, in their order."""
        self._groups: dict[object, list[OldListener]] = {}
        for each in changes:
            if each.leaves and each.member is not None:
                old = OldListener(each.member, on_vacated)
                self._groups.setdefault(group_of(old.address, old.tunnel_keys), []).append(old)

    def near(self, listen: object, tunnel: Any) -> Sequence[OldListener]:
        """Return those that may exclude an address with its tunnel."""
        group = group_of(listen, tunnel)
        return self._groups.get(group, ()) if group is not None else ()


def _same_port(one: object, other: object) -> bool:
    """Return whether a socket of one address can serve the other."""
    return isinstance(one, AT_PORT) and isinstance(other, AT_PORT) and _socket_kind(one) == _socket_kind(other)


def _socket_kind(address: Any) -> tuple[str, bool]:
    return address.host, has_mptcp(address)


def _open_after(ending: Sequence[Member], opening: Callable[..., Ends], begin: Callable[[Any], object]) -> Ends:
    """Open a listener once sessions have ended that are in its way; see :class:`ListenerOpening`."""
    end_sessions(ending)
    return opening(begin)


class OpeningState(enum.Enum):
    """The state of an opening; the docstring of the module has the table."""

    OPENING, POSTPONED, OVER = range(3)


class ListenerOpening:
    """The opening of one listener, on a thread of its own.

    :param opening: opens it; called with a function for postponements, as by
        :class:`relay.daemon.probes.BackgroundCall`.
    """

    def __init__(self, opening: Callable[..., Ends]) -> None:
        self._lock = threading.Lock()  # for the state and the handlers
        self._state = OpeningState.OPENING
        self._settled = threading.Event()
        self._problem: Exception | None = None  # of the last postponement
        self._handlers: tuple[Callable[[], object], Callable[[Exception], object]] | None = None
        self._call = BackgroundCall(opening, self._on_outcome, self._on_postponed)

    def wait(self) -> Ends | None:
        """Wait until the listener is open; ``None`` if it is postponed.

        :raises Exception: why it cannot be opened.
        """
        self._settled.wait()
        with self._lock:
            is_over = self._state is OpeningState.OVER
        return self._call.outcome() if is_over else None

    def give_up(self) -> None:
        """Do not open it any more, or close it."""
        self._call.give_up()

    def hand_over(self, outcome: Callable[[], object], postponed: Callable[[Exception], object]) -> BackgroundCall:
        """Return the call that still opens the listener, and pass its events on from now on."""
        with self._lock:
            self._handlers = outcome, postponed
            is_over, problem = self._state is OpeningState.OVER, self._problem
        if problem is not None:
            postponed(problem)
        if is_over:
            outcome()
        return self._call

    def _on_outcome(self) -> None:
        with self._lock:
            self._state = OpeningState.OVER
            handlers = self._handlers
        self._settled.set()
        if handlers is not None:
            handlers[0]()

    def _on_postponed(self, error: Exception) -> None:
        with self._lock:
            if self._state is OpeningState.OPENING:
                self._state = OpeningState.POSTPONED
            self._problem = error
            handlers = self._handlers
        self._settled.set()
        if handlers is not None:
            handlers[1](error)
