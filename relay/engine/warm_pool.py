"""The warm streams of a tunnel: opened before the clients come, so that a client does not wait for the connect.

=========== =================== =========== =================================================================
state       event               next state  action
=========== =================== =========== =================================================================
stopped     start               trying      open one stream; the others when it is there
trying      stream              filling     open those that are missing
trying      stream after failed proving     start the timer of 1 s: the others are opened if it lasts so long
trying      no stream           backing off start the retry timer: 0.5 s after the first failure, then twice
                                            as long each time, up to 30 s
trying      calls hang          backing off start the retry timer: calls that do not return hold a thread each
trying      hop not up          waiting     open none
trying      hop not watched     backing off start the retry timer: the hop is watched then, before a stream is opened
filling     used                filling     open another one, as soon as the client's first bytes are on their way
filling     ended               filling     open another one
filling     expired             filling     open another one
filling     no stream           backing off start the retry timer
filling     ended at once       backing off start the retry timer: a target that ends idle streams is not flooded
filling     no descriptor       backing off close some streams, which a client needs less than a descriptor
filling     hop not up          waiting     open none
proving     lasts               filling     open those that are missing
proving     no stream           backing off start the retry timer
proving     ended at once       backing off start the retry timer
proving     hop not up          waiting     open none
backing off stream              backing off keep it
backing off retry timer         trying      open one stream
backing off hop is up           trying      open one stream
waiting     hop is up           trying      open one stream
any         stop                stopped     close all streams; give up those that are being opened
=========== =================== =========== =================================================================

A client gets the oldest stream that is ready. If there is none, its connection dials as without warm streams.
"""

from __future__ import annotations

import collections
import enum
import errno
import functools
import logging
import math
import random
import socket
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..addresses.printable import printable
from ..errors import CarrierError, ConnectError
from ..eventloop.backoff import Backoff
from ..eventloop.loop import Loop, Timer
from ..eventloop.sockets import Endpoint, open_socket
from ..streams.protocols import MakeSend
from ..streams.rate_limited_log import RateLog
from ..streams.stream import Stream
from .attempt import Attempt, Plan, Recipient
from .connection import Connection
from .records import WarmFigures
from .warm_stream import WarmStream
from .workspace import Workspace

if TYPE_CHECKING:  # parts of one machine name each other
    from .connector import Connector
    from .relay_thread import RelayThread

logger = logging.getLogger("relay")

_BACKOFF = (0.5, 30.0)  # seconds after the first failure in a row, and at most
_SOON = 0.001  # seconds until the next stream is opened: a TLS handshake begins with 0.7 ms of work
_STABLE = 1.0  # seconds; a stream that ends sooner counts as a failure
_CONNECT = 30.0  # seconds for a stream if the tunnel has no limit
_SPREAD = 0.9  # part of the age after which the first streams are replaced, so that not all are at once
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_LONGEST = 500  # characters of an error in the log


class PoolState(enum.Enum):
    """The state of a pool; the docstring of this module has the table."""

    STOPPED = "stopped"
    TRYING = "trying"
    FILLING = "filling"
    PROVING = "proving"
    BACKING_OFF = "backing off"
    WAITING = "waiting"


class _WarmAttempt(Attempt):
    """An attempt for which no client waits."""

    __slots__ = ()

    is_warm = True


class WarmPool:
    """The warm streams of one tunnel. Belongs to the relay thread, except :meth:`figures`.

    It is the connector of its attempts, so that their failures end here.

    :param connector: begins the attempts.
    :param owner: the relay thread.
    :param plan: how streams are made.
    """

    def __init__(self, connector: Connector, owner: RelayThread, plan: Plan) -> None:
        self.state = PoolState.STOPPED
        self._connector = connector
        self._owner = owner
        self._plan = plan
        self._wanted = (0, 0.0)  # streams, and the seconds for which each is kept
        self._ready: dict[WarmStream, None] = {}  # the oldest first
        self._connecting: dict[WarmStream, None] = {}
        self._backoff = Backoff(*_BACKOFF, jitter=True)
        self._watched: object = None  # the dialer whose hop is watched
        self._timer = Timer(connector.loop.timers, self._on_timer)  # to retry, to fill soon, or until one has lasted
        self._problems = RateLog(logger, logging.WARNING)
        self._counts = collections.Counter[str]()
        self._is_opening = False

    def figures(self) -> WarmFigures:
        """Return the figures since the tunnel first had warm streams. From any thread."""
        counts = self._counts
        return WarmFigures(len(self._ready), counts["hit"], counts["miss"], counts["ended"], counts["expired"])

    def change(self, count: int, keep: float, now: float) -> None:
        """Keep another number of streams, or keep them for another time.

        :param count: the number; 0 closes all.
        :param keep: seconds after which a stream is replaced.
        :param now: monotonic seconds.
        """
        self._wanted = count, keep
        if not count:
            return self.stop(now)
        for stream in (*self._ready, *self._connecting):
            stream.change_age(self._age(), now)
        for stream in list(self._ready)[: max(0, len(self._ready) - count)]:
            stream.close("discarded", now)
        if self.state is PoolState.STOPPED:
            self._start(now)
        else:
            self.fill(now)
        return None

    def change_plan(self, plan: Plan, now: float) -> None:
        """Make the streams by another factory from now on; those of the old one are closed."""
        self.stop(now)
        self._plan = plan
        if self._wanted[0]:
            self._start(now)

    def _start(self, now: float) -> None:
        """Open the first stream and watch the hop, unless none can be opened without a client."""
        plan = self._plan
        if plan.needs_client:
            return
        self.state = PoolState.TRYING
        if plan.dialer is not None and plan.dialer is not self._watched:
            watch = functools.partial(_pass_on, weakref.WeakMethod(self._hop_is_up), self._connector.loop)
            try:
                plan.dialer.subscribe(watch)
            except OSError as error:
                return self._retry_later(error, now)  # whatever its state: nothing would tell that it is up
            self._watched = plan.dialer
        self.fill(now)
        return None

    def stop(self, now: float) -> None:
        """Close all streams, and open none."""
        self.state = PoolState.STOPPED
        self._backoff.reset()
        self._timer.stop()
        for stream in (*self._ready, *self._connecting):
            stream.close("discarded", now)

    def give(self, connection: Connection, now: float) -> bool:
        """Open a connection with the oldest stream that is ready; return whether there was one."""
        if self.state is PoolState.STOPPED:
            return False
        while self._ready:
            stream = next(iter(self._ready))
            if (reason := stream.spoilt()) is not None:
                stream.close(reason, now)
                continue
            del self._ready[stream]
            self._counts["hit"] += 1
            self._backoff.reset()
            stream.give(connection, self.workspace, now)
            if self._timer.due == math.inf:
                self._timer.start(now + _SOON, now)
            return True
        self._counts["miss"] += 1
        return False

    def fill(self, now: float) -> None:
        """Open the streams that are missing, as far as the state allows it."""
        if self._is_opening or self.state in (PoolState.STOPPED, PoolState.BACKING_OFF):
            return
        if not self._hop_can_be_used():
            self.state = PoolState.WAITING
            return
        if self.state is PoolState.WAITING:
            self.state = PoolState.TRYING
        self._is_opening = True
        try:
            while self._may_open():
                self._open(now)
        finally:
            self._is_opening = False
        if not self._connecting and self._is_missing(0) and self.state in (PoolState.TRYING, PoolState.FILLING):
            text = f"{self._plan.target or 'the factory'}: no answer in time; earlier calls of it have not returned"
            self._back_off(ConnectError(text), now)

    def _may_open(self) -> bool:
        # A call that is given up and does not return holds its thread: then no more of them are made.
        return self._is_missing(max(len(self._connecting), self._plan.warm_calls)) and (
            self.state is PoolState.FILLING or (self.state is PoolState.TRYING and not self._connecting)
        )

    def _is_missing(self, connecting: int) -> bool:
        return len(self._ready) + connecting < self._wanted[0]

    def _hop_can_be_used(self) -> bool:
        """Return whether the last hop is up; the pool does not hurry the back-off of one that is not."""
        dialer = self._plan.dialer
        return dialer is None or dialer.state == "up"

    def _open(self, now: float) -> None:
        stream = WarmStream(self, self._plan.target, self._age(), now)
        limit = self._owner.limits.connect_limit
        deadline = now + (_CONNECT if limit is None else limit)
        attempt = _WarmAttempt(self, stream, self._plan, deadline)
        self._connecting[stream] = None
        stream.wait_for_target(attempt, deadline, now)
        try:
            self._connector.begin(attempt, now)
        except Exception as error:  # noqa: BLE001  (whatever it is, it ends this stream only)
            self.failed(stream, error, now)

    def make_room(self, now: float) -> None:
        """Close some streams, because no descriptor is left, and open none for a while."""
        if self.state is PoolState.STOPPED:
            return
        for stream in list(self._ready)[: max(2, len(self._ready) // 4)]:  # a client and its stream need two
            stream.close("discarded", now)
        self._back_off(
            OSError("no descriptor is left for a warm stream; raise the limit of open files (ulimit -n)"), now
        )

    def _age(self) -> float:
        return self._wanted[1] * random.uniform(_SPREAD, 1.0)  # noqa: S311  (this needs no secrecy)

    def after_fork(self) -> None:
        """Only close the descriptors, in a forked child."""
        for stream in (*self._ready, *self._connecting):
            stream.after_fork()

    # -- for the streams ----------------------------------------------------------------------------------------------

    def is_ready(self, stream: WarmStream, now: float) -> None:
        """Take a stream that is connected."""
        del self._connecting[stream]
        self._ready[stream] = None
        if len(self._ready) > self._wanted[0]:
            stream.close("discarded", now)
        elif self.state is PoolState.TRYING and self._backoff.failures:
            self.state = PoolState.PROVING
            self._timer.start(now + _STABLE, now)
        elif self.state is PoolState.TRYING:
            self.state = PoolState.FILLING
            self.fill(now)

    def is_over(self, stream: WarmStream, reason: str, now: float) -> None:
        """Take a stream that was closed."""
        self._connecting.pop(stream, None)
        self._ready.pop(stream, None)
        if reason in ("failed", "discarded"):
            return
        self._counts[reason] += 1
        if reason == "ended" and (now - stream.opened < _STABLE or stream.is_unanswered()):
            name = stream.summary.target_name() or "the target"
            self._back_off(EOFError(f"{name}: it closed the stream at once; check it, or set warm to 0"), now)
        else:
            self._backoff.reset()
            self.fill(now)

    # -- for the attempts: their connector -----------------------------------------------------------------------------

    @property
    def loop(self) -> Loop:
        """The loop of the relay thread."""
        return self._connector.loop

    @property
    def workspace(self) -> Workspace:
        """The objects that all flows of the relay thread share."""
        return self._connector.workspace

    def open(self, endpoint: Endpoint) -> tuple[socket.SocketType, int]:
        """Start a connect. It never gets the spare descriptor, which is for a client."""
        try:
            return open_socket(endpoint, socket.SocketType)
        except OSError as error:
            if error.errno in _NO_DESCRIPTOR:
                self.make_room(time.monotonic())
            raise

    def failed(self, recipient: Recipient, error: BaseException, now: float) -> None:
        """Take a stream that could not be opened."""
        recipient.close("failed", now)
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
            self.make_room(now)
        else:
            self._back_off(error, now)

    def too_late(self, recipient: Recipient, plan: Plan) -> None:
        """Do nothing: the deadline of a warm stream is a failure as any other."""

    def submit(self, job: Callable[[], object]) -> None:
        """Run a job on a thread that may block."""
        self._connector.submit(job)

    def close_stream(self, stream: Stream, clean: bool) -> None:
        """Close a stream, or reset it."""
        self._connector.close_stream(stream, clean)

    # -- retries ------------------------------------------------------------------------------------------------------

    def _back_off(self, error: BaseException, now: float) -> None:
        """Open no stream for a while."""
        if self.state in (PoolState.STOPPED, PoolState.BACKING_OFF):
            return
        if not self._hop_can_be_used():
            self.state = PoolState.WAITING  # the carrier logs why
            return
        self._retry_later(error, now)

    def _retry_later(self, error: BaseException, now: float) -> None:
        """Start the retry timer."""
        self.state = PoolState.BACKING_OFF
        if self._backoff.failures == 1 and not isinstance(
            error, CarrierError
        ):  # a carrier that is lost may be noticed later
            text = "%s: no stream is ready for the next client: %s; relay retries, and clients connect without it"
            self._problems.log(now, text, self._owner.name, printable(_text_of(error), _LONGEST))
        self._timer.start(now + self._backoff.next(), now)

    def _on_timer(self, now: float) -> None:
        if self.state is PoolState.BACKING_OFF:
            return self._start(now)
        if self.state is PoolState.PROVING:
            self.state = PoolState.FILLING
        self.fill(now)
        return None

    def _hop_is_up(self) -> None:
        if self.state in (PoolState.BACKING_OFF, PoolState.WAITING):
            self._timer.stop()
            self.state = PoolState.TRYING
            self.fill(time.monotonic())


def _text_of(error: BaseException) -> str:
    return str(error) if isinstance(error, (OSError, EOFError)) else f"{type(error).__name__}: {error}"


def _pass_on(up: weakref.WeakMethod[Callable[[], None]], loop: Loop, state: Any, error: Exception | None) -> None:
    """Tell the relay thread that a hop is up. A dialer may outlive the tunnel, so it holds no reference to that."""
    call = up()
    if call is not None and state.value == "up":
        loop.call(call)


def check_factory(make_send: MakeSend) -> None:
    """Check that streams can be made without a client.

    :param make_send: the factory of a tunnel.
    :raises ValueError: if they depend on the client.
    """
    if Plan(make_send).needs_client:
        raise ValueError(
            "warm: the streams of this factory depend on the client (it takes peer or destination, or selects a target "
            "for each request), so none can be opened before; set warm to 0"
        )
