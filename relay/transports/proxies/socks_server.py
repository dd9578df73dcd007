"""Listener for clients of SOCKS5 (RFC 1928, RFC 1929), SOCKS4 and SOCKS4a."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable

from ...addresses.options import Secret
from ...streams.proxy_handshake import ProxyHandshake
from ...streams.stream import RejectedRequest, Request
from ..tcp import listen_tcp
from .listener import Login, ProxyListener, checked_host, login_of

_CONNECT = 1
_NO_LOGIN, _USER_AND_PASSWORD, _NO_METHOD = 0, 2, 255  # RFC 1928, section 3
_LONGEST_WORD = 255  # bytes of a user or a host in SOCKS4, which itself has no limit

_NAME = 3  # of the address types; RFC 1928, section 5
_ADDRESSES: dict[int, Callable[[bytes], str]] = {
    1: socket.inet_ntoa,
    4: functools.partial(socket.inet_ntop, socket.AF_INET6),
}
_SIZES = {1: 4, 4: 16}  # bytes of an address

_FAILED, _DENIED, _NOT_SUPPORTED, _NO_SUCH_TYPE = 1, 2, 7, 8  # RFC 1928, section 6
_REPLIES = {"denied": _DENIED, "unreachable": 4, "refused": 5, "connect_timeout": 6}

_GRANTED_4 = bytes([0, 90, *bytes(6)])
_REFUSED_4 = bytes([0, 91, *bytes(6)])


def _reply(code: int) -> bytes:
    """Return a reply of SOCKS5; it does not reveal the local address of the stream."""
    return bytes([5, code, 0, 1, *bytes(6)])


_GRANTED = _reply(0)


def _refused(reason: str) -> bytes:
    return _reply(_REPLIES.get(reason, _FAILED))


def _refused_4(reason: str) -> bytes:
    return _REFUSED_4


def socks_listen(
    host: str,
    port: int,
    *,
    user: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
) -> SOCKSListener:
    """Listen for clients of SOCKS5, and, where no password is required, SOCKS4 and SOCKS4a, which name their targets.

    CONNECT is what they can ask for; BIND and UDP ASSOCIATE are answered with "command not supported".

    :param host: an IPv4 or IPv6 address (no brackets) or a name; only the loopback keeps others from using it.
    :param port: from 0 to 65535; 0 picks a free one.
    :param user: the only user that is allowed; ``None`` to allow every client that can connect.
    :param password: text, or a callable that returns it; it is asked for once, here.
    :param password_file: an owner-only file that holds it.
    :param password_env: an environment variable that holds it.
    :returns: a listener for :class:`relay.Tunnel`, whose factory then is asked for a ``destination``, as
        :func:`relay.dynamic` is; the caller owns it.
    :raises AuthenticationError: if the file or variable has no password.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument cannot be right.
    :raises OSError: if it cannot listen at the address.

    Source: RFC 1928, RFC 1929; "SOCKS: A protocol for TCP proxy across firewalls" and "SOCKS 4A: A Simple Extension to
    SOCKS 4 Protocol", both by Ying-Da Lee.
    """
    login = login_of(user, password, password_file, password_env)
    return SOCKSListener(listen_tcp(host, port), login)


class SOCKSHandshake(ProxyHandshake):
    """The handshake of one client in any version of SOCKS.

    :param login: the only user that is allowed; ``None`` to allow every client.
    """

    __slots__ = ("_login", "_held", "_read")

    def __init__(self, login: Login | None = None) -> None:
        super().__init__()
        self._login = login
        self._held = b""  # what was said and not understood yet: less than 1 KiB, for every step has a limit
        self._read: Callable[[], bytes | None] = self._read_version  # returns an answer; None while more is needed

    def feed(self, data: bytes) -> bytes:
        """Read on; see :meth:`ProxyHandshake.feed`."""
        if not data:
            begun = self._read != self._read_version
            return self._refuse(b"", "it ended before it had said what it wants") if begun else self._leave()
        self._held += data
        answer = b""
        # Several steps may come at once, from clients that do not wait for each answer.
        while self.outcome is None and self._held and (said := self._read()) is not None:
            answer += said
        return answer

    def _leave(self) -> bytes:
        self.outcome = RejectedRequest(b"", "", "done")  # such as a program that only checks the port
        return b""

    def _refuse(self, last: bytes, problem: str) -> bytes:
        self.outcome = RejectedRequest(last, problem)
        return b""

    def _read_version(self) -> bytes | None:
        version = self._held[0]
        if version == 5:
            self._read = self._read_methods
            return self._read_methods()
        if version != 4:
            return self._refuse(b"", "it speaks neither SOCKS5 nor SOCKS4")
        # The user that SOCKS4 sends is only a claim.
        if self._login is not None:
            return self._refuse(_REFUSED_4, "SOCKS4 has no password, and one is required")
        self._read = self._read_request_4
        return self._read_request_4()

    # -- SOCKS5 ---------------------------------------------------------------------------------------------------

    def _read_methods(self) -> bytes | None:
        held = self._held
        if len(held) < 2 or len(held) < 2 + held[1]:
            return None
        end = 2 + held[1]
        method, self._read = (_NO_LOGIN, self._read_request)
        if self._login is not None:
            method, self._read = (_USER_AND_PASSWORD, self._read_login)
        if method not in held[2:end]:
            return self._refuse(bytes([5, _NO_METHOD]), "it does not offer the one method of login that there is")
        self._held = held[end:]
        return b"\5\2" if method else b"\5\0"

    def _read_login(self) -> bytes | None:
        held = self._held
        if len(held) < 2 or len(held) < 3 + held[1]:
            return None
        user_end = 2 + held[1]
        end = user_end + 1 + held[user_end]
        if len(held) < end:
            return None
        assert self._login is not None
        if held[0] != 1 or not self._login.admits(held[2:user_end], held[user_end + 1 : end]):
            self.outcome = RejectedRequest(b"\1\1", "a wrong user or password", guessed=True)
            return b""
        self._held = held[end:]
        self._read = self._read_request
        return b"\1\0"

    def _read_request(self) -> bytes | None:
        held = self._held
        if len(held) < 5:
            return None
        version, command, _, kind = held[:4]
        if version != 5:
            return self._refuse(_reply(_FAILED), "its request is not one of SOCKS5")
        if command != _CONNECT:
            return self._refuse(_reply(_NOT_SUPPORTED), f"command {command} is not supported; CONNECT is")
        size = held[4] + 1 if kind == _NAME else _SIZES.get(kind)
        if size is None:
            return self._refuse(_reply(_NO_SUCH_TYPE), f"there is no address type {kind}")
        end = 4 + size + 2
        if len(held) < end:
            return None
        host = checked_host(held[5 : end - 2]) if kind == _NAME else _ADDRESSES[kind](held[4 : end - 2])
        port = held[end - 2] << 8 | held[end - 1]
        if host is None or not port:
            return self._refuse(_reply(_FAILED), "it names no host, or port 0")
        login = None if self._login is None else ("socks", self._login.user)
        self.outcome = Request(host, port, _GRANTED, _refused, held[end:], login)
        return b""

    # -- SOCKS4 and SOCKS4a ---------------------------------------------------------------------------------------

    def _read_request_4(self) -> bytes | None:
        held = self._held
        if len(held) < 9:
            return None
        is_name = held[4:7] == b"\0\0\0" and held[7] != 0
        words = held[8 : 8 + 2 * _LONGEST_WORD + 2].split(b"\0", 1 + is_name)
        if any(len(word) > _LONGEST_WORD for word in words[: 1 + is_name]):
            return self._refuse(_REFUSED_4, "a user or a host that is too long")
        if len(words) < 2 + is_name:
            return None
        end = 8 + sum(len(word) + 1 for word in words[: 1 + is_name])
        port = held[2] << 8 | held[3]
        host = checked_host(words[1]) if is_name else socket.inet_ntoa(held[4:8])
        if held[1] != _CONNECT:
            return self._refuse(_REFUSED_4, f"command {held[1]} is not supported; CONNECT is")
        if host is None or not port:
            return self._refuse(_REFUSED_4, "it names no host, or port 0")
        self.outcome = Request(host, port, _GRANTED_4, _refused_4, held[end:])
        return b""


class SOCKSListener(ProxyListener):
    """Accepts clients of SOCKS5, SOCKS4 and SOCKS4a; see :class:`ProxyListener`."""

    handshake_class = SOCKSHandshake
