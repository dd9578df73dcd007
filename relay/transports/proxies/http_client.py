"""The client side of an HTTP proxy: CONNECT (RFC 9110, section 9.3.6), with Basic credentials (RFC 7617)."""

from __future__ import annotations

import base64
import re

import h11

from ...addresses.hops import Proxy
from ...addresses.printable import shown
from ...addresses.values import TCPAddress
from ...errors import AuthenticationError, ConnectError
from .negotiation import Dialogue, Question

LONGEST = 32 << 10  # bytes of a head at most
_INTERIM = 8  # answers at most that announce another one (1xx)
_SHOWN = 80  # characters of what a proxy says
_START = b"HTTP/"
_BLANK_LINE = re.compile(rb"\n\r?\n")
_OVERLAP = 2  # bytes of a blank line that may have come before its last one

# Of the place that was asked for: what a proxy says of it, and the reason.
_STATUS = {
    403: ("{} does not allow it", "denied"),
    500: ("{} says that it cannot be reached", "unreachable"),  # tinyproxy has no other word
    502: ("{} says that it cannot be reached", "unreachable"),
    503: ("{} says that it cannot be reached", "unreachable"),
    504: ("{} says that it does not answer in time", "connect_timeout"),
}


def connect(proxy: Proxy, place: TCPAddress, login: tuple[bytes, bytes] | None) -> Dialogue:
    """Ask for a stream to a place; a name is resolved by the proxy.

    :param proxy: its name is in errors.
    :param place: an address without a zone, or a name.
    :param login: the user and the password, if there are any.
    """
    connection = h11.Connection(h11.CLIENT)
    data = (connection.send(_request(place, login)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    late = f"{place}: {proxy} has not answered in time"
    for _ in range(_INTERIM):
        head = yield Question(data, _Head().length, late)
        response = _parsed(connection, head, proxy)
        if response.status_code >= 200:
            return _judge(response, proxy, place, login is not None)
        data = b""
    raise ConnectError(f"{proxy}: it answers CONNECT with nothing but 1xx")


def log_in(proxy: Proxy, login: tuple[bytes, bytes] | None) -> Dialogue:
    """Do nothing: HTTP has no request without a target."""
    yield from ()


def _request(place: TCPAddress, login: tuple[bytes, bytes] | None) -> h11.Request:
    headers = [("Host", str(place))]
    if login is not None:
        headers.append(("Proxy-Authorization", f"Basic {base64.b64encode(b':'.join(login)).decode()}"))
    return h11.Request(method="CONNECT", target=str(place), headers=headers)


class _Head:
    """The length of one head, which is searched once however many pieces it comes in."""

    def __init__(self) -> None:
        self._searched = 0

    def length(self, data: bytes | bytearray) -> int:
        """A head up to its blank line; of what cannot be one, what is enough to say so.

        :param data: what has come; what had come before, and more.
        """
        # A server that is no proxy may send a banner without any blank line: it is reported at its first byte.
        if data[: len(_START)] != _START[: len(data)]:
            return len(data)
        start, self._searched = max(0, self._searched - _OVERLAP), len(data)
        end = _BLANK_LINE.search(data, start)
        if end is not None:
            return end.end()
        return len(data) if len(data) > LONGEST else 0


def _parsed(connection: h11.Connection, head: bytes, proxy: Proxy) -> h11.Response | h11.InformationalResponse:
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.ProtocolError:
        event = h11.NEED_DATA
    if isinstance(event, (h11.Response, h11.InformationalResponse)):
        return event
    if len(head) > LONGEST:
        raise ConnectError(f"{proxy}: its answer has no end; {LONGEST} bytes are allowed")
    hint = "; it may be a SOCKS5 proxy, socks5://" if head[:1] == b"\x05" else ""
    raise ConnectError(f"{proxy}: what answers there does not speak HTTP (it says {_said(head[:_SHOWN])}){hint}")


def _judge(
    response: h11.Response | h11.InformationalResponse, proxy: Proxy, place: TCPAddress, has_login: bool
) -> None:
    """Raise, unless the proxy has connected."""
    status = response.status_code
    said = f"{status} {_said(response.reason)}".strip()
    if 200 <= status < 300:  # a length or an encoding of a body means nothing here
        return
    if status in (401, 407):  # some say 401 of themselves where the password is wrong
        raise AuthenticationError(f"{proxy}: {_wanted(response, has_login)} ({said})")
    if status in _STATUS:
        text, reason = _STATUS[status]
        raise ConnectError(f"{place}: {text.format(proxy)} ({said})", reason=reason)
    hint = "" if status >= 500 else "; check that it is a proxy and allows that port"
    raise ConnectError(f"{proxy}: it answers CONNECT {place} with {said}{hint}")


def _wanted(response: h11.Response | h11.InformationalResponse, has_login: bool) -> str:
    offers = [value for name, value in response.headers if name == b"proxy-authenticate" and value]
    if offers and not any(b"basic" in offer.lower() for offer in offers):
        return f"it wants a login by {_said(offers[0].split()[0])}, and only Basic is supported"
    if has_login:
        return "it does not accept the user and the password; check both"
    return "it requires a user and a password; set user@, and password_file= or password_env="


def _said(text: bytes) -> str:
    """Return the text of a proxy, safe to log."""
    return shown(bytes(text).decode("utf-8", "replace")[:_SHOWN])
