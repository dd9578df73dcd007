"""The client side of SOCKS5 (RFC 1928), with a user and a password if they are given (RFC 1929)."""

from __future__ import annotations

from socksio.socks5 import (
    SOCKS5AType,
    SOCKS5AuthMethod,
    SOCKS5AuthMethodsRequest,
    SOCKS5Command,
    SOCKS5CommandRequest,
    SOCKS5UsernamePasswordRequest,
)

from ...addresses.hops import Proxy
from ...addresses.values import TCPAddress
from ...errors import AuthenticationError, ConnectError
from .negotiation import Dialogue, Question

_LONGEST = 255  # bytes of a user and of a password; RFC 1929, section 2
_VERSION = b"\x05"
_ADDRESS = 4  # where the bound address begins in a reply; RFC 1928, section 6

# Of the place that was asked for: what a proxy says of it, and the reason.
_REPLIES = {
    1: ("{} could not connect to it (general failure); check that the name or the address exists there", "unreachable"),
    2: ("{} does not allow it (not allowed by its rules)", "denied"),
    3: ("{} says that its network is unreachable", "unreachable"),
    4: ("{} says that it is unreachable", "unreachable"),
    5: ("{} says that it refused the connection; check that the service is running", "refused"),
    6: ("{} says that it does not answer in time (TTL expired)", "connect_timeout"),
}
# The same by tor for onion services, where its SocksPort has ExtendedErrors (tor(1)).
_ONION_REPLIES = {
    0xF0: ("{} finds no such onion service; check the name, and that the service runs", "unreachable"),
    0xF1: ("{} has got a descriptor of it that is not valid; update tor, or ask its owner", "unreachable"),
    0xF2: ("{} could not introduce itself there; the onion service may be down", "unreachable"),
    0xF3: ("{} waited for it at a rendezvous in vain; the onion service may be down", "unreachable"),
    0xF4: ("{} has no key of a client for it, and it wants one; put that into ClientOnionAuthDir of tor", "denied"),
    0xF5: ("{} has a wrong key of a client for it; correct that in ClientOnionAuthDir of tor", "denied"),
    0xF6: ("{} does not take it for the address of an onion service; check its 56 characters", "unreachable"),
    0xF7: ("{} has got no answer of its introduction points in time", "connect_timeout"),
}
# Of the proxy itself.
_OWN = {7: "it does not know CONNECT (command not supported)", 8: "it does not take such an address (not supported)"}


def request_of(place: TCPAddress) -> bytes:
    """Return all that a client without a login says, for a proxy that is known to take it at once.

    :param place: an address without a zone, or a name of at most 255 bytes.
    """
    return SOCKS5AuthMethodsRequest([SOCKS5AuthMethod.NO_AUTH_REQUIRED]).dumps() + _connect_to(place)


def _connect_to(place: TCPAddress) -> bytes:
    request: bytes = SOCKS5CommandRequest.from_address(SOCKS5Command.CONNECT, (place.host, place.port)).dumps()
    return request


def connect(proxy: Proxy, place: TCPAddress, login: tuple[bytes, bytes] | None) -> Dialogue:
    """Ask for a stream to a place; a name is resolved by the proxy.

    :param proxy: its name is in errors.
    :param place: an address without a zone, or a name of at most 255 bytes.
    :param login: the user and the password, if there are any.
    """
    yield from log_in(proxy, login)
    yield from _connect(proxy, place, _connect_to(place))


def expect(proxy: Proxy, place: TCPAddress, login: tuple[bytes, bytes] | None) -> Dialogue:
    """Read the answers to :func:`request_of`, which the proxy has got already; the same as :func:`connect` else."""
    yield from _log_in(proxy, None, b"")
    yield from _connect(proxy, place, b"")


def _connect(proxy: Proxy, place: TCPAddress, request: bytes) -> Dialogue:
    reply = yield Question(request, _length_of_reply, f"{place}: {proxy} has not reached it in time")
    if reply[:1] != _VERSION or not (_has_address(reply) or reply[1]):
        raise ConnectError(f"{proxy}: what answers there does not speak SOCKS5 (it says {reply[:8].hex(' ')})")
    code = reply[1]
    replies = {**_REPLIES, **_ONION_REPLIES} if proxy.is_tor and code else _REPLIES
    if code in replies:
        text, reason = replies[code]
        raise ConnectError(f"{place}: {text.format(proxy)}", reason=reason)
    if code:
        raise ConnectError(f"{proxy}: {_OWN.get(code, f'it answers with the unknown error {code}')}, asked for {place}")


def log_in(proxy: Proxy, login: tuple[bytes, bytes] | None) -> Dialogue:
    """Agree on how to log in, and do so."""
    yield from _log_in(proxy, login, None)


def _log_in(proxy: Proxy, login: tuple[bytes, bytes] | None, said: bytes | None) -> Dialogue:
    # Offered even with a password: a proxy that needs none never sees it. With tor the login isolates the streams.
    methods = [] if proxy.is_tor else [SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if login is not None:
        methods.append(SOCKS5AuthMethod.USERNAME_PASSWORD)
    late = f"{proxy}: no answer in time; check that it speaks SOCKS5"
    said = SOCKS5AuthMethodsRequest(methods).dumps() if said is None else said
    answer = yield Question(said, _two, late)
    version, method = answer[:1], answer[1:]
    if version != _VERSION:
        hint = "; it may be an HTTP proxy, http://" if answer == b"HT" else ""
        raise ConnectError(f"{proxy}: what answers there does not speak SOCKS5 (it says {answer.hex(' ')}){hint}")
    if method == SOCKS5AuthMethod.NO_ACCEPTABLE_METHODS:
        if proxy.is_tor:
            raise ConnectError(f"{proxy}: what answers there takes no login, as tor does; check the port")
        raise AuthenticationError(f"{proxy}: {_no_method(login is not None)}")
    if method not in methods:
        raise ConnectError(
            f"{proxy}: it chose a login that was not offered (method {method[0]}); check that it is a SOCKS5 proxy"
        )
    if login is not None and method == SOCKS5AuthMethod.USERNAME_PASSWORD:
        yield from _show_password(proxy, login, late)


def _no_method(has_login: bool) -> str:
    if has_login:
        return "it accepts neither a user and a password (RFC 1929) nor a client without them"
    return "it requires a user and a password; set user@, and password_file= or password_env="


def _show_password(proxy: Proxy, login: tuple[bytes, bytes], late: str) -> Dialogue:
    if not 1 <= len(login[1]) <= _LONGEST:
        raise AuthenticationError(f"{proxy}: the password is empty or too long; SOCKS5 allows {_LONGEST} bytes")
    status = yield Question(SOCKS5UsernamePasswordRequest(*login).dumps(), _two, late)
    if status[1]:  # the version before it is not looked at: some proxies say 5 there
        raise AuthenticationError(f"{proxy}: it does not accept the user and the password; check both")


def _two(data: bytes | bytearray) -> int:
    return 2 if len(data) >= 2 else 0


def _length_of_reply(heard: bytes | bytearray) -> int:
    """A reply; of one that is a refusal, or none at all, what is enough to say so."""
    data = bytes(heard)
    if data[:1] != _VERSION:
        return len(data)
    if len(data) > 1 and data[1]:
        return 2
    if len(data) <= _ADDRESS:
        return 0
    if not _has_address(data):
        return len(data)
    sizes = {SOCKS5AType.IPV4_ADDRESS: 4, SOCKS5AType.IPV6_ADDRESS: 16, SOCKS5AType.DOMAIN_NAME: 1 + data[_ADDRESS]}
    length = _ADDRESS + sizes[SOCKS5AType(data[3:4])] + 2
    return length if len(data) >= length else 0


def _has_address(reply: bytes) -> bool:
    return reply[3:4] in list(SOCKS5AType)
