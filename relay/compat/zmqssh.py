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
from ._zmq.tunnel import Password, SSHTunnel, Way, backend_of, ssh_exceptions

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


def __getattr__(name: str) -> Any:
    if name != "SSHException":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from paramiko import SSHException

    globals()[name] = SSHException
    return SSHException


def select_random_ports(n: int) -> list[int]:
    """Ports that are free at this moment. Another program may take one at the next: port 0 is the better choice.

    :param n: how many.
    :returns: the ports, all different.
    :raises OSError: if there are not as many.
    """
    with contextlib.ExitStack() as bound:
        made = [bound.enter_context(sockets.socket()) for _ in range(n)]
        for one in made:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in made]


def try_passwordless_ssh(
    server: str, keyfile: Path | None = None, paramiko: bool | None = None, *, via: Sequence[str] = ()
) -> bool:
    """Log in to find out if a server needs no password.

    Use it before many tunnels to one server, to prompt for the password once.

    :param server: and the others: as for :func:`tunnel_connection`.
    :returns: ``False`` if the server refuses the keys, or there are none. The original's two ways differed for a server
        that cannot be reached or is not trusted; here that is an exception, because no password would help.
    :raises SSHException: if the server cannot be reached or is not trusted, or a hop rejects the connection.
    :raises ValueError: if an argument cannot be right.
    :raises TypeError: if one has the wrong type.
    """
    way = Way.made(server, backend_of(paramiko), keyfile, None, via)
    with ssh_exceptions():
        try:
            way.ready()
        except AuthenticationError as error:
            if way.is_refused(error):
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
    """Connect a ØMQ socket to an address that an SSH server reaches.

    The socket connects over ``ipc://`` in an owner-only directory: no port is in use, and no other user of this machine
    can use the tunnel. relay prompts only for a password that is needed and missing, once, and only on a terminal.

    :param socket: any ØMQ socket. What it sends is not lost if it is closed, with its linger, before the tunnel.
    :param addr: ``tcp://host:port`` as the server sees it; IPv6 in brackets.
    :param server: ``[user@]host[:port]`` (IPv6 in brackets), an alias of the user's SSH configuration, or an ``ssh://``
        address with parameters, as for :func:`relay.ssh`. The user's configuration, agent and keys are used.
    :param keyfile: a private key that is tried before those.
    :param password: of the user at the server; it decrypts ``keyfile``, too. It goes to the child over a socket.
        ``None``: prompt for it if needed; ``False``: never prompt.
    :param paramiko: ``None`` for the OpenSSH client where it is installed, else paramiko; ``True`` for paramiko,
        ``False`` for the client.
    :param timeout: seconds without any connection, also after the last one has gone, after which the tunnel ends by
        itself; ``None`` for never.
    :param via: the hops on the way to the server, the nearest first, as for :func:`relay.target`.
    :returns: the tunnel, once the server has let us in. It ends with the program at the latest.
    :raises SSHException: if the server cannot be reached, is not known or not to be trusted, or does not let us in. It
        is paramiko's own class; a login that fails is its ``AuthenticationException``.
    :raises ValueError: if an argument cannot be right, such as a key file that is not there.
    :raises TypeError: if an argument has the wrong type.
    :raises OSError: if there is no room for another process or socket.
    """
    way = Way.made(server, backend_of(paramiko), keyfile, password, via)
    tunnel = way.tunnel(None, _place(addr), timeout)
    try:
        socket.connect(f"ipc://{tunnel.address}")
    except BaseException:
        tunnel.terminate()
        raise
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

    :param addr: and the others: as for :func:`tunnel_connection`.
    :returns: what to connect to in its place, ``tcp://127.0.0.1:port``, and the tunnel. The port was never anybody
        else's: the tunnel chose it by listening there.
    :raises SSHException: and the others: as for :func:`tunnel_connection`.
    """
    way = Way.made(server, backend_of(paramiko), keyfile, password, via)
    tunnel = way.tunnel("127.0.0.1:0", _place(addr), timeout)
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
    """Forward a port of 127.0.0.1 to a port that an SSH server reaches, with the OpenSSH client.

    :param lport: the port here; 0 for any, which is then in ``address`` of what is returned.
    :param rport: the port there, from 1 to 65535.
    :param server: as for :func:`tunnel_connection`.
    :param remoteip: the host there, as the server sees it: an address or a name.
    :param keyfile: and the others: as for :func:`tunnel_connection`.
    :returns: the tunnel, once the server has let us in.
    :raises SSHException: and the others: as for :func:`tunnel_connection`; also if the client is not installed.
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
    """Forward a port of 127.0.0.1 to a port that an SSH server reaches, with paramiko.

    :param lport: and the others: as for :func:`openssh_tunnel`.
    :returns: the tunnel, once the server has let us in.
    :raises SSHException: and the others: as for :func:`openssh_tunnel`.
    """
    return _port_tunnel("paramiko", lport, rport, server, remoteip, keyfile, password, timeout, via)


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
    return Way.made(server, backend, keyfile, password, via).tunnel(str(here), there, timeout)


def _paramiko_tunnel(
    lport: int,
    rport: int,
    server: str,
    remoteip: str = "127.0.0.1",
    keyfile: Path | None = None,
    password: Password = None,
) -> None:
    """Be a tunnel for as long as this process lives, as ``multiprocessing.Process(target=_paramiko_tunnel)`` wants it.

    :param lport: and the others: as for :func:`paramiko_tunnel`. It never prompts for a password.
    :raises SSHException: and the others: as for :func:`paramiko_tunnel`.
    """
    check_host_port(remoteip, rport)
    Way.made(server, "paramiko", keyfile, password, ()).stay(f"127.0.0.1:{lport}", TCPAddress(remoteip, rport))


def _split_server(server: str) -> tuple[str, str, int]:
    """The user, the host and the port of ``[user@]host[:port]``; without them who runs this program, and 22.

    :raises ValueError: if it cannot be understood.
    """
    found = parse_ssh_server(server)
    return found.user or getpass.getuser(), found.host, found.port or 22


def _stop_tunnel(cmd: SSHTunnel) -> None:
    """End a tunnel.

    :param cmd: what the other functions return; the original had a command line here.
    """
    cmd.close()


def _place(addr: str) -> TCPAddress:
    """The place of a ØMQ address.

    :raises ValueError: if it is not of the kind that can be tunnelled.
    """
    if not isinstance(addr, str) or not addr.startswith("tcp://"):
        raise AddressError(f"addr: {addr!r:.100} cannot be tunnelled; tcp://HOST:PORT can")
    try:
        place = parse_target(addr)
    except AddressError as error:
        raise AddressError(f"addr: {str(error).removeprefix('target ')}") from None
    assert isinstance(place, TCPAddress)
    return place
