"""Checks of a tunnel before it is opened, without connecting to anything."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from ..access.access_list import AccessList
from ..addresses.hops import AT_PORT, Command, Proxy, ProxyListen, Route
from ..addresses.https import WITH_CERTIFICATE
from ..addresses.i2p import I2PListen, I2PRouter, I2PTarget
from ..addresses.resume import place_of
from ..addresses.ssh import SSHListen, SSHServer
from ..addresses.values import TargetOverTCP, TCPAddress, TLSTarget, UnixListen, has_mptcp, is_i2p, refuse_onion
from ..errors import AuthenticationError, ConnectError, RelayError
from ..eventloop.sockets import check_mptcp
from ..transports.credentials import passphrase_of, secret_of
from ..transports.tls.context import load_chain, set_groups, trusting
from ..transports.unix import check_group

Note = Callable[[Exception, Any], object]
"""Gets a problem, and the hop that has it or ``None``."""


class Routes(NamedTuple):
    """The hops and the ends of a planned tunnel.

    :param where: the address to listen on.
    :param before: the hops to that.
    :param out: the hops to each target, and the target; ``None`` for the targets that clients request.
    :param further: more hops to the targets that clients request, which are not checked.
    :param anywhere: whether relay itself connects to the targets that clients request.
    :param files: files that are in none of the addresses.
    :param lists: the entries of the access lists: of the clients that are allowed, or ``None``; and denied.
    """

    where: Any
    before: Route = ()
    out: Sequence[tuple[Route, Any]] = ()
    further: Sequence[Route] = ()
    anywhere: bool = False
    files: Sequence[str] = ()
    lists: tuple[Sequence[str] | None, Sequence[str]] = (None, ())


class Preflight:
    """Checks tunnels, on any thread; what several of them share is checked once.

    :param names: whether host names are resolved, which may block for seconds.
    """

    def __init__(self, *, names: bool = True) -> None:
        self._names = names
        self._lock = threading.Lock()  # for what follows
        self._seen: dict[Hashable, Exception | None] = {}  # what was checked → its error
        self._of_hops: set[str] = set()  # the errors of hops, which a factory that has them repeats
        self._note: Note | None = None
        self._all_well = True

    def check(self, routes: Routes, make_send: Callable[[], Any], note: Note | None = None) -> str | None:
        """Check everything that a tunnel needs.

        :param routes: its hops and its ends.
        :param make_send: makes its factory.
        :param note: called with each new problem; by default the first problem is raised.
        :returns: the address it would listen on; ``None`` if there is a problem.
        """
        with self._lock:
            self._note, self._all_well = note, True
            return self._look(routes, make_send)

    def _look(self, routes: Routes, make_send: Callable[[], Any]) -> str | None:
        where, before, out = routes.where, routes.before, routes.out
        if any(routes.lists):
            self._try(("lists", *map(str, routes.lists)), lambda: AccessList(*routes.lists))
        self._route(before)
        for route, end in out:
            self._route(route)
            self._check_route(route, end)
        self._try(object(), lambda: _close(make_send()))
        address = self._place(where, before)
        return address if self._all_well else None

    def _try(self, what: Hashable, look: Callable[[], Any], hop: Any = None) -> Any:
        """Check something once, perhaps a hop; return ``None`` if there is a problem."""
        if what in self._seen:
            error = self._seen[what]
            if error is not None and self._note is None:
                raise error
            self._all_well = self._all_well and error is None
            return None
        try:
            found = look()
        except (OSError, ValueError, TypeError) as error:
            self._seen[what], self._all_well = error, False
            if self._note is None:
                raise
            if hop is not None:
                self._of_hops.add(str(error))
            if hop is not None or str(error) not in self._of_hops:
                self._note(error, hop)
            return None
        self._seen[what] = None
        return found

    # -- where it listens ---------------------------------------------------------------------------------------------

    def _place(self, where: Any, before: Route) -> str:
        if isinstance(where, SSHListen):
            self._hop(where.server, is_first=not before)
            return str(getattr(where.place, "path", where.place))
        if isinstance(where, I2PListen):
            self._hop(where.router, is_first=not before)
            return str(self._try((where, "key"), lambda: _destination(where)) or where)
        if isinstance(where, WITH_CERTIFICATE):
            self._try(where, lambda: _chain(where))
        if isinstance(where, UnixListen):
            self._try(where, lambda: check_group(where.path, where.group))
        if isinstance(where, ProxyListen) and where.user is not None:
            self._try(where, lambda: secret_of(where, "password", ""))
        if isinstance(where, AT_PORT):
            self._resolve((where.host, "here"), where.host)
            if has_mptcp(where):
                self._try("mptcp", check_mptcp)
            return str(TCPAddress(where.host, where.port))
        return str(where)

    # -- where it leads -----------------------------------------------------------------------------------------------

    def _check_route(self, route: Route, end: Any) -> None:
        """Check a target; behind hops, its name is resolved there."""
        if isinstance(end, Command) and not route:
            self._try(end, lambda: _find(end))
        elif isinstance(end, I2PTarget):
            self._hop(end.router, is_first=not route)
        elif isinstance(end, TCPAddress | TLSTarget | TargetOverTCP) and not route:
            self._resolve((end.host, "there"), end.host)

    def _route(self, route: Route) -> None:
        for number, hop in enumerate(route):
            self._hop(hop, is_first=not number)

    def _hop(self, hop: Any, *, is_first: bool) -> None:
        for name in self._try((hop, is_first), lambda: _hop(hop, is_first=is_first), hop) or ():
            self._resolve((hop, name), name, f"{hop}: ")

    def _resolve(self, what: Hashable, host: str, before: str = "") -> None:
        if self._names:
            self._try(what, lambda: _resolve(host, before))


def _hop(hop: Any, *, is_first: bool) -> Sequence[str]:
    """Check a hop.

    :returns: the names that this machine resolves.
    """
    names: list[str] = []
    hop = place_of(hop)
    hop = hop.router if isinstance(hop, I2PTarget) else hop
    if isinstance(hop, SSHServer):
        names = [name for name in [_server(hop, is_first=is_first)] if name]
    elif isinstance(hop, Command):
        if is_first:
            _find(hop)
    elif isinstance(hop, TLSTarget | TargetOverTCP):
        names = [hop.host] if is_first else []
    elif isinstance(hop, Proxy | I2PRouter):
        if hop.user is not None:
            secret_of(hop, "password", "")
        if is_first:
            names = [hop.host] if isinstance(hop, Proxy) else [bridge.host for bridge in hop.sam]
    if isinstance(hop, I2PRouter) and hop.keys is not None:
        _key(hop.keys)
    return names


def _server(server: SSHServer, *, is_first: bool) -> str:
    """Check the configuration, the key and the passwords of a server.

    :returns: the name that this machine resolves; empty if there is none.
    """
    from ..transports.ssh.config.settings import resolve_settings

    settings = resolve_settings(server, behind=not is_first)
    secret_of(server, "password", "")
    if server.keyfile is not None:
        _keyfile(server, server.keyfile, needs_client=bool(settings.requires_openssh))
    return settings.hostname if is_first and not settings.jumps and settings.command is None else ""


def _keyfile(server: SSHServer, file: str, *, needs_client: bool) -> None:
    path = os.path.expanduser(file)
    passphrase_of(server, path)
    if needs_client or server.backend == "openssh" or path.endswith(".pub"):
        with open(path, "rb"):
            return
    from ..transports.ssh.paramiko.keys import load

    try:
        load(path, lambda: passphrase_of(server, path))
    except ValueError as error:
        raise AuthenticationError(f"{server}: {file} {error}") from None


def _resolve(host: str, what: str = "") -> None:
    if is_i2p(host):
        return
    refuse_onion(host)
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        problem = f"cannot resolve the host name ({error.args[-1]}); check the spelling"
        raise ConnectError(f"{what}{host}: {problem}") from error  # a retry may help


def _find(command: Command) -> None:
    if shutil.which(command.words[0]) is None:
        raise RelayError(f"{command}: program not found; install it, or give its path")


def _chain(where: Any) -> None:
    context = trusting(ssl.Purpose.CLIENT_AUTH, "client_ca", where.client_ca)
    set_groups(context, where.groups)
    load_chain(context, where.cert, where.key)


def _key(path: str) -> str:
    """Return the address of the destination in a file; empty if the file does not exist yet."""
    from ..transports.i2p.key_file import read

    if os.path.lexists(os.path.expanduser(path)):
        return read(path).b32
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(path)))
    if not os.path.isdir(folder):
        raise RelayError(f"{path}: no directory {folder}; make it")
    return ""


def _destination(where: I2PListen) -> str:
    return _key(where.router.keys) if where.router.keys is not None else ""


def _close(factory: Any) -> None:
    close = getattr(factory, "close", None)
    if close is not None:
        close()
