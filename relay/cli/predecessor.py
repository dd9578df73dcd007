"""An upgrade, in the process that takes the place of another one; :mod:`.hand_over` is the other half."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any

import click

from ..access.ledger import LedgerEntry
from ..addresses.i2p import I2PListen
from ..addresses.ssh import SSHListen
from ..operations.upgrade_channel import (
    PROTOCOL,
    PeerEndedError,
    UpgradeChannel,
    UpgradeError,
    UpgradeProtocolError,
    peer_of,
)
from ..transports.activated import add_received
from ..transports.tcp import inheriting
from ..transports.unix import UnixListener
from .member import Member
from .output import describe_error, print_error
from .plan import Bound
from .preflight import Preflight
from .top_keys import Swap

__all__ = ["Predecessor"]

logger = logging.getLogger("relay.cli")

_ANSWER_TIME = 10.0  # seconds for each answer of the other process
_GO_TIME = 120.0  # seconds in which it closes what only one process can have
_RELEASE_TIME = 30.0  # seconds from the readiness of this process until the other one has stopped
_ERRORS = (OSError, ValueError, TypeError, RuntimeError)


class Predecessor:
    """The process whose sockets this one takes over. Belongs to the main thread.

    As a context manager it reports the error that ends it, and closes what was not used.
    """

    def __init__(self) -> None:
        self.pid = 0
        """Its process ID."""
        self.ledgers: dict[str, list[LedgerEntry]] = {}
        """Its bans and quotas, by tunnel."""
        self.on_released: list[Callable[[], object]] = []
        """Called in the main thread once this process is the only one."""
        self._channel: UpgradeChannel | None = None  # until it has released its sockets
        self._sockets: list[socket.socket] = []  # all that it has offered
        self._facts: list[dict[str, Any]] = []  # of each
        self._paused: set[str] = set()  # the tunnels that accepted no client
        self._bound: dict[str, Bound] = {}  # the tunnels that have a listener
        self._starting: set[str] = set()  # the tunnels that have not started yet
        self._listeners: list[socket.socket] = []
        self._taken: list[socket.socket] = []  # those of its sockets that are in use here
        self._swap: Swap | None = None

    def __enter__(self) -> Predecessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            is_told = isinstance(error, Exception) and not isinstance(error, click.exceptions.Exit)
            self.fail(
                describe_error(error) if is_told and isinstance(error, Exception) else "the new process has ended"
            )
        for bound in self._bound.values():
            bound.close()
        for one in self._sockets:
            one.close()

    def connect(self, path: str | None) -> None:
        """Connect to it, and take the sockets that it offers. Idempotent.

        :param path: of its control socket; ``None`` if it cannot have one.
        :raises ValueError: if no relay listens there.
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
            problem = f"--upgrade: control socket {path}: no relay listens there; start it without --upgrade"
            raise ValueError(problem) from error
        channel = self._channel = UpgradeChannel(connection, takes_sockets=True)
        _, user = peer_of(connection)
        if user != os.geteuid():
            raise ValueError(f"--upgrade: that relay runs as user {user}; start the upgrade as that user")
        channel.send({"upgrade": PROTOCOL, "version": version("relay-toolkit"), "pid": os.getpid()})
        answer = channel.receive("upgrade", _ANSWER_TIME)
        if answer["upgrade"] != PROTOCOL or not isinstance(pid := answer.get("pid"), int):
            raise UpgradeError("the relay that runs knows another version of the upgrade protocol; restart it")
        self.pid = pid
        while (found := channel.receive_any(("socket", "paused", "offered"), _ANSWER_TIME))[0] != "offered":
            if found[0] == "paused":
                self._paused.add(str(found[1]))
                continue
            self._sockets.append(channel.take_socket())
            self._facts.append(found[1] if isinstance(found[1], dict) else {})
            if isinstance(name := self._facts[-1].get("systemd"), str):
                add_received(name, self._sockets[-1])

    # -- before the first client --------------------------------------------------------------------------------------

    def prepare(self, members: Sequence[Member], open_endpoints: Callable[[], Swap]) -> None:
        """Open and check all that two processes can have at once, then wait for the rest.

        :param members: the tunnels.
        :param open_endpoints: opens the sockets for operators.
        :raises UpgradeError: if the other process has failed.
        :raises ValueError: if the user has to change something first.
        :raises OSError: if something cannot be opened.
        """
        preflight = Preflight(names=False)
        offers = [(one, facts) for one, facts in self._offers() if not _is_cut_off(one, facts)]
        reachable = [one for one, _ in offers]
        problems = []
        for member in members:
            where = member.plan.routes.where
            try:
                if isinstance(where, SSHListen | I2PListen):
                    member.plan.check(preflight)
                    continue
                with inheriting(reachable, self._at_any_port(member.name)) as taken:
                    self._bound[member.name] = member.plan.bind(preflight)
                self._taken += taken
            except _ERRORS as error:
                problems.append((f"{member.name}: {describe_error(error)}", error))
        if problems:
            for text, _ in problems[:-1]:
                print_error(text)
            self.fail("; ".join(text for text, _ in problems))
            kind = ValueError if any(isinstance(error, (ValueError, TypeError)) for _, error in problems) else OSError
            raise kind(problems[-1][0])
        operators = [one for one, facts in offers if facts.get("operators") is True]
        with inheriting(operators, operators) as taken:
            self._swap = open_endpoints()
        self._taken += taken
        self._starting = {member.name for member in members}
        self._wait_for_go()

    def _at_any_port(self, name: str) -> Sequence[socket.socket]:
        """Return the socket of a tunnel that listened at a port which the system had chosen."""
        return [one for one, facts in self._offers() if facts.get("tunnel") == name and facts.get("any_port") is True]

    def _offers(self) -> list[tuple[socket.socket, dict[str, Any]]]:
        return [*zip(self._sockets, self._facts, strict=True)]

    def _wait_for_go(self) -> None:
        assert self._channel is not None, "it is connected"
        self._listeners = [getattr(bound.receive, "listening", bound.receive) for bound in self._bound.values()]
        self._channel.send({"prepared": self._kept()})
        while (found := self._channel.receive_any(("ledger", "go"), _GO_TIME))[0] == "ledger":
            try:
                tunnel, rows = found[1]["tunnel"], found[1]["entries"]
                self.ledgers.setdefault(str(tunnel), []).extend(_entry(*row) for row in rows)
            except (KeyError, TypeError, ValueError) as error:
                raise UpgradeProtocolError("the other process has sent bans that relay does not understand") from error

    def _kept(self) -> list[int]:
        """Return the numbers of the sockets that this process keeps."""
        taken = {*self._taken}
        return [number for number, one in enumerate(self._sockets) if one in taken]

    # -- from the first client on -------------------------------------------------------------------------------------

    def take_bound(self, name: str) -> Bound | None:
        """Return the listener of a tunnel, which the caller owns from now on; ``None`` if it has none yet."""
        return self._bound.pop(name, None)

    def was_paused(self, name: str) -> bool:
        """Return whether the other process accepted no client for a tunnel."""
        return name in self._paused

    def on_outcome(self, member: Member) -> bool:
        """Note that a tunnel has started, has failed, or waits for its server.

        :returns: whether that was the last one that the other process waits for.
        """
        if member.name not in self._starting:
            return False
        self._starting.discard(member.name)
        return not self._starting

    @property
    def is_waiting(self) -> bool:
        """True until it has released its sockets."""
        return self._channel is not None

    def release(self, done: Callable[[str], object]) -> None:
        """Tell it that all have started, and wait on another thread until it has released its sockets.

        :param done: called on that thread with what went wrong; empty if nothing did.
        """
        arguments = self._channel, done
        threading.Thread(target=self._release, args=arguments, name="relay-upgrade", daemon=True).start()

    def _release(self, channel: UpgradeChannel, done: Callable[[str], object]) -> None:
        try:
            channel.send({"ready": True})
            channel.receive("released", _RELEASE_TIME)
        except PeerEndedError as error:  # it has not said that it goes on, so its clients are left
            logger.warning("upgrade: %s; this one goes on", error)
        except UpgradeError as error:
            done(str(error))
            return
        done("")

    def finish(self) -> None:
        """Be the only process: own the files of Unix sockets, and serve operators."""
        assert self._channel is not None, "it was connected until now"
        self._channel.close()
        self._channel = None
        for one in self._listeners:
            if isinstance(one, UnixListener) and one.fileno() >= 0:
                one.adopt()
        for one, facts in self._offers():
            if "systemd" not in facts:
                one.close()
        self._sockets.clear()
        if self._swap is not None:
            self._swap.commit()
        for call in self.on_released:
            call()

    def fail(self, why: str) -> None:
        """Tell it that this process has failed."""
        channel, self._channel = self._channel, None
        swap, self._swap = self._swap, None
        if swap is not None:
            swap.undo()
        if channel is not None:
            channel.fail(why)


def _is_cut_off(one: socket.socket, facts: Mapping[str, Any]) -> bool:
    """Return whether clients no longer reach a Unix socket: its file was removed, or replaced by another one."""
    if one.family != socket.AF_UNIX or "systemd" in facts:
        return False
    try:
        found = os.lstat(one.getsockname())
    except OSError:
        return True
    return facts.get("file") != [found.st_dev, found.st_ino]


def _entry(limit: Any, key: Any, banned_until: Any, used: Any, period: Any) -> LedgerEntry:
    return LedgerEntry(str(limit), str(key), float(banned_until), int(used), float(period))
