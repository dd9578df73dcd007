"""Host names that are looked up for every connection, and the look-ups for the clients of one tunnel.

These are a few at a time, one for equal names, the rest in a queue.
"""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from ..errors import ConnectError
from ..eventloop.loop import Loop
from ..eventloop.sockets import Endpoint
from .fairness import ROOM, crowding
from .source import Source

Found = Sequence[Endpoint] | BaseException
"""The result of a look-up: the addresses, or what it has raised."""

_MOST = 64  # look-ups on threads at one time
_SHARE = 32  # of them, for clients of one source: slow names of one client leave threads to the others
_WAITING = 1024  # names that wait for a thread
_PATIENCE = 30.0  # seconds after which a look-up counts as hung: the next client that asks starts another one
_ATTEMPTS = 3  # threads on one name at one time, hung ones included


class Name(Protocol):
    """A host name that is looked up for every connection."""

    host: str

    def look_up(self) -> Sequence[Endpoint]:
        """Ask the system; blocks as long as its resolver does. Raises what the system raises."""

    def endpoints(self, found: Found) -> Sequence[Endpoint]:
        """Return where to connect, given what a look-up of the same host returned or raised.

        :raises ConnectError: if there is nothing to connect to.
        """


def resolved(name: Name) -> Sequence[Endpoint]:
    """Look a name up and return where to connect; blocks.

    :raises ConnectError: if there is no address (``unreachable``), or none may be connected to (``denied``).
    """
    found: Found
    try:
        found = name.look_up()
    except (OSError, UnicodeError) as error:
        found = error
    return name.endpoints(found)


class BoundName:
    """A name to which connections come from one address of this machine.

    :param target: the name of the target, for errors.
    :param name: looks it up.
    :param source: the address of this machine.
    """

    __slots__ = ("host", "look_up", "_target", "_name", "_source")

    def __init__(self, target: str, name: Name, source: Source) -> None:
        self.host = name.host
        # The look-up of the host alone, so that clients with other sources share it; the family is chosen from its
        # result.
        self.look_up = name.look_up
        self._target = target
        self._name = name
        self._source = source

    def endpoints(self, found: Found) -> Sequence[Endpoint]:
        """Return the addresses of the source's family; see :meth:`Name.endpoints`."""
        return self._source.of(self._target, self._name.endpoints(found))


def key_of(host: str) -> str:
    """Return what equal names have in common. Case matters only in the zone of an IPv6 address: an interface."""
    name, percent, zone = host.partition("%")
    return name.lower() + percent + zone


class _Search:
    """One name and the clients that wait for its addresses."""

    __slots__ = ("name", "look_up", "source", "askers", "running", "started")

    def __init__(self, name: Hashable, look_up: Callable[[], Sequence[Endpoint]], source: Hashable) -> None:
        self.name = name
        self.look_up = look_up
        self.source = source  # of the client that asked first
        self.askers: dict[object, Callable[[Found, float], object]] = {}
        self.running = False
        self.started = 0.0  # when it began to run


class Lookups:
    """Looks names up on threads. The system's resolver knows no deadline, so a look-up that runs cannot be ended.

    Belongs to the loop's thread, but for the look-ups themselves.

    :param loop: the tunnel's.
    :param submit: has a function called on a thread that may block.
    """

    def __init__(self, loop: Loop, submit: Callable[[Callable[[], object]], object]) -> None:
        self._loop = loop
        self._submit = submit
        self._searches: dict[Hashable, _Search] = {}  # the latest of each name that waits or runs
        self._attempts: collections.Counter[Hashable] = collections.Counter()  # those that run, by name
        self._waiting: dict[Hashable, dict[Hashable, _Search]] = {}  # by source; the source whose turn it is first
        self._waiting_count = 0
        self._running: collections.Counter[Hashable] = collections.Counter()  # by source
        self._running_count = 0

    def find(
        self,
        name: Hashable,
        look_up: Callable[[], Sequence[Endpoint]],
        source: Hashable,
        done: Callable[[Found, float], object],
    ) -> Callable[[], object]:
        """Look a name up, or wait for the look-up of it that is under way.

        :param name: equal names are looked up once, unless a look-up hangs: that one keeps its thread and its clients.
        :param look_up: returns the addresses or raises; called on a thread.
        :param source: of the client; see :func:`relay.streams.fairness.source_of`.
        :param done: called in the loop's thread with the addresses or the exception, and the time.
        :returns: a function that gives it up: ``done`` is not called then.
        """
        search = self._searches.get(name)
        if search is None or self._hangs(search):
            # The hung one keeps its thread and its clients; it is only no longer the one that newcomers join.
            search = self._searches[name] = _Search(name, look_up, source)
            self._waiting.setdefault(source, {})[name] = search
            self._waiting_count += 1
        token = object()
        search.askers[token] = done
        self._start()
        if self._waiting_count > _WAITING:
            self._make_room()
        return functools.partial(self._give_up, search, token)

    def _hangs(self, search: _Search) -> bool:
        """Return whether a look-up has run for so long that the next client starts another one."""
        # Bounded by `_ATTEMPTS`: a name server that never answers would get a thread for each new client otherwise.
        is_late = search.running and time.monotonic() - search.started >= _PATIENCE
        return is_late and self._attempts[search.name] < _ATTEMPTS

    def _give_up(self, search: _Search, token: object) -> None:
        # One that runs goes on without askers: it cannot be ended, and the next client may still use what it finds.
        if search.askers.pop(token, None) is not None and not search.askers and not search.running:
            self._unqueue(search)
            del self._searches[search.name]

    def _unqueue(self, search: _Search) -> None:
        names = self._waiting[search.source]
        del names[search.name]
        self._waiting_count -= 1
        if not names:
            del self._waiting[search.source]

    def _start(self) -> None:
        while self._running_count < _MOST:
            # The first source whose turn it is and that has not its share of threads: a client that asks for a thousand
            # slow names waits behind its own ones.
            names = next((self._waiting[one] for one in self._waiting if self._running[one] < _SHARE), None)
            if names is None:
                return
            search = next(iter(names.values()))
            source = search.source
            self._unqueue(search)
            if source in self._waiting:
                self._waiting[source] = self._waiting.pop(source)  # its turn comes again after that of the others
            search.running = True
            search.started = time.monotonic()
            self._attempts[search.name] += 1
            self._running[source] += 1
            self._running_count += 1
            self._submit(functools.partial(self._run, search))

    def _make_room(self) -> None:
        waiting = [search for search in self._searches.values() if not search.running]
        now = time.monotonic()
        for search in crowding(waiting, lambda one: one.source, max(1, _WAITING // ROOM)):
            if search.running or self._searches.get(search.name) is not search:
                continue  # the error of another client has made room for the next, or has given this one up
            self._unqueue(search)
            text = "too many DNS lookups are waiting; check the name server"
            self._end(search, ConnectError(f"{search.name}: {text}", reason="overloaded"), now)

    def _run(self, search: _Search) -> None:
        """On a thread that may block."""
        found: Found
        try:
            found = search.look_up()
        except BaseException as error:  # noqa: BLE001  (SystemExit included: it must not end the thread)
            found = error
        self._loop.call(functools.partial(self._ran, search, found))

    def _ran(self, search: _Search, found: Found) -> None:
        self._running_count -= 1
        self._running[search.source] -= 1
        if not self._running[search.source]:
            del self._running[search.source]
        self._attempts[search.name] -= 1
        if not self._attempts[search.name]:
            del self._attempts[search.name]
        self._start()
        self._end(search, found, time.monotonic())

    def _end(self, search: _Search, found: Found, now: float) -> None:
        if self._searches.get(search.name) is search:  # else a later one has taken its place
            del self._searches[search.name]
        # Emptied before the calls: an asker that gives up meanwhile finds nothing, and is not called twice.
        askers, search.askers = search.askers, {}
        for done in askers.values():
            done(found, now)
