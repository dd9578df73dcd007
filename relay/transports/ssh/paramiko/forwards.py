"""What the server listens to for us (RFC 4254, section 7), and who gets the channels that come of it."""

from __future__ import annotations

import logging
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import paramiko

from ....addresses.printable import LONGEST_HOST, originator, printable
from ....addresses.values import TCPAddress, UnixAddress
from ....errors import ForwardError
from ..connection import Accepted, Address
from ..open_failures import PROHIBITED, SHORTAGE
from .channel import accept
from .messages import OPEN, REFUSED, guarded, text
from .mux import Channels
from .requests import Requests
from .transport import Transport

__all__ = ["Dispatcher", "Forwards", "Incoming", "Taken"]

logger = logging.getLogger("relay.ssh")

_HELD = 1024  # channels that wait for the answer that tells whose they are
_PAST = 64  # places that are remembered
_WARNINGS = 20  # of different places, for the server says what they are
_WAIT = 1.0  # seconds for the answer to a cancellation


@dataclass(frozen=True, slots=True)
class Incoming:
    """A channel that a server wants to open because somebody has connected to where it listens.

    :param sender: the server's number of the channel.
    :param window: bytes that it takes.
    :param packet: bytes that it takes in one packet.
    :param place: where somebody has connected to, in the server's words.
    :param peer: who has: ``(host, port)``, or a text where the server does not tell.
    """

    sender: int
    window: int
    packet: int
    place: Address
    peer: object


Taken = Callable[[Incoming], object]


class Dispatcher:
    """Gives every forwarded channel to whoever asked for it; what nobody asked for goes where it went before.

    It works on any :class:`paramiko.Transport`, of which there must be one dispatcher only, because a transport knows
    but one handler. Everything but :meth:`__init__` and :meth:`detach` belongs to the transport's thread.

    :param transport: whose channels; one that was given a handler before goes on to use it for the rest.
    :param refuse: called with a channel that comes for a place nobody listens to; ``None`` for whoever had the
        transport before to judge.
    """

    def __init__(self, transport: paramiko.Transport, refuse: Callable[[Incoming], object] | None = None) -> None:
        self._transport = transport
        self._refuse = refuse
        self._places: dict[Address, Taken] = {}
        self._chosen: dict[TCPAddress, TCPAddress] = {}  # the server has chosen the port → what was asked for
        self._expected = 0  # requests under way whose port is not known yet
        self._held: list[tuple[Incoming, Any]] = []
        self._before: Callable[[Any], object] = transport._handler_table[OPEN]
        transport._handler_table[OPEN] = self._on_open

    def add(self, place: Address, taken: Taken, asked: Address | None = None) -> None:
        """Give what comes for ``place`` to ``taken``.

        :param asked: what the server was asked for, where it has chosen the port.
        """
        self._places[place] = taken
        if isinstance(asked, TCPAddress) and isinstance(place, TCPAddress):
            self._chosen[place] = asked

    def remove(self, place: Address) -> None:
        """Give it to nobody any more."""
        self._places.pop(place, None)
        if isinstance(place, TCPAddress):
            self._chosen.pop(place, None)

    def expect(self) -> None:
        """Hold channels for places that are not known, until :meth:`settle`: the server is about to choose a port."""
        self._expected += 1

    def settle(self) -> None:
        """The port is known, or there will be none: give out what was held."""
        self._expected -= 1
        if not self._expected:
            held, self._held = self._held, []
            for incoming, message in held:
                self._give(incoming, message)

    def detach(self) -> None:
        """Let the transport handle its channels as before."""
        self._transport._handler_table[OPEN] = self._before

    def _on_open(self, message: Any) -> None:
        incoming = _parsed(message)
        if incoming is None:
            self._pass_on(message)
        elif self._expected and self._find(incoming.place) is None and len(self._held) < _HELD:
            self._held.append((incoming, message))
        else:
            self._give(incoming, message)

    def _give(self, incoming: Incoming, message: Any) -> None:
        taken = self._find(incoming.place)
        if taken is not None:
            taken(incoming)
        elif self._refuse is not None:
            self._refuse(incoming)
        else:
            self._pass_on(message)

    def _pass_on(self, message: Any) -> None:
        message.rewind()
        self._before(message)

    def _find(self, place: Address) -> Taken | None:
        """Whose place this is; a server may write an address in another way, which does no harm where the port is
        ours alone."""  # noqa: D205, D209
        taken = self._places.get(place)
        if taken is None and isinstance(place, TCPAddress):
            same = [key for key in self._places if isinstance(key, TCPAddress) and key.port == place.port]
            if not place.port:  # some, as Twisted Conch, announce what was asked for and not what they have chosen
                same = [key for key, asked in self._chosen.items() if asked == place]
            if len(same) == 1:
                return self._places[same[0]]
        return taken


def _parsed(message: Any) -> Incoming | None:
    """A request to open a forwarded channel; ``None`` for another kind."""
    kind = message.get_string()
    sender, window, packet = message.get_int(), message.get_int(), message.get_int()
    if kind == b"forwarded-tcpip":
        place: Address = TCPAddress(_text(message), message.get_int())
        return Incoming(sender, window, packet, place, (originator(_text(message)), message.get_int()))
    if kind == b"forwarded-streamlocal@openssh.com":
        place = UnixAddress(_text(message))
        return Incoming(sender, window, packet, place, str(place))
    return None


def _text(message: Any) -> str:
    return os.fsdecode(message.get_string())


class Forwards:
    """The places where the server listens for one connection of ours.

    :param transport: the connection.
    :param channels: its channels.
    :param requests: its global requests.
    """

    def __init__(self, transport: Transport, channels: Channels, requests: Requests) -> None:
        self._channels = channels
        self._requests = requests
        self._loop = transport.wire.loop
        transport._handler_table[OPEN] = self._on_other
        self._dispatcher = Dispatcher(transport, self._refuse_unknown)
        self._past: deque[Address] = deque(maxlen=_PAST)  # places that were cancelled
        self._warned: set[Address] = set()

    # -- any thread -----------------------------------------------------------------------------------------------

    def listen(self, place: Address, accepted: Accepted, deadline: float | None) -> Address:
        """Ask the server to listen; see :meth:`relay.transports.ssh.connection.Connection.listen`."""
        request = _Request(self._dispatcher, place, partial(self._take, accepted), self._cancel)
        if not self._loop.call(partial(self._ask, request)):
            raise self._lost()
        try:
            answer = request.outcome.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            self._loop.call(request.give_up)
            raise ForwardError(f"{place}: no answer from {self._channels.name} in time; is it alive?") from None
        if answer is not None:
            return answer
        if self._channels.ended is not None:
            raise self._lost()
        raise self._refused(place)

    def stop_listening(self, place: Address) -> None:
        """Ask it to listen no more; waits a second at most."""
        answered: SimpleQueue[bytes | None] = SimpleQueue()

        def ask() -> None:
            self._dispatcher.remove(place)
            self._past.append(place)
            self._cancel(place, answered.put)

        if self._loop.call(ask):
            try:
                answered.get(timeout=_WAIT)
            except Empty:
                logger.debug("%s: no answer to the cancellation of %s", self._channels.name, place)

    # -- the transport's thread -----------------------------------------------------------------------------------

    def _ask(self, request: _Request) -> None:
        request.begin()
        self._requests.ask(_kind(request.place), _data(request.place), request.answered)

    def _cancel(self, place: Address, answered: Callable[[bytes | None], object]) -> None:
        self._requests.ask(f"cancel-{_kind(place)}", _data(place), answered)

    def _take(self, accepted: Accepted, incoming: Incoming) -> None:
        try:
            stream = accept(self._channels, incoming.sender, incoming.window, incoming.packet, str(incoming.place))
        except OSError as error:
            logger.warning("%s: a stream for %s was refused: %s", self._channels.name, incoming.place, error)
            self._refuse(incoming.sender, SHORTAGE)
            return
        if not guarded(accepted, stream, incoming.peer):
            stream.reset()

    def _refuse_unknown(self, incoming: Incoming) -> None:
        """Nobody listens there, or no more: then the client came before the server had taken the place back."""
        if len(self._warned) < _WARNINGS and incoming.place not in {*self._past, *self._warned}:
            self._warned.add(incoming.place)
            problem = "the server announces a stream for a place at which it was not asked to listen; it is refused"
            logger.warning("%s: %s: %s", self._channels.name, printable(str(incoming.place), LONGEST_HOST), problem)
        self._refuse(incoming.sender, PROHIBITED)

    def _refuse(self, sender: int, code: int) -> None:
        self._channels.send(struct.pack(">BII", REFUSED, sender, code) + text("refused") + text("en"))

    def _on_other(self, message: Any) -> None:
        """A channel of a kind that a client has no use for."""
        message.get_string()
        self._refuse(message.get_int(), PROHIBITED)

    def _lost(self) -> OSError:
        assert self._channels.ended is not None
        return self._channels.ended

    def _refused(self, place: Address) -> ForwardError:
        name = self._channels.name
        if isinstance(place, UnixAddress):
            why = "does the file exist already, and does it allow that (AllowStreamLocalForwarding)?"
        elif place.port:
            why = f"is port {place.port} in use there, and does it allow that (AllowTcpForwarding, PermitListen)?"
        else:
            why = "does it allow that (AllowTcpForwarding, PermitListen)?"
        return ForwardError(f"{place}: {name} does not listen there; {why}")


class _Request:
    """One request to listen; everything but ``outcome`` belongs to the transport's thread.

    Its place is known before the server is asked, so that whoever connects at once is served.
    """

    def __init__(self, dispatcher: Dispatcher, place: Address, taken: Taken, cancel: Callable[..., object]) -> None:
        self.place = place
        self.outcome: SimpleQueue[Address | None] = SimpleQueue()
        self._dispatcher = dispatcher
        self._taken = taken
        self._cancel = cancel
        self._given_up = False
        self._granted: Address | None = None
        self._added = False
        self._chosen = isinstance(place, TCPAddress) and not place.port  # by the server

    def begin(self) -> None:
        if self._chosen:
            self._dispatcher.expect()
        elif self.place not in self._dispatcher._places:
            self._added = True
            self._dispatcher.add(self.place, self._taken)

    def give_up(self) -> None:
        """Nobody waits any more; what the server grants, or has granted, is given back."""
        self._given_up = True
        if self._granted is not None:
            self._dispatcher.remove(self._granted)
            self._cancel(self._granted, _nothing)

    def answered(self, data: bytes | None) -> None:
        place = self._granted = self._listening(data)
        if place is None and self._added:
            self._dispatcher.remove(self.place)
        elif place is not None and self._chosen:
            self._dispatcher.add(place, self._taken, self.place)
        if self._given_up:
            self.give_up()
        if self._chosen:
            self._dispatcher.settle()
        self.outcome.put(place)

    def _listening(self, data: bytes | None) -> Address | None:
        """Where the server listens, after its answer."""
        if data is None or not isinstance(self.place, TCPAddress) or self.place.port:
            return self.place if data is not None else None
        port = int.from_bytes(data[:4], "big")
        return TCPAddress(self.place.host, port) if len(data) >= 4 and 0 < port < 65536 else None


def _kind(place: Address) -> str:
    return "tcpip-forward" if isinstance(place, TCPAddress) else "streamlocal-forward@openssh.com"


def _data(place: Address) -> bytes:
    if isinstance(place, TCPAddress):
        return text(place.host) + struct.pack(">I", place.port)
    return text(place.path)


def _nothing(data: bytes | None) -> None:
    pass
