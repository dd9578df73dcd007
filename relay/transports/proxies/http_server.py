"""Listener for clients of an HTTP proxy that ask for CONNECT (RFC 9110, section 9.3.6)."""

from __future__ import annotations

import base64
import binascii
import re
from http import HTTPStatus

import h11

from ...streams.proxy_handshake import ProxyHandshake
from ...streams.stream import RejectedRequest, Request
from .listener import Login, ProxyListener, checked_host

_LONGEST = 16384  # bytes of a request with its header; RFC 6585, section 5, names the answer to more
_WORDS = {
    HTTPStatus.METHOD_NOT_ALLOWED: "This proxy knows CONNECT alone, as for https:// addresses; curl -p asks for it."
}
_GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_REFUSALS = {"denied": HTTPStatus.FORBIDDEN, "connect_timeout": HTTPStatus.GATEWAY_TIMEOUT}
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+)):([0-9]{1,5})")


def _answer(status: HTTPStatus, why: str, *headers: str) -> bytes:
    text = f"{why}\n".encode()
    head = [
        f"HTTP/1.1 {status} {status.phrase}",
        *headers,
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text)}",
        "Connection: close",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + text


def _refused(reason: str) -> bytes:
    return _answer(_REFUSALS.get(reason, HTTPStatus.BAD_GATEWAY), f"There is no connection: {reason}.")


class HTTPHandshake(ProxyHandshake):
    """One client's request to an HTTP proxy.

    :param login: the only user that is allowed; ``None`` to allow every client.
    """

    __slots__ = ("_login", "_parser", "_begun")

    def __init__(self, login: Login | None = None) -> None:
        super().__init__()
        self._login = login
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_LONGEST)
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        """Read on; see :meth:`ProxyHandshake.feed`."""
        # Browsers open connections in advance, and close them unused; a line of the log for each would hide others.
        if not data and not self._begun:
            self.outcome = RejectedRequest(b"", "", "done")  # it had nothing to say
            return b""
        self._begun = True
        try:
            self._parser.receive_data(data)
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            self._refuse(status, f"its request cannot be read: {error}")
        else:
            if isinstance(event, h11.Request):
                self._take(event)
        return b""

    def _refuse(self, status: HTTPStatus, problem: str, *headers: str, guessed: bool = False) -> None:
        words = _WORDS.get(status) or status.description or status.phrase
        self.outcome = RejectedRequest(_answer(status, words, *headers), problem, guessed=guessed)

    def _take(self, request: h11.Request) -> None:
        if request.method != b"CONNECT":
            return self._refuse(
                HTTPStatus.METHOD_NOT_ALLOWED, "it asks for another method than CONNECT", "Allow: CONNECT"
            )
        if self._login is not None and not _admits(self._login, request):
            status = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED
            challenge = 'Proxy-Authenticate: Basic realm="relay", charset="UTF-8"'
            if not any(name == b"proxy-authorization" for name, _ in request.headers):
                return self._refuse(
                    status, "it shows no user and password", challenge
                )  # clients ask first what to show
            return self._refuse(status, "a wrong user or password", challenge, guessed=True)
        found = _AUTHORITY.fullmatch(request.target)
        host = checked_host(found[1] or found[2]) if found else None
        port = int(found[3]) if found else 0
        if host is None or not 0 < port < 65536:
            return self._refuse(HTTPStatus.BAD_REQUEST, "it names no host and port")
        # What follows the header is for the target, whatever the header says of it (RFC 9110, section 9.3.6).
        early, _ = self._parser.trailing_data
        login = None if self._login is None else ("http", self._login.user)
        self.outcome = Request(host, port, _GRANTED, _refused, early, login)


def _admits(login: Login, request: h11.Request) -> bool:
    """Return whether a request has the right credentials in the Basic scheme (RFC 7617)."""
    given = [value for name, value in request.headers if name == b"proxy-authorization"]
    # Two headers are rejected: which of them counts would be a guess.
    scheme, _, encoded = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except binascii.Error:
        return False
    return scheme.lower() == b"basic" and bool(colon) and login.admits(user, password)


class HTTPListener(ProxyListener):
    """Accepts clients of an HTTP proxy that ask for CONNECT; see :class:`ProxyListener`."""

    handshake_class = HTTPHandshake
