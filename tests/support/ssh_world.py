"""Doubles of both SSH backends and of the user's configuration, for what stands above them."""

import socket
from types import SimpleNamespace

from helpers import WAIT

import relay
from relay.addresses.values import TCPAddress
from relay.streams.dialer import Dialer
from relay.transports import chain
from relay.transports.ssh import connector
from relay.transports.ssh.connection import Settings


class Connection:
    """A connection whose streams are socketpairs; the test holds the far ends."""

    def __init__(self, world, settings, stream, lost):
        self.world = world
        self.settings = settings
        self.stream = stream
        self.told_lost = lost
        self.places = []
        self.far = []
        self.errors = list(world.lossy)
        self.closed = False
        self.rtt, self.is_doubtful, self.streams = None, False, 0
        self.forwards = {}  # place → whom to tell of a stream
        self.refusals = world.refusals
        self.stopped = []
        self.stop = lambda: None  # what takes time when it stops to listen

    def listen(self, place, accepted, deadline):
        self.world.asked.append(place)
        if self.refusals:
            raise self.refusals.pop(0)
        if place in self.forwards:
            raise relay.ForwardError(f"{self.settings.name}: {place} is taken")
        if isinstance(place, TCPAddress) and not place.port:
            place = TCPAddress(place.host, 40001)
        self.forwards[place] = accepted
        return place

    def stop_listening(self, place):
        self.stopped.append(place)
        self.stop()
        self.forwards.pop(place, None)

    def lose(self):
        error = relay.CarrierError(f"{self.settings.name}: gone")
        self.errors = [error] * 99
        self.told_lost(error)

    def open(self, place, deadline, done, *, self_contained=False, confirmed=False):
        self.places.append((place, self_contained))
        if self.errors:
            done(self.errors.pop(0))
            return lambda: None
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(WAIT)
        self.far.append(far)
        failure = self.world.failure
        done(relay.Stream(near, target=str(place), failure=(lambda: failure) if failure is not None else None))
        return lambda: None

    def when_idle(self, call):
        call()

    def confirm(self, done):
        done()

    def check(self):
        pass

    def close(self):
        self.closed = True
        for far in self.far:
            far.close()
        if self.stream is not None:
            self.stream.close()

    def abandon(self):
        pass


class World:
    """Both backends, and what the configuration says."""

    def __init__(self, monkeypatch):
        self.connections = []
        self.errors = []  # of the next attempts
        self.lossy = []  # of the first streams of each connection
        self.settings = {}  # what a server's configuration adds
        self.names = {}  # the names of hosts that are not their alias and ".example"
        self.dialed = []
        self.failure = None  # what ends the streams
        self.asked = []  # places to listen at
        self.refusals = []  # of the next forwards
        monkeypatch.setattr("relay.carriers.retry._BACKOFF", (0.01, 0.02))
        monkeypatch.setattr("relay.carriers.retry._MAX_BACKOFF_WITH_WAITERS", 0.02)
        monkeypatch.setattr(connector, "resolve_settings", self.resolve_settings)
        monkeypatch.setattr(connector, "import_module", self.backend)
        monkeypatch.setattr(chain._Here, "to", lambda _, place: self.here(place))

    def resolve_settings(self, server, behind=False):
        name = self.names.get(server.host, f"{server.host}.example")
        return Settings(server, name, server.port or 22, "me", **self.settings.get(server.host, {}))

    def backend(self, name, package):
        def connect(settings, stream, deadline, cancel, lost, trace=None):
            if self.errors:
                if stream is not None:
                    stream.close()
                raise self.errors.pop(0)
            self.connections.append(Connection(self, settings, stream, lost))
            self.connections[-1].backend = name
            return self.connections[-1]

        return SimpleNamespace(connect=connect)

    def here(self, place):
        """Replace the places that this machine reaches itself."""
        return _Reached(self, place)


class _Reached(Dialer):
    def __init__(self, world, place):
        super().__init__(str(place))
        self._world = world
        self._place = place

    def dial(self, deadline, done, *, self_contained=False, wait_for_reconnect=True):
        self._world.dialed.append((self._place.host, self._place.port))
        near, far = socket.socketpair()
        far.close()
        near.setblocking(False)
        done(relay.Stream(near))
        return lambda: None
