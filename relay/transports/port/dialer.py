"""Dialers for streams to a program that listens: the program is a carrier, which all streams to it share."""

from __future__ import annotations

import functools
import logging

from ...addresses.hops import Command
from ...addresses.port import PortProgram
from ...carriers.carrier import Carrier
from ...carriers.dialer import CarrierDialer, dial
from ...carriers.link import Lost
from ...carriers.pool import CarrierRef
from ...errors import ConnectError, RelayError
from ...streams.promise import Abort, Cancel, OnResult
from ...streams.trace import Stage, Trace, observed
from .place import StrangerError, UnknownOwnerError
from .program import ListeningProgram

logger = logging.getLogger("relay")

_PLACES = 3  # ports that are tried in a row, because another program has taken one


class PortFactory(CarrierDialer[ListeningProgram]):
    """A dialer for connections to a program that listens.

    :param command: the program; of a hop, what :meth:`relay.addresses.hops.Command.to` returns.
    :param trace: observes the steps of each dial.
    """

    def __init__(self, command: Command, trace: Trace) -> None:
        assert isinstance(command, PortProgram)
        name = str(command)
        make = functools.partial(_make_carrier, command, trace)
        super().__init__(name, CarrierRef(name, (command, trace), make))

    def dial(
        self, deadline: float | None, done: OnResult, *, self_contained: bool = False, wait_for_reconnect: bool = True
    ) -> Abort:
        """Begin to open a stream; see :meth:`relay.streams.dialer.Dialer.dial`."""

        def begin(link: ListeningProgram, on_result: OnResult) -> Abort:
            return link.open(self.target, deadline, on_result, alone=self_contained)

        return dial(self._holder.carrier(), begin, deadline, done, wait_for_reconnect=wait_for_reconnect)


def _make_carrier(command: PortProgram, trace: Trace) -> Carrier[ListeningProgram]:
    return Carrier(str(command), _PortConnector(command, trace), None, kind="port")


class _PortConnector:
    """Starts one program, each time that its carrier requests it; see :class:`relay.carriers.link.Connector`."""

    def __init__(self, command: PortProgram, trace: Trace) -> None:
        self._command = command
        self._trace = trace

    def connect(self, deadline: float, cancel: Cancel, lost: Lost) -> ListeningProgram:
        with observed(self._trace, Stage.PROGRAM, str(self._command)) as facts:
            for number in range(1, _PLACES + 1):
                program = ListeningProgram(self._command, lost, self._trace)
                try:
                    program.wait(deadline, cancel)
                except StrangerError as error:
                    program.close()
                    if isinstance(error, UnknownOwnerError):
                        raise RelayError(f"{program.name}: {error}") from error
                    if number == _PLACES:
                        raise ConnectError(f"{program.name}: {error}", reason="denied") from error
                    logger.warning("%s: %s; starting it at another port", program.name, error)
                except BaseException:
                    program.close()
                    raise
                else:
                    facts["place"] = str(program.place.endpoint)
                    return program
        raise AssertionError("the last attempt returns or raises")

    def alternative(self, error: Exception) -> str:
        """Return nothing: there is no other method."""
        return ""

    def close(self) -> None:
        """Do nothing: it holds nothing."""
