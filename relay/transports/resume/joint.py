"""A resumable stream as a kernel socket: its holder has one end of a socketpair, one carrier after another the rest.

All of it runs in one thread, its home: that of the tunnel whose stream it is, as long as there is one, else the I/O
thread. The states of the session are in :mod:`relay.transports.resume.session`; those of the carrier:

========= ========================================= ========= =========================================================
state     event                                     next      action
========= ========================================= ========= =========================================================
DETACHED  a carrier, whose greetings are over       ATTACHED  go on with the position of the other end
ATTACHED  the carrier ends or fails, or a ping has  DETACHED  the near end opens another one, the far end waits
          no answer in time
ATTACHED  another carrier                           ATTACHED  close the one before: the last one wins
any       a carrier whose greeting was overtaken by as before close that carrier
          that of another one
any       both ends have said the end               OVER      close the carrier
DETACHED  this end is the far one, and has a word   OVER      the owner of the joint keeps the word
any       no carrier in time, an unknown session,   OVER      reset the holder: ``resume_lost``, or what broke
          a broken protocol
========= ========================================= ========= =========================================================
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable

from ...errors import RelayError
from ...eventloop.background import Home, IOThread, Watch
from ...eventloop.loop import Timer
from ...eventloop.poller import ERR, HUP, IN, OUT
from ...streams import exit_drain
from ...streams.pair_end import LINGER, PairEnd
from ...streams.stream import Resumes, Stream
from .session import DONE, PROTOCOL, Direction, Session
from .wire import ProtocolError

LOST = "resume_lost"
"""The reason of a stream that could not go on."""
PIECE = 64 << 10  # bytes to take from the holder at once
_MOST_PIECES = 64  # to be passed on in one system call, which takes 1,024 at most
_TURN = 8  # pieces that one stream moves in one turn in each direction, so that none starves the others
_QUIET = 60.0  # seconds in which a carrier has brought nothing until a ping
_WAITING = 10.0  # the same if something waits for the other end
_PONG = 10.0  # seconds for the answer to a ping
_PROBE = 2.0  # the same after a change of the network

_OPEN, _ENDING, _ENDED = Direction.OPEN, Direction.ENDING, Direction.ENDED


class ResumeError(RelayError):
    """A stream whose other end could not be reached in time, or does not know it any more.

    :param message: what failed and what to do.
    :param reason: the word for a connection's record.
    """

    def __init__(self, message: str, *, reason: str = LOST) -> None:
        super().__init__(message)
        self.reason = reason


class Joint:
    """One end of a resumable stream. Belongs to the thread of its home; its states are those of this module.

    :param session: what it keeps.
    :param name: of the other end, for errors.
    :param reset_reason: the reason of a reset by the other end: ``target_reset`` or ``client_reset``.
    :param home: the thread that moves the bytes; ``None`` for the I/O thread, where it goes on if that one ends.
    :raises OSError: if no thread or descriptor is available.
    """

    quiet = 10.0  # seconds; see relay.streams.exit_drain.Sender

    def __init__(self, session: Session, name: str, reset_reason: str, home: Home | None = None) -> None:
        self.session = session
        self.name = name
        self.error: BaseException | None = None
        self.aborted = False  # the holder has reset the stream
        self.is_over = True  # until it is made
        self.resumes = Resumes()
        """The number of carriers after the first one."""
        self.on_detached: Callable[[float], object] | None = None
        """Called in the thread of the home with the time when a carrier is lost."""
        self.on_over: Callable[[], object] | None = None
        """Called there once, at the end."""
        self.keeps_word = False
        """Whether the owner keeps the last word for the other end, so that the session need not wait to say it."""
        self._reset_reason = reset_reason
        self._has_holder = True  # False once the holder has been reset, or has got and sent everything
        self._carrier: Stream | None = None
        self._watch: Watch | None = None
        self._frame: memoryview | bytes = b""  # what the carrier has not taken
        self._heard = 0.0  # when the carrier has brought something
        self._asked = 0.0  # until when the answer to a ping must come; 0 without one
        self._missed: list[Callable[[], object]] = []  # calls that come while it moves from one thread to another
        self._on_sent: list[Callable[[], object]] = []
        self._moving = threading.Lock()
        with self._moving:  # from hold() on the home may end, in its own thread, and leave() waits for this
            if home is not None:
                # In this order: a loop that takes a call will let its clients leave later, and finds this one.
                home.hold(self)
                if not home.loop.call(_nothing):
                    home.release(self)
                    home = None
            self._home: Home = home if home is not None else IOThread.acquire(self)
            self._loop = self._home.loop
            self._timer = Timer(self._loop.timers, self._look)
            try:
                self._pair = PairEnd(self._loop, self._on_inner, self.progress, self._expired)
            except OSError:
                self._home.release(self)
                raise
            self.stream = JointStream(self._pair.hand_over(), self)
            """The holder's end."""
            self.is_over = False
        exit_drain.track(self, level=exit_drain.SESSIONS)

    # -- any thread ---------------------------------------------------------------------------------------------------

    def call(self, function: Callable[[], object]) -> bool:
        """Call a function in the thread of the home; return whether that will be done: ``False`` after its end."""
        with self._moving:
            home = self._home

            def run() -> None:
                if self._home is home:
                    function()
                else:  # it has moved meanwhile
                    self.call(function)

            if home.loop.call(run):
                return True
            if not self.is_over:
                self._missed.append(function)
            return not self.is_over

    def drained(self, done: Callable[[], object]) -> None:
        """Call a function once the other end has all that the holder sent and its end, or never will."""
        if not self.when_sent(done):
            done()

    def when_sent(self, done: Callable[[], object]) -> bool:
        """Call ``done`` once the other end has what the holder sent; see :class:`relay.streams.exit_drain.Sender`."""

        def look() -> None:
            self._on_sent.append(done)
            if self._carrier is not None and self.session.kept:
                self.session.ping()  # a few bytes are acknowledged with the next frame, which the answer is
            self._turn()
            self._look_sent()

        return not self.is_over and self.call(look)

    def progress(self) -> int:
        """Return a number that changes while bytes leave, and while the time for another carrier runs."""
        if self._carrier is None:
            return time.monotonic_ns()
        return self.session.received + self.session.kept

    def unsent(self) -> int:
        """Return how many bytes wait behind the socketpair."""
        return 0 if self.is_over else self.session.kept

    def wake(self) -> None:
        """Make the loop look at :attr:`aborted`."""
        self.call(self._turn)

    def abandon(self) -> None:
        """In a forked child: only close the descriptors."""
        self.is_over = True
        self._pair.abandon()
        if self._carrier is not None:
            self._carrier.socket.close()

    def __repr__(self) -> str:
        return f"the resumable stream to {self.name}"

    def leave(self) -> None:
        """Go on in the I/O thread: the loop of the home has ended. Called in its thread."""
        with self._moving:
            if self.is_over or isinstance(self._home, IOThread):
                return
        try:
            home = IOThread.acquire(self)
        except OSError:
            return self.lose("the system has no thread left", word=self._reset_reason)
        self._home.release(self)
        for watch in (self._pair.watch, self._watch):
            if watch is not None:
                watch.end()
        self._timer.stop()
        with self._moving:
            self._home, self._loop = home, home.loop
        self._loop.call(self._arrive)

    def _arrive(self) -> None:
        """Go on in another thread."""
        with self._moving:
            missed, self._missed = self._missed, []
        now = time.monotonic()
        if not self.is_over:
            self._timer = Timer(self._loop.timers, self._look)
            self._pair.move(self._loop, self._on_inner, now)
            if self._carrier is not None:
                self._watch = Watch(self._carrier.socket, self._loop, self._on_outer)
                self._timer.start(now, now)
        for function in missed:  # also if it is over: it may be given a carrier
            function()
        self._turn()

    # -- the carrier --------------------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """``True`` while it has a carrier."""
        return self._carrier is not None

    def attach(
        self,
        carrier: Stream,
        window: int,
        position: int,
        *,
        said: int = 0,
        answer: Callable[[Session], bytes] | None = None,
        rest: bytes = b"",
    ) -> bool:
        """Go on with a carrier whose greetings are over, but for the answer.

        :param carrier: owned from now on.
        :param window: of the other end.
        :param position: up to which the other end has received.
        :param said: the window of this end, as its greeting has it; 0 if ``answer`` says the current one.
        :param answer: returns what to send before the first frame, once nothing more comes by the last carrier;
            ``None`` if the other end answers.
        :param rest: what has come behind the greeting.
        :returns: whether this carrier is used.
        """
        if self.is_over:
            carrier.reset()
            return False
        now = time.monotonic()
        if answer is not None and self.session.is_overtaken(position):
            # The near end has given it up. What it lacks was acknowledged on a later carrier, and is not kept.
            carrier.reset()
            if self._carrier is None and self.on_detached is not None:
                self.on_detached(now)
            return False
        self._let_go(reset=True)
        self._carrier = carrier
        self._watch = Watch(carrier.socket, self._loop, self._on_outer)
        self._frame = answer(self.session) if answer is not None else b""
        self._heard, self._asked = now, 0.0
        try:
            self.session.attach(window, position, said or self.session.window)
            if rest:
                self.session.feed(rest)
        except ProtocolError as error:
            self._broken(error)
            return False
        self._timer.start(now + _QUIET, now)
        self._turn()
        return True

    def expire(self, text: str) -> None:
        """End it by a reset, if it has no carrier; see :meth:`lose`."""
        if self._carrier is None:
            self.lose(text)

    def probe(self) -> None:
        """Look whether the carrier still works, after a change of the network."""
        if self._carrier is not None:
            self._ping(time.monotonic(), _PROBE)
            self._turn()

    def lose(self, text: str, *, word: str = LOST) -> None:
        """End it by a reset: it cannot go on.

        :param text: why.
        :param word: the reason in a connection's record.
        """
        if self.is_over:
            return
        if self.session.word != DONE and self.error is None:
            self.error = ResumeError(f"{self.name}: {text}", reason=word)
        self._finish(reset=self.session.word != DONE)

    def _detach(self) -> None:
        self._let_go(reset=True)
        if self._is_done:
            return self._finish(reset=self.session.is_reset)
        if self.on_detached is not None:
            self.on_detached(time.monotonic())
        return None

    @property
    def _is_done(self) -> bool:
        """``True`` if nothing has to be said on a carrier any more."""
        session = self.session
        return session.is_over or (self.keeps_word and self._carrier is None and bool(session.word))

    def _let_go(self, *, reset: bool) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is None:
            return
        assert self._watch is not None
        self._watch.end()
        self._watch = None
        self._frame = b""
        self._timer.stop()
        end = carrier.reset if reset else carrier.close
        if not self._loop.call(end):  # after this turn, for its events may still come, unless it was the last one
            end()

    def _look(self, now: float) -> None:
        """Notice a carrier that is dead."""
        if self._carrier is None:
            return
        if self._asked and now >= self._asked:
            return self._detach()
        due = self._asked or self._heard + (_WAITING if self.session.is_waiting else _QUIET)
        if now < due:
            self._timer.start(due, now)
            return None
        self._ping(now, _PONG)
        return self._turn()

    def _ping(self, now: float, seconds: float) -> None:
        self.session.ping()
        due = now + seconds
        if not self._asked or due < self._asked:
            self._asked = due
            self._timer.start(due, now)

    # -- the moves ----------------------------------------------------------------------------------------------------

    def crashed(self, now: float) -> None:
        """A bug in a handler: end both sides by a reset."""
        self.lose("a bug in relay; the log has it", word=self._reset_reason)

    def _on_outer(self, event: int, now: float) -> None:
        if self._watch is None:
            return
        if event & HUP:
            self._watch.hung = True
        if event & (IN | HUP | ERR):
            try:
                self._receive(now)
            except BlockingIOError:
                pass
            except ProtocolError as error:
                return self._broken(error)
            except OSError:
                return self._detach()
        return self._turn()

    def _on_inner(self, event: int, now: float) -> None:
        if event & HUP:
            self._pair.gone = self._pair.watch.hung = True
        self._turn()
        if self._pair.gone and self._has_holder:
            self._pair.expect_progress(now)

    def _receive(self, now: float) -> None:
        """Take what one read of the carrier brings."""
        assert self._carrier is not None
        size = self._carrier.socket.recv_into(self._home.buffer)
        if not size:
            raise ConnectionResetError(errno.ECONNRESET, "it has ended")
        self._heard = now
        if self._asked:
            self._asked = 0.0
        self.session.feed(self._home.buffer[:size], self._deliver if self._has_holder else _nothing)

    def _turn(self) -> None:
        """Move what can be moved."""
        if self.is_over:
            return
        session = self.session
        if self.aborted and self._has_holder:
            session.reset()
            self._drop_holder(reset=True)
        if session.is_reset and self._has_holder:
            if self.error is None:
                text = f"the other end of the stream has reset it ({session.word})"
                self.error = ResumeError(f"{self.name}: {text}", reason=self._reset_reason)
            self._drop_holder(reset=True)
        if self._has_holder:
            self._deliver()
            self._take()
        is_full = True
        if self._carrier is not None:
            try:
                is_full = self._send()
            except OSError:
                return self._detach()
        if self._is_done:
            return self._finish(reset=False) if not self._frame else self._set_interest(is_full)
        self._look_sent()
        return self._set_interest(is_full)

    def _take(self) -> None:
        """Take what the holder sends, or its end."""
        session, pair = self.session, self._pair
        try:
            for _ in range(_TURN):
                room = session.room
                if not room:
                    return
                data = pair.socket.recv(min(room, PIECE))
                if not data:
                    if not self.aborted:
                        session.write_end()
                    return
                session.write(data)
                if len(data) < PIECE:
                    return
        except BlockingIOError:
            pass
        except OSError:  # the holder has reset the stream
            session.reset()
            self._drop_holder(reset=True)

    def _deliver(self) -> None:
        """Pass on what has come, or its end."""
        session, pair = self.session, self._pair
        while session.inbox:
            if pair.gone:
                session.passed_on(len(session.inbox))
                if session.outgoing is _ENDED:
                    # As the kernel does for a socket that was closed: else an endless reply would have no reader.
                    session.reset()
                    return self._drop_holder(reset=False)
                break
            try:
                size = pair.socket.sendmsg(session.inbox.first(_MOST_PIECES))
            except BlockingIOError:
                return None
            except OSError:
                pair.gone = True
                continue
            session.passed_on(size)
        if session.incoming is _ENDING:
            try:
                pair.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            session.passed_on_end()
        if session.word == DONE:
            self._drop_holder(reset=False)
        return None

    def _send(self) -> bool:
        """Send frames; return whether the carrier takes no more for now."""
        carrier, session = self._carrier, self.session
        assert carrier is not None
        try:
            for _ in range(_TURN):
                if self._frame:
                    self._frame = memoryview(self._frame)[carrier.socket.send(self._frame) :]
                    continue
                if not (parts := session.output_parts()):
                    return False
                self._expect_answer()
                try:
                    sent = carrier.socket.sendmsg(parts)
                except BlockingIOError:
                    sent = 0
                if sent < sum(map(len, parts)):
                    self._frame = memoryview(b"".join(parts))[sent:]
                    return True
        except BlockingIOError:
            pass
        return True

    def _expect_answer(self) -> None:
        now = time.monotonic()
        if self._timer.due > now + _WAITING:
            self._timer.start(now + _WAITING, now)

    def _set_interest(self, is_full: bool) -> None:
        if self._watch is not None:
            # It is always read: what it brings is bounded by the window, and an acknowledgement must not wait for the
            # holder.
            self._watch.set_interest(IN | (OUT if is_full else 0))
        if self._has_holder:
            takes = self.session.room > 0
            self._pair.watch.set_interest((IN if takes else 0) | (OUT if self.session.inbox else 0))

    def _drop_holder(self, *, reset: bool) -> None:
        if self._has_holder:
            self._has_holder = False
            self._pair.end(reset=reset)

    def _look_sent(self) -> None:
        if self._on_sent and not self._has_pending():
            calls, self._on_sent = self._on_sent, []
            for done in calls:
                done()

    def _has_pending(self) -> bool:
        """Return whether the other end has not all that the holder sent, and its end."""
        session = self.session
        if self.is_over or session.outgoing is _ENDED or session.is_reset:
            return False
        if session.kept or session.outgoing is _ENDING:
            return True
        try:
            self._pair.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        return True

    def _expired(self, now: float) -> None:
        if self.error is None:
            text = f"{self.name}: the stream was given up: the other end took nothing for {LINGER:g} s"
            self.error = ResumeError(text, reason=self._reset_reason)
        self.session.reset()
        self._turn()

    def _broken(self, error: ProtocolError) -> None:
        # The word may still reach the other end; nothing that it says is of interest any more.
        if self._carrier is not None and not self._frame:
            self.session.reset(PROTOCOL)
            try:
                self._carrier.socket.send(self.session.output())
            except OSError:
                pass
        self.error = ResumeError(f"{self.name}: it breaks the resume protocol ({error})", reason=self._reset_reason)
        self._finish(reset=True)

    def _finish(self, *, reset: bool) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._let_go(reset=reset)
        self._timer.stop()
        self._drop_holder(reset=reset)
        self.session.release()
        self._look_sent()
        over, self.on_over = self.on_over, None
        self.on_detached = None
        if over is not None:
            over()
        self._home.release(self)


def _nothing() -> None:
    pass


class JointStream(Stream):
    """A stream whose socket is one end of a socketpair; the joint moves the bytes of the other one."""

    __slots__ = ("kept", "resumes", "_joint")

    def __init__(self, sock: socket.socket, joint: Joint) -> None:
        super().__init__(sock, target=joint.name, failure=lambda: joint.error)
        self._joint = joint
        self.resumes = joint.resumes
        """Counts its carriers after the first one."""
        self.kept = 0.0
        """Seconds for which the near end waits for another carrier; 0 at the far end, which has its own."""
        self.unsent, self.drained = joint.unsent, joint.drained

    def reset(self) -> None:
        """Close so that the other end sees a reset. Idempotent."""
        # Marked before it can see the end: a closed socketpair alone looks like a clean one.
        self._joint.aborted = True
        self.socket.close()
        self._joint.wake()
        self.close()
