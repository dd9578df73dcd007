"""Opening handshakes of WebSockets in both roles (RFC 6455, section 4), by wsproto, without I/O.

Two relays keep the end of each direction, and resets, by the subprotocol :data:`RELAY`. There are servers that answer
any subprotocol without speaking it, so a relay confirms it with the header :data:`CONFIRMATION`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple

from wsproto import ConnectionType
from wsproto.events import AcceptConnection, RejectConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import LocalProtocolError, RemoteProtocolError, generate_accept_token

from ...addresses.printable import printable, shown
from ...errors import AuthenticationError, ConnectError

RELAY = "relay.v1"
"""The subprotocol in which each message begins with one byte: :data:`DATA`, :data:`END` or :data:`RESET`."""
CONFIRMATION = (b"Relay-Stream", b"v1")
"""The header of an answer that says that the server speaks :data:`RELAY`, and has not just repeated its name."""

LONGEST = 16384  # bytes of a head; RFC 6585, section 5, names the answer to more
_BLANK_LINE = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?\n")
_SHOWN = 80  # characters of what a server says
_LIVE = HTTPStatus.SWITCHING_PROTOCOLS

# The heads that two relays send each other, byte for byte: to compare them costs a tenth of what it costs to parse
# them. wsproto parses every other head.
_KEY = rb"Sec-WebSocket-Key: ([A-Za-z0-9+/]{22}==)\r\n"
_OWN_REQUEST = re.compile(
    rb"GET ([!-~]{1,4096}) HTTP/1\.1\r\nHost: ([A-Za-z0-9.:\[\]_-]{1,255})\r\n"
    rb"Upgrade: [Ww]eb[Ss]ocket\r\nConnection: Upgrade\r\n"  # wsproto before 1.3 has capitals
    + _KEY
    + rb"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: relay\.v1\r\n\r\n"
)
_OWN_ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
    b"Sec-WebSocket-Protocol: relay.v1\r\nRelay-Stream: v1\r\n\r\n"
)

Headers = Sequence[tuple[bytes, bytes]]


class NotSpokenError(ConnectError):
    """A server that does not take a client which offers :data:`RELAY`, or takes it without speaking it."""


class _Head:
    """The bytes of one head of HTTP, and those that have come behind it."""

    __slots__ = ("_heard", "_searched", "rest")

    def __init__(self) -> None:
        self._heard = bytearray()
        self._searched = 0
        self.rest = b""

    def feed(self, data: bytes | memoryview) -> bytes | None:
        """Take more; return the head once it is complete, or is longer than :data:`LONGEST`."""
        self._heard += data
        end = _BLANK_LINE.search(self._heard, max(0, self._searched - 2))
        self._searched = len(self._heard)
        if end is not None:
            self.rest = bytes(self._heard[end.end() :])
            return bytes(self._heard[: end.end()])
        return bytes(self._heard) if len(self._heard) > LONGEST else None


class Agreement(NamedTuple):
    """The result of a handshake."""

    is_relay: bool
    """Whether both speak :data:`RELAY`."""
    rest: bytes
    """Bytes that have come already: the first frames."""


class ClientOpening:
    """The handshake of a client.

    :param name: of the server, for errors.
    :param host: and port, as its header has them.
    :param path: of the request.
    :param offers: subprotocols, the preferred one first.
    :param headers: further headers of the request.
    """

    def __init__(self, name: str, host: str, path: str, offers: Sequence[str], headers: Headers = ()) -> None:
        self._name = name
        self._offers = offers
        self._head = _Head()
        self._handshake = H11Handshake(ConnectionType.CLIENT)
        try:
            self.reply = self._handshake.send(
                Request(host=host, target=path, subprotocols=list(offers), extra_headers=list(headers))
            )
            """The bytes to send first."""
        except LocalProtocolError as error:
            raise ConnectError(f"{name}: the request cannot be sent: {error}; check header_file") from None
        self.outcome: Agreement | None = None
        self.problem = ""

    def feed(self, data: bytes | memoryview) -> None:
        """Read on.

        :param data: the next bytes of the server; empty at its end.
        :raises ConnectError: if the server does not answer as it should.
        """
        head = self._head.feed(data)
        if not data:
            if self._offers[:1] == (RELAY,):
                raise NotSpokenError(f"{self._name}: it closed the connection instead of an answer")
            raise ConnectError(
                f"{self._name}: it closed the connection instead of an answer; check that it is a WebSocket server"
            )
        if head is None:
            return
        key = re.search(_KEY, self.reply)
        if key is not None and head == _OWN_ANSWER % generate_accept_token(key[1]) and RELAY in self._offers:
            self.outcome = Agreement(True, self._head.rest)
            return
        status = _STATUS_LINE.match(head)
        if status is None:
            said = shown(head[:_SHOWN].decode("utf-8", "replace"))
            raise ConnectError(f"{self._name}: what answers there does not speak HTTP (it says {said}); check the port")
        if int(status[1]) != _LIVE:
            self._refused(int(status[1]), shown((status[2] or b"").decode("utf-8", "replace")[:_SHOWN]))
        try:
            self._handshake.receive_data(head)
            event = next(self._handshake.events(), None)
        except (RemoteProtocolError, UnicodeError, ValueError) as error:
            raise ConnectError(
                f"{self._name}: its answer is no valid handshake of WebSockets ({printable(str(error), _SHOWN)})"
            ) from None
        if not isinstance(event, AcceptConnection):
            raise ConnectError(f"{self._name}: its answer is no valid handshake of WebSockets")
        is_relay = event.subprotocol == RELAY
        if is_relay and (CONFIRMATION[0].lower(), CONFIRMATION[1]) not in [
            (n.lower(), v) for n, v in event.extra_headers
        ]:
            raise NotSpokenError(f"{self._name}: it repeats the subprotocol {RELAY} without speaking it")
        self.outcome = Agreement(is_relay, self._head.rest)

    def _refused(self, status: int, said: str) -> None:
        text = f"{self._name}: {status}: {said or _phrase(status)}"
        if status == HTTPStatus.BAD_REQUEST and self._offers[:1] == (RELAY,):
            raise NotSpokenError(text)
        if status in (401, 407):
            raise AuthenticationError(f"{text}; check header_file")
        if status == HTTPStatus.FORBIDDEN:
            raise ConnectError(f"{text}; check header_file and the path", reason="denied")
        if status in (404, 405, 426) or 300 <= status < 400 or 200 <= status < 300:
            raise ConnectError(f"{text}; check the host and the path of the address")
        if status == HTTPStatus.GATEWAY_TIMEOUT:
            raise ConnectError(f"{text}; check the server behind the proxy", reason="connect_timeout")
        if status >= 500:
            raise ConnectError(f"{text}; check the server behind the proxy")
        raise ConnectError(f"{text}; check the address, and that the server takes WebSockets there")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "an unknown status"


class Requirements(NamedTuple):
    """The demands of a listener on the requests of its clients."""

    path: str
    """The only path, compared as it is written."""
    hosts: tuple[str, ...] = ()
    """Values of the header ``Host``, in lower case; none for every one."""
    origins: tuple[str, ...] = ()
    """Origins whose pages may connect; ``*`` for all."""
    subprotocol: str | None = None
    """A subprotocol to answer, if the client offers it and not :data:`RELAY`."""


class ServerOpening:
    """The handshake with a client.

    :param wants: what its request must have.
    """

    def __init__(self, wants: Requirements) -> None:
        self._wants = wants
        self._head = _Head()
        self.reply = b""
        """The bytes to send next."""
        self.outcome: Agreement | None = None
        self.problem = ""
        """Why the client is rejected; its :attr:`reply` says so too."""
        self.forwarded: tuple[bytes, ...] = ()
        """The values of ``X-Forwarded-For``, in their order."""

    def feed(self, data: bytes | memoryview) -> None:
        """Read on, until there is an :attr:`outcome` or a :attr:`problem`.

        :param data: the next bytes of the client; empty at its end.
        """
        if not data:
            self.problem = "it closed the connection before its request"
            return
        head = self._head.feed(data)
        if head is None:
            return
        if len(head) > LONGEST:
            return self._reject(431, "the head of its request is too long")
        own = _OWN_REQUEST.fullmatch(head)
        if own is not None:
            if self._suits(host=own[2].decode(), path=own[1].decode()):
                self.reply = _OWN_ANSWER % generate_accept_token(own[3])
                self.outcome = Agreement(True, self._head.rest)
            return None
        handshake = H11Handshake(ConnectionType.SERVER)
        try:
            handshake.receive_data(head)
            event = next(handshake.events(), None)
        except RemoteProtocolError as error:
            hint = error.event_hint
            status = hint.status_code if isinstance(hint, RejectConnection) else 400
            return self._reject(status, f"its request is none of a WebSocket: {printable(str(error), _SHOWN)}")
        except (UnicodeError, ValueError):
            event = None
        if not isinstance(event, Request):
            return self._reject(400, "its request cannot be read")
        return self._judge(handshake, event)

    def _suits(self, *, host: str, path: str) -> bool:
        """Return whether a request is for this listener; one that is not is rejected."""
        if self._wants.hosts and host.lower() not in self._wants.hosts:
            self._reject(404, f"it asks for the host {shown(host[:_SHOWN])}, which hosts= does not name")
        elif path != self._wants.path:
            self._reject(404, f"it asks for the path {shown(path[:_SHOWN])}, which is not that of the listener")
        return not self.problem

    def _judge(self, handshake: H11Handshake, request: Request) -> None:
        wants, headers = self._wants, list(request.extra_headers)
        if not self._suits(host=request.host, path=request.target):
            return None
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if origins and "*" not in wants.origins and not (len(origins) == 1 and origins[0] in wants.origins):
            return self._reject(
                403, f"it comes from a page of {shown(origins[0][:_SHOWN])}, which origin= does not allow"
            )
        self.forwarded = tuple(value for name, value in headers if name == b"x-forwarded-for")
        offered, chosen = request.subprotocols, None
        if RELAY in offered:
            chosen = RELAY
        elif wants.subprotocol is not None and wants.subprotocol in offered:
            chosen = wants.subprotocol
        more = [CONFIRMATION] if chosen == RELAY else []
        self.reply = handshake.send(AcceptConnection(subprotocol=chosen, extra_headers=more))
        self.outcome = Agreement(chosen == RELAY, self._head.rest)
        return None

    def _reject(self, status: int, problem: str) -> None:
        more = "Sec-WebSocket-Version: 13\r\n" if status == HTTPStatus.UPGRADE_REQUIRED else ""
        head = f"HTTP/1.1 {status} {_phrase(status)}\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n"
        self.reply, self.problem = head.encode(), problem


def client_behind(
    forwarded: Sequence[bytes], is_trusted: Callable[[str], bool], is_address: Callable[[str], bool]
) -> str | None:
    """Return the address of the client that trusted proxies name: the last one that is not theirs.

    Each proxy adds the address of its own client at the end, so what stands before that of a stranger is his own claim.

    :param forwarded: the values of ``X-Forwarded-For``.
    :param is_trusted: returns whether an address is that of a trusted proxy.
    :param is_address: returns whether a text is an IP address.
    :returns: ``None`` if there is none, or if it is no address.
    """
    named = [one.strip() for value in forwarded for one in value.decode("latin-1").split(",")]
    found = None
    for text in reversed(named):
        host = text.strip("[]")
        if not is_address(host):
            return found
        found = host
        if not is_trusted(host):
            return host
    return found


def parse_headers(text: str) -> Headers:
    """Return the headers in the text of a ``header_file``.

    :param text: a header in each line, ``Name: value``; lines that are empty or begin with ``#`` do not count.
    :raises ValueError: if a line is none, with its number and without its text, which may be a secret.
    """
    found: list[tuple[bytes, bytes]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValueError(f"line {number} is no header; write it as Name: value")
        if name.lower() in _OWN or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"line {number}: {name} is set by relay; leave it out")
        value = value.strip()
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"line {number}: the value of {name} has other characters than printable ASCII")
        found.append((name.encode(), value.encode()))
    return found


_OWN = ("host", "connection", "upgrade", "content-length", "transfer-encoding")


def host_header(host: str, port: int, usual: int) -> str:
    """Return the value of ``Host`` for an address.

    :param usual: the port that is left out.
    """
    name = f"[{host.partition('%')[0]}]" if ":" in host else host
    return name if port == usual else f"{name}:{port}"
