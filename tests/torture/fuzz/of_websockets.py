"""Targets: WebSockets, their handshakes in both roles, and the headers that users and proxies write."""

from __future__ import annotations

from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from relay.addresses.values import is_ip_address
from relay.errors import AuthenticationError, ConnectError
from relay.transports.websocket import frames
from relay.transports.websocket.opening import (
    RELAY,
    ClientOpening,
    Requirements,
    ServerOpening,
    client_behind,
    parse_headers,
)

from .checks import FindingError, equal, one_line, pieces, rejecting, text_of

_WANTS = Requirements("/p", hosts=("h",), origins=("https://a.example",), subprotocol="binary")

_Found = tuple[bytes, list[tuple[int, bytes]], bool]


def _decoded(parts: list[bytes], is_masked: bool) -> _Found:
    """Return the data of all messages, the control frames, and whether it was rejected."""
    decoder, data, control = frames.Decoder(is_masked=is_masked), b"", []
    for part in parts:
        try:
            for kind, found in decoder.feed(part):
                if kind in (frames.BINARY, frames.CONTINUATION):
                    data += found
                else:
                    control.append((kind, bytes(found)))
        except frames.FrameError as error:
            one_line(str(error))
            return data, control, True
    return data, control, False


def _of_wsproto(whole: bytes, is_masked: bool) -> bool:
    """Return whether wsproto rejects the bytes up to a close; text may be no UTF-8."""
    theirs = FrameProtocol(client=not is_masked, extensions=[])
    theirs.receive_bytes(whole)
    try:
        for one in theirs.received_frames():
            if one.opcode is Opcode.CLOSE:
                return False
    except ParseFailed as error:
        return "UTF-8" not in str(error) and "utf-8" not in str(error) and "close" not in str(error).lower()
    except UnicodeDecodeError:
        return False
    return False


def websocket_frames(data: bytes) -> None:
    """Frames of both roles: the same in whatever pieces they come, and rejected where wsproto rejects them."""
    is_masked = data[:1] > b"\x7f"
    whole, parts = pieces(data)
    one, other = _decoded([whole], is_masked), _decoded(parts, is_masked)
    equal(one[2], other[2], "cut to pieces")
    if not one[2]:
        equal(one, other, "cut to pieces")
        if _of_wsproto(whole, is_masked):
            raise FindingError("wsproto rejects it")


def websocket_request(data: bytes) -> None:
    """Requests of clients: one that is let in has what the listener wants."""
    whole, parts = pieces(data)
    found = []
    for given in ([whole], parts):
        opening = ServerOpening(_WANTS)
        for part in given:
            if part and opening.outcome is None and not opening.problem:
                opening.feed(part)
        if opening.problem:
            one_line(opening.problem)
        if opening.outcome is not None:
            head = whole.lower()
            if b" /p http/" not in head or (b"\norigin:" in head and b"https://a.example" not in head):
                raise FindingError("it must not be let in")
            client_behind(opening.forwarded, lambda host: host.startswith("10."), is_ip_address)
        found.append((opening.reply[:12], opening.outcome is not None))
    if len(whole) < 16384:
        equal(found[0], found[1], "cut to pieces")


def websocket_answer(data: bytes) -> None:
    """Answers of servers, to a client that asks for the subprotocol of relay, and to one that does not."""
    whole, parts = pieces(data)
    offers = (RELAY,) if data[:1] > b"\x7f" else ()
    for given in ([whole], parts):
        opening = ClientOpening("wss://h/p", "h", "/p", offers)
        with rejecting(ConnectError, AuthenticationError):
            for part in [*given, b""]:
                if opening.outcome is None:
                    opening.feed(part)
            raise FindingError("no outcome at the end") if opening.outcome is None else ConnectError("done")


def websocket_headers(data: bytes) -> None:
    """Header files, and X-Forwarded-For."""
    with rejecting(ValueError):
        for name, value in parse_headers(text_of(data)):
            if b"\n" in name + value or b"\r" in name + value:
                raise FindingError(f"{name!r}: {value!r} is more than one header")
            with rejecting(ConnectError):
                ClientOpening("wss://h/p", "h", "/p", (), [(name, value)])
    host = client_behind(data.split(b"\n"), lambda host: host.startswith("10."), is_ip_address)
    if host is not None and not is_ip_address(host):
        raise FindingError(f"{host!r} is no address")
