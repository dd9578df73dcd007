"""Changes of this machine's network: an address or a default route that came or went, a link that is up again, a sleep.

The kernel reports them, so that nothing polls: rtnetlink(7) has the addresses, routes and links, and a timer that ends
when the clock was set (``TFD_TIMER_CANCEL_ON_SET`` of timerfd_create(2)) has the end of a sleep. A machine has slept if
CLOCK_BOOTTIME, which counts the sleep, has moved on against CLOCK_MONOTONIC, which does not.

A link that goes down and a route that goes away are no reason to ask: what they carried may be there again in a moment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator

from ..eventloop.background import IOThread
from ..eventloop.loop import Timer
from ..eventloop.poller import IN

logger = logging.getLogger("relay")

_GATHER = 0.1  # seconds in which the messages of one change gather
_SLEPT = 1.0  # seconds by which a sleep moves the clocks apart at least

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h, linux/if.h; see rtnetlink(7).
_ROUTE = 0  # the netlink protocol
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, addresses and routes of IPv4, addresses and routes of IPv6
_HEAD = struct.Struct("=IHHII")  # of a message: length, kind, flags, number, port
_ATTRIBUTE = struct.Struct("=HH")  # length, kind
_LINK, _ADDRESS, _ROUTES = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI")
_NEW_LINK, _DELETE_LINK, _NEW_ADDRESS, _DELETE_ADDRESS, _NEW_ROUTE, _DELETE_ROUTE = 16, 17, 20, 21, 24, 25
_RUNNING, _TENTATIVE, _UNICAST = 0x40, 0x40, 1
_LINK_SCOPE = 253  # and what is narrower: addresses that other networks do not see
_WITH_TIMES = (6, 12)  # attributes that change with each renewal: IFA_CACHEINFO and RTA_CACHEINFO
_LONGEST = 64 << 10

_CANCEL_ON_SET = 3  # TFD_TIMER_ABSTIME with TFD_TIMER_CANCEL_ON_SET; sys/timerfd.h
_NEVER = struct.pack("@4q", 0, 0, 1 << 40, 0)  # interval, and the time of the alarm


class Changes:
    """The messages of rtnetlink: which of them are a change, and which only repeat what is known."""

    def __init__(self) -> None:
        self._known: set[tuple[int, bytes]] = set()

    def read(self, data: bytes) -> str:
        """Return what has changed, for the log; empty if nothing has that concerns a connection.

        :param data: one packet of the kernel, of one or more messages.
        """
        changes = [self._change(kind, body) for kind, body in _messages(data)]
        return next(filter(None, reversed(changes)), "")

    def _change(self, kind: int, body: bytes) -> str:
        if kind in (_NEW_LINK, _DELETE_LINK):
            _, _, index, flags, _ = _LINK.unpack_from(body)
            is_up = kind == _NEW_LINK and bool(flags & _RUNNING)
            return "a link is up" if self._note(_NEW_LINK, b"%d" % index, is_there=is_up) and is_up else ""
        if kind in (_NEW_ADDRESS, _DELETE_ADDRESS):
            family, length, flags, scope, index = _ADDRESS.unpack_from(body)
            if scope >= _LINK_SCOPE or flags & _TENTATIVE:
                return ""
            name = b"%d %d %d " % (family, length, index) + _lasting(body[_ADDRESS.size :])
            is_new = kind == _NEW_ADDRESS
            changed = self._note(_NEW_ADDRESS, name, is_there=is_new) or not is_new
            return ("a new address" if is_new else "an address is gone") if changed else ""
        if kind in (_NEW_ROUTE, _DELETE_ROUTE):
            family, length, *_, route, _flags = _ROUTES.unpack_from(body)
            if length or route != _UNICAST:
                return ""
            name = b"%d " % family + _lasting(body[_ROUTES.size :])
            is_new = kind == _NEW_ROUTE
            return "a new default route" if self._note(_NEW_ROUTE, name, is_there=is_new) and is_new else ""
        return ""

    def _note(self, kind: int, name: bytes, *, is_there: bool) -> bool:
        """Note that something is there or not; returns whether that is news."""
        key = kind, name
        if (key in self._known) is is_there:
            return False
        (self._known.add if is_there else self._known.discard)(key)
        return True


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEAD.size:
        length, kind, *_ = _HEAD.unpack_from(data)
        yield kind, data[_HEAD.size : length]
        data = data[max(_HEAD.size, length + 3 & ~3) :]


def _lasting(attributes: bytes) -> bytes:
    """Return the attributes without those that change although the subject is the same."""
    kept = b""
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind not in _WITH_TIMES:
            kept += attributes[:length]
        attributes = attributes[max(_ATTRIBUTE.size, length + 3 & ~3) :]
    return kept


class _Watch:
    """The descriptors that report changes, on the I/O thread, while one carrier subscribes."""

    def __init__(self, home: IOThread) -> None:
        self.subscribers: dict[Callable[[str], object], None] = {}
        self._home = home
        self._changes = Changes()
        self._slept = _seconds_slept()
        self._reason = ""
        self._timer = Timer(home.loop.timers, self._tell)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ROUTE)
        try:
            self._netlink.bind((0, _GROUPS))
            home.loop.watch(self._netlink.fileno(), IN, self._on_message)
        except BaseException:
            self._netlink.close()
            raise
        self._clock = _clock_watch()
        if self._clock is not None:
            home.loop.watch(self._clock, IN, self._on_clock)
        home.hold(self)

    def close(self) -> None:
        self._timer.stop()
        self._home.loop.forget(self._netlink.fileno())
        if self._clock is not None:
            self._home.loop.forget(self._clock)
        self.abandon()
        self._home.release(self)

    def abandon(self) -> None:
        """Only close the descriptors, in a forked child."""
        _watches.pop(self._home, None)
        self._netlink.close()
        clock, self._clock = self._clock, None
        if clock is not None:
            os.close(clock)

    def _on_message(self, event: int, now: float) -> None:
        try:
            reason = self._changes.read(self._netlink.recv(_LONGEST))
        except BlockingIOError:
            return
        except OSError as error:
            # More messages than the kernel keeps: what they were is not known.
            reason = "many changes" if error.errno == errno.ENOBUFS else ""
        if reason and self._timer.due > now + _GATHER:
            self._reason = reason
            self._timer.start(now + _GATHER, now)

    def _on_clock(self, event: int, now: float) -> None:
        assert self._clock is not None
        with contextlib.suppress(OSError):  # ECANCELED: the clock was set
            os.read(self._clock, 8)
        slept, self._slept = self._slept, _seconds_slept()
        if self._slept - slept >= _SLEPT:
            self._reason = f"the machine slept for {self._slept - slept:.0f} s"
            self._tell(now)

    def _tell(self, now: float) -> None:
        logger.debug("network: %s", self._reason)
        for changed in tuple(self.subscribers):
            changed(self._reason)


_watches: dict[IOThread, _Watch] = {}


def subscribe(home: IOThread, changed: Callable[[str], object]) -> None:
    """Call ``changed`` with the reason after each change of the network. On the I/O thread, as the calls are.

    Where the system does not report changes, there are no calls.

    :param home: the I/O thread.
    :param changed: called until :func:`unsubscribe`.
    """
    watch = _watches.get(home)
    if watch is None and sys.platform == "linux":
        try:
            watch = _watches[home] = _Watch(home)
        except OSError as error:  # no descriptor is left, or a sandbox forbids it
            logger.debug("network: its changes are not reported: %s", error)
    if watch is not None:
        watch.subscribers[changed] = None


def unsubscribe(home: IOThread, changed: Callable[[str], object]) -> None:
    """Do not call it any more; the last one releases the descriptors. On the I/O thread."""
    watch = _watches.get(home)
    if watch is not None and watch.subscribers.pop(changed, 0) is None and not watch.subscribers:
        watch.close()


def _seconds_slept() -> float:
    """Return the seconds for which the machine has slept since its start."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def _clock_watch() -> int | None:
    """Return a descriptor that is readable when the machine's clock was set, which the end of a sleep does."""
    import ctypes

    library = ctypes.CDLL(None)
    descriptor = int(library.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor >= 0 and library.timerfd_settime(descriptor, _CANCEL_ON_SET, _NEVER, None) == 0:
        return descriptor
    if descriptor >= 0:
        os.close(descriptor)
    return None
