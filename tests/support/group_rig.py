"""A group of tunnels of a file in this process: its main thread is a thread of the test."""

import contextlib
import dataclasses
import os
import socket
import threading

from helpers import WAIT, receive_exactly, wait_until

from relay.addresses.parse import parse_listen, parse_target
from relay.cli.reporters import ManyTunnels
from relay.daemon.change.reload import Reloads
from relay.daemon.failures import ConflictError
from relay.daemon.group import Group as _Group
from relay.daemon.member import Member, MemberState
from relay.daemon.options import Options
from relay.daemon.plan import make_plan
from relay.daemon.signals import Signals
from relay.daemon.tunnel_file import TunnelFile


class _Signals(Signals):
    """Signals of a group that does not run in the main thread: none are caught, only wakes are."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._reader.close()
        self._writer.close()


class Group(_Group):
    """A group and its file."""

    def write(self, text):
        """Write the file."""
        with open(self.reloads.file.path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)

    def rewrite(self, text):
        """Write the file, and reload; return the words of the verdicts by name."""
        self.write(text)
        return {change.name: change.verdict.word for change in self.reload().changes}

    def now(self, name):
        """The tunnel of that name."""
        return next(member for member in self.members if member.name == name)

    def tunnel(self, name):
        """The engine's tunnel of that name."""
        return self.now(name).relay

    def connect(self, name):
        """A client of that tunnel."""
        return socket.create_connection(self.tunnel(name).address, WAIT)


@contextlib.contextmanager
def started(group):
    """Run a group on a thread of its own, as if that were the main thread; all tunnels have opened, failed or wait."""
    thread = threading.Thread(target=group.run)
    thread.start()
    try:
        wait_until(lambda: all(member.state is not MemberState.OPENING for member in group.members))
        with contextlib.suppress(ConflictError):
            group.call(lambda: None)  # the turn in which the last one has opened is over
        yield group
    finally:
        with contextlib.suppress(ConflictError):
            group.call(group.end, 0)
        thread.join(WAIT)
        assert not thread.is_alive()


@contextlib.contextmanager
def running(path, text, shown=None):
    """Run the tunnels of a file."""
    path.write_text(text)
    path.chmod(0o600)
    with contextlib.chdir(path.parent), _Signals() as signals:
        file = TunnelFile(str(path), shown or Options(), path.name)
        group = Group(file.first(), signals, ManyTunnels(watch=False))
        group.processes = file.processes
        group.reloads = Reloads(group, file)
        with started(group):
            yield group


@contextlib.contextmanager
def running_pair(target, *, required=False):
    """Run two tunnels without a file, ``a`` (required or not) and ``b``; both listen."""
    plans = [make_plan(parse_listen(":0"), parse_target(target), Options(drain=WAIT), name=name) for name in ("a", "b")]
    with _Signals() as signals:
        members = [Member(dataclasses.replace(plans[0], is_required=required)), Member(plans[1])]
        with started(_Group(members, signals, ManyTunnels(watch=False))) as group:
            assert all(member.state is MemberState.LISTENING for member in group.members)
            yield group


def letter(which):
    """A server that sends a letter, then repeats what it gets."""

    def work(connection):
        connection.sendall(which)
        while data := connection.recv(1000):
            connection.sendall(data)

    return work


def repeats(client):
    """Return whether a connection to such a server lives."""
    client.sendall(b"x")
    return receive_exactly(client, 1) == b"x"
