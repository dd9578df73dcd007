"""Resets of Unix sockets: the peer reads ECONNRESET after the bytes that it was sent, instead of an end of file.

Linux reports it to the peer of a socket that is closed with something unread. So before a cut, a byte is put there
through the peer's own descriptor, where that is in this process: a holder may have detached or duplicated its socket.
The byte goes out of band (MSG_OOB, Linux 5.15 or newer), so that no read returns it as data, in any process.

This is impossible where the peer is in another process, where it has ended its own direction (SHUT_WR), and on other
systems: an end of file is all that a Unix socket has there.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import stat
import struct
import sys

_PAIR = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
_MARK = b"\0"
_QUIET = getattr(socket, "MSG_NOSIGNAL", 0) | getattr(socket, "MSG_DONTWAIT", 0)
_DESCRIPTORS = "/proc/self/fd"

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h; see sock_diag(7).
_SOCK_DIAG = 4  # the netlink protocol
_BY_FAMILY = 20  # the one kind of message
_REQUEST = 1  # NLM_F_REQUEST
_HEAD = struct.Struct("=IHHII")  # length, kind, flags, number, port
_ASKED = struct.Struct("=BBHIIIII")  # family, protocol, a pad, states, inode, what to show, two halves of a cookie
_SHOW_PEER = 4  # UDIAG_SHOW_PEER
_PEER = 2  # UNIX_DIAG_PEER
_MESSAGE = 16  # bytes of struct unix_diag_msg
_ANY = 0xFFFFFFFF

_latest: list[tuple[int, dict[int, int]]] = [(0, {})]  # of the last search: its number; inode → descriptor, as of then
_numbers = itertools.count(1)  # of searches and of pairs


class NearEnd(socket.socket):
    """Our end of a socketpair, which knows the other one: its inode, and its descriptor in the beginning."""

    __slots__ = ("far", "number")

    far: tuple[int, int]
    number: int


def socketpair() -> tuple[NearEnd, socket.socket]:
    """A pair of connected, non-blocking Unix sockets: the near end, and one for a holder, which sees its reset.

    :raises OSError: if there are no descriptors left.
    """
    ours, theirs = socket.socketpair(type=_PAIR)
    near = NearEnd(socket.AF_UNIX, _PAIR, 0, ours.detach())
    # The inode stays the socket's as long as it lives. The number is a guess: its holder may detach or duplicate it,
    # and close this one, and the number may then be a file's.
    near.far = os.fstat(theirs.fileno()).st_ino, theirs.fileno()
    near.number = next(_numbers)
    if _PAIR == socket.SOCK_STREAM:  # else they were made non-blocking, and each system call counts
        near.setblocking(False)
        theirs.setblocking(False)
    return near, theirs


def leave_unread(near: socket.SocketType) -> socket.socket | None:
    """See to it that the peer of a Unix socket reads ECONNRESET once the socket is closed, as far as that is possible.

    The caller closes it next, and reads nothing from it any more.

    :param near: the socket.
    :returns: a duplicate of the peer, to be closed by the caller; ``None`` if the peer is gone or out of reach.
    """
    try:
        if sys.platform != "linux" or _is_over(near):
            return None
        far = _far_end(near)
        if far is None:
            return None
        try:
            _mark(far, near)
        except OSError:  # it has ended its direction, or has sent more than fits, which is unread and does the same
            far.close()
            return None
        return far
    except (OSError, ValueError):  # there is no descriptor left, or another owner has closed it
        return None


def _mark(far: socket.socket, near: socket.SocketType) -> None:
    try:
        far.send(_MARK, socket.MSG_OOB | _QUIET)
    except OSError as error:
        # An older kernel. Only this process reads from an end that it made; any other socket is unknown.
        if error.errno != errno.EOPNOTSUPP or not isinstance(near, NearEnd):
            raise
        far.send(_MARK, _QUIET)


def _is_over(near: socket.SocketType) -> bool:
    """Return true if the peer is closed."""
    poller = select.poll()
    poller.register(near.fileno(), 0)
    return bool(poller.poll(0))


def _far_end(near: socket.SocketType) -> socket.socket | None:
    """A duplicate of the peer, if a descriptor of this process refers to it."""
    if isinstance(near, NearEnd):
        inode, guess = near.far
        if (found := _duplicate(guess, inode)) is not None:
            return found
    # A socket that another program has connected: its descriptor is not here, so a search would be in vain.
    elif _owner(near) != os.getpid():
        return None
    else:
        inode = _peer_of(os.fstat(near.fileno()).st_ino)
    # One read of the list's entry: another thread may replace it by a newer search at any time.
    number, known = _latest[0]
    if (found := _duplicate(known.get(inode, -1), inode)) is not None:
        return found
    if inode not in known and isinstance(near, NearEnd) and near.number < number:
        return None  # passed to another process: a search that came after the pair did not find it
    return _duplicate(_search().get(inode, -1), inode)


def _owner(near: socket.SocketType) -> int:
    """The process that connected, or made the pair (SO_PEERCRED of unix(7))."""
    credentials = near.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII"))
    return int(struct.unpack("=iII", credentials)[0])


def _duplicate(descriptor: int, inode: int) -> socket.socket | None:
    """A duplicate, if it is this socket, which is looked at twice: another thread may close the descriptor at any time.

    Anything else is not duplicated: closing a duplicate of a file would release the program's locks on it (fcntl(2)).
    """
    try:
        if not _is_socket(descriptor, inode):
            return None
        copy = os.dup(descriptor)
    except OSError:
        return None
    if _is_socket(copy, inode):
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, copy)
    os.close(copy)
    return None


def _is_socket(descriptor: int, inode: int) -> bool:
    status = os.fstat(descriptor)
    return status.st_ino == inode and stat.S_ISSOCK(status.st_mode)


def _search() -> dict[int, int]:
    """Note all sockets of this process, so that one search serves all that are cut together."""
    number, found = next(_numbers), {}
    for name in os.listdir(_DESCRIPTORS):
        try:
            status = os.fstat(int(name))
        except OSError:
            continue  # it was closed meanwhile
        if stat.S_ISSOCK(status.st_mode):
            found[status.st_ino] = int(name)
    _latest[0] = number, found
    return found


def _peer_of(inode: int) -> int:
    """The inode of the other end.

    :raises OSError: if the kernel does not tell; a ValueError for an answer without it.
    """
    asked = _ASKED.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _SHOW_PEER, _ANY, _ANY)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.send(_HEAD.pack(_HEAD.size + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
        answer = netlink.recv(4096)
    if _HEAD.unpack_from(answer)[1] != _BY_FAMILY:
        raise ValueError("there is no such socket")
    place = _HEAD.size + _MESSAGE
    while place + 8 <= len(answer):
        length, kind, peer = struct.unpack_from("=HHI", answer, place)
        if kind == _PEER:
            return int(peer)
        # Attributes are aligned to four bytes; a length of 0 must not loop for ever.
        place += max(4, (length + 3) & ~3)
    raise ValueError("it has no peer")
