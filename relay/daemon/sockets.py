"""The sockets of operators: the control socket of a program, and its status addresses."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
import threading
from dataclasses import dataclass, field
from typing import Any, get_args

from ..access.regular_file import open_regular
from ..addresses.hops import ProxyProtocol
from ..addresses.parse import parse_listen
from ..addresses.printable import shown
from ..addresses.values import TCPAddress, UnixListen, unix_path
from ..errors import AddressError, can_retry
from ..eventloop import reserve
from ..extras import missing
from ..transports.tcp import Inherited
from ..transports.unix import UnixListener, group_number, listen_unix
from .runtime import make_directory

BACKLOG = 128  # clients that wait to be accepted
_LONGEST_TOKEN = 4096  # bytes of a token file
_SHORTEST_TOKEN = 16  # characters
_SHARED = 0o077
_SHORT = 1.0  # seconds for the connect to a socket of another program
_UCRED = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class InUseError(OSError):
    """Another relay listens at the control socket."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """A listening socket for operators. Only its token ever changes.

    :param socket: it listens.
    :param is_control: whether it takes actions; else it only shows.
    :param is_public: whether other machines may reach it; it has a token then.
    :param token: that a client must send; ``None`` for none.
    :param path: of a Unix socket, else empty.
    :param has_closed: set once its server takes no more clients.
    """

    socket: socket.socket
    is_control: bool = False
    is_public: bool = False
    token: str | None = None
    path: str = ""
    has_closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        """Close it, and remove its file."""
        self.socket.close()
        self.has_closed.set()


class _ControlSocket(UnixListener):
    """A control socket. If no other descriptor is left, its clients (this user or root) get one of the reserve."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a client."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
        with reserve.lent():
            return super().accept()


def open_control(path: str, inherited: Inherited | None = None) -> Endpoint:
    """Listen at a control socket, owner-only. The stale socket of a process that was killed is replaced.

    :param path: of the socket.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :raises InUseError: if a program listens there; it names a running relay by its process ID and its file, and another
        program, or a relay that does not answer, by its process ID.
    :raises OSError: if it cannot be opened.
    :raises ValueError: if the path cannot be that of a socket, or others may put files beside it.
    """
    check_control(path)
    make_directory(path)
    path = os.path.abspath(path)
    try:
        return Endpoint(listen_unix(path, kind=_ControlSocket, inherited=inherited), is_control=True, path=path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        user = _user_of(path) or _process_at(path) or error.strerror
        raise InUseError(errno.EADDRINUSE, f"control socket {path}: {user}") from error


def _check_packages(what: str) -> None:
    if (problem := missing("status")) is not None:
        raise ValueError(f"{what} needs more: {problem}")


def check_control(path: str) -> None:
    """Check the path of a control socket, which need not be absolute.

    :raises ValueError: if it is empty, too long or an address, or a package is missing.
    """
    _check_packages("the control socket")
    if not path:
        raise ValueError("control socket: the path is empty; name a socket, or leave it out for the usual one")
    if path.startswith("unix:"):
        raise ValueError(f"control socket {shown(path)}: that is an address; write the path alone")
    try:
        unix_path(os.path.abspath(path))
    except ValueError as error:
        raise ValueError(f"control socket: {error}") from None


def _user_of(path: str) -> str:
    from .client import Client, ClientError  # a relay that starts does not need it

    try:
        client = Client(path)
        try:
            status = client.get("/instance")
            file = f" with {status['config']}" if status["config"] else ""
            return f"relay runs already{file}, process {status['pid']}; relay ctl stop ends it"
        finally:
            client.close()
    except (ClientError, OSError, KeyError, TypeError):
        return ""


def _process_at(path: str) -> str:
    """Describe the process that listens at a Unix socket; empty if none does, or the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_SHORT)
        try:
            client.connect(path)
            number, _, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        except OSError:
            return ""
    return f"another program (process {number}) listens there; stop it, or use another path"


def open_status(
    address: str, *, is_public: bool = False, token_file: str | None = None, inherited: Inherited | None = None
) -> Endpoint:
    """Listen at a status address: ``HOST:PORT``, ``PORT`` or ``unix:///PATH?mode=…&group=…``.

    :param address: the address.
    :param is_public: whether it may be one that other machines can reach.
    :param token_file: an owner-only file with the token that a client must send; a public address needs one.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :raises ValueError: if the address is wrong, or is public without permission or without a token.
    :raises OSError: if it cannot be opened; its ``strerror`` begins with the address.
    """
    where, token = check_status(address, is_public=is_public, token_file=token_file)
    if isinstance(where, UnixListen):
        path = os.path.abspath(where.path)
        make_directory(path)
        return Endpoint(listen_unix(path, where.mode, where.group, inherited=inherited), token=token, path=path)
    number = ipaddress.ip_address(where.host)
    family = socket.AF_INET6 if number.version == 6 else socket.AF_INET
    known = inherited.take(family, (str(number), where.port)) if inherited is not None else None
    if known is not None:
        return Endpoint(known, is_public=not number.is_loopback, token=token)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(number), where.port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"status address {address}: {error.strerror}") from error
    return Endpoint(made, is_public=not number.is_loopback, token=token)


def check_status(
    address: str, *, is_public: bool = False, token_file: str | None = None
) -> tuple[TCPAddress | UnixListen, str | None]:
    """Check a status address, and read its token; the parameters and the errors are those of :func:`open_status`.

    :returns: the address, its host a number, and the token.
    """
    _check_packages("the status server")
    token = read_token(token_file) if token_file is not None else None
    expected = f"status address '{shown(address)}': expected PORT, IP:PORT or unix:///PATH, such as 127.0.0.1:9464"
    # The errors of parse_listen() would ask for what these need elsewhere.
    if address.partition("://")[0].lower() in ("tls", "ssh", "i2p", *get_args(ProxyProtocol)):
        raise AddressError(expected)
    where = parse_listen(address)
    if isinstance(where, UnixListen):
        try:
            group_number(where.group)
        except ValueError as error:
            raise ValueError(f"status address '{address}': {error}") from None
        return where, token
    number = _number(where.host) if isinstance(where, TCPAddress) else None
    if number is None or not isinstance(where, TCPAddress) or where.mptcp:
        raise AddressError(expected)
    if not number.is_loopback and not is_public:
        hint = "use 127.0.0.1, or set status_public = true and status_token_file in relay.toml"
        raise ValueError(f"status address '{address}': other machines can reach it; {hint}")
    if not number.is_loopback and token is None:
        raise ValueError(f"status address '{address}': a public one needs a token; set status_token_file")
    return TCPAddress(str(number), where.port), token


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None


def read_token(path: str) -> str:
    """Read the token of status clients.

    :param path: of an owner-only file.
    :raises ValueError: if the file cannot be used; the text says why.
    """
    try:
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_LONGEST_TOKEN + 1)
    except OSError as error:
        if can_retry(error):
            raise
        raise ValueError(f"status_token_file {path}: {error.strerror}; make one, owner-only") from error
    if mode & _SHARED:
        raise ValueError(f"status_token_file {path}: others can read it (mode {mode:04o}); chmod 600 it")
    try:
        token = data.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if len(data) > _LONGEST_TOKEN or len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise ValueError(f"status_token_file {path}: expected one word of {_SHORTEST_TOKEN} or more ASCII characters")
    return token
