"""The clients that relay has accepted and does not connect yet.

They have not sent their request, or wait for a slot, or get a last reply, or the gate of the tunnel denies them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..access.limit import Action, Limit
from ..access.policy import AccessRules, ClientPolicy, Denial
from ..addresses.printable import printable
from ..eventloop.sockets import format_address
from ..streams.fairness import ROOM, crowding
from ..streams.identity import identity_of_peer
from ..streams.listener import ScreenedAddress, TunnelListener, UpgradeListener
from ..streams.proxy_handshake import HandshakeListener, ProxyHandshake
from ..streams.rate_limited_log import RateLog
from ..streams.stream import RejectedRequest, Stream
from ..streams.user_names import named, unnamed_user
from .admission import Slots
from .connection import Connection
from .ledger_keeper import LedgerKeeper
from .outlets import LedgerStore
from .records import ConnectionState
from .tarpit import take_place

if TYPE_CHECKING:  # few tunnels need them
    from ..access.gate import Gate
    from ..access.ticket import Ticket
    from .header_clients import HeaderClients
    from .header_sender import HeaderSender
    from .questions import Questions, Readings
    from .relay_thread import RelayThread

logger = logging.getLogger("relay")

_UNDECIDED = (ConnectionState.REQUESTING, ConnectionState.REPLYING, ConnectionState.TARPIT)
_MAX_HALF_OPEN = 1024  # clients at one time that have not sent their request, or only get a last reply
_MOST_DENIALS = 600  # lines about denied clients in a minute
_MOST_QUOTAS = 60  # lines about quotas in a minute
_MOST_BANS = 60  # lines about clients that are banned because of wrong passwords, in a minute


class Entrance:
    """The place of clients until relay connects for them, or rejects them. Belongs to the relay thread.

    The client's states are in :mod:`relay.engine.connection`.

    :param owner: the relay thread.
    :param slots: of its connections.
    :param policy: what clients have to fulfil; ``None`` for nothing.
    :param send_proxy: the version of the header with which targets learn who the client is; ``None`` for none.
    :param store: keeps bans and quotas; ``None`` if they end with the process.
    """

    def __init__(
        self,
        owner: RelayThread,
        slots: Slots,
        policy: ClientPolicy | None,
        send_proxy: str | None = None,
        store: LedgerStore | None = None,
    ) -> None:
        self._owner = owner
        self._slots = slots
        self._serving_queue = False
        limited = functools.partial(RateLog, logger, logging.WARNING, timers=owner.loop.timers)
        self._crowded = limited()
        self._guesses = limited()  # wrong users and passwords
        self._denials = limited(_MOST_DENIALS)
        self._bans = limited(_MOST_BANS)
        self._quotas = limited(_MOST_QUOTAS)
        self.gate: Gate | None = None
        self._keeper = LedgerKeeper(owner.name, store, owner.loop.timers) if store is not None else None
        self._headers: HeaderClients | None = None  # None until there are senders of headers
        self._readings: Readings | None = None  # None until there is one, as the following
        self._questions: Questions | None = None
        self.set_policy(policy)
        self.set_header(send_proxy)

    def set_policy(self, policy: ClientPolicy | None) -> None:
        """Decide by another policy about the clients that come from now on."""
        self.policy = policy = policy or ClientPolicy()
        self._rules_of_files = policy.rules if policy.rules is not None and policy.rules.files else None
        if self.gate is not None:
            self.gate.change(policy)
        elif not policy.is_empty or self._keeper is not None:
            self.gate = self._new_gate(policy)
        if self.gate is not None and self.gate.is_idle:
            self.gate = None
        senders = policy.accept_proxy
        self.reads_headers = senders is not None
        """True if each client begins with a header of the PROXY protocol."""
        if self._headers is not None:
            self._headers.senders = senders
        elif senders is not None:
            from .header_clients import HeaderClients

            self._headers = HeaderClients(self._owner, self, senders)

    def set_header(self, version: str | None) -> None:
        """Tell targets by this version of a header who their client is; ``None`` for none."""
        self.sender: HeaderSender | None = None
        """Sends such a header to each target; ``None`` for none."""
        self.introduce: Callable[[Connection, float], bool] | None = None
        if version is not None:
            from .header_sender import HeaderSender

            self.sender = HeaderSender(version)
            self.introduce = self.sender.introduce

    def set_rules(self, rules: AccessRules | None, connections: Iterable[Connection], now: float) -> None:
        """Decide by other rules, also about the clients of these connections."""
        self.set_policy(dataclasses.replace(self.policy, rules=rules))
        if rules is None:
            return
        for connection in connections:
            # One may have ended meanwhile: the end of another one has let it dial.
            if connection.state not in _UNDECIDED and not connection.is_closed:
                decision = rules.decide(connection.summary.who())
                if not decision.is_allowed:
                    self.deny(connection, Denial(decision.rule), now)

    def _new_gate(self, policy: ClientPolicy) -> Gate:
        from ..access.gate import Gate

        gate = Gate(policy, self._owner.loop.timers, book=self._keeper, on_quota=self._on_quota)
        if self._keeper is not None:
            self._keeper.ledger = gate
        return gate

    def _on_quota(self, limit: Limit, key: str, is_used_up: bool) -> None:
        """Log that most of a quota is used, or all of it."""
        from ..access.limiter import ALL

        text = "%s: %s of the quota of %s is used (limit %s)"
        part, clients = "all" if is_used_up else "80 %", "all clients" if key == ALL else key
        self._quotas.log(time.monotonic(), text, self._owner.name, part, clients, limit.name)

    def keep(self) -> None:
        """Hand the bans and quotas over that have changed, at the end of the tunnel."""
        if self._keeper is not None:
            self._keeper.write()

    # -- half-open clients --------------------------------------------------------------------------------------------

    @property
    def half_open(self) -> dict[Connection, None]:
        """The half-open connections, oldest first: they have no slot, and ``nconnect`` does not count them."""
        return self._slots.half_open

    def hand_of(self, listener: TunnelListener) -> Callable[[socket.SocketType, Any, float], object] | None:
        """Return what takes the clients of a listener, if they first send a request or shake hands."""
        if isinstance(listener, UpgradeListener):
            return functools.partial(self._upgrade, listener)
        if isinstance(listener, HandshakeListener):
            return lambda client, peer, now: self.read_request(client, listener.handshake(client), peer, now)
        return None

    def _upgrade(self, listener: UpgradeListener, client: socket.SocketType, peer: Any, now: float) -> None:
        """Begin the handshake of a client, after its header of the PROXY protocol if it has to send one."""
        if self.reads_headers:
            self.read_request(client, None, peer, now, listener)
        elif listener.speaks_for_others(peer):
            listener.upgrade(client, peer, now)
        elif (denial := self.screen(peer, now)) is not None:
            self.deny(self._owner.admit(client, None, peer, now), denial, now)
        else:
            listener.upgrade(client, ScreenedAddress(peer), now)

    def screen(self, peer: Any, now: float) -> Denial | None:
        """Return why a client may not shake hands, if its address alone decides that."""
        if self.gate is None or (identity := identity_of_peer(peer)) is None:
            return None
        return self.gate.screen(identity, now, self._are_rules_read(now))

    def _are_rules_read(self, now: float) -> bool:
        rules, readings = self._rules_of_files, self._readings
        return rules is None or (readings is not None and readings.has_just_read(rules, now))

    def read_request(
        self,
        client: socket.SocketType,
        handshake: ProxyHandshake | None,
        peer: Any,
        now: float,
        listener: UpgradeListener | None = None,
        stream: Stream | None = None,
    ) -> None:
        """Read what a client sends for relay: a header of the PROXY protocol, a request, or both.

        A header comes before the handshake of a ``stream``, so it has been read then.
        """
        if len(self._slots.half_open) >= _MAX_HALF_OPEN:
            self.make_room(now)
        if self.reads_headers and self._headers is not None and stream is None:
            self._headers.read(client, handshake, peer, now, listener)
        elif handshake is not None:
            self.read_handshake(self._owner.admit(client, stream, peer, now), handshake, now)

    def is_introduced(self, stream: Stream, peer: Any, now: float) -> bool:
        """Return whether a client that has shaken hands may go on; one that needed a header and sent none is denied."""
        return not self.reads_headers or self._headers is None or self._headers.offered(stream, peer, now)

    def read_handshake(self, connection: Connection, handshake: ProxyHandshake, now: float) -> None:
        """Read the request of a client whose address is known, unless that bars it: it may guess no password."""
        denial: Denial | None = None
        if self.gate is not None:
            denial = self.gate.bar(connection.summary.who(), now, self._are_rules_read(now))
        if denial is not None:
            self.deny(connection, denial, now)
        else:
            connection.read_request(handshake, now)

    def end_half_open(self, connection: Connection) -> bool:
        """Take a connection that has ended, perhaps half-open; return whether it was that of a client."""
        return self._headers is None or self._headers.end(connection)

    def make_room(self, now: float) -> None:
        """End some half-open connections: they must not keep out others, and nothing is known of either yet."""
        half_open = self._slots.half_open
        if not half_open:
            return
        leaving = crowding(half_open, Connection.source, max(1, _MAX_HALF_OPEN // ROOM))
        text = "%s: %d clients at a time are half-open; the oldest of the largest source are reset (%s)"
        first = format_address(leaving[0].summary.peer) or "a local client"
        self._crowded.log(now, text, self._owner.name, len(half_open), first)
        for connection in leaving:
            connection.give_way(now)

    def on_request(self, connection: Connection, now: float) -> None:
        """Make a stream for a client that has sent its request, or let it wait for a slot."""
        del self._slots.half_open[connection]
        if self.admits(connection, now):
            self._enter(connection, now)

    def _enter(self, connection: Connection, now: float) -> None:
        """Make a stream for a connection that was half-open, or let it wait for a slot."""
        slots, owner = self._slots, self._owner
        if 0 <= slots.limit < slots.used():
            slots.queued[connection] = None
            connection.wait_for_slot()
        else:
            connection.summary.dialed = now
            owner.make_stream(connection, now)
        owner.update_listening()

    def on_rejected_request(self, connection: Connection, rejection: RejectedRequest, now: float) -> None:
        """Log a request that cannot be met, if it is worth a line."""
        if not rejection.problem:
            return
        values = self._owner.name, printable(rejection.problem, 500), format_address(connection.summary.peer)
        if rejection.guessed:
            connection.summary.rule = "login"
            self.log_denied(connection, now)
            self._guesses.log(now, "%s: %s (client %s)", *values)
            self._count_guess(connection, now)
        else:
            logger.info("%s: %s (client %s)", *values)

    def on_last_reply(self, connection: Connection, now: float) -> None:
        """Give the slot of a connection that gets no stream to the next one."""
        self._slots.queued.pop(connection, None)
        self._slots.half_open[connection] = None
        self.serve_queue(now)

    def serve_queue(self, now: float) -> None:
        """Make streams for the connections that wait for a slot, as many as there are slots."""
        # A stream that fails at once frees its slot and comes back here: a queue of thousands would be as many nested
        # calls.
        if self._serving_queue:
            return
        self._serving_queue = True
        try:
            while (connection := self._slots.next_queued()) is not None:
                connection.summary.dialed = now
                self._owner.make_stream(connection, now)
        finally:
            self._serving_queue = False
        if not self._owner.listening:
            self._owner.update_listening()

    # -- the decision about a client ----------------------------------------------------------------------------------

    def admits(self, connection: Connection, now: float) -> bool:
        """Return whether a client gets a stream now; if not, its connection has ended, or waits for an answer."""
        rules, user = self._rules_of_files, unnamed_user(connection.summary.identity)
        if rules is None and user is None:
            return self._decide(connection, now)
        if self._readings is None:
            from .questions import Readings

            self._readings = Readings(self._owner, self._on_read)
        elif self._readings.reads_too_long(now):
            return self._decide(connection, now)
        self._make_half_open(connection, now)
        self._readings.read(rules, user, connection, now)
        return False

    def _decide(self, connection: Connection, now: float) -> bool:
        decision: Denial | Ticket | None = None
        if self.gate is not None:
            summary = connection.summary
            decision = self.gate.enter(summary.who(), now, isinstance(summary.peer, ScreenedAddress))
        if isinstance(decision, Denial):
            self.deny(connection, decision, now)
            return False
        connection.ticket = decision
        if self.policy.admit is None:
            return True
        if self._questions is None:
            from .questions import Questions

            self._questions = Questions(self._owner, self._on_answer)
        self._make_half_open(connection, now)
        self._questions.ask(self.policy.admit, connection, now)
        return False

    def _make_half_open(self, connection: Connection, now: float) -> None:
        half_open = self._slots.half_open
        if len(half_open) >= _MAX_HALF_OPEN:
            self.make_room(now)
        half_open[connection] = None

    def _on_read(self, connection: Connection, now: float) -> None:
        del self._slots.half_open[connection]
        if (identity := connection.summary.identity) is not None:
            connection.summary.identity = named(identity)
        if self._decide(connection, now):
            self._enter(connection, now)

    def _on_answer(self, connection: Connection, answer: bool | tuple[Limit, ...], now: float) -> None:
        del self._slots.half_open[connection]
        if isinstance(answer, tuple):
            gate = self.gate = self.gate or self._new_gate(self.policy)
            decision = gate.enter_within(answer, connection.summary.who(), now, connection.ticket)
            if isinstance(decision, Denial):
                if connection.ticket is not None:  # it takes no place while it is in a tarpit
                    connection.ticket.leave()
                    connection.ticket = None
                return self.deny(connection, decision, now)
            connection.ticket = decision
        elif not answer:
            return self.deny(connection, Denial("admit"), now)
        return self._enter(connection, now)

    def deny(self, connection: Connection, denial: Denial, now: float) -> None:
        """Reject a client."""
        connection.summary.rule = denial.rule
        self.log_denied(connection, now)
        if connection.flows is not None:
            return connection.close("denied", now)
        is_kept = denial.action is Action.TARPIT and not self._owner.is_closing  # which waits for each client
        if not is_kept or not take_place():
            return connection.fail("denied", now, clean=denial.action is Action.CLOSE)
        self._slots.half_open.pop(connection, None)  # it counts once
        self._slots.tarpit[connection] = None
        return connection.keep_in_tarpit(denial.seconds, now)

    def empty_tarpit(self, now: float) -> None:
        """End the denied clients that are kept: the tunnel does not wait for them."""
        for connection in list(self._slots.tarpit):
            connection.give_way(now)

    def _count_guess(self, connection: Connection, now: float) -> None:
        """Count a wrong password, and ban its client if it has sent several."""
        gate = self.gate
        if gate is None:
            if not self._owner.is_exposed:
                return
            gate = self.gate = self._new_gate(ClientPolicy())
        limit = gate.login_failed(connection.summary.who(), now, self._owner.is_exposed)
        if limit is not None:
            text = "%s: %s sent %d wrong passwords; it is rejected for %g s"
            rate, client = limit.terms.rate, format_address(connection.summary.peer) or "a local client"
            self._bans.log(now, text, self._owner.name, client, rate.most if rate else 0, limit.terms.ban)
            self._end_guesses(gate, connection, now)

    def _end_guesses(self, gate: Gate, guesser: Connection, now: float) -> None:
        """End what a client that is banned now has opened before: each connection would be one more guess."""
        for connection in list(self._slots.half_open):
            if connection is guesser or connection.state is not ConnectionState.REQUESTING:
                continue
            if (ban := gate.bar(connection.summary.who(), now, are_rules_read=False)) is not None:
                connection.summary.rule = ban.rule
                self.log_denied(connection, now)
                connection.close("denied", now)

    def log_denied(self, connection: Connection, now: float) -> None:
        """Log a client that a rule has denied, in the form that programs such as fail2ban read. It is stable."""
        summary, tunnel = connection.summary, re.sub(r"[^\w.-]", "_", self._owner.name)
        header = summary.reported()
        is_senders = header is not None and header.source is None  # the address is that of a balancer
        identity = summary.who()
        is_claimed = isinstance(summary.peer, (str, bytes)) or (identity is not None and not identity.is_verified)
        peer = "" if is_senders or is_claimed else format_address(summary.peer)
        if not peer:  # others have chosen what looks like an address: the client of a Unix socket, or an SSH server
            if is_senders and identity is not None and identity.kind == "tcp":
                identity = None
            peer = re.sub(r"\s", "_", str((identity and identity.destination) or identity or "-"))
        self._denials.log(now, "denied peer=%s tunnel=%s rule=%s", peer, tunnel, printable(summary.rule or "-", 200))
