"""Both sides of many connections through one relay, moved by a random schedule in one thread."""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Protocol

from .model import Direction, ModelError

_LINGER = struct.pack("ii", 1, 0)
_RESETS = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN)
_SIZES = (1, 2, 7, 100, 1000, 4096, 16_384, 65_535, 65_536, 65_537, 200_000, 600_000)
_STALL = 30.0  # seconds without any progress, after which a schedule counts as hung
_PROBE = 3000  # bytes that a probe sends each way
_HEAD = struct.Struct("!II")  # the number of the connection, sent first, so that the far side knows whose it is


class Relay(Protocol):
    """A relay under test."""

    has_half_close: bool
    """Whether one direction can end alone."""
    has_reset: bool
    """Whether a cut is seen as a reset at the other side, and never as an EOF."""
    takes_ends: bool
    """Whether the end of a connection counts as the answer to the end of one direction."""
    may_fail: bool
    """Whether any connection that begins now may be reset at any time."""

    def connect(self) -> socket.socket:
        """Return a new client, connected."""

    def far(self) -> socket.socket:
        """Return the listening socket of the target."""

    def disturb(self, chance: random.Random) -> bool:
        """Change something at the running relay; return whether that may reset connections."""


class Side:
    """One side of a connection."""

    def __init__(self, sock: socket.socket, out: Direction, into: Direction) -> None:
        self.sock: socket.socket | None = sock
        self.out = out
        self.into = into
        self.backlog = 0  # bytes that it still wants to send
        self.wants_end = False
        self.is_reading = True
        sock.setblocking(False)

    def send(self) -> bool:
        """Send what the socket takes; return whether anything was done."""
        if self.sock is None or self.out.is_ended:
            return False
        did = False
        try:
            while self.backlog:
                sent = self.sock.send(self.out.next_bytes(min(self.backlog, 262_144)))
                self.out.on_sent(sent)
                self.backlog -= sent
                did = True
        except BlockingIOError:
            return did
        except OSError as error:
            self._failed(error)
            return True
        if self.wants_end:
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._failed(error)
            self.out.is_ended = True
            did = True
        return did

    def receive(self, size: int) -> bool:
        """Receive what is there; return whether anything was done."""
        if self.sock is None or self.into.is_over or not self.is_reading:
            return False
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed(error)
            return True
        if data:
            self.into.on_received(data)
        else:
            self.into.on_eof()
        return True

    def _failed(self, error: OSError) -> None:
        if error.errno not in _RESETS:
            raise error
        self.into.on_reset()
        self.out.is_ended = True
        self.leave()

    def leave(self, *, reset: bool = False) -> None:
        """Close."""
        if self.sock is None:
            return
        if reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.sock.close()
        self.sock = None
        self.backlog = 0
        self.out.is_ended = True
        self.into.is_left = True


class Pair:
    """A connection: its client, and the target's side once that has come."""

    def __init__(self, number: int, client: socket.socket, *, has_reset: bool, takes_ends: bool) -> None:
        self.number = number
        self.up = Direction(2 * number, f"connection {number}, up", has_reset=has_reset)
        self.down = Direction(2 * number + 1, f"connection {number}, down", has_reset=has_reset)
        if takes_ends:
            self.up.answers, self.down.answers = self.down, self.up
        self.client = Side(client, self.up, self.down)
        self.target: Side | None = None
        self.is_probe = False
        self.is_hit = False  # a fault may have concerned it; it may be reset for other reasons, too

    @property
    def is_proven(self) -> bool:
        """True if a probe has brought all its bytes, both ways."""
        return min(self.up.received, self.down.received) >= _PROBE

    def forget_target(self) -> None:
        """Do not wait for a target that can come no more, or that may never come: its client has gone."""
        if self.target is None and (self.client.sock is None or self.down.is_reset):
            self.up.is_left = True

    def excuse(self) -> None:
        """Allow resets of this connection from now on."""
        self.up.is_excused = self.down.is_excused = True

    def hit(self) -> None:
        """Allow resets because of a fault."""
        self.is_hit = True
        self.excuse()

    @property
    def sides(self) -> list[Side]:
        return [self.client] if self.target is None else [self.client, self.target]

    @property
    def is_over(self) -> bool:
        return self.up.is_over and self.down.is_over


class Driver:
    """Runs one schedule.

    :param relay: under test.
    :param seed: decides everything.
    :param connections: how many there are in all.
    :param steps: of the schedule.
    :param note: called with a line about each step, to explain a failure.
    :param at_once: how many connections there are at one time at most; ``None`` for any number.
    :param first: number of the first connection. Drivers side by side have different ones, so that bytes of one
        at the target of another are seen.
    """

    def __init__(
        self,
        relay: Relay,
        seed: int,
        connections: int,
        steps: int,
        note: Callable[[str], object] = lambda text: None,
        *,
        at_once: int | None = None,
        first: int = 0,
    ) -> None:
        self._relay = relay
        self._chance = random.Random(seed)
        self._most = first + connections
        self._at_once = connections if at_once is None else at_once
        self._steps = steps
        self._note = note
        self._pairs: dict[int, Pair] = {}
        self._unknown: dict[socket.socket, bytes] = {}  # accepted at the target, before their number is known
        self._first = self._begun = first
        self._listening = relay.far()
        self._listening.setblocking(False)
        self.finished = 0
        self.bytes = 0

    def run(self) -> None:
        """Run the schedule, then end every connection, and check that each comes to its end.

        :raises ModelError: if the relay has broken a rule.
        """
        try:
            for _ in range(self._steps):
                self.step()
                self.move()
            self.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Reset every connection that is left. Idempotent."""
        for pair in self._pairs.values():
            for side in pair.sides:
                side.leave(reset=True)
        for sock in self._unknown:
            sock.close()
        self._pairs.clear()
        self._unknown.clear()

    def excuse(self) -> None:
        """Allow resets of all connections that are open."""
        for pair in self._pairs.values():
            pair.hit()

    def excuse_new(self) -> None:
        """Allow resets of all connections whose target has not come."""
        for pair in self._pairs.values():
            if pair.target is None:
                pair.hit()

    def probe(self) -> Pair | None:
        """Begin a connection that carries a few bytes each way; ``None`` if it is refused and may be."""
        pair = self._connect()
        if pair is not None:
            pair.is_probe = True
            pair.client.backlog = _PROBE
        return pair

    def step(self) -> None:
        """Begin a connection, or change one."""
        chance = self._chance
        if self._begun < self._most and (not self._pairs or chance.random() < 0.15):
            if len(self._pairs) < self._at_once:
                self._connect()
            return
        if chance.random() < 0.02 and self._relay.disturb(chance):
            self._note("disturbed: every connection may be reset")
            self.excuse()
            return
        pairs = [pair for pair in self._pairs.values() if not pair.is_probe]
        if not pairs:
            return
        pair = chance.choice(pairs)
        side = chance.choice(pair.sides)
        name = "client" if side is pair.client else "target"
        what = chance.random()
        if side.sock is None:
            return
        if what < 0.55:
            size = chance.choice(_SIZES)
            if not side.wants_end:
                side.backlog += size
                self._note(f"{pair.number}: the {name} sends {size}")
        elif what < 0.7:
            side.is_reading = not side.is_reading
            self._note(f"{pair.number}: the {name} {'reads' if side.is_reading else 'stops to read'}")
        elif what < 0.9:
            side.wants_end = True
            if not self._relay.has_half_close:
                pair.excuse()
            self._note(f"{pair.number}: the {name} ends its output")
        else:
            pair.excuse()
            is_reset = chance.random() < 0.5
            side.leave(reset=is_reset)
            self._note(f"{pair.number}: the {name} {'resets' if is_reset else 'closes'}")
        return

    def _connect(self) -> Pair | None:
        number, self._begun = self._begun, self._begun + 1
        try:
            client = self._relay.connect()
        except ConnectionError:
            if self._relay.may_fail:
                return None
            raise
        try:
            client.sendall(_HEAD.pack(number, number ^ 0xFFFFFFFF))
        except ConnectionError:
            client.close()
            if self._relay.may_fail:
                return None
            raise
        relay = self._relay
        pair = self._pairs[number] = Pair(number, client, has_reset=relay.has_reset, takes_ends=relay.takes_ends)
        if self._relay.may_fail:
            pair.hit()
        self._note(f"{number}: connects")
        return pair

    def move(self) -> bool:
        """Move every byte that can be moved; return whether anything was done."""
        did = self._accept()
        for pair in list(self._pairs.values()):
            for side in pair.sides:
                did |= side.send()
                did |= side.receive(self._chance.choice((1, 100, 4096, 65_536, 262_144)))
            if pair.is_probe and pair.is_proven:
                pair.client.wants_end = pair.sides[-1].wants_end = True
                if not self._relay.has_half_close:
                    pair.excuse()
            if pair.is_over:
                for side in pair.sides:
                    side.leave()
                self.finished += 1
                self.bytes += pair.up.received + pair.down.received
                del self._pairs[pair.number]
                did = True
        return did

    def forget_targets(self) -> None:
        """Do not wait for targets of clients that have gone."""
        for pair in self._pairs.values():
            pair.forget_target()

    def _accept(self) -> bool:
        did = False
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listening.accept()
                sock.setblocking(False)
                self._unknown[sock] = b""
                did = True
        for sock in list(self._unknown):
            did |= self._introduce(sock)
        return did

    def _introduce(self, sock: socket.socket) -> bool:
        """Read the number of the connection that an accepted socket belongs to."""
        head = self._unknown[sock]
        try:
            data = sock.recv(_HEAD.size - len(head))
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # its client has gone before
            del self._unknown[sock]
            sock.close()
            return True
        self._unknown[sock] = head = head + data
        if len(head) < _HEAD.size:
            return True
        del self._unknown[sock]
        number, check = _HEAD.unpack(head)
        if number ^ 0xFFFFFFFF != check:
            raise ModelError(f"a connection begins with {head!r}")
        if not self._first <= number < self._begun:
            raise ModelError(f"connection {number} is at the target of another relay, or has never been")
        pair = self._pairs.get(number)
        if pair is None:
            sock.close()
        elif pair.target is not None:
            raise ModelError(f"connection {number} has come twice")
        else:
            pair.target = Side(sock, pair.down, pair.up)
            if pair.is_probe:
                pair.target.backlog = _PROBE
        return True

    def watch(self, poller: select.poll) -> None:
        """Register all sockets that can move bytes."""
        readable = [self._listening, *self._unknown]
        writable = []
        for pair in self._pairs.values():
            for side in pair.sides:
                if side.sock is not None:
                    if side.is_reading and not side.into.is_over:
                        readable.append(side.sock)
                    if side.backlog:
                        writable.append(side.sock)
        for sock in readable:
            poller.register(sock, select.POLLIN)
        for sock in writable:
            poller.register(sock, select.POLLOUT | (select.POLLIN if sock in readable else 0))

    def _wait(self, seconds: float) -> None:
        poller = select.poll()
        self.watch(poller)
        poller.poll(seconds * 1000)

    def finish(self) -> None:
        """Let both sides of each connection read to the end, and end their output.

        :raises ModelError: if the relay has broken a rule.
        """
        for pair in self._pairs.values():
            for side in pair.sides:
                side.is_reading = side.wants_end = True
            if pair.is_hit and pair.target is None and not self._relay.has_half_close:
                # A router accepts streams to a destination that is gone, and they stay silent: the client gives up.
                pair.client.leave()
                pair.forget_target()
        last = time.monotonic()
        while self._pairs:
            if self.move():
                last = time.monotonic()
            else:
                self._wait(0.05)
            if time.monotonic() - last > _STALL:
                raise ModelError(f"nothing moves any more: {self._stalled()}")
            for pair in self._pairs.values():
                self._end(pair)

    def _end(self, pair: Pair) -> None:
        """End the output of a side that came late, and a side whose other one has gone."""
        for side in pair.sides:
            side.is_reading = side.wants_end = True
        pair.forget_target()

    def _stalled(self) -> str:
        pair = next(iter(self._pairs.values()))
        parts = [
            f"{way.name}: {way.received} of {way.sent}, ended {way.is_ended}, EOF {way.has_eof}"
            for way in (pair.up, pair.down)
        ]
        return f"{len(self._pairs)} connections; {'; '.join(parts)}; the target has {'' if pair.target else 'not '}come"
