"""Remote forwards: the server listens for relay and opens a channel for each connection (RFC 4254, section 7)."""

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
from .messages import OPEN, REFUSED, guarded, text
from .mux import Mux, Requests
from .opening import accept
from .transport import Transport

logger = logging.getLogger("relay.ssh")

_HELD = 1024  # channels that wait for the reply with the port of their forward
_PAST = 64  # cancelled addresses that are remembered
_WARNINGS = 20  # of different addresses, because the server chooses them
_WAIT = 1.0  # seconds for the reply to a cancellation


@dataclass(frozen=True, slots=True)
class Incoming:
    """A channel that a server asks to open because a client has connected to one of its listeners.

    :param sender: the server's number of the channel.
    :param window: bytes that the server accepts.
    :param packet: bytes that it accepts in one packet.
    :param place: the address of the listener, as the server writes it.
    :param peer: the client: ``(host, port)``, or a text if the server does not report it.
    """

    sender: int
    window: int
    packet: int
    place: Address
    peer: object


Taken = Callable[[Incoming], object]


class Dispatcher:
    """Dispatches forwarded channels to the forwards that requested them.

    It works on any :class:`paramiko.Transport`. A transport has one handler for channels, so it can have only one
    dispatcher; channels of other kinds go to the handler that was there before. Everything but :meth:`__init__` and
    :meth:`detach` is for the transport's thread.

    :param transport: the connection.
    :param refuse: called with a channel for an address without a forward; ``None`` to leave it to the handler that
        was there before.
    """

    def __init__(self, transport: paramiko.Transport, refuse: Callable[[Incoming], object] | None = None) -> None:
        self._transport = transport
        self._refuse = refuse
        self._places: dict[Address, Taken] = {}
        self._chosen: dict[TCPAddress, TCPAddress] = {}  # address with the port that the server chose → requested one
        self._expected = 0  # pending requests whose port is not known yet
        self._held: list[tuple[Incoming, Any]] = []
        self._before: Callable[[Any], object] = transport._handler_table[OPEN]
        transport._handler_table[OPEN] = self._on_open

    def add(self, place: Address, taken: Taken, asked: Address | None = None) -> None:
        """Dispatch the channels for an address.

        :param place: the address.
        :param taken: called with each channel.
        :param asked: the requested address, if the server has chosen the port.
        """
        self._places[place] = taken
        if isinstance(asked, TCPAddress) and isinstance(place, TCPAddress):
            self._chosen[place] = asked

    def remove(self, place: Address) -> None:
        """Stop dispatching the channels for an address."""
        self._places.pop(place, None)
        if isinstance(place, TCPAddress):
            self._chosen.pop(place, None)

    def expect(self) -> None:
        """Hold channels for unknown addresses until :meth:`settle`: the server is about to choose a port."""
        self._expected += 1

    def settle(self) -> None:
        """Dispatch the channels that were held: the port is known, or the server has rejected the forward."""
        self._expected -= 1
        if not self._expected:
            held, self._held = self._held, []
            for incoming, message in held:
                self._give(incoming, message)

    def detach(self) -> None:
        """Restore the handler that was there before."""
        self._transport._handler_table[OPEN] = self._before

    def _on_open(self, message: Any) -> None:
        incoming = _parsed(message)
        if incoming is None:
            self._pass_on(message)
        # A client may be faster than the server's reply, in which the port is: its channel waits for it.
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
        # paramiko's handler reads it from its beginning.
        message.rewind()
        self._before(message)

    def _find(self, place: Address) -> Taken | None:
        """Find the forward for an address. If the server writes it differently, a unique port decides."""
        taken = self._places.get(place)
        if taken is None and isinstance(place, TCPAddress):
            same = [key for key in self._places if isinstance(key, TCPAddress) and key.port == place.port]
            if not place.port:  # some, such as Twisted Conch, announce the requested port and not the chosen one
                same = [key for key, asked in self._chosen.items() if asked == place]
            if len(same) == 1:
                return self._places[same[0]]
        return taken


def _parsed(message: Any) -> Incoming | None:
    """Parse a request to open a channel; ``None`` if it is not of a forward."""
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
    """The remote forwards of one connection.

    :param transport: the connection.
    :param mux: its channels.
    :param requests: its global requests.
    """

    def __init__(self, transport: Transport, mux: Mux, requests: Requests) -> None:
        self._mux = mux
        self._requests = requests
        self._loop = transport.wire.loop
        # Before the dispatcher takes its place, which passes on to it whatever is no forward.
        transport._handler_table[OPEN] = self._on_other
        self._dispatcher = Dispatcher(transport, self._refuse_unknown)
        self._past: deque[Address] = deque(maxlen=_PAST)  # addresses that were cancelled
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
            # The server may grant it later, and would then listen for a caller that is gone.
            self._loop.call(request.give_up)
            problem = f"no reply from {self._mux.name} in time; check that the server is alive"
            raise ForwardError(f"{place}: {problem}") from None
        if answer is not None:
            return answer
        if self._mux.ended is not None:
            raise self._lost()
        raise self._refused(place)

    def stop_listening(self, place: Address) -> None:
        """Cancel the forward; waits for a second at most."""
        answered: SimpleQueue[bytes | None] = SimpleQueue()

        def ask() -> None:
            self._dispatcher.remove(place)
            self._past.append(place)
            self._cancel(place, answered.put)

        if self._loop.call(ask):
            try:
                answered.get(timeout=_WAIT)
            except Empty:
                logger.debug("%s: no answer to the cancellation of %s", self._mux.name, place)

    # -- the transport's thread -----------------------------------------------------------------------------------

    def _ask(self, request: _Request) -> None:
        request.begin()
        self._requests.ask(_kind(request.place), _data(request.place), request.answered)

    def _cancel(self, place: Address, answered: Callable[[bytes | None], object]) -> None:
        self._requests.ask(f"cancel-{_kind(place)}", _data(place), answered)

    def _take(self, accepted: Accepted, incoming: Incoming) -> None:
        name = printable(str(incoming.place), LONGEST_HOST)  # the server may write the address in its own way
        try:
            stream = accept(self._mux, incoming.sender, incoming.window, incoming.packet, name)
        except OSError as error:
            logger.warning("%s: a stream for %s was rejected: %s", self._mux.name, name, error)
            self._refuse(incoming.sender, SHORTAGE)
            return
        if not guarded(accepted, stream, incoming.peer):
            stream.reset()

    def _refuse_unknown(self, incoming: Incoming) -> None:
        """Reject a channel for an address without a forward; warn, unless that was cancelled a moment before."""
        if len(self._warned) < _WARNINGS and incoming.place not in {*self._past, *self._warned}:
            self._warned.add(incoming.place)
            problem = "rejected a stream: relay did not request a listener at this address"
            logger.warning("%s: %s: %s", self._mux.name, printable(str(incoming.place), LONGEST_HOST), problem)
        self._refuse(incoming.sender, PROHIBITED)

    def _refuse(self, sender: int, code: int) -> None:
        self._mux.send(struct.pack(">BII", REFUSED, sender, code) + text("refused") + text("en"))

    def _on_other(self, message: Any) -> None:
        """Reject a channel of another kind."""
        message.get_string()
        self._refuse(message.get_int(), PROHIBITED)

    def _lost(self) -> OSError:
        assert self._mux.ended is not None
        return self._mux.ended

    def _refused(self, place: Address) -> ForwardError:
        name = self._mux.name
        if isinstance(place, UnixAddress):
            problem = "check that the file does not exist, and AllowStreamLocalForwarding"
        elif place.port:
            problem = f"check that port {place.port} is free there, and AllowTcpForwarding and PermitListen"
        else:
            problem = "check AllowTcpForwarding and PermitListen"
        return ForwardError(f"{place}: {name} does not listen there; {problem}")


class _Request:
    """One request to listen; everything but ``outcome`` is for the transport's thread.

    Its address is registered before the request is sent, so that the first client is served.
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
        """Stop waiting; cancel the forward that the server has granted, or grants later."""
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
        # After the address is known to the dispatcher: channels that were held find it now.
        if self._chosen:
            self._dispatcher.settle()
        # Last: the caller may cancel as soon as it has the address.
        self.outcome.put(place)

    def _listening(self, data: bytes | None) -> Address | None:
        """Return the address at which the server listens; ``None`` if it has rejected the request."""
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
