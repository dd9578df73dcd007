"""A SAM bridge: connecting to it, HELLO with the login, and idle sockets that have completed HELLO."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from ...addresses.hops import hop_of
from ...addresses.values import TCPAddress, TLSTarget
from ...carriers.link import strip_prefix
from ...errors import AuthenticationError, ConnectError, RelayError, SAMError
from ...eventloop.background import IOThread
from ...eventloop.loop import Timer
from ...streams.dialer import Dialer
from ...streams.promise import Abort
from ...streams.stream import Stream
from ...streams.trace import Stage, Step, Trace
from .conversation import Conversation
from .deadlines import Deadlines
from .messages import Message, MessageError, hello, shown

HELLO = 8.0  # seconds for the bridge to answer HELLO: a constructor should fail within about ten
MAX_IDLE = 16  # idle sockets
AT_ONCE = 2  # of them that are connected at a time, because a bridge that has just come back is slow
REST = 20.0  # seconds after which unused idle sockets are closed

OnConversation = Callable[["Conversation | OSError"], object]

WHERE = (
    "check that a router is running there with SAM enabled. In i2pd.conf: [sam] enabled = true; in the Java router's "
    "console: Clients, 'SAM application bridge', start"
)


class Bridge:
    """Opens conversations with one SAM bridge. Every method is safe from any thread, unless it says otherwise.

    :param name: in errors and in the log, such as ``127.0.0.1:7656``.
    :param dialer: for streams to the bridge; its owner closes it.
    :param login: the user and the password; ``None`` for a bridge without authentication.
    :raises OSError: if no thread or descriptor is available.
    """

    def __init__(self, name: str, dialer: Dialer, login: tuple[str, str] | None) -> None:
        self.name = name
        self.address: TCPAddress | TLSTarget | None = None  # set by the connector, which may have several
        self.version = ""  # of SAM that the bridge has chosen, once it has answered
        #: The HELLO line.
        self.hello = (hello() if login is None else hello(user=login[0], password=login[1])).encode()
        self._dialer = dialer
        self._io_thread = IOThread.acquire(self)
        self.deadlines = Deadlines(self._io_thread.loop)
        self.idle = IdleSockets(self, self._io_thread)

    @property
    def trace(self) -> Trace:
        """The observer of the conversations and streams."""
        return self._dialer.trace

    def open_conversation(self, deadline: float | None, on_conversation: OnConversation) -> Abort:
        """Open a conversation that has completed HELLO, from an idle socket if there is one. Never blocks.

        :param deadline: monotonic seconds; ``None`` for no limit.
        :param on_conversation: called once, in any thread and perhaps before this returns: with a conversation, which
            the caller owns, or with the error: :class:`ConnectError` (no bridge, no answer),
            :class:`AuthenticationError`, :class:`SAMError` (not SAM, or no common version).
        :returns: a function that cancels it.
        """
        if self.idle.is_closed:
            on_conversation(ConnectError(f"{self.name}: the connection to the bridge was closed"))
            return _nothing
        while (conversation := self.idle.take()) is not None:
            # A bridge that was restarted has closed its idle sockets; the I/O thread may not have seen that yet.
            if conversation.alive:
                on_conversation(conversation)
                return _nothing
            conversation.close()
        handshake = _BridgeHandshake(self, deadline)
        handshake.begin(on_conversation)
        return handshake.cancel

    def fill(self) -> None:
        """Connect the idle sockets that are missing, after a caller was served; on the I/O thread."""
        self.idle.fill()

    def close(self) -> None:
        """Close the idle sockets; conversations continue. Idempotent."""
        self.idle.close()
        self._io_thread.release(self)

    def abandon(self) -> None:
        """Open no conversation in a forked child; the conversations close their own descriptors."""
        self.idle.is_closed = True

    # -- for handshakes -----------------------------------------------------------------------------------------------

    def dial(self, deadline: float | None, done: Callable[[Stream | OSError], object]) -> Abort:
        """Open a stream to the bridge; see :meth:`relay.streams.dialer.Dialer.dial`."""
        # The carrier of the session waits and backs off; a second wait below it would only hide a hop that is down.
        return self._dialer.dial(deadline, done, wait_for_reconnect=False)

    def rejected(self, answer: Message) -> OSError:
        """Return the error for a HELLO REPLY other than OK."""
        if answer.words[:2] != ("HELLO", "REPLY"):
            return self.not_sam(f"it sent {' '.join(answer.words)}")
        if answer.result == "NOVERSION":
            text = f"{self.name}: the bridge supports none of SAM 3.1 to 3.3; update the router"
            return SAMError(text, result=answer.result)
        details = shown(answer.options.get("MESSAGE") or answer.result or "nothing")
        return AuthenticationError(
            f"{self.name}: the bridge rejects the login (it reports: {details}); check the SAM user and password"
        )

    def not_sam(self, got: str) -> SAMError:
        """Return the error for a server that does not speak SAM."""
        return SAMError(f"{self.name}: not a SAM bridge ({got}); the default port of SAM is 7656")

    def explained(self, error: OSError) -> OSError:
        """Return the error for a failed connection, with its remedy."""
        # A hop has failed, and not the bridge: the advice to look at the router would mislead.
        if hop_of(error, self._dialer.route) is not None:
            return error
        if not isinstance(error, ConnectError):
            return error if isinstance(error, RelayError) else ConnectError(f"{self.name}: {error.strerror or error}")
        if error.reason == "refused":
            why = "no SAM bridge there (connection refused)"
        else:
            why = strip_prefix(self.name, error).removeprefix(f"{self._dialer.target}: ")
        explained = ConnectError(f"{self.name}: {why}; {WHERE}", reason=error.reason)
        # Kept apart from the text, so that an error which lists several routers repeats it once only.
        explained.advice = f"; {WHERE}"
        return explained


class IdleSockets:
    """Sockets that have completed HELLO before they are needed, so that a stream costs one request and no connect.

    There are as many as it takes for each caller to find one. Every method is safe from any thread, unless it says
    otherwise.

    :param bridge: the bridge.
    :param io_thread: the I/O thread.
    """

    def __init__(self, bridge: Bridge, io_thread: IOThread) -> None:
        self.ready: deque[Conversation] = deque()
        self.connecting: set[_BridgeHandshake] = set()
        self.wanted = 0
        self.is_closed = False
        self._bridge = bridge
        self._loop = io_thread.loop
        self._lock = threading.Lock()  # guards the above
        self._was_used = False  # since the last rest
        self._rest = Timer(io_thread.loop.timers, self._close_unused)

    def take(self) -> Conversation | None:
        """Return an idle socket; if there is none, want one more."""
        with self._lock:
            conversation = self.ready.popleft() if self.ready else None
            self._was_used = True
            if conversation is None and self._bridge.version:  # a bridge that has never answered is asked once
                self.wanted = min(self.wanted + 1, MAX_IDLE)
        return conversation

    def fill(self) -> None:
        """Connect the missing ones, a few at a time; on the I/O thread."""
        now = time.monotonic()
        with self._lock:
            missing = 0 if self.is_closed else min(self.wanted - len(self.ready) - len(self.connecting), AT_ONCE)
            # Counted as connecting under the lock, begun without it: a handshake may end at once and come back here.
            new = [_BridgeHandshake(self._bridge, now + HELLO) for _ in range(missing)]
            self.connecting.update(new)
        for handshake in new:
            # Each that succeeds fills again, so that the next two follow as long as the bridge answers.
            handshake.begin(functools.partial(self._keep, handshake))
        if new and self._rest.due == math.inf:
            self._rest.start(now + REST, now)

    def close(self) -> None:
        """Close them all. Idempotent."""
        with self._lock:
            self.is_closed = True
            ready, self.ready = list(self.ready), deque()
            connecting, self.connecting = self.connecting, set()
        for conversation in ready:
            conversation.close()
        for handshake in connecting:
            handshake.cancel()
        self._loop.call(self._rest.stop)

    def _keep(self, handshake: _BridgeHandshake, outcome: Conversation | OSError) -> None:
        with self._lock:
            self.connecting.discard(handshake)
            is_wanted = not self.is_closed and len(self.ready) < self.wanted
            if is_wanted and isinstance(outcome, Conversation):
                # Listened to although nothing is expected: this is how the end of an idle socket is seen.
                outcome.listen(_ignore_line, functools.partial(self._on_end, outcome))
                self.ready.append(outcome)
        if not is_wanted and isinstance(outcome, Conversation):
            outcome.close()

    def _on_end(self, conversation: Conversation, error: OSError) -> None:
        with self._lock:
            if conversation in self.ready:
                self.ready.remove(conversation)

    def _close_unused(self, now: float) -> None:
        with self._lock:
            # Halved and not dropped: a burst that has just ended may come again, and half of its sockets cost little.
            self.wanted = self.wanted // 2 if self._was_used else 0
            self._was_used = False
            unused = [self.ready.pop() for _ in range(len(self.ready) - self.wanted)]
            more = self.wanted > 0 and not self.is_closed
        for conversation in unused:
            conversation.close()
        if more:
            self._rest.start(now + REST, now)


class _BridgeHandshake:
    """A connect to the bridge and a HELLO."""

    __slots__ = (
        "_bridge", "_cancel", "_conversation", "_deadline", "_is_cancelled", "_lock", "_on_conversation", "_step",
    )  # fmt: skip

    def __init__(self, bridge: Bridge, deadline: float | None) -> None:
        self._bridge = bridge
        self._deadline = deadline
        self._on_conversation: OnConversation | None = None
        self._conversation: Conversation | None = None
        self._cancel: Abort = _nothing
        self._is_cancelled = False
        self._lock = threading.Lock()
        self._step: Step | None = None

    def begin(self, on_conversation: OnConversation) -> None:
        """Connect, unless it was cancelled before."""
        with self._lock:
            if self._is_cancelled:
                return None
            self._on_conversation = on_conversation
        self._step = self._bridge.trace.begin(Stage.BRIDGE, self._bridge.name)
        try:
            cancel = self._bridge.dial(self._deadline, self._on_stream)
        except OSError as error:
            return self._finish(self._bridge.explained(error))
        # It was cancelled while `dial` was under way, when there was nothing to cancel yet.
        if not self._keep(cancel):
            cancel()
        return None

    def _keep(self, cancel: Abort) -> bool:
        with self._lock:
            self._cancel = cancel
            return not self._is_cancelled

    def _on_stream(self, outcome: Stream | OSError) -> None:
        bridge = self._bridge
        if isinstance(outcome, OSError):
            return self._finish(bridge.explained(outcome))
        try:
            conversation = Conversation(outcome, bridge.name, bridge.deadlines)
        except OSError as error:
            return self._finish(error)
        with self._lock:
            self._conversation = conversation
            is_cancelled = self._is_cancelled
        if is_cancelled:
            return conversation.close()
        latest = time.monotonic() + HELLO
        deadline = latest if self._deadline is None else min(latest, self._deadline)
        return conversation.ask(bridge.hello, deadline, self._on_answer)

    def _on_answer(self, answer: Message | OSError) -> None:
        bridge, conversation = self._bridge, self._conversation
        assert conversation is not None
        if isinstance(answer, Message) and answer.words[:2] == ("HELLO", "REPLY") and answer.result == "OK":
            bridge.version = answer.options.get("VERSION", "")
            # Before the idle sockets are filled: the caller waits for its request, and no client waits for them.
            self._finish(conversation)
            return bridge.fill()
        conversation.close()
        if isinstance(answer, Message):
            return self._finish(bridge.rejected(answer))
        if isinstance(answer, MessageError):
            return self._finish(bridge.not_sam(strip_prefix(bridge.name, answer)))
        return self._finish(bridge.explained(answer))

    def _finish(self, outcome: Conversation | OSError) -> None:
        if self._step is not None and isinstance(outcome, OSError):
            self._step.failed(outcome)
        elif self._step is not None:
            self._step.done(version=self._bridge.version)
        with self._lock:
            # The result and a cancel on another thread may meet: the one that takes the callback decides, the other
            # finds None.
            on_conversation, self._on_conversation = self._on_conversation, None
        if on_conversation is not None:
            on_conversation(outcome)
        elif isinstance(outcome, Conversation):
            outcome.close()

    def cancel(self) -> None:
        """Stop without a result; from any thread. Idempotent, and without effect after the result."""
        with self._lock:
            self._is_cancelled = True
            on_conversation, self._on_conversation = self._on_conversation, None
        if on_conversation is not None:
            self._cancel()
            if self._conversation is not None:
                self._conversation.close()


def _ignore_line(line: bytes) -> None:
    """Ignore a line on an idle socket: a bridge may ping one, and waits for no answer there."""


def _nothing() -> None:
    pass
