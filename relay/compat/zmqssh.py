"""``zmq.ssh.tunnel`` under its own names: ØMQ sockets over SSH.

A program written for the original changes only its import::

    from relay.compat import zmqssh as ssh

    tunnel = ssh.tunnel_connection(sock, "tcp://10.0.1.2:5555", "me@bastion")

Improvements: no free port is chosen and released again; no name can be an option, and paths may contain spaces; IPv6;
no byte is lost; the returned tunnel can be closed; an unknown host is never trusted; and ``via=[…]`` takes any chain of
hops.

Source: ``zmq/ssh/tunnel.py`` of pyzmq, and its guide "Tunneling PyZMQ Connections with SSH".
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket as sockets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..addresses.parse import parse_ssh_server, parse_target
from ..addresses.values import TCPAddress, check_host_port
from ..errors import AddressError, AuthenticationError
from ._zmq_tunnel import Password, ServerRoute, SSHTunnel, backend_of, ssh_exceptions

if TYPE_CHECKING:
    import zmq
    from paramiko import SSHException

__all__ = [
    "SSHException",
    "open_tunnel",
    "openssh_tunnel",
    "paramiko_tunnel",
    "select_random_ports",
    "ssh_tunnel",
    "try_passwordless_ssh",
    "tunnel_connection",
]

Path = str | os.PathLike[str]


# For a type checker any name would do otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "SSHException":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from paramiko import SSHException

        globals()[name] = SSHException
        return SSHException


def select_random_ports(n: int) -> list[int]:
    """Return ports that are free now. Another program may take one at any moment, so prefer port 0.

    :param n: number of ports.
    :returns: the ports, all different.
    :raises OSError: if there are not enough free ports.
    """
    with contextlib.ExitStack() as bound:
        made = [bound.enter_context(sockets.socket()) for _ in range(n)]
        for one in made:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in made]


def try_passwordless_ssh(
    server: str, keyfile: Path | None = None, paramiko: bool | None = None, *, via: Sequence[str] = ()
) -> bool:
    """Log in to find out whether a server requires a password.

    Use it before you open many tunnels to one server, to prompt for the password only once.

    :param server: and all others as for :func:`tunnel_connection`.
    :returns: ``False`` if the server rejects the keys, or there are none. An unreachable or untrusted server is an
        exception, because a password would not help; the backends of the original differed here.
    :raises SSHException: if the server cannot be reached or is not trusted, or a hop rejects the connection.
    :raises ValueError: if an argument is invalid.
    :raises TypeError: if one has the wrong type.
    """
    route = ServerRoute.made(server, backend_of(paramiko), keyfile, None, via)
    with ssh_exceptions():
        try:
            route.ready()
        except AuthenticationError as error:
            if route.is_refused(error):
                return False
            raise
    return True


def _try_passwordless_openssh(server: str, keyfile: Path | None = None) -> bool:
    """:func:`try_passwordless_ssh` with the OpenSSH client."""
    return try_passwordless_ssh(server, keyfile, paramiko=False)


def _try_passwordless_paramiko(server: str, keyfile: Path | None = None) -> bool:
    """:func:`try_passwordless_ssh` with paramiko."""
    return try_passwordless_ssh(server, keyfile, paramiko=True)


def tunnel_connection(
    socket: zmq.Socket[Any],
    addr: str,
    server: str,
    keyfile: Path | None = None,
    password: Password = None,
    paramiko: bool | None = None,
    timeout: float | None = 60,
    *,
    via: Sequence[str] = (),
) -> SSHTunnel:
    """Connect a ØMQ socket to an address that is reachable from an SSH server.

    The socket connects over ``ipc://`` in an owner-only directory: no port is in use, and no other user of this machine
    can use the tunnel. relay prompts only for a password that is needed and missing, once, and only on a terminal.

    :param socket: any ØMQ socket. No message is lost if you close it, with its linger, before the tunnel.
    :param addr: ``tcp://host:port`` as the server sees it; IPv6 in brackets.
    :param server: ``[user@]host[:port]`` (IPv6 in brackets), an alias of the user's SSH configuration, or an ``ssh://``
        address with parameters, as for :func:`relay.ssh`. relay uses the SSH configuration, agent and keys of
        the user.
    :param keyfile: a private key that is tried before those.
    :param password: of the user at the server; it also decrypts ``keyfile``. relay passes it over a socket.
        ``None``: prompt for it if needed; ``False``: never prompt.
    :param paramiko: ``None`` for the OpenSSH client where it is installed, else paramiko; ``True`` for paramiko,
        ``False`` for the client.
    :param timeout: seconds without any connection after which the tunnel ends; ``None`` for no limit.
    :param via: the hops to the server, nearest first, as for :func:`relay.target`.
    :returns: the tunnel, after the login. It ends with the program at the latest.
    :raises SSHException: if the server is unreachable, unknown or untrusted, or rejects the login. It is paramiko's own
        class; a rejected login is its ``AuthenticationException``.
    :raises ValueError: if an argument is invalid, such as a key file that does not exist.
    :raises TypeError: if an argument has the wrong type.
    :raises OSError: if no process or socket is available.
    """
    route = ServerRoute.made(server, backend_of(paramiko), keyfile, password, via)
    tunnel = route.tunnel(None, _address(addr), timeout)
    try:
        socket.connect(f"ipc://{tunnel.address}")
    except BaseException:
        tunnel.terminate()
        raise
    # A program may close its socket and the tunnel right after this. The tunnel must have the connection by then, or it
    # would drain nothing, and the socket's messages would be lost.
    tunnel.wait_for_client()
    return tunnel


def open_tunnel(
    addr: str,
    server: str,
    keyfile: Path | None = None,
    password: Password = None,
    paramiko: bool | None = None,
    timeout: float | None = 60,
    *,
    via: Sequence[str] = (),
) -> tuple[str, SSHTunnel]:
    """Open a tunnel to a ØMQ address.

    :param addr: and all others as for :func:`tunnel_connection`.
    :returns: the address to connect to, ``tcp://127.0.0.1:port``, and the tunnel. The tunnel chose the port by
        listening on it, so no other program ever had it.
    :raises SSHException: and all others as for :func:`tunnel_connection`.
    """
    route = ServerRoute.made(server, backend_of(paramiko), keyfile, password, via)
    tunnel = route.tunnel("127.0.0.1:0", _address(addr), timeout)
    return f"tcp://127.0.0.1:{tunnel.address[1]}", tunnel


def openssh_tunnel(
    lport: int,
    rport: int,
    server: str,
    remoteip: str = "127.0.0.1",
    keyfile: Path | None = None,
    password: Password = None,
    timeout: float | None = 60,
    *,
    via: Sequence[str] = (),
) -> SSHTunnel:
    """Forward a port of 127.0.0.1 to a port that is reachable from an SSH server, with the OpenSSH client.

    :param lport: the port here; 0 for any free one, which is in ``address`` of the result.
    :param rport: the port there, from 1 to 65535.
    :param server: as for :func:`tunnel_connection`.
    :param remoteip: the host there, as the server sees it: an address or a name.
    :param keyfile: and all others as for :func:`tunnel_connection`.
    :returns: the tunnel, after the login.
    :raises SSHException: and all others as for :func:`tunnel_connection`; also if the OpenSSH client is not installed.
    :raises OSError: if the port is taken.
    """
    return _port_tunnel("openssh", lport, rport, server, remoteip, keyfile, password, timeout, via)


def paramiko_tunnel(
    lport: int,
    rport: int,
    server: str,
    remoteip: str = "127.0.0.1",
    keyfile: Path | None = None,
    password: Password = None,
    timeout: float | None = 60,
    *,
    via: Sequence[str] = (),
) -> SSHTunnel:
    """Forward a port of 127.0.0.1 to a port that is reachable from an SSH server, with paramiko.

    :param lport: and all others as for :func:`openssh_tunnel`.
    :returns: the tunnel, after the login.
    :raises SSHException: and all others as for :func:`openssh_tunnel`.
    """
    return _port_tunnel("paramiko", lport, rport, server, remoteip, keyfile, password, timeout, via)


# Decided at import, as in the original. tunnel_connection and open_tunnel look for the client again at each call.
ssh_tunnel = openssh_tunnel if shutil.which("ssh") else paramiko_tunnel


def _port_tunnel(
    backend: str,
    lport: int,
    rport: int,
    server: str,
    remoteip: str,
    keyfile: Path | None,
    password: Password,
    timeout: float | None,
    via: Sequence[str],
) -> SSHTunnel:
    here, there = TCPAddress("127.0.0.1", lport), TCPAddress(remoteip, rport)
    check_host_port(here.host, here.port, least=0)
    check_host_port(there.host, there.port)
    return ServerRoute.made(server, backend, keyfile, password, via).tunnel(str(here), there, timeout)


def _paramiko_tunnel(
    lport: int,
    rport: int,
    server: str,
    remoteip: str = "127.0.0.1",
    keyfile: Path | None = None,
    password: Password = None,
) -> None:
    """Run a tunnel until this process ends, for ``multiprocessing.Process(target=_paramiko_tunnel)``.

    :param lport: and all others as for :func:`paramiko_tunnel`. It never prompts for a password.
    :raises SSHException: and all others as for :func:`paramiko_tunnel`.
    """
    check_host_port(remoteip, rport)
    ServerRoute.made(server, "paramiko", keyfile, password, ()).stay(f"127.0.0.1:{lport}", TCPAddress(remoteip, rport))


def _split_server(server: str) -> tuple[str, str, int]:
    """Return user, host and port of ``[user@]host[:port]``; by default the current user, and 22.

    :raises ValueError: if the text is invalid.
    """
    found = parse_ssh_server(server)
    return found.user or getpass.getuser(), found.host, found.port or 22


def _stop_tunnel(cmd: SSHTunnel) -> None:
    """End a tunnel.

    :param cmd: a tunnel that another function returned; the original had a command line here.
    """
    cmd.close()


def _address(addr: str) -> TCPAddress:
    """Return host and port of a ØMQ address.

    :raises ValueError: if it is not a ``tcp://`` address.
    """
    if not isinstance(addr, str) or not addr.startswith("tcp://"):
        raise AddressError(f"addr: {addr!r:.100} cannot be tunnelled; tcp://HOST:PORT can")
    try:
        place = parse_target(addr)
    except AddressError as error:
        raise AddressError(f"addr: {str(error).removeprefix('target ')}") from None
    assert isinstance(place, TCPAddress)
    return place
