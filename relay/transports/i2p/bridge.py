"""A SAM bridge: how it is reached, who logs in there, and sockets that have said HELLO."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from ...addresses.hops import hop_of
from ...carriers.link import strip_prefix
from ...errors import AuthenticationError, ConnectError, RelayError, SAMError
from ...eventloop.background import Pump
from ...eventloop.loop import Timer
from ...streams.dialer import Dialer
from ...streams.promise import Abort
from ...streams.stream import Stream
from .conversation import Conversation
from .deadlines import Clock
from .messages import Message, MessageError, hello, shown

__all__ = ["Bridge"]

HELLO = 8.0  # seconds for the bridge to answer HELLO: a constructor is to fail within about ten
MAX_IDLE = 16  # sockets at most that have said HELLO before they are needed
MORE = 2  # that are made at once: a bridge that has just come back is not to be overrun
REST = 20.0  # seconds after which those that nobody needed are closed

OnConversation = Callable[["Conversation | OSError"], object]

WHERE = (
    "is a router running there, with SAM enabled? In i2pd.conf: [sam] enabled = true; in the Java router's console: "
    "Clients, 'SAM application bridge', start"
)


class Bridge:
    """Begins conversations with one bridge.

    Some that have said HELLO are kept ready while they are needed: a stream then costs one question, not a connect and
    two. There are as many as it takes for nobody to find none.

    :param name: in errors and in the log, such as ``127.0.0.1:7656``.
    :param dial: the factory for streams to it, over whatever is between; its owner closes it.
    :param login: the user and the password, or ``None`` where there are none.
    :raises OSError: if there is no thread or descriptor to be had.
    """

    def __init__(self, name: str, dial: Dialer, login: tuple[str, str] | None) -> None:
        self.name = name
        self.version = ""  # that it speaks, once it has answered
        self._reach = dial
        self._greeting = hello() if login is None else hello(user=login[0], password=login[1])
        self._line = self._greeting.encode()
        self._lock = threading.Lock()
        self._idle: deque[Conversation] = deque()
        self._connecting: set[_BridgeHandshake] = set()  # spares that are being made
        self._wanted = 0  # spares to be had
        self._taken = False  # whether a conversation was wanted since the last rest
        self._closed = False
        self._pump = Pump.hold(self)
        self.clock = Clock(self._pump.loop)
        self._rest = Timer(self._pump.loop.timers, self._close_unneeded)

    def open_conversation(self, deadline: float | None, on_conversation: OnConversation) -> Abort:
        """Have a conversation that has said HELLO. Never blocks.

        :param deadline: monotonic seconds; ``None`` for as long as it takes.
        :param on_conversation: called once, in any thread, perhaps before this returns, with a conversation,
            which is the caller's; or with the error: :class:`ConnectError` (nothing there, no answer),
            :class:`AuthenticationError`, :class:`SAMError` (not SAM, or no version in common).
        :returns: gives it up.
        """
        if self._closed:
            on_conversation(ConnectError(f"{self.name}: the way to the bridge was closed"))
            return _nothing
        while (idle := self._take()) is not None:
            if idle.alive:
                on_conversation(idle)
                return _nothing
            idle.close()
        handshake = _BridgeHandshake(self, deadline)
        handshake.begin(on_conversation)
        return handshake.give_up

    def close(self) -> None:
        """Close the spares; conversations go on. Idempotent, from any thread."""
        with self._lock:
            self._closed = True
            idles, self._idle = list(self._idle), deque()
            coming, self._connecting = self._connecting, set()
        for idle in idles:
            idle.close()
        for handshake in coming:
            handshake.give_up()
        self._pump.loop.call(self._rest.stop)
        self._pump.let_go(self)

    def abandon(self) -> None:
        """In a forked child: the conversations close their own descriptors."""
        self._closed = True

    def _take(self) -> Conversation | None:
        with self._lock:
            idle = self._idle.popleft() if self._idle else None
            self._taken = True
            if idle is None and self.version:  # a bridge that has not answered yet is asked once
                self._wanted = min(self._wanted + 1, MAX_IDLE)
        return idle

    def fill(self) -> None:
        """Make the spares that are missing, now that whoever has taken one is served; in the pump's thread."""
        now = time.monotonic()
        with self._lock:
            missing = 0 if self._closed else min(self._wanted - len(self._idle) - len(self._connecting), MORE)
            coming = [_BridgeHandshake(self, now + HELLO) for _ in range(missing)]
            self._connecting.update(coming)
        for handshake in coming:
            handshake.begin(functools.partial(self._keep, handshake))
        if coming and self._rest.due == math.inf:
            self._rest.start(now + REST, now)

    def _keep(self, handshake: _BridgeHandshake, outcome: Conversation | OSError) -> None:
        with self._lock:
            self._connecting.discard(handshake)
            unwanted = self._closed or len(self._idle) >= self._wanted
            if not unwanted and isinstance(outcome, Conversation):
                outcome.listen(_nothing_said, functools.partial(self._gone, outcome))
                self._idle.append(outcome)
        if unwanted and isinstance(outcome, Conversation):
            outcome.close()

    def _gone(self, idle: Conversation, error: OSError) -> None:
        with self._lock:
            if idle in self._idle:
                self._idle.remove(idle)

    def _close_unneeded(self, now: float) -> None:
        with self._lock:
            self._wanted = self._wanted // 2 if self._taken else 0
            self._taken = False
            unneeded = [self._idle.pop() for _ in range(len(self._idle) - self._wanted)]
            more = self._wanted > 0 and not self._closed
        for idle in unneeded:
            idle.close()
        if more:
            self._rest.start(now + REST, now)

    # -- HELLO --------------------------------------------------------------------------------------------------------

    def dial(self, deadline: float | None, done: Callable[[Stream | OSError], object]) -> Abort:
        """Begin to connect to it; see :meth:`relay.streams.dialer.Dialer.dial`."""
        return self._reach.dial(deadline, done, wait_for_reconnect=False)

    @property
    def greeting(self) -> bytes:
        """What is said first."""
        return self._line

    def refused(self, answer: Message) -> OSError:
        """Why it does not talk to us."""
        if answer.words[:2] != ("HELLO", "REPLY"):
            return self.not_sam(f"it says {' '.join(answer.words)}")
        if answer.result == "NOVERSION":
            text = f"{self.name}: the bridge speaks none of SAM 3.1 to 3.3; the router is too old: update it"
            return SAMError(text, result=answer.result)
        said = shown(answer.options.get("MESSAGE") or answer.result or "nothing")
        return AuthenticationError(
            f"{self.name}: the bridge does not let us in (it says: {said}); check the user and the password of SAM"
        )

    def not_sam(self, said: str) -> SAMError:
        """What is there is something else."""
        return SAMError(f"{self.name}: what answers there is not a SAM bridge ({said}); SAM's usual port is 7656")

    def explained(self, error: OSError) -> OSError:
        """Why there is no bridge, with what to do."""
        if hop_of(error, self._reach.route) is not None:
            return error
        if not isinstance(error, ConnectError):
            return error if isinstance(error, RelayError) else ConnectError(f"{self.name}: {error.strerror or error}")
        if error.reason == "refused":
            why = "no SAM bridge there (connection refused)"
        else:
            why = strip_prefix(self.name, error).removeprefix(f"{self._reach.target}: ")
        explained = ConnectError(f"{self.name}: {why}; {WHERE}", reason=error.reason)
        explained.advice = f"; {WHERE}"
        return explained


class _BridgeHandshake:
    """A connect and a HELLO under way."""

    __slots__ = ("_bridge", "_conversation", "_deadline", "_given_up", "_lock", "_on_conversation", "_undo")

    def __init__(self, bridge: Bridge, deadline: float | None) -> None:
        self._bridge = bridge
        self._deadline = deadline
        self._on_conversation: OnConversation | None = None
        self._conversation: Conversation | None = None
        self._undo: Abort = _nothing
        self._given_up = False
        self._lock = threading.Lock()

    def begin(self, on_conversation: OnConversation) -> None:
        """Begin, unless it was given up before."""
        with self._lock:
            if self._given_up:
                return None
            self._on_conversation = on_conversation
        try:
            undo = self._bridge.dial(self._deadline, self._reached)
        except OSError as error:
            return self._finish(self._bridge.explained(error))
        if not self._keep(undo):
            undo()
        return None

    def _keep(self, undo: Abort) -> bool:
        with self._lock:
            self._undo = undo
            return not self._given_up

    def _reached(self, outcome: Stream | OSError) -> None:
        bridge = self._bridge
        if isinstance(outcome, OSError):
            return self._finish(bridge.explained(outcome))
        try:
            conversation = Conversation(outcome, bridge.name, bridge.clock)
        except OSError as error:
            return self._finish(error)
        with self._lock:
            self._conversation = conversation
            given_up = self._given_up
        if given_up:
            return conversation.close()
        latest = time.monotonic() + HELLO
        deadline = latest if self._deadline is None else min(latest, self._deadline)
        return conversation.ask(bridge.greeting, deadline, self._answered)

    def _answered(self, answer: Message | OSError) -> None:
        bridge, conversation = self._bridge, self._conversation
        assert conversation is not None
        if isinstance(answer, Message) and answer.words[:2] == ("HELLO", "REPLY") and answer.result == "OK":
            bridge.version = answer.options.get("VERSION", "")
            self._finish(conversation)
            return bridge.fill()
        conversation.close()
        if isinstance(answer, Message):
            return self._finish(bridge.refused(answer))
        if isinstance(answer, MessageError):
            return self._finish(bridge.not_sam(strip_prefix(bridge.name, answer)))
        return self._finish(bridge.explained(answer))

    def _finish(self, outcome: Conversation | OSError) -> None:
        with self._lock:
            on_conversation, self._on_conversation = self._on_conversation, None
        if on_conversation is not None:
            on_conversation(outcome)
        elif isinstance(outcome, Conversation):
            outcome.close()

    def give_up(self) -> None:
        """Tell nobody; from any thread, idempotent, and without effect once somebody was told."""
        with self._lock:
            self._given_up = True
            on_conversation, self._on_conversation = self._on_conversation, None
        if on_conversation is not None:
            self._undo()
            if self._conversation is not None:
                self._conversation.close()


def _nothing_said(line: bytes) -> None:
    """A bridge may ping a socket that has no session; nobody waits for an answer there."""


def _nothing() -> None:
    pass
