"""The forwarded ports of all tunnels on one transport of the caller, and the owners of their channels.

A transport of paramiko has one handler for forwarded channels: setting it takes the channels of all forwards, and
cancelling one forward removes it. paramiko also confuses the answers to concurrent global requests. So relay handles
both kinds of messages before paramiko sees them; other messages pass unchanged.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import paramiko

from ...addresses.printable import originator
from ...addresses.values import TCPAddress
from ...errors import ForwardError
from ...transports.ssh.internals import COMPAT, check
from ...transports.ssh.open_failures import PROHIBITED, SHORTAGE
from ...transports.ssh.paramiko.messages import CONFIRMED, OPEN, REFUSED, guarded
from .requests import Requests

if TYPE_CHECKING:
    from .channels import ChannelQueue

__all__ = ["Forwards", "ChannelQueue"]

check(COMPAT, "relay.compat.rforward")

# Without a bound, a server that never answers could fill the memory with channels.
_HELD = 1024  # channels that wait for the answer with the port that the server chose


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A channel that the server opens for a client of a forwarded port."""

    sender: int  # the server's channel number
    window: int
    packet: int
    place: TCPAddress
    peer: tuple[str, int]


_making = threading.Lock()
# Forwards and transport reference each other, so an ID in here always belongs to a live transport.
_known: weakref.WeakValueDictionary[int, Forwards] = weakref.WeakValueDictionary()


class Forwards:
    """The forwards on one open transport; see :meth:`of`. Safe from any thread.

    Once installed it stays, and passes on the messages of other users of the transport.
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()  # guards the following; never held while foreign code runs
        self._places: dict[TCPAddress, ChannelQueue | None] = {}  # None: cancelled, but not confirmed by the server
        self._choosing = 0  # pending requests whose port the server chooses
        self._held: list[tuple[_Incoming, Any]] = []
        self._announced: deque[ChannelQueue] = deque()
        # The caller may have its own handler for other kinds of channels: what relay does not know goes on to it.
        self._before = transport._handler_table[OPEN]
        self.requests = Requests(transport)
        transport._handler_table[OPEN] = self._on_open

    @classmethod
    def of(cls, transport: paramiko.Transport) -> Forwards:
        """Return the forwards of this transport, created on the first call."""
        # Two tunnels that start at the same time must share one table: the second would hide the first one's handler.
        with _making:
            found = _known.get(id(transport))
            if found is None:
                found = _known[id(transport)] = cls(transport)
            return found

    @staticmethod
    def known(transport: object) -> Forwards | None:
        """Return the forwards of this transport, if there are any."""
        return _known.get(id(transport))

    # -- forwards --

    def listen(self, place: TCPAddress, owner: ChannelQueue, seconds: float) -> TCPAddress | None:
        """Ask the server to listen. The owner is registered before, so a client that connects at once is served.

        :param place: address to listen on; with port 0 the server chooses a port.
        :param owner: takes the channels from now on.
        :param seconds: timeout of the answer; a later grant is cancelled.
        :returns: the address on which the server listens; ``None`` if it has denied the request.
        :raises CarrierError: if the connection has ended.
        :raises ForwardError: if there was no answer in time, or another user of this transport listens there.
        """
        request = _Request(place, owner)
        with self._lock:
            # An address that was cancelled and not confirmed yet is None here and may be taken again: answers come in
            # order.
            if self._places.get(place) is not None:
                raise ForwardError(f"{place}: another tunnel over the same SSH connection listens there")
            if place.port:
                # The server may open a channel for a client right behind its answer, and the answer's waiter runs on
                # another thread.
                self._places[place] = owner
            else:
                # The port is not known until the answer comes; until then channels for unknown addresses are held and
                # not refused.
                self._choosing += 1
        self.requests.ask("tcpip-forward", (place.host, place.port), partial(self._listening, request))
        try:
            granted = request.outcome.get(timeout=seconds)
        except Empty:
            # The answer and the timeout may come at the same moment; the lock in there decides which of them counts.
            if self._give_up(request):
                raise ForwardError(
                    f"{place}: no answer from the SSH server in {seconds:g} s; check that it is running"
                ) from None
            # The answer is noted already, so this returns at once.
            granted = request.outcome.get()
        if granted is None and self.requests.ended:
            raise self.requests.lost()
        return granted

    def _listening(self, request: _Request, answer: paramiko.Message | None) -> None:
        """Handle the server's answer; on the transport's thread."""
        place = request.place
        granted = _granted(place, answer)
        with self._lock:
            request.answered = True
            given_up = request.given_up
            if place.port and granted is None:
                self._places.pop(place, None)
            elif granted is not None:
                # The server has granted a port that no tunnel wants any more. It is known as cancelled, so that its
                # channels are refused and not passed on to the caller's own handler.
                self._places[granted] = None if given_up else request.owner
        if not place.port and not given_up:
            self._settle()
        request.outcome.put(granted)
        if given_up and granted is not None:  # sending may have to wait for this thread
            threading.Thread(
                target=self.cancel, args=(granted, 0.0), name=f"relay {granted} cancel", daemon=True
            ).start()

    def _give_up(self, request: _Request) -> bool:
        """Stop waiting for the answer.

        :returns: ``False`` if it has come at the last moment.
        """
        with self._lock:
            if request.answered:
                return False
            request.given_up = True
            if request.place.port:
                self._places[request.place] = None
        if not request.place.port:
            self._settle()
        return True

    def cancel(self, place: TCPAddress, seconds: float) -> bool:
        """Ask the server to stop listening; further channels are refused.

        :param place: as in :meth:`listen`.
        :param seconds: timeout of the answer.
        :returns: whether there was an answer.
        """
        answer: SimpleQueue[None] = SimpleQueue()
        with self._lock:
            self._places[place] = None

        def answered(message: paramiko.Message | None) -> None:
            with self._lock:
                # Unless a new request for the same address has come meanwhile: that one owns the entry now.
                if self._places.get(place, self) is None:
                    del self._places[place]
            answer.put(None)

        self.requests.ask("cancel-tcpip-forward", (place.host, place.port), answered)
        try:
            answer.get(timeout=seconds)
        except Empty:
            return False
        return True

    # -- channels --

    def announce(self, owner: ChannelQueue) -> None:
        """Give ``owner`` a channel of the accept queue: the last one of a foreign handler, or the oldest."""
        with self._lock:
            self._announced.append(owner)
        # On the transport's thread the caller's handler is still running, and its channel is not in the queue yet:
        # _give hands out after the handler has returned.
        if threading.current_thread() is not self._transport:
            self._hand_out(None)

    def find(self, host: str, port: int) -> tuple[bool, ChannelQueue | None]:
        """Look up a forwarded address: return true if it is known, and the owner that still takes its channels."""
        with self._lock:
            return self._find(host, port)

    def _find(self, host: str, port: int) -> tuple[bool, ChannelQueue | None]:
        # relay asks for 127.0.0.1; a server may name its loopback differently when a client comes.
        for name in (host, "127.0.0.1") if host in ("localhost", "") else (host,):
            if (place := TCPAddress(name, port)) in self._places:
                return True, self._places[place]
        return False, None

    def _settle(self) -> None:
        """Pass on the waiting channels, once the port is known or denied."""
        with self._lock:
            self._choosing -= 1
            # Another request may have asked for the very port that a held channel is for.
            if self._choosing:
                return
            held, self._held = self._held, []
            if self.requests.ended:
                return
        for incoming, message in held:
            self._give(incoming, message)

    def _on_open(self, message: Any) -> None:
        incoming = _parsed(message)
        if incoming is not None:
            with self._lock:
                is_known, _ = self._find(incoming.place.host, incoming.place.port)
                if not is_known and self._choosing and len(self._held) < _HELD:
                    self._held.append((incoming, message))
                    return
        self._give(incoming, message)

    def _give(self, incoming: _Incoming | None, message: Any) -> None:
        is_known, owner = self.find(incoming.place.host, incoming.place.port) if incoming is not None else (False, None)
        if incoming is None or not is_known:
            # The handler of paramiko reads from the start; parsing here has moved the position on.
            message.rewind()
            self._before(message)
            self._hand_out(incoming.sender if incoming is not None else None)
        elif owner is None:
            self._refuse(incoming, PROHIBITED)
        # Asked before the channel is confirmed: a client that is refused sees that at once, and not a connection that
        # ends.
        elif not owner.has_room():
            self._refuse(incoming, SHORTAGE)
        else:
            guarded(owner.take, self._open(incoming))

    def _hand_out(self, newest: int | None) -> None:
        """Give the channels of the accept queue to the announced owners.

        :param newest: the server's number of a channel that was just queued; ``None`` if there is none.
        """
        while True:
            with self._lock, self._transport.lock:
                queue = self._transport.server_accepts
                if not self._announced or not queue:
                    return
                found = next((at for at, channel in enumerate(queue) if channel.remote_chanid == newest), 0)
                channel, owner = queue.pop(found), self._announced.popleft()
            guarded(owner.take, channel)

    def _open(self, incoming: _Incoming) -> paramiko.Channel:
        """Open a forwarded channel as paramiko does."""
        transport = self._transport
        window, packet = transport.default_window_size, transport.default_max_packet_size
        with transport.lock:
            number = transport._next_channel()
            channel = paramiko.Channel(number)
            # Known to the transport before the answer goes out: the server may send data right behind it.
            transport._channels.put(number, channel)
            transport.channels_seen[number] = True
            channel._set_transport(transport)
            channel._set_window(window, packet)
            channel._set_remote_channel(incoming.sender, incoming.window, incoming.packet)
            channel.origin_addr = incoming.peer
        self._reply(CONFIRMED, incoming.sender, number, window, packet)
        return channel

    def _refuse(self, incoming: _Incoming, reason: int) -> None:
        self._reply(REFUSED, incoming.sender, reason, "refused", "en")

    def _reply(self, kind: int, *parts: int | str) -> None:
        message = paramiko.Message()
        message.add_byte(bytes((kind,)))
        for part in parts:
            message.add_int(part) if isinstance(part, int) else message.add_string(part)
        # Not _send_user_message, which waits for the end of a key exchange: this is the thread that has to do it.
        self._transport._send_message(message)


class _Request:
    """One request to listen."""

    def __init__(self, place: TCPAddress, owner: ChannelQueue) -> None:
        self.place = place
        self.owner = owner
        self.answered = False
        self.given_up = False
        self.outcome: SimpleQueue[TCPAddress | None] = SimpleQueue()


def _granted(place: TCPAddress, answer: paramiko.Message | None) -> TCPAddress | None:
    """Return the address at which the server listens, from its answer."""
    if answer is None or place.port:
        return place if answer is not None else None
    port = answer.get_int()
    return TCPAddress(place.host, port) if 0 < port < 65536 else None


def _parsed(message: Any) -> _Incoming | None:
    """Parse a request to open a forwarded channel (RFC 4254, section 7.2); ``None`` for another kind."""
    if message.get_string() != b"forwarded-tcpip":
        return None
    sender, window, packet = message.get_int(), message.get_int(), message.get_int()
    place = TCPAddress(_text(message), message.get_int())
    return _Incoming(sender, window, packet, place, (originator(_text(message)), message.get_int()))


def _text(message: Any) -> str:
    return str(message.get_string().decode(errors="replace"))
