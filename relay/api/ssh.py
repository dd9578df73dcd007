"""``relay.ssh`` and ``relay.ssh_listen``: forwarding by an SSH server, in both directions (RFC 4254, section 7)."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from ..addresses.hops import Route
from ..addresses.options import options_of
from ..addresses.parse import parse_hops, parse_ssh_server
from ..addresses.signatures import shows_options
from ..addresses.ssh import SSHServer
from ..addresses.values import TCPAddress, UnixAddress, check_host_port
from ..streams.dialer import Dialer
from ..transports.chain import chain, network, numbered
from ..transports.ssh.listener import SSHListener
from .keywords import SSHKeywords

_GRANT_TIMEOUT = 30.0  # seconds for the server to grant the first forward


@shows_options(SSHServer)
def ssh(
    server: str,
    host: str,
    port: int,
    *,
    via: Sequence[str] = (),
    **options: Unpack[SSHKeywords],
) -> Dialer:
    """Return a factory for a target behind an SSH server: ``ssh -L`` without the local port.

    Nothing is opened before the first call (or ``ready()``). Factories and listeners of this process share one
    connection if they use the same server with the same options over the same hops. relay reconnects when the
    connection is lost. Meanwhile a call waits until its deadline, or for one attempt if it has none. A wrong host key
    and rejected credentials are final: each call raises them at once, and relay retries only when a call comes 10
    seconds later, five minutes after rejected credentials. relay never prompts.

    :param server: ``[user@]host[:port]`` (IPv6 in brackets), an alias of the user's SSH configuration, or an ``ssh://``
        URL, whose parameters have the names of the options here.
    :param host: the host to connect to: an address, or a name that the server resolves.
    :param port: its port, from 1 to 65535.
    :param via: the hops to the server, the nearest first, as for :func:`relay.target`.
    :param options: {options}
    :returns: a callable for :class:`relay.Tunnel`, with ``ready(timeout)``, ``state``, ``subscribe(watcher)`` and
        ``close()``, which releases the connection. A call returns a connected :class:`relay.Stream`, and raises
        :class:`relay.ConnectError` (refused, unreachable, timed out, denied by the server's policy),
        :class:`relay.HostKeyError`, :class:`relay.AuthenticationError` or :class:`relay.CarrierError`.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type, or a keyword is unknown.
    :raises ValueError: if an argument has a value that is not allowed; :class:`relay.AddressError` for ``server`` and
        ``via``.

    Source: ssh(1), ``-L``.
    """
    check_host_port(host, port)
    last = server_with(server, options)
    return chain((*parse_hops(via, str(last)), last), TCPAddress(host, port))


@shows_options(SSHServer)
def ssh_listen(
    server: str,
    bind_host: str = "127.0.0.1",
    bind_port: int = 0,
    *,
    via: Sequence[str] = (),
    **options: Unpack[SSHKeywords],
) -> SSHListener:
    """Listen on an SSH server: ``ssh -R``. The listener accepts the connections that arrive there.

    After a loss of the connection, relay reconnects and requests the same port again.

    :param server: as for :func:`relay.ssh`.
    :param bind_host: the address on which the server listens; any but its loopback needs ``GatewayPorts`` there.
    :param bind_port: from 0 to 65535; with 0 the server chooses a port, which is then kept.
    :param via: the hops to the server, the nearest first, as for :func:`relay.target`.
    :param options: {options}
    :returns: a listener for :class:`relay.Tunnel`, once the server has granted the forward. The caller owns it.
    :raises ForwardError: if the server does not allow it, or cannot bind it.
    :raises HostKeyError: if the server's host key is not trusted.
    :raises AuthenticationError: if the server rejects the credentials.
    :raises ConnectError: if the server cannot be reached or does not answer within 30 seconds.
    :raises CarrierError: if the connection is lost before that.
    :raises TypeError: if an argument has the wrong type, or a keyword is unknown.
    :raises ValueError: if an argument has a value that is not allowed; :class:`relay.AddressError` for ``server`` and
        ``via``.

    Source: ssh(1), ``-R``.
    """
    check_host_port(bind_host, bind_port, least=0)
    return listen_ssh(server_with(server, options), TCPAddress(bind_host, bind_port), parse_hops(via))


def listen_ssh(
    server: SSHServer,
    place: TCPAddress | UnixAddress,
    via: Route = (),
    opening: Callable[[SSHListener], object] | None = None,
) -> SSHListener:
    """Listen on an SSH server.

    :param server: the server.
    :param place: the address there: a port, or a Unix socket if the server allows that.
    :param via: the hops to it, the nearest first.
    :param opening: called with the listener before it starts. The listener then retries without a time limit while the
        server cannot be reached; closing it ends that. ``None`` for one attempt.
    :returns: a listener for :class:`relay.Tunnel`, once the server has granted the forward. The caller owns it.
    :raises OSError: as :func:`ssh_listen` does; with ``opening`` only what a retry cannot fix.
    """
    listener = SSHListener(server, place, network(via), numbered)
    try:
        if opening is None:
            listener.start(time.monotonic() + _GRANT_TIMEOUT)
        else:
            opening(listener)
            listener.start_patiently()
    except BaseException:
        listener.close()
        raise
    return listener


def server_with(server: str, options: Mapping[str, Any]) -> SSHServer:
    """Return a server, with the keywords that do not have their default.

    :raises AddressError: if ``server`` cannot be understood.
    :raises TypeError: if a keyword is unknown or has the wrong type.
    :raises ValueError: if a keyword has a value that is not allowed.
    """
    declared = options_of(SSHServer)
    given: dict[str, Any] = {}
    for name, value in options.items():
        if name not in declared:
            raise TypeError(f"{name}: unexpected keyword argument; allowed are {', '.join(declared)}")
        if value != declared[name].default:
            given[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return dataclasses.replace(parse_ssh_server(server), **given)
