"""One end of a resumable stream, without I/O: what it keeps until the other end has it, and where the two continue.

A session has two directions and an end. Both ends have the same states; docs/resume-protocol.md has them for another
implementation. Outgoing, what the holder of the stream sends:

======== =========================================== ======== =========================================================
state    event                                       next     action
======== =========================================== ======== =========================================================
OPEN     the holder has ended its output             ENDING   FIN follows the data, and has the next position
ENDING   the other end acknowledges that position    ENDED    none
======== =========================================== ======== =========================================================

Incoming, what the other end sends:

======== =========================================== ======== =========================================================
state    event                                       next     action
======== =========================================== ======== =========================================================
OPEN     FIN                                         ENDING   none
ENDING   the holder has taken everything and its end ENDED    acknowledge FIN at once
======== =========================================== ======== =========================================================

The end is a word. ``done`` is sent when both directions are ENDED; any other is a reset, which overtakes what was not
sent, and is sent again on each new carrier:

========= ========================================== ========= ========================================================
state     event                                      next      action
========= ========================================== ========= ========================================================
NONE      both directions are ENDED                  SAYING    send ``done``
NONE      the holder has reset the stream, or a bug  SAYING    drop what was not passed on, send the word
NONE      a word comes                               SAYING    the same, with that word
SAYING    a word comes                               OVER      none
SAYING    the word is sent, and one had come         OVER      none
SAYING    the far end has no carrier                 OVER      keep the word, for a near end that asks
========= ========================================== ========= ========================================================
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable

from .pieces import Piece, Pieces
from .wire import (
    CONTROL,
    DATA,
    END,
    FIN,
    LONGEST_FRAME,
    PING,
    PONG,
    WINDOW,
    Decoder,
    ProtocolError,
    frame,
    head_of,
    number,
    read_number,
    word_of,
)

FIRST_WINDOW = 256 << 10  # bytes that a session takes at first beyond those that it has acknowledged
LEAST_WINDOW = 16 << 10  # the same where there is no room
EARLY = 4096
"""Bytes that every far end takes before it has said its window."""
HELD = 4 << 20  # bytes that are kept for one stream, at most
LARGEST_WINDOW = 1 << 20  # to which the window grows while its holder takes everything; the same part of another HELD
IN_ALL = 256 << 20  # bytes for all streams of a process, at most
DONE = "done"
RESET = "reset"
PROTOCOL = "protocol"

_MOST_UNACKNOWLEDGED = 4  # parts of the window; one of them is acknowledged in a frame of its own


class Direction(enum.Enum):
    """The state of one direction."""

    OPEN = "open"
    ENDING = "ending"
    ENDED = "ended"


_OPEN, _ENDING, _ENDED = Direction.OPEN, Direction.ENDING, Direction.ENDED


class Budget:
    """The memory of all sessions of a process: half of it for what they keep, half for what they have offered to take.

    Used from any thread, as each session belongs to one of its own.

    :param limit: bytes.
    """

    __slots__ = ("held", "offered", "_half", "_lock")

    def __init__(self, limit: int = IN_ALL) -> None:
        self._half = limit // 2
        self._lock = threading.Lock()
        self.held = 0  # bytes that are kept until they are acknowledged
        self.offered = 0  # bytes of all windows

    @property
    def limit(self) -> int:
        """The number of bytes at most; streams that have more when it becomes smaller keep them."""
        return self._half * 2

    @limit.setter
    def limit(self, limit: int) -> None:
        self._half = limit // 2

    def first_window(self, held: int = HELD) -> int:
        """Return the first window of a session: a small one if there is little room, so that each of many has one.

        :param held: bytes that it may keep at most.
        """
        room = max(LEAST_WINDOW, (self._half - self.offered) // 8)
        return min(FIRST_WINDOW, room, held * LARGEST_WINDOW // HELD)

    @property
    def room(self) -> int:
        """The number of bytes more that may be kept."""
        return max(0, self._half - self.held)

    def hold(self, size: int) -> None:
        """Count bytes more that are kept, or fewer."""
        with self._lock:
            self.held += size

    def offer(self, size: int, *, forced: bool = False) -> bool:
        """Count bytes of a window, if there is room for them or in any case; or fewer bytes."""
        with self._lock:
            if self.offered + size > self._half and not forced:
                return False
            self.offered += size
            return True


class Session:
    """One end. Its states are those of this module.

    :param budget: of all sessions of the process.
    :param window: bytes to take at first beyond those acknowledged; they count even where there is no room for them.
    :param held: bytes to keep at most.
    """

    __slots__ = (
        "incoming",
        "inbox",
        "outgoing",
        "peer_word",
        "received",
        "window",
        "word",
        "_acked",
        "_budget",
        "_controls",
        "_cursor",
        "_decoder",
        "_delivered",
        "_has_ack",
        "_has_said",
        "_held",
        "_peer_window",
        "_said_ack",
        "_sent",
        "_unacknowledged",
        "_unsent",
    )

    def __init__(self, budget: Budget, *, window: int = FIRST_WINDOW, held: int = HELD) -> None:
        self.outgoing, self.incoming = Direction.OPEN, Direction.OPEN
        self.inbox = Pieces()
        """What has come and was not passed on; bounded by the window."""
        self.received = 0
        """The position up to which everything has come."""
        self.window = window
        """Bytes that are taken beyond those acknowledged."""
        self.word = ""
        """The end, as this end has it; empty before there is one."""
        self.peer_word = ""
        """The end, as the other end has said it."""
        self._budget = budget
        budget.offer(window, forced=True)
        self._held = held
        self._peer_window = 0  # until the greetings are over
        self._unacknowledged = Pieces()  # from the position _acked up to the cursor
        self._unsent = Pieces()  # from there on
        self._acked = 0
        self._cursor = 0  # the position of what is sent next
        self._sent = 0  # the highest one that the cursor had
        self._delivered = 0
        self._said_ack = 0  # the last acknowledgement in this carrier
        self._has_ack = False  # one is due, even without data
        self._has_said = False  # the end was sent in this carrier
        self._controls: list[bytes] = []
        self._decoder = Decoder()

    # -- the holder ----------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """The number of bytes that the holder may send now; the other end has room for all that is kept."""
        if self.outgoing is not _OPEN or self.word:
            return 0
        kept = self.kept
        return max(0, min(self._held, self._peer_window, kept + self._budget.room) - kept)

    @property
    def kept(self) -> int:
        """The number of bytes that are kept until the other end acknowledges them."""
        return len(self._unacknowledged) + len(self._unsent)

    @property
    def moved(self) -> int:
        """A number that grows with each byte, and each end, that one end has got from the other."""
        return self.received + self._acked

    def write(self, data: bytes) -> None:
        """Keep and send data of the holder, no more than :attr:`room`."""
        if data and self.outgoing is _OPEN and not self.word:
            self._unsent.append(data)
            self._budget.hold(len(data))

    def write_end(self) -> None:
        """End the outgoing direction after what was written. Idempotent."""
        if self.outgoing is _OPEN:
            self.outgoing = _ENDING

    def passed_on(self, size: int) -> None:
        """Forget the first bytes of :attr:`inbox`, which the holder has taken."""
        self.inbox.drop(size)
        self._delivered += size
        waiting = self._delivered - self._said_ack
        if waiting * _MOST_UNACKNOWLEDGED >= self.window:
            self._has_ack = True
            if not self.inbox:
                self._grow()

    def passed_on_end(self) -> None:
        """Know that the holder has the end of the incoming direction, too."""
        if self.incoming is _ENDING and not self.inbox:
            self.incoming = _ENDED
            self._delivered += 1
            self._has_ack = True
            self._look_done()

    def reset(self, word: str = RESET) -> None:
        """End both directions by a reset. Idempotent."""
        if not self.word:
            self.word = word
            self._drop()

    def release(self) -> None:
        """Give the memory back to the budget: nothing uses this end any more. Idempotent."""
        self._drop()
        self._budget.offer(-self.window, forced=True)
        self.window = 0

    def _drop(self) -> None:
        self._budget.hold(-self.kept)
        self._unacknowledged.clear()
        self._unsent.clear()
        self.inbox.clear()

    def _grow(self) -> None:
        more = min(self.window, self._held * LARGEST_WINDOW // HELD - self.window)
        if more > 0 and self._budget.offer(more):
            self.window += more
            self._controls.append(bytes((WINDOW,)) + number(self.window))

    # -- the carrier ---------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """``True`` once both ends have said the end."""
        return bool(self.peer_word) and self._has_said

    @property
    def is_reset(self) -> bool:
        """``True`` if the stream has ended by a reset."""
        return self.word not in ("", DONE)

    @property
    def is_waiting(self) -> bool:
        """``True`` if the other end has something of this one to acknowledge or to answer."""
        return self._acked != self._total or bool(self.word)

    def is_overtaken(self, position: int) -> bool:
        """Return whether the other end has acknowledged more than its greeting says: another one came before it.

        :param position: that of the greeting.
        """
        return position < self._acked

    def attach(self, window: int, position: int = 0, said: int | None = None) -> None:
        """Go on with another carrier, whose greetings are over.

        :param window: of the other end.
        :param position: up to which the other end has received.
        :param said: the window that the greeting of this end has; ``None`` for the current one.
        :raises ProtocolError: if it cannot have received as much, or had received more before.
        """
        if not self._acked <= position <= self._sent:
            raise ProtocolError(f"a position of {position}, not between {self._acked} and {self._sent}")
        self._peer_window = max(self._peer_window, window)
        self._unsent.put_back(self._unacknowledged)
        self._unsent.move(min(position - self._acked, len(self._unsent)), self._unacknowledged)
        self._cursor = position
        self._said_ack = 0
        self._has_ack, self._has_said = self._delivered > 0, False
        self._controls.clear()
        if said is not None and self.window > said:  # it has grown since
            self._controls.append(bytes((WINDOW,)) + number(self.window))
        self._decoder = Decoder()

    def ping(self) -> None:
        """Send a ping, unless one is to be sent already."""
        if bytes((PING,)) not in self._controls:
            self._controls.append(bytes((PING,)))

    def output(self) -> bytes:
        """Return the next frame for the carrier; empty if there is none now."""
        return b"".join(self.output_parts())

    def output_parts(self) -> tuple[Piece, ...]:
        """Return the same in parts, which are to be sent as one: data are not copied."""
        if self.word and not self._has_said:
            self._has_said = True
            return self._frame(END, self.word.encode())
        if self._has_said:
            return ()
        if self._controls:
            return self._frame(CONTROL, self._controls.pop(0))
        size = min(LONGEST_FRAME, self._acked + self._peer_window - self._cursor)
        if self._unsent and size > 0:
            data = self._unsent.take(size)
            if not self.word:
                self._unacknowledged.append(data)
            self._advance(len(data))
            return self._frame(DATA, data)
        if self.outgoing is _ENDING and self._cursor == self._total - 1:
            self._advance(1)
            return self._frame(FIN)
        return self._frame(DATA) if self._has_ack else ()

    def _advance(self, size: int) -> None:
        self._cursor += size
        self._sent = max(self._sent, self._cursor)

    def _frame(self, kind: int, payload: Piece = b"") -> tuple[Piece, ...]:
        self._said_ack, self._has_ack = self._delivered, False
        return head_of(self._delivered, kind, len(payload)), payload

    @property
    def _total(self) -> int:
        """The position after everything that was written, and after the end if there is one."""
        if self.outgoing is _ENDED:
            return self._acked
        return self._acked + self.kept + (self.outgoing is _ENDING)

    def last_word(self) -> bytes:
        """Return the frame with the end, once that is over: for an other end that has missed it."""
        return frame(self._delivered, END, self.word.encode())

    def feed(self, data: Piece, pass_on: Callable[[], object] = lambda: None) -> None:
        """Take bytes of the carrier; data are in :attr:`inbox` then.

        :param data: the next bytes; they are copied, but for what is passed on at once.
        :param pass_on: called when there is something that the holder can have; not after a reset: what that drops may
            have come before the end of the direction, and the rest would look whole.
        :raises ProtocolError: if the other end does not keep to the protocol; the stream is lost.
        """
        try:
            self._decode(data)
            if not self.is_reset:
                pass_on()
        finally:
            self.inbox.keep()

    def _decode(self, data: Piece) -> None:
        for ack, kind, payload in self._decoder.feed(data):
            if self.peer_word:
                return  # what comes after the end is of no use, and of no harm
            if ack >= 0:
                self._acknowledged(ack)
            if kind == DATA:
                self._take(payload)
            elif kind == FIN:
                self._take_end()
            elif kind == END:
                self._ended(word_of(payload))
            else:
                self._control(bytes(payload))

    def _acknowledged(self, ack: int) -> None:
        if ack > self._sent:
            raise ProtocolError(f"an acknowledgement of {ack}, where {self._sent} were sent")
        if self.word:
            return  # nothing is kept any more
        size = ack - self._acked
        if size < 0:
            raise ProtocolError(f"an acknowledgement of {ack} after one of {self._acked}")
        if size > self.kept:  # the end, too
            self.outgoing = _ENDED
        self._forget_up_to(ack)
        self._cursor = max(self._cursor, ack)
        self._look_done()

    def _forget_up_to(self, position: int) -> None:
        size = min(position - self._acked, self.kept)
        self._budget.hold(-size)
        known = min(size, len(self._unacknowledged))
        self._unacknowledged.drop(known)
        self._unsent.drop(size - known)  # sent on a carrier before
        self._acked = position

    def _take(self, data: Piece) -> None:
        if not data:
            return
        if self.incoming is not _OPEN:
            raise ProtocolError("data after the end")
        self.received += len(data)
        if self.word:
            return
        if self.received - self._delivered > self.window:
            raise ProtocolError(f"more data than the {self.window} bytes of the window")
        self.inbox.append(data)

    def _take_end(self) -> None:
        if self.incoming is not _OPEN:
            raise ProtocolError("a second end")
        self.incoming = _ENDING
        self.received += 1

    def _ended(self, word: str) -> None:
        if word == DONE and not self.word:
            raise ProtocolError("done, before both directions have ended")
        self.peer_word = word
        if word != DONE and self.word != DONE:
            self.reset(word)

    def _control(self, payload: bytes) -> None:
        about = payload[0]
        if about == WINDOW:
            found = read_number(payload, 1)
            if found is None or found[1] != len(payload):
                raise ProtocolError("a window that is no number")
            self._peer_window = max(self._peer_window, found[0])
        elif len(payload) > 1:
            raise ProtocolError("a control with needless bytes")
        elif about == PING:
            # One answer is enough for all questions that it comes after: a flood of them holds nothing.
            if bytes((PONG,)) not in self._controls:
                self._controls.append(bytes((PONG,)))
        elif about != PONG:
            raise ProtocolError(f"a control of the unknown kind {about}")

    def _look_done(self) -> None:
        if self.outgoing is _ENDED and self.incoming is _ENDED and not self.word:
            self.word = DONE
