"""Targets: bytes of the clients of a tunnel, and requests of operators."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import h11
import trustme
from instance_double import Double

from relay.access.introduction import header_of, identified, passed_on
from relay.access.networks import NetworkSet, parse_network
from relay.access.patterns import dns_segments, uri_segments
from relay.access.proxy_header import Address, HeaderReader, ProxyHeader, ProxyHeaderError, build_v1, build_v2
from relay.access.rules import server_names
from relay.daemon.change.upgrade_channel import UpgradeChannel, UpgradeError
from relay.daemon.sockets import Endpoint
from relay.eventloop.background import BUFFER
from relay.operations.app import make_app
from relay.streams.proxy_handshake import ProxyHandshake
from relay.streams.stream import RejectedRequest, Request
from relay.transports.proxies.http_server import HTTPHandshake
from relay.transports.proxies.listener import Login
from relay.transports.proxies.sni_server import SNIHandshake
from relay.transports.proxies.socks_server import SOCKSHandshake
from relay.transports.tls.client_hello import server_name_of
from relay.transports.tls.records import Records

from .checks import FindingError, equal, one_line, one_of, pieces, rejecting

_LOGIN = Login("alice", "secret")
_NETWORKS = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


def _outcome(handshake: ProxyHandshake, parts: list[bytes]) -> tuple[bytes, Any]:
    """Return what a handshake answers, and its outcome with the bytes that are for the target."""
    said = b""
    for number, part in enumerate([*parts, b""]):
        said += handshake.feed(part)
        found = handshake.outcome
        if isinstance(found, Request):
            if found.host or found.here is None:  # else it may have named none
                one_line(found.host)
            if not 0 < found.port < 65536:
                raise FindingError(f"port {found.port}")
            return said, (found.host, found.port, found.early + b"".join(parts[number + 1 :]), found.login)
        if isinstance(found, RejectedRequest):
            if found.problem:
                one_line(found.problem)
            return said, (found.last, found.reason, found.guessed)
    raise FindingError("no outcome at the end of file")


def socks_client(data: bytes) -> None:
    """Requests of SOCKS, with and without a login: the same in whatever pieces they come."""
    login = _LOGIN if data[:1] > b"\x7f" else None
    whole, parts = pieces(data)
    if whole:
        equal(_outcome(SOCKSHandshake(login), [whole]), _outcome(SOCKSHandshake(login), parts), "cut to pieces")


def http_client(data: bytes) -> None:
    """Requests to an HTTP proxy, with and without a login."""
    login = _LOGIN if data[:1] > b"\x7f" else None
    whole, parts = pieces(data)
    if whole:
        one, other = _outcome(HTTPHandshake(login), [whole]), _outcome(HTTPHandshake(login), parts)
        if isinstance(one[1][0], str) or isinstance(other[1][0], str):  # h11 rejects in another order
            equal(one, other, "cut to pieces")


def sni_client(data: bytes) -> None:
    """First messages of clients of TLS: the same name in whatever pieces they come, and all bytes are the server's."""
    whole, parts = pieces(data)
    if whole:
        found = _outcome(SNIHandshake(("127.0.0.1", 443)), [whole])
        equal(found, _outcome(SNIHandshake(("127.0.0.1", 443)), parts), "cut to pieces")
        said, outcome = found
        equal(said, b"", "bytes for the client")
        if len(outcome) == 4:  # else it is rejected
            equal(outcome[2], whole, "bytes for the server")
            equal(outcome[0], (server_name_of(whole) or "").lower().removesuffix("."), "the name")


def _header(parts: list[bytes]) -> ProxyHeader | str | None:
    reader = HeaderReader()
    try:
        for part in parts:
            used = reader.feed(part)
            if reader.header is not None:
                return reader.header
            equal(used, len(part), "an incomplete header")
    except ProxyHeaderError as error:
        one_line(str(error))
        return "rejected"
    return None


def proxy_header(data: bytes) -> None:
    """Headers of the PROXY protocol; what is built of one says the same."""
    whole, parts = pieces(data)
    if not whole:
        return
    header = _header([whole])
    equal(header, _header(parts), "cut to pieces")
    if not isinstance(header, ProxyHeader):
        return
    for kind, _ in header.entries:
        header.text(kind)
    header.is_check  # noqa: B018
    header.ssl()
    if header.unique_id is not None:
        one_line(header.unique_id)
    kept = passed_on(header)
    sent = _header([header_of("v2", identified(header, None), header.destination, "id", reported=kept)])
    assert isinstance(sent, ProxyHeader)
    equal({kind: dict(sent.entries).get(kind) for kind, _ in kept.entries}, dict(kept.entries), "passed on")
    if header.source is not None and header.destination is not None:
        assert isinstance(header.source, Address)
        plain = header._replace(entries=())
        mixed = (":" in header.source.host) != (":" in header.destination.host)
        if not mixed:
            equal(_header([build_v1(header.source, header.destination)]), plain, "version 1")
        equal(_header([build_v2(header.source, header.destination)]), plain, "version 2")


def identities(data: bytes) -> None:
    """The names of clients: addresses, names in certificates, SSH servers."""
    text = data.decode("utf-8", "replace")
    networks = NetworkSet(parse_network(str(network)) for network in _NETWORKS)
    found = networks.find(text)
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(text)
        address = getattr(address, "ipv4_mapped", None) or address
        if "%" not in text:
            inside = next((f"cidr:{network}" for network in _NETWORKS if address in network), None)
            equal(found, inside, "the network of an address")
    dns_segments(text)
    uri_segments(text)
    server_names(text)


# -- TLS ---------------------------------------------------------------------------------------------------------------


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    return context


_contexts: list[ssl.SSLContext] = []


class _Transport:
    """The socket of a client that has sent pieces."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts
        self.sent: Callable[[bytes | memoryview], object] = len

    def recv_into(self, buffer: memoryview, size: int) -> int:
        if not self._parts:
            raise BlockingIOError
        part = self._parts[0][:size]
        self._parts[0] = self._parts[0][size:]
        if not self._parts[0]:
            del self._parts[0]
        buffer[: len(part)] = part
        return len(part)

    def recv(self, size: int, flags: int = 0) -> bytes:
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self.recv_into(buffer, size)])

    def send(self, data: bytes | memoryview) -> int:
        self.sent(data)
        return len(data)


def tls_client(data: bytes) -> None:
    """Records of a client, before the handshake and after the first message; the name that a ClientHello asks for."""
    whole, parts = pieces(data)
    name = server_name_of(whole)
    if name is not None:
        one_line(name)
    before = server_name_of(whole[: len(whole) // 2])
    if before is not None:
        equal(before, name, "the name in the first half")
    if not _contexts:
        _contexts.append(_context())
    records = Records(_Transport([part for part in parts if part]), _contexts[0])  # type: ignore[arg-type]
    try:
        for _ in range(len(parts) + 2):
            records.handshake(readable=True)
    except (ssl.SSLError, OSError):
        pass
    if records.server_name is not None:
        one_line(records.server_name)


def tls_records(data: bytes) -> None:
    """Records after the handshake, whole and damaged: what is decrypted is what was sent, up to the damage.

    Each pair of bytes is a step of the client: what it does, and how many bytes it sends.
    """
    server, client, parts, outgoing = _handshake()
    sent = received = b""
    has_ended = False
    buffer = memoryview(bytearray(BUFFER))
    for at in range(0, min(len(data), 200) - 1, 2):
        step, size = data[at] % 5, data[at + 1] * 64
        try:
            if step == 4:
                client.unwrap()
            elif size and step != 3:
                client.write(bytes([data[at + 1]]) * size)
                sent += bytes([data[at + 1]]) * size
        except ssl.SSLError:  # its own end, which the server need not answer
            pass
        cipher = bytearray(outgoing.read() if step != 3 else data)
        if step == 1 and cipher:
            cipher[size % len(cipher)] ^= 1
        parts.extend([bytes(cipher[: step * 7]), bytes(cipher[step * 7 :])] if step == 2 else [bytes(cipher)])
        parts[:] = [part for part in parts if part]
        try:
            while parts and not has_ended:
                server.receive(buffer)
                length, has_ended = server.decrypt(buffer)
                received += buffer[:length]
        except ssl.SSLError:
            break
        if has_ended:
            break
    equal(received, sent[: len(received)], "what was decrypted")
    if has_ended:
        equal(len(received), len(sent), "bytes before close_notify")


def _handshake() -> tuple[Records, ssl.SSLObject, list[bytes], ssl.MemoryBIO]:
    """Return a server and a client that are connected: what the first one receives is put into the list."""
    if not _contexts:
        _contexts.append(_context())
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(incoming, outgoing)
    parts: list[bytes] = []
    transport = _Transport(parts)
    transport.sent = incoming.write
    server, is_done = Records(transport, _contexts[0]), False  # type: ignore[arg-type]
    while not is_done:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        parts.append(outgoing.read())
        is_done = server.handshake(readable=True) == 0
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return server, client, parts, outgoing


# -- operators ---------------------------------------------------------------------------------------------------------

_endpoints = [Endpoint(None, is_control=True), Endpoint(None), Endpoint(None, is_public=True, token="secret")]  # type: ignore[arg-type]


class _Bugs(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise FindingError(record.getMessage())


async def _answer(scope: dict[str, Any], body: bytes) -> tuple[int, bytes]:
    """Return the status and the body of the app's answer, for a double of a relay."""
    sent: list[Any] = []
    waiting = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = make_app(Double())
    await app(scope, receive, send)
    app.close()
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def operators(data: bytes) -> None:
    """Requests of HTTP to the control socket and the status addresses; the first byte is the endpoint."""
    if not data:
        return
    scope, body = _request(data[1:])
    if scope is None or scope["path"] == "/events":  # which never ends
        return
    scope["state"] = {"endpoint": _endpoints[data[0] % len(_endpoints)]}
    bugs = _Bugs()
    logging.getLogger("relay.operations").addHandler(bugs)
    try:
        status, answer = asyncio.run(_answer(scope, body))
    finally:
        logging.getLogger("relay.operations").removeHandler(bugs)
    if status >= 500 and status != 503:
        raise FindingError(f"{status}: {answer!r}")
    if status >= 400 and scope["method"] != "HEAD" and status != 503:
        one_line(json.loads(answer)["error"])


def _request(data: bytes) -> tuple[dict[str, Any] | None, bytes]:
    """Return a request as uvicorn passes it on, and its body; ``None`` for one that h11 rejects."""
    parser, request, body = h11.Connection(h11.SERVER), None, b""
    try:
        parser.receive_data(data)
        while isinstance(event := parser.next_event(), (h11.Request, h11.Data)):
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                request = event
    except h11.RemoteProtocolError:
        return None, b""
    if request is None:
        return None, b""
    path, _, query = bytes(request.target).partition(b"?")
    headers = [(bytes(name).lower(), bytes(value)) for name, value in request.headers]
    return {
        "type": "http", "method": request.method.decode(), "path": unquote(path.decode()), "raw_path": path,
        "query_string": query, "headers": headers, "scheme": "http", "root_path": "", "http_version": "1.1",
    }, body  # fmt: skip


def upgrade(data: bytes) -> None:
    """The messages of a process that is to take the place of this one."""

    def message(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = UpgradeChannel(ours, data[:1000])
            theirs.sendall(data[1000:])
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.closing(channel), rejecting(UpgradeError):
                for _ in range(20):
                    channel.receive("prepared", 5.0)

    one_of(data, [message])
