"""The parts around a flow, for tests of single steps: they do what the test has scripted, and record what is asked."""

from __future__ import annotations

import errno
import os
import socket

from relay.eventloop.pipes import Pipe

BLOCKED = BlockingIOError()
GONE = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
REFUSED = OSError(errno.EINVAL, "Invalid argument")


class Sock:
    """A socket that gives and takes what the test has scripted, and all if nothing is."""

    def __init__(self, descriptor, family=socket.AF_INET):
        self.descriptor = descriptor
        self.family = family
        self.gives = []  # bytes or errors
        self.takes = []  # numbers of bytes or errors
        self.asked = []  # the sizes of its reads
        self.peeked = []
        self.sent = []
        self.flags = []
        self.options = {}
        self.set = []
        self.on_send = lambda: None

    def fileno(self):
        return self.descriptor

    def recv(self, size, flags=0):
        if flags == socket.MSG_PEEK:
            self.peeked.append(size)
            given = self.gives[0] if self.gives else BLOCKED
            if isinstance(given, OSError):
                raise given
            return given[:size]
        self.asked.append(size)
        given = self.gives.pop(0) if self.gives else BLOCKED
        if isinstance(given, OSError):
            raise given
        return given

    def send(self, data, flags=0):
        self.on_send()
        taken = self.takes.pop(0) if self.takes else len(data)
        if isinstance(taken, OSError):
            raise taken
        self.sent.append(bytes(data[:taken]))
        self.flags.append(flags)
        return taken

    def getsockopt(self, level, option):
        return self.options.get((level, option), 0)

    def setsockopt(self, level, option, value):
        self.set.append((level, option, value))


class FlowOwner:
    """The owner of two flows, which records what they tell it."""

    def __init__(self):
        self.is_closed = False
        self.calls = []
        self.has_urgent = True

    def takes_urgent(self, flow):
        return self.has_urgent

    def flow_ended(self, flow, now):
        self.calls.append(("ended", flow, now))

    def on_socket_error(self, sock, now):
        self.calls.append(("failed", sock, now))
        self.is_closed = True

    def close(self, reason, now):
        self.calls.append((reason, now))
        self.is_closed = True


class LoopRecord:
    """A loop that only records what it is to watch."""

    def __init__(self):
        self.handlers = {}
        self.masks = {}
        self.forgotten = []
        self.poller = self

    def watch(self, descriptor, mask, handler):
        self.handlers[descriptor] = handler
        self.masks[descriptor] = mask

    def modify(self, descriptor, mask):
        self.masks[descriptor] = mask

    def forget(self, descriptor, closing=False):
        del self.handlers[descriptor], self.masks[descriptor]
        self.forgotten.append((descriptor, closing))


class Pipes:
    """A pool of pipes whose descriptors are only numbers."""

    def __init__(self):
        self.idle = []
        self.given = []
        self.destroyed = []
        self.made = 0
        self.can_make = True

    def make(self):
        if not self.can_make:
            return None
        self.made += 1
        self.idle.append(Pipe(100 * self.made, 100 * self.made + 1, 1000))
        return self.idle[-1]

    def give(self, pipe):
        self.given.append(pipe)

    def destroy(self, pipe):
        self.destroyed.append(pipe)


class Kernel:
    """A kernel whose ``splice`` returns or raises one thing after another, with a record of its calls."""

    def __init__(self, monkeypatch):
        self.results = []
        self.calls = []
        monkeypatch.setattr(os, "splice", self._splice, raising=False)

    def _splice(self, source, sink, count, offset_src=None, offset_dst=None, flags=0):
        self.calls.append((source, sink, count, flags))
        assert offset_src is None and offset_dst is None
        result = self.results.pop(0)
        if callable(result):
            result = result()
        if isinstance(result, OSError):
            raise result
        return result
