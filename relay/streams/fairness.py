"""Which clients give way where there is no room for all: those of the source with the most, the oldest first."""

from __future__ import annotations

import heapq
import socket
import struct
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")

ROOM = 16  # one in so many gives way at a time, so that looking for them costs little for each newcomer
_MAPPED = bytes(10) + b"\xff\xff"  # before an IPv4 address; RFC 4291, section 2.5.5.2
_NETWORK = 8  # bytes of an IPv6 address that one site cannot choose freely; RFC 4291, section 2.5.4


def source_of(client: socket.SocketType, peer: Any) -> Hashable:
    """Return what counts as one source of clients: an IPv4 address, an IPv6 /64 network, or a local user.

    :param client: the accepted socket, which tells the user at the other end of a Unix socket.
    :param peer: its address, as ``accept()`` returned it or as its balancer says: then of any family.
    """
    if isinstance(peer, tuple) and peer:
        host = str(peer[0])
        if ":" not in host:
            return host
        try:
            packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, ValueError):
            return host  # a listener object can say anything
        # A client has all addresses of its /64, so each of them alone would be a source that costs nothing. An IPv4
        # client of a dual-stack listener has one address, and keeps it.
        return packed if packed.startswith(_MAPPED) else packed[:_NETWORK]
    if client.family == socket.AF_UNIX and hasattr(socket, "SO_PEERCRED"):
        try:
            _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except OSError:
            return None
        return int(user)
    return None


def crowding(items: Iterable[Item], source: Callable[[Item], Hashable], count: int) -> list[Item]:
    """Choose the items that give way to others.

    Each is the oldest of the source that has most left, so a source with few items keeps them whatever others do. Age
    decides, and not what a client has sent: a byte costs an attacker nothing.

    :param items: the oldest first.
    :param source: tells where an item comes from.
    :param count: how many are chosen; fewer if there are fewer.
    """
    groups: dict[Hashable, deque[Item]] = {}
    for item in items:
        groups.setdefault(source(item), deque()).append(item)
    # The number decides between groups of one size, so that the heap never compares two deques.
    largest = [(-len(group), number, group) for number, group in enumerate(groups.values())]
    heapq.heapify(largest)
    chosen: list[Item] = []
    while largest and len(chosen) < count:
        size, number, group = largest[0]
        chosen.append(group.popleft())
        if group:
            heapq.heapreplace(largest, (size + 1, number, group))
        else:
            heapq.heappop(largest)
    return chosen
