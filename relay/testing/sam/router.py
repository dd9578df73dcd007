"""The routers behind the embedded SAM bridges, and the network between them."""

from __future__ import annotations

import errno
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ...addresses.destinations import PrivateKey, b32_of, is_base64
from ...eventloop.loop import Timer
from ...eventloop.poller import IN
from ...transports.i2p.messages import Message
from .destination import Destination
from .stream import End
from .values import Fault, SAMCommand, Settings, masked
from .wire import Hub

if TYPE_CHECKING:
    from .conversation import Conversation

CONVERSATIONS = 8192  # sockets at one time; more are closed
GRAVES = 1000  # ended destinations that are remembered
# The client stays in the backlog, so the socket would be readable again at once and the thread would spin.
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY = 0.1  # seconds until accept is retried after a lack of descriptors


class Session:
    """A session, from SESSION CREATE until its control socket ends."""

    def __init__(self, id: str, destination: Destination, options: Mapping[str, str], control: Conversation) -> None:  # noqa: A002
        self.id = id
        self.destination = destination
        self.options = options
        self.control = control
        self.sockets: set[Conversation] = set()  # of its ACCEPTs and FORWARDs
        self.ready = Timer(destination.hub.loop.timers, lambda now: control.created())
        destination.sessions.add(self)

    @property
    def is_ready(self) -> bool:
        """``True`` once it is ready."""
        return self.destination.born <= time.monotonic()


class Network:
    """Shared state of the routers: one thread, and the lease sets."""

    def __init__(self) -> None:
        self.hub = Hub()
        self._routers = 0
        self._lives: dict[str, list[Destination]] = {}
        self._graves: deque[Destination] = deque()

    def enter(self) -> None:
        """Add a router."""
        self._routers += 1

    def leave(self) -> bool:
        """Remove a router; the thread ends with the last one.

        :returns: whether it was the last one.
        """
        self._routers -= 1
        if not self._routers:
            self.hub.loop.stop()
        return not self._routers

    def announce(self, destination: Destination) -> None:
        """Add a destination."""
        self._lives.setdefault(destination.b32, []).append(destination)

    def bury(self, destination: Destination) -> None:
        """Record the end of a destination, whose lease set can still be found for a while."""
        self._graves.append(destination)
        if len(self._graves) > GRAVES:
            forgotten = self._graves.popleft()
            lives = self._lives[forgotten.b32]
            lives.remove(forgotten)
            if not lives:
                del self._lives[forgotten.b32]

    def find(self, b32: str) -> Destination | None:
        """Return the destination whose lease set a lookup finds: the last life, which may have ended."""
        now = time.monotonic()
        for one in reversed(self._lives.get(b32, [])):
            if one.published <= min(now, one.died) and now < one.died + one.router.settings.lease_life:
                return one
        return None


class Router:
    """One router with its bridge. Everything but ``note`` belongs to the network's thread.

    :param network: its network.
    :param settings: its personality and times.
    :param addressbook: returns the known names with their destinations.
    :param make: makes the conversation of an accepted socket.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        addressbook: Callable[[], Mapping[str, str]],
        make: Callable[[Router, socket.socket], Conversation],
    ) -> None:
        self.network = network
        self.hub = network.hub
        self.settings = settings
        self.refused_sessions, self.failed_connects, self.late_errors = Fault(), Fault(), Fault()
        self.commands: deque[SAMCommand] = deque(maxlen=1000)
        self.streams = 0
        self.sessions: dict[str, Session] = {}
        self.destinations: dict[str, Destination] = {}
        self.conversations: set[Conversation] = set()
        self._addressbook = addressbook
        self._make = make
        self._farewell = True  # whether the far ends of streams get EOF
        self._closed: dict[str, float] = {}
        self._holding: tuple[str, ...] = ()
        self._held: list[Callable[[], object]] = []
        self._listening: socket.socket | None = None
        self._pause = Timer(network.hub.loop.timers, lambda now: self._watch())
        self._shared: PrivateKey | None = None

    # -- its socket --

    def listen(self, listening: socket.socket) -> None:
        """Accept conversations on a socket."""
        listening.setblocking(False)
        self._listening = listening
        self._watch()

    def _watch(self) -> None:
        if self._listening is not None:
            self.hub.loop.watch(self._listening.fileno(), IN, self._come)

    def _come(self, event: int, now: float) -> None:
        assert self._listening is not None
        # At most so many at a time: a flood of clients must not hold up the streams.
        for _ in range(128):
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in SHORT_OF:
                    self.hub.loop.forget(self._listening.fileno())
                    self._pause.start(now + RETRY, now)
                return
            if len(self.conversations) < CONVERSATIONS:
                self._begin(sock)
            else:
                sock.close()

    def _begin(self, sock: socket.socket) -> None:
        try:
            self.conversations.add(self._make(self, sock))
        except OSError:
            sock.close()

    def kill(self) -> None:
        """Behave like a killed process: close every socket, without EOF for far ends. Idempotent."""
        self._pause.stop()
        listening, self._listening = self._listening, None
        if listening is not None:
            self.hub.loop.forget(listening.fileno())
            listening.close()
        # Programs see their sockets close; the far ends of their streams see nothing, as when a router's machine dies.
        self._farewell = False
        for conversation in list(self.conversations):
            conversation.end()
        for destination in list(self.destinations.values()):
            destination.die()
        self._farewell = True
        self._closed.clear()
        self._held.clear()
        self._shared = None

    # -- commands --

    def note(self, message: Message) -> None:
        """Record a command."""
        self.commands.append(SAMCommand(message.words, masked(message)))

    def hold(self, *commands: str) -> None:
        """Stop answering these commands (by their first words), or all commands."""
        # Every command begins with the empty text.
        self._holding = commands or ("",)

    def holds(self, message: Message, act: Callable[[], object]) -> bool:
        """Return whether a command must wait for :meth:`release`.

        :param act: executes it then.
        """
        name = " ".join(message.words)
        if not any(name.startswith(command) for command in self._holding):
            return False
        self._held.append(act)
        return True

    def release(self) -> None:
        """Answer all commands again, including those that came meanwhile."""
        self._holding = ()
        # Exchanged first: an answer may bring the next command, which must not be appended to the list in the loop.
        held, self._held = self._held, []
        for act in held:
            act()

    # -- sessions --

    def create(self, id: str, key: PrivateKey, options: Mapping[str, str], control: Conversation) -> Session:  # noqa: A002
        """Create a session, which is ready when its destination is. Sessions with the same keys share a destination."""
        now = time.monotonic()
        destination = self.destinations.get(key.b32)
        if destination is None:
            doomed = now < self._closed.pop(key.b32, -math.inf) + self.settings.remember
            destination = Destination(self, key, now if doomed else now + self.settings.build_time)
            self.destinations[destination.b32] = destination
            self.network.announce(destination)
            if doomed:
                destination.doom(self.settings.zombie_life)
        session = self.sessions[id] = Session(id, destination, options, control)
        if destination.born > now:
            session.ready.start(destination.born, now)
        return session

    def close_session(self, session: Session) -> None:
        """End a session and its streams. Idempotent."""
        # Another session may have the ID by now.
        if self.sessions.get(session.id) is not session:
            return
        # First, because ending the sockets leads back here.
        del self.sessions[session.id]
        session.ready.stop()
        for conversation in list(session.sockets):
            conversation.end()
        session.destination.leave(session)
        if self.settings.remember > 0:
            self._remember(session.destination.b32)

    def _remember(self, b32: str) -> None:
        """Let the end of a session take down another one of the same keys, as i2pd does."""
        living = self.destinations.get(b32)
        if living is not None:
            living.doom(self.settings.zombie_life)
            return
        self._closed[b32] = time.monotonic()
        if len(self._closed) > GRAVES:
            del self._closed[next(iter(self._closed))]

    def bury(self, destination: Destination) -> None:
        """Record the end of a destination."""
        if self.destinations.get(destination.b32) is destination:
            del self.destinations[destination.b32]
        self.network.bury(destination)

    def end_stream(self, end: End) -> None:
        """End a stream whose session has ended. With i2pd the far end gets no EOF and waits forever."""
        if self._farewell and self.settings.personality == "java":
            end.close()
        else:
            end.vanish()

    # -- names --

    def resolve(self, text: str) -> str | None:
        """Return the b32 address of a destination, an address or a name; ``None`` if it is unknown."""
        text = self._addressbook().get(text, text)
        if text.endswith(".b32.i2p"):
            return text.lower()
        try:
            return None if ".i2p" in text else b32_of(text)
        except ValueError:
            return None

    def look_up(self, text: str) -> str | None:
        """Return the destination, in base64, of a name, an address or a destination; ``None`` if it is not found."""
        value = self._addressbook().get(text)
        if value is not None and is_base64(value):
            return value
        b32 = self.resolve(text)
        found = self.network.find(b32) if b32 is not None else None
        return found.base64 if found is not None else None

    @property
    def shared(self) -> str:
        """Destination of the router itself, in base64."""
        if self._shared is None:
            self._shared = PrivateKey.generate()
        return self._shared.destination
