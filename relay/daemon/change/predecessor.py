"""An upgrade, in the process that takes the place of another one; :mod:`.hand_over` is the other half.

Its tunnels start paused. It accepts the first client only when all of them have started and the other process can not
take the decision back any more, so that an upgrade that fails has no client to reset.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from ...access.ledger import LedgerEntry
from ...addresses.hops import listens_at_server
from ...addresses.values import TCPAddress, has_mptcp, is_ip_address
from ...config.listen_conflicts import overlap
from ...eventloop.sockets import MPTCP, format_address
from ...transports.activated import add_received
from ...transports.tcp import Inherited
from ...transports.unix import UnixListener
from ..failures import ProblemsError, describe_error, status_of
from ..member import Member
from ..plan import Ends
from ..preflight import Preflight
from ..signals import UNDER_WAY, Signals
from .old_listener import OPENING_ERRORS
from .transition import Step, Transition
from .upgrade_channel import (
    PROTOCOL,
    PeerEndedError,
    PeerLateError,
    UpgradeChannel,
    UpgradeError,
    UpgradeProtocolError,
    peer_of,
)

if TYPE_CHECKING:  # each of them exists before an upgrade
    from ..kept_state import Entries, KeptState
    from ..operator_sockets import OperatorSockets
    from ..options import EndpointPlan

logger = logging.getLogger("relay.cli")

_ANSWER_TIME = 10.0  # seconds for each answer of the other process
_DEATH_TIME = 2.0  # seconds from the end of its connection to that of the process, if it was killed
_GO_TIME = 120.0  # seconds in which it closes what only one process can have
_RELEASE_TIME = (
    30.0  # seconds from the readiness of this process until the other one has stopped; else it goes on alone
)


class _Offer(NamedTuple):
    """A socket that the other process has offered.

    :param socket: it listens.
    :param facts: what it is for.
    """

    socket: socket.socket
    facts: Mapping[str, Any]

    def is_cut_off(self) -> bool:
        """Return whether clients no longer reach a Unix socket: its file was removed, or replaced by another one."""
        if self.socket.family != socket.AF_UNIX or "systemd" in self.facts:
            return False
        try:
            found = os.lstat(self.socket.getsockname())
        except OSError:
            return True
        return bool(self.facts.get("file") != [found.st_dev, found.st_ino])


class Predecessor:
    """The process whose sockets this one takes over. Belongs to the main thread.

    As a context manager it reports the error that ends it, and closes what was not used. The states of an upgrade are
    in :mod:`relay.daemon.change.take_over`.

    :param signals: those that end this process.
    """

    def __init__(self, signals: Signals) -> None:
        self.pid = 0
        """Its process ID."""
        self.has_taken_over = False
        """Whether this process is the one that goes on."""
        self.ledgers: dict[str, list[LedgerEntry]] = {}
        """Its bans and quotas, by tunnel."""
        self.clients = Transition()
        """What this process owns once it accepts clients: it commits before that, in the main thread."""
        self.operators = Transition()
        """What it owns once it is the only one: it commits when the other process has released its sockets."""
        self._signals = signals
        self._channel: UpgradeChannel | None = None  # until it has released its sockets
        self._offers: list[_Offer] = []
        # The tunnels that accepted no client, those with a problem that a retry cannot fix, and those without hops.
        self._states: dict[str, set[str]] = {"paused": set(), "failing": set(), "down": set()}
        self._disabled: dict[str, list[str]] = {}  # targets that got no connections, by tunnel
        self._bound: dict[str, Ends] = {}  # the tunnels that have a listener
        # To the thread that waits for the release: what it calls then, or that there is nothing to wait for.
        self._waits: queue.SimpleQueue[Callable[[UpgradeError | None], object] | None] = queue.SimpleQueue()

    def __enter__(self) -> Predecessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            self.fail(_why(error))
        for bound in self._bound.values():
            bound.close()
        for offer in self._offers:
            offer.socket.close()

    def connect(self, path: str | None) -> None:
        """Connect to it, and take the sockets that it offers. Idempotent.

        :param path: of its control socket; ``None`` if it cannot have one.
        :raises ValueError: if no relay listens there, or it is another user's.
        :raises UpgradeError: if it does not hand over.
        """
        if self._channel is not None:
            return
        if path is None:
            raise ValueError("--upgrade: there is no control socket to take over from; set --control")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_ANSWER_TIME)
            connection.connect(path)
        except OSError as error:
            connection.close()
            place = f"--upgrade: control socket {path}"
            if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
                raise ValueError(f"{place}: no relay listens there; start it without --upgrade") from error
            if isinstance(error, PermissionError):
                raise ValueError(f"{place}: permission denied; start the upgrade as the user of that relay") from error
            if isinstance(error, (TimeoutError, BlockingIOError)):  # the latter: its listen backlog is full
                raise UpgradeError(f"{place}: no answer in time; is that relay stopped?") from error
            raise ValueError(f"{place}: {describe_error(error)}") from error
        channel = self._channel = UpgradeChannel(connection, takes_sockets=True)
        _, user = peer_of(connection)
        if user != os.geteuid():
            raise ValueError(f"--upgrade: that relay runs as user {user}; start the upgrade as that user")
        channel.send({"upgrade": PROTOCOL, "version": version("relay-toolkit"), "pid": os.getpid()})
        _, answer = self._receive(("upgrade",), _ANSWER_TIME)
        if answer["upgrade"] != PROTOCOL or not isinstance(pid := answer.get("pid"), int):
            raise UpgradeError("the relay that runs knows another version of the upgrade protocol; restart it")
        self.pid = pid
        kinds = ("socket", *self._states, "disabled", "offered")
        while (found := self._receive(kinds, _ANSWER_TIME))[0] != "offered":
            if found[0] in self._states:
                self._states[found[0]].add(str(found[1]))
                continue
            if found[0] == "disabled":
                self._take_disabled(found[1])
                continue
            offer = _Offer(channel.take_socket(), found[1] if isinstance(found[1], dict) else {})
            self._offers.append(offer)
            if isinstance(name := offer.facts.get("systemd"), str):
                add_received(name, offer.socket)

    def _take_disabled(self, found: Any) -> None:
        try:
            self._disabled.setdefault(str(found["tunnel"]), []).append(str(found["target"]))
        except (KeyError, TypeError) as error:
            raise UpgradeProtocolError("the other process has sent a target that relay does not understand") from error

    def _receive(self, kinds: tuple[str, ...], seconds: float) -> tuple[str, Any]:
        """Return the next message; a signal ends the wait.

        :raises UpgradeError: as :meth:`UpgradeChannel.receive_any`, and after a signal that ends this process.
        """
        assert self._channel is not None, "it is connected"
        return self._channel.receive_any(kinds, seconds, functools.partial(self._wait, self._channel.fileno()))

    def _wait(self, descriptor: int, seconds: float) -> bool:
        """Wait until a descriptor is readable, for some seconds at most; return whether it is."""
        until, received = time.monotonic() + seconds, []
        self._signals.watch(descriptor, lambda: received.append(True))
        try:
            while not received and (left := until - time.monotonic()) > 0.0:
                number = self._signals.wait(left)
                if number in self._signals.reloading:
                    logger.error("reload: %s", UNDER_WAY)
                elif number:
                    why = signal.Signals(number).name
                    raise UpgradeError(f"the new process was ended by {why} before it was ready")
        finally:
            self._signals.forget(descriptor)
        return bool(received)

    def _has_died(self) -> bool:
        """Return whether it was killed, after the end of the connection; the kernel closes that a little earlier."""
        if not hasattr(os, "pidfd_open"):
            return False
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):  # no descriptor is left, or it is no process ID
            return False
        try:
            return self._wait(descriptor, _DEATH_TIME)
        finally:
            os.close(descriptor)

    # -- before the first client --------------------------------------------------------------------------------------

    def prepare(self, members: Sequence[Member], sockets: OperatorSockets, endpoints: EndpointPlan) -> Entries:
        """Open and check all that two processes can have at once, then wait for the rest.

        :param members: the tunnels.
        :param sockets: those for operators.
        :param endpoints: where they are.
        :returns: the bans and quotas of the other process.
        :raises UpgradeError: if the other process has failed.
        :raises ValueError: if the user has to change something first.
        :raises OSError: if something cannot be opened.
        """
        preflight = Preflight(names=False)
        offers = [offer for offer in self._offers if not offer.is_cut_off()]
        reachable, used = [offer.socket for offer in offers], set()
        problems = []
        for member in members:
            where = member.plan.routes.where
            try:
                if listens_at_server(where):
                    member.plan.check(preflight)
                    continue
                inherited = Inherited(reachable, self._at_any_port(member.name))
                self._bound[member.name] = member.plan.bind(preflight, inherited=inherited)
                used.update(inherited.taken)
            except OPENING_ERRORS as error:
                text = self._problem_of_its_own(where, error) or describe_error(error)
                problems.append((f"{member.name}: {text}", error))
        if problems:
            found = ProblemsError([text for text, _ in problems], max(status_of(error) for _, error in problems))
            self.fail(_why(found))
            raise found
        operators = [offer.socket for offer in offers if offer.facts.get("operators") is True]
        inherited = Inherited(operators, operators)
        self.operators.add(sockets.prepare(endpoints, inherited))
        self.operators.add(Step(commit=sockets.adopt))
        used.update(inherited.taken)
        files = {offer.socket.getsockname(): offer.facts.get("file") for offer in offers}
        for bound in self._bound.values():
            one = bound.receive.listening
            if isinstance(one, UnixListener) and one.file_id is None:  # its file is the other process's
                adopt = functools.partial(one.adopt, files.get(one.getsockname()))
                self.clients.add(Step(commit=adopt, restore=one.disown))
        self._wait_for_go([number for number, offer in enumerate(self._offers) if offer.socket in used])
        return self.ledgers

    def _problem_of_its_own(self, where: Any, error: Exception) -> str:
        """Return the problem of an address that the other process has, not another program; empty if it has not."""
        host, port = getattr(where, "host", None), getattr(where, "port", None)
        if host is None or not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
            return ""
        for one in (offer.socket for offer in self._offers if offer.socket.family != socket.AF_UNIX):
            found = one.getsockname()[:2]
            if found[1] == port and (not is_ip_address(host) or overlap(host, found[0])):
                is_mptcp = one.proto == MPTCP
                differs = is_mptcp != has_mptcp(where)
                how = f" {'with' if is_mptcp else 'without'} mptcp" if differs else ""
                problem = (
                    f"the relay that runs listens at {format_address(found)}{how}, which an upgrade does not change"
                )
                return f"{TCPAddress(host, port)}: {problem}; run relay ctl reload first"
        return ""

    def _at_any_port(self, name: str) -> Sequence[socket.socket]:
        """Return the socket of a tunnel that listened at a port which the system had chosen."""
        named = [offer for offer in self._offers if offer.facts.get("tunnel") == name]
        return [offer.socket for offer in named if offer.facts.get("any_port") is True]

    def _wait_for_go(self, kept: Sequence[int]) -> None:
        """Wait until it has closed what only one process can have, or has died, so that its clients are left."""
        assert self._channel is not None, "it is connected"
        with contextlib.suppress(UpgradeError):  # it has ended; the next message may say why
            self._channel.send({"prepared": kept})
        try:
            while (found := self._receive(("ledger", "go"), _GO_TIME))[0] == "ledger":
                self._take_ledger(found[1])
        except PeerEndedError:
            if not self._has_died():
                raise

    def _take_ledger(self, found: Any) -> None:
        try:
            tunnel, rows = found["tunnel"], found["entries"]
            self.ledgers.setdefault(str(tunnel), []).extend(_entry(*row) for row in rows)
        except (KeyError, TypeError, ValueError) as error:
            raise UpgradeProtocolError("the other process has sent bans that relay does not understand") from error

    def keep(self, state: KeptState) -> None:
        """Close the file of the state again until this process takes over: the other one may have to go on with it.

        :param state: has read it; what it had, and the bans that the other process has sent, count for the tunnels.
        """
        self.clients.add(Step(state.vacate, functools.partial(state.take, self.ledgers), state.vacate))
        self.clients.vacate()

    # -- from the first client on -------------------------------------------------------------------------------------

    def has_bound(self, name: str) -> bool:
        """Return whether a tunnel has a listener already."""
        return name in self._bound

    def take_bound(self, name: str) -> Ends:
        """Return that listener, which the caller owns from now on; on any thread."""
        return self._bound.pop(name)

    def was_paused(self, name: str) -> bool:
        """Return whether the other process accepted no client for a tunnel."""
        return name in self._states["paused"]

    def was_failing(self, name: str) -> bool:
        """Return whether a tunnel had a problem in the other process that a retry cannot fix, such as a login."""
        return name in self._states["failing"]

    def was_down(self, name: str) -> bool:
        """Return whether the hops of a tunnel were not up in the other process."""
        return name in self._states["down"]

    def disabled_targets(self, name: str) -> Sequence[str]:
        """Return the targets of a tunnel to which an operator had given no connections."""
        return self._disabled.get(name, ())

    @property
    def is_waiting(self) -> bool:
        """True until it has released its sockets."""
        return self._channel is not None

    def take_over(self) -> None:
        """Become the process that goes on: all tunnels have started. :meth:`wait_for_release` must follow.

        :raises UpgradeError: if the other one goes on, also because the system has no thread left.
        """
        assert self._channel is not None, "it is connected until it has released its sockets"
        wait = threading.Thread(
            target=_wait_for_release, args=(self._channel, self._waits), name="relay-upgrade", daemon=True
        )
        try:
            wait.start()  # first: from the next message on, none but this process may go on
        except RuntimeError as error:
            raise UpgradeError(str(error)) from error
        try:
            try:
                self._channel.send({"ready": True})
            except UpgradeError:
                self._hear_last_words()
            self.has_taken_over = True
            self.clients.commit()  # before the first client: its ban must be known, and its socket be this process's
        except BaseException:
            self._waits.put(None)
            raise

    def _hear_last_words(self) -> None:
        """Return if the other process has ended without a word, so that its clients are left.

        :raises UpgradeError: if it goes on, or may do so.
        """
        with contextlib.suppress(PeerEndedError):
            self._receive((), _ANSWER_TIME)

    def wait_for_release(self, done: Callable[[UpgradeError | None], object]) -> None:
        """Wait on another thread until the other process has released its sockets.

        :param done: called on that thread with what went wrong; ``None`` if nothing did.
        """
        self._waits.put(done)

    def goes_on_after(self, error: UpgradeError | None) -> bool:
        """Return whether this process goes on after what :meth:`wait_for_release` has found."""
        if error is None:
            return True
        if isinstance(error, PeerLateError):
            assert self._channel is not None, "it was waited for"
            with contextlib.suppress(UpgradeError):  # it has ended meanwhile
                self._channel.send({"alone": True})  # so that it ends, if it was only stopped
        elif not isinstance(error, PeerEndedError):
            return False
        logger.warning("upgrade: %s; this one goes on", error)
        return True

    def finish(self) -> None:
        """Be the only process: serve operators."""
        assert self._channel is not None, "it was connected until now"
        self._channel.close()
        self._channel = None
        for offer in self._offers:
            if "systemd" not in offer.facts:
                offer.socket.close()
        self._offers.clear()
        self.operators.commit()  # last: both processes would answer on one socket, and the service manager hear two

    def fail(self, why: str) -> None:
        """Tell it that this process has failed.

        :param why: a line for each problem.
        """
        channel, self._channel = self._channel, None
        # First: from the message on, the other process may open its file, and own those of its sockets.
        self.operators.restore()
        self.clients.restore()
        if channel is not None:
            channel.fail(why)


def _why(error: BaseException | None) -> str:
    """Return why this process ends, for the other one; a line for each problem."""
    if isinstance(error, ProblemsError):
        return "\n".join(error.lines)
    return describe_error(error) if isinstance(error, Exception) else "the new process has ended"


def _wait_for_release(
    channel: UpgradeChannel, waits: queue.SimpleQueue[Callable[[UpgradeError | None], object] | None]
) -> None:
    if (done := waits.get()) is None:
        return
    try:
        channel.receive_decision("released", _RELEASE_TIME)
    except UpgradeError as error:
        if isinstance(error, PeerEndedError):
            channel.close()
        done(error)
    else:
        done(None)


def _entry(limit: Any, key: Any, banned_until: Any, used: Any, period: Any) -> LedgerEntry:
    return LedgerEntry(str(limit), str(key), float(banned_until), int(used), float(period))
