"""An upgrade, in the process that is replaced: it hands its listening sockets over to its successor.

Everything that can fail comes first, in the successor. Until that is ready, this process accepts clients as before, and
every failure leaves it as it was. Only what two processes cannot have at once is closed earlier, and opened again after
a failure.

Who holds what, after each message (:mod:`.upgrade_channel`); ``-`` is none of the two:

============================== ======== ========= ========= ========= ===========
resource                       offered  prepared  go        ready     released
============================== ======== ========= ========= ========= ===========
TCP and Unix sockets, those of old      both      both      both      new
operators among them
clients that connect           old      old       old       new       new
files of Unix sockets          old      old       old       new       new
listeners at servers           old      old       -         new       new
sessions of keys to targets    old      old       -         new       new
file of the state              old      old       new, read new       new
requests of operators          old      old       old       old       new
the service manager            old      old       old       old       new
============================== ======== ========= ========= ========= ===========

This process makes the change as a :class:`.Transition`: it vacates before ``go``, commits after ``ready``, and restores
after a failure. :meth:`HandOver._transition` has the steps, the last to be vacated first in the way back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ...access.ledger import LedgerEntry
from ...addresses.hops import listens_at_server
from ...addresses.printable import printable
from ...addresses.values import SystemdListen
from ...carriers.link import CarrierState
from ...engine.tunnel import Tunnel
from ...eventloop.backoff import Backoff
from ...transports.activated import received
from ...transports.unix import UnixListener
from ..disabled_targets import disabled
from ..failures import ConflictError, describe_error
from ..group import Group
from ..kept_state import KeptState
from ..member import Member, MemberState
from ..reporter import Supervisor
from ..service_manager import is_stored_name
from ..status import UpgradeReport
from .keyed_sessions import KeyedSessions
from .old_listener import OPENING_ERRORS, OldListener, end_sessions
from .reload import Reloads
from .successor import Program, Successor, log_failure
from .transition import Step, Transition, side_by_side
from .upgrade_channel import (
    ENVIRONMENT,
    PROTOCOL,
    UpgradeChannel,
    UpgradeError,
    UpgradeProtocolError,
    peer_of,
)

if TYPE_CHECKING:  # it is the other way round at run time: operators ask for an upgrade
    from ..operator_sockets import OperatorSockets

logger = logging.getLogger("relay.cli")

_HELLO_TIME = 10.0  # seconds for the first message of the successor
_PREPARE_TIME = 120.0  # seconds for it to check and open everything
_START_TIME = 240.0  # seconds for its tunnels to start; a router may take minutes for a session
_CLOSE_TIME = 5.0  # seconds until this process takes no more operators
_END_TIME = 10.0  # seconds for a successor that has failed to end
_RETURN_TIME = 120.0  # seconds for which it tries to open again what it has closed
_FIRST_PAUSE = 0.25  # seconds until it tries again; each time twice as many
_ROWS = 100  # entries in one message
_FIRST_PROCESS = 1
_UP = CarrierState.UP.value


class _Offer:
    """A socket for the successor.

    :param facts: what it is for.
    :param one: the socket.
    """

    def __init__(self, facts: Mapping[str, Any], one: socket.socket) -> None:
        self.facts = {**facts, "file": one.file_id} if isinstance(one, UnixListener) else facts
        self.socket = one


class HandOver:
    """The hand-over of a group. From any thread; each runs on a thread of its own.

    :param group: the tunnels.
    :param reloads: keep an upgrade out.
    :param sockets: those of operators.
    :param state: the bans and quotas.
    :param program: the command line.
    """

    def __init__(
        self, group: Group, reloads: Reloads, sockets: OperatorSockets, state: KeptState, program: Program
    ) -> None:
        self._group = group
        self._reloads = reloads
        self._sockets = sockets
        self._state = state
        self._program = program
        # Two locks: the thread of start() holds the second one while it waits for what the thread that holds the first
        # one does with the successor.
        self._turn = threading.Lock()  # held during a hand-over
        self._start_turn = threading.Lock()  # held while a successor is started
        self._child: Successor | None = None
        self._channel: UpgradeChannel | None = None  # until the successor has the clients, or it has failed
        self._taken: Sequence[_Offer] = ()  # what the successor keeps

    # -- a successor that this process starts -------------------------------------------------------------------------

    def start(self) -> UpgradeReport:
        """Start the command line again, hand over to it, and wait for that.

        :raises UpgradeError: if it does not become ready; nothing has changed then.
        """
        # Not blocking: a second request must be refused and not wait to upgrade the process that has just been
        # upgraded.
        if not self._start_turn.acquire(blocking=False):
            raise UpgradeError(_BUSY)
        try:
            self._check_start()
            variables = {**self._group.supervisor.environment(), ENVIRONMENT: self._sockets.path}
            self._child = Successor(self._program, variables)
            return self._child.wait()
        finally:
            self._child = None
            self._start_turn.release()

    def _check_start(self) -> None:
        if self._turn.locked() or self._group.is_handing_over:  # also after a success, until this process ends
            raise UpgradeError(_BUSY)
        if self._reloads.sandbox is not None:
            raise UpgradeError("its sandbox would hold for the new process, too; run relay up --upgrade, or restart it")
        if os.getpid() == _FIRST_PROCESS:
            raise UpgradeError("it is process 1, with which its container ends; replace the container")
        if not self._sockets.path:
            raise UpgradeError("it has no control socket")

    # -- the connection of a successor --------------------------------------------------------------------------------

    def serve(self, connection: socket.socket, first: bytes) -> None:
        """Hand over to a process that has connected. Does not wait.

        :param connection: to it.
        :param first: what was read from it.
        """
        channel = UpgradeChannel(connection, first)
        work = threading.Thread(target=self._serve, args=(channel, connection), name="relay-upgrade", daemon=True)
        try:
            work.start()
        except RuntimeError as error:  # the system has no thread left
            logger.error("upgrade: %s; nothing has changed", error)
            channel.fail(str(error))

    def _serve(self, channel: UpgradeChannel, connection: socket.socket) -> None:
        child: Successor | None = None
        try:
            process, user = peer_of(connection)
            child = self._child_of(process)
            hello = channel.receive("upgrade", _HELLO_TIME)
            channel.send({"upgrade": PROTOCOL, "version": version("relay-toolkit"), "pid": os.getpid()})
            self._check_peer(user, hello, is_child=child is not None)
            if not self._turn.acquire(blocking=False):
                raise UpgradeError(_BUSY)
            try:
                self._hand_over(channel, process, child)
            finally:
                self._turn.release()
        except Exception as error:  # whatever it is, start() waits for the outcome
            if not isinstance(error, OPENING_ERRORS):
                logger.exception("upgrade: an error that relay did not expect")
            failure = error if isinstance(error, UpgradeError) else UpgradeError(describe_error(error))
            if child is not None:
                child.settle(failure)
            else:  # else start() reports it
                log_failure(failure)
            channel.fail("\n".join(failure.lines))
            return
        if child is not None:
            child.settle(UpgradeReport(process, printable(str(hello.get("version", "")), 40)))
        channel.close()
        self._group.later(self._group.end_for, f"process {process} has taken over")

    def _check_peer(self, user: int, hello: Mapping[str, Any], *, is_child: bool) -> None:
        if hello["upgrade"] != PROTOCOL:
            theirs = printable(str(hello["upgrade"])[:20])
            raise UpgradeError(f"relay knows version {PROTOCOL} of the upgrade protocol, not {theirs}; restart relay")
        if user != os.geteuid():
            raise UpgradeError(f"process {os.getpid()} runs as user {os.geteuid()}; start the upgrade as that user")
        if self._group.supervisor.is_managed and not is_child:
            raise UpgradeError("systemd runs it; use relay ctl upgrade, which starts the new process in its service")

    def _child_of(self, process: int) -> Successor | None:
        child = self._child
        if child is None or child.pid != process:
            return None
        child.on_connected()
        return child

    def give_up(self, why: str) -> None:
        """End a hand-over that has not succeeded yet: the group is ending. In the main thread.

        :param why: for the successor. It ends, too: it was to take the place of this process, not to survive it. One
            that has waited too long for this process goes on alone, and keeps the files of its sockets.
        """
        channel, self._channel = self._channel, None
        if channel is not None and not channel.give_up(why):
            _disown(self._taken)

    # -- the hand-over ------------------------------------------------------------------------------------------------

    def _hand_over(self, channel: UpgradeChannel, process: int, child: Successor | None) -> None:
        """Hand over to a successor, perhaps one that this process has started.

        :raises UpgradeError: if it fails; all is as before then, as with the following.
        :raises ConflictError: if the group is ending.
        """
        group = self._group
        offers = group.call(self._begin, channel)
        try:
            for offer in offers:
                channel.send({"socket": offer.facts}, offer.socket)
            for member in group.tunnels:
                if member.state is MemberState.PAUSED:
                    channel.send({"paused": member.name})
                if _is_failing(member):
                    channel.send({"failing": member.name})
                if _is_down(member):
                    channel.send({"down": member.name})
                for target in disabled(member.make_send) if member.has_opened else ():
                    channel.send({"disabled": {"tunnel": member.name, "target": target}})
            channel.send({"offered": True})
            self._taken = _taken(channel.receive("prepared", _PREPARE_TIME), offers)
            change, supervisor = self._transition(channel, process), group.supervisor
            try:
                change.vacate()
                channel.send({"go": True})
                channel.receive_decision("ready", _START_TIME)
                try:
                    # In the main thread, where a signal to end is handled: it comes before this and ends both
                    # processes, or after it and finds the clients handed over.
                    group.call(self._commit, channel, change)
                except ConflictError:
                    if not channel.has_received("alone"):
                        raise
                    # A signal was faster than that message; the successor goes on.
            except Exception as error:
                channel.fail(describe_error(error))
                if child is not None:
                    child.end()  # first, because it may have what this process wants back
                change.restore()
                raise
        except BaseException:
            group.is_handing_over, self._channel, self._taken = False, None, ()
            raise
        try:
            supervisor.on_handed_over(process)
        except Exception:  # the other process has the clients now
            logger.exception("upgrade: an error that relay did not expect")
        # On this thread, because it waits. Before "released": from then on the successor answers operators, and none of
        # them may hear from a process that is ending.
        self._sockets.wait_closed(_CLOSE_TIME)
        with contextlib.suppress(UpgradeError):  # it is the successor also if it has died since
            channel.send({"released": True})

    def _begin(self, channel: UpgradeChannel) -> Sequence[_Offer]:
        """Keep reloads out, and return what the successor may take over; in the main thread."""
        if self._group.is_ending:
            raise ConflictError("relay is ending; start it again")
        if any(member.state is MemberState.OPENING for member in self._group.tunnels):
            raise UpgradeError("relay is starting; try again when it has started")
        if self._group.is_handing_over:
            raise UpgradeError(_BUSY)
        if self._reloads.is_under_way:
            raise UpgradeError("a reload is under way; try again when it has ended")
        found = [offer for member in self._group.tunnels if (offer := _offer(member)) is not None]
        found += [_Offer({"operators": True}, one) for one in self._sockets.listening]
        with contextlib.suppress(ValueError):  # malformed variables, which no tunnel has used then
            for name, passed in received().items():
                found += [_Offer({"systemd": name}, one) for one in passed if not is_stored_name(name)]
        self._group.is_handing_over = True
        self._channel = channel
        return found

    def _transition(self, channel: UpgradeChannel, process: int) -> Transition:
        """Return the change of this process; nothing has been vacated yet."""
        group, sessions = self._group, KeyedSessions(self._group.tunnels)
        at_servers = [
            OldListener(member, group.supervisor.on_vacated)
            for member in group.tunnels
            if member.state.accepts and _is_at_server(member)
        ]

        def close_listeners() -> None:
            for each in at_servers:
                logger.info("%s: closing its listener, so that the next process can open it", each.member.name)
                each.vacate()
            end_sessions([each.member for each in at_servers if each.is_vacant])

        def end_keyed_sessions() -> None:
            group.without_probes = frozenset(member.name for member in sessions.members)
            sessions.end()

        def resume_keyed_sessions() -> None:
            _wait_for_end(process)
            sessions.resume()
            group.without_probes = frozenset()
            group.later(lambda: group.on_change([member.now for member in sessions.members]))

        def leave_file() -> None:
            entries = self._entries()
            self._state.vacate(entries)
            for tunnel, rows in entries.items():
                for start in range(0, len(rows), _ROWS):
                    channel.send({"ledger": {"tunnel": tunnel, "entries": rows[start : start + _ROWS]}})

        change = Transition([Step(commit=self._leave)])
        if at_servers:  # they come back last: that may take minutes, if their servers are slow to notice
            change.add(Step(close_listeners, restore=lambda: self._return(at_servers)))
        if sessions.members:
            change.add(Step(end_keyed_sessions, restore=resume_keyed_sessions))
        # Last, so that what clients have done meanwhile is in the file, and so the first to come back.
        change.add(Step(leave_file, restore=lambda: self._state.take(self._entries())))
        return change

    def _return(self, vacated: Sequence[OldListener]) -> None:
        """Open listeners again, as soon as the other process has closed its own. None waits for another one."""
        side_by_side([functools.partial(self._return_one, each) for each in vacated])

    def _return_one(self, vacated: OldListener) -> str:
        until, backoff = time.monotonic() + _RETURN_TIME, Backoff(_FIRST_PAUSE, _RETURN_TIME)
        while not self._group.is_ending and (problem := vacated.restore(self._group.call)):
            pause = backoff.next()
            is_last = time.monotonic() + pause > until
            logger.error("upgrade: %s%s", problem, "" if is_last else "; trying again")
            if is_last or self._group.wait_for_end(pause):
                return problem
        return ""

    def _entries(self) -> dict[str, list[LedgerEntry]]:
        """Return the bans and quotas of all tunnels."""
        from ...engine.ledgers import entries_of

        found = {}
        for member in self._group.tunnels:
            if member.has_opened and isinstance(tunnel := member.relay, Tunnel):
                found[member.name] = [entry for entry, _ in entries_of(tunnel)]
        return {name: entries for name, entries in found.items() if entries}

    def _commit(self, channel: UpgradeChannel, change: Transition) -> None:
        """Leave the clients to the successor; in the main thread. It does not fail.

        :raises ConflictError: if the group is ending.
        :raises UpgradeError: if the successor has ended or given up since it was ready, while this process was held up.
        """
        if self._group.is_ending:
            raise ConflictError("relay is ending; start it again")
        # Here and not on the thread of the upgrade: between this look and the commit no signal may end the group.
        channel.check_waiting("alone")
        self._channel = None  # a signal from now on ends this process alone
        change.commit()

    def _leave(self) -> None:
        """Leave all to the successor: the files of sockets, the clients, the operators, the service manager."""
        _disown(self._taken)  # first: a listener that closes removes a file that it owns
        for member in self._group.tunnels:
            if member.state.accepts:
                member.relay.pause()
        self._sockets.retire()
        self._group.supervisor = Supervisor()  # on_handed_over() has the last word to the old one, which may take long


_BUSY = "another upgrade is under way; wait for its end"


def _is_at_server(member: Member) -> bool:
    return listens_at_server(member.plan.routes.where)


def _wait_for_end(process: int) -> None:
    """Wait until a successor that has failed has ended, and no longer has what this process wants back."""
    if not hasattr(os, "pidfd_open"):
        return
    try:
        descriptor = os.pidfd_open(process)
    except (OSError, OverflowError):  # it has ended, no descriptor is left, or it is not seen from here
        return
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.poll(_END_TIME * 1000)
    finally:
        os.close(descriptor)


def _is_failing(member: Member) -> bool:
    """Return whether a tunnel has a problem that a retry cannot fix."""
    is_refused = member.has_opened and member.make_send.state == CarrierState.FAILED.value
    return is_refused or member.state is MemberState.FAILED


def _is_down(member: Member) -> bool:
    """Return whether the hops of a tunnel are not up."""
    return member.has_opened and member.make_send.state != _UP


def _offer(member: Member) -> _Offer | None:
    """Return the listening socket of a tunnel that another process can take over."""
    where = member.plan.routes.where
    if not member.state.accepts or _is_at_server(member) or isinstance(where, SystemdListen):
        return None
    one = member.receive.listening
    if one is None or one.fileno() < 0:
        return None
    return _Offer({"tunnel": member.name, "any_port": getattr(where, "port", None) == 0}, one)


def _disown(taken: Sequence[_Offer]) -> None:
    """Leave the files of Unix sockets to the successor."""
    for offer in taken:
        if isinstance(offer.socket, UnixListener):
            offer.socket.disown()


def _taken(numbers: object, offers: Sequence[_Offer]) -> list[_Offer]:
    """Return the sockets that the successor keeps.

    :raises UpgradeError: if it names others.
    """
    allowed = range(len(offers))
    if not isinstance(numbers, list) or any(type(one) is not int or one not in allowed for one in numbers):
        raise UpgradeProtocolError("the new process keeps sockets that it was not offered")
    return [offers[one] for one in numbers]
