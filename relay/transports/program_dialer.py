"""Dialers of programs, and the network behind a program that is a hop; see :mod:`relay.transports.program`."""

from __future__ import annotations

from collections.abc import Sequence

from ..addresses.hops import Command
from ..addresses.values import TCPAddress
from ..streams.dialer import Dialer, Network
from ..streams.promise import Abort, OnResult
from ..streams.trace import Trace
from .program import run


class Programs(Dialer):
    """A factory for streams that are a program's standard input and output, a new process for each.

    :param words: and the name: as for :func:`relay.transports.program.run`.
    """

    def __init__(self, words: Sequence[str], name: str) -> None:
        super().__init__(name)
        self._name = name
        self._words = words

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to start the program; see :meth:`relay.streams.dialer.Dialer.dial`."""
        return run(self._words, self._name, deadline, done, target=self.target, alone=self_contained)


class Local(Programs):
    """Streams to a command that runs here, a new process for each; see :func:`relay.transports.program.run`.

    :param command: what to run; of a hop, what :meth:`relay.addresses.hops.Command.to` returns.
    """

    def __init__(self, command: Command) -> None:
        super().__init__(command.words, str(command))


def local(command: Command, trace: Trace) -> Dialer:
    """Return a dialer for streams to a program that runs here.

    :param command: the program, of ``exec:`` or of ``port:``.
    :param trace: observes the steps of a program that listens.
    """
    if command.scheme != "port":
        return Local(command)
    from .port.dialer import PortFactory

    return PortFactory(command, trace)


class ProgramNetwork:
    """The network as seen from a program such as a ``ProxyCommand``, which receives the host and the port.

    :param command: the program.
    :param below: the network of the machine on which it runs.
    """

    def __init__(self, command: Command, below: Network) -> None:
        self._command = command
        self._below = below

    def to(self, place: TCPAddress) -> Dialer:
        """Return a dialer that starts the program for each stream, with the host and the port filled in."""
        made = self._below.to(self._command.to(place))
        made.target = str(place)
        return made
