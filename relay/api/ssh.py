"""``relay.ssh`` and ``relay.ssh_listen``: forwarding by an SSH server, in both directions (RFC 4254, section 7)."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..addresses.hops import Route
from ..addresses.parse import parse_hops, parse_ssh_server
from ..addresses.values import Secret, SSHServer, TCPAddress, UnixAddress, check_place
from ..streams.dialer import Dialer
from ..transports.chain import chain, network, numbered
from ..transports.ssh.listener import SSHListener

__all__ = ["listen_ssh", "server_with", "ssh", "ssh_listen"]

Path = str | os.PathLike[str]

_GRANT_TIMEOUT = 30.0  # seconds for the server to grant the first forward
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(SSHServer)}


def ssh(
    server: str,
    host: str,
    port: int,
    *,
    backend: str | None = None,
    keyfile: Path | None = None,
    identities_only: bool = True,
    passphrase: Secret | None = None,
    password: Secret | None = None,
    known_hosts: Path | None = None,
    config: Path | None = None,
    hostkey: str | None = None,
    accept_new: bool = False,
    keepalive: float | None = 15.0,
    compress: bool | None = None,
    via: Sequence[str] = (),
) -> Dialer:
    """A factory for what an SSH server reaches: ``ssh -L`` without the port.

    Nothing is opened before the first call (or ``ready()``). One connection to the server carries all streams, and
    those of every other factory and listener that asks for the same server with the same options over the same hops. It
    is made again when it is lost; while it is away, a call waits for it until its deadline, or for one attempt if it
    has none. A wrong host key and credentials that are not accepted are final: they are raised at once, also to whoever
    asks later, and tried again only when somebody asks after five minutes. Nothing ever prompts.

    :param server: ``[user@]host[:port]`` (IPv6 in brackets), an alias of the user's SSH configuration, or an ``ssh://``
        URL, whose query parameters have the names of the keywords here.
    :param host: what the server is to connect to: an address or a name that the server resolves.
    :param port: its port, from 1 to 65535.
    :param backend: ``'paramiko'`` or ``'openssh'`` (the user's own ``ssh``); ``None`` for paramiko unless an option or
        the user's configuration needs the client.
    :param keyfile: the private key that is offered; a ``.pub`` file names a key of the agent. ``None`` for those of the
        configuration and the agent.
    :param identities_only: whether ``keyfile`` is offered alone; else those follow it.
    :param passphrase: of the key: text, or a callable that returns it.
    :param password: text, or a callable that returns it; one that takes an argument is given each question of a
        keyboard-interactive login in turn, and answers it.
    :param known_hosts: a file of host keys in place of the user's own.
    :param config: a configuration file in place of the user's own.
    :param hostkey: the fingerprint that the server's key must have, ``SHA256:…``; no file is asked then.
    :param accept_new: whether the key of a server that is not known yet is written down and trusted.
    :param keepalive: seconds between two signs of life; a server silent for three times as long is dead. ``None`` turns
        it off.
    :param compress: whether to compress; ``None`` leaves it to the configuration.
    :param via: the hops on the way to the server, the nearest first, as for :func:`relay.target`.
    :returns: a callable for :class:`relay.Tunnel`, with ``ready(timeout)``, ``state``, ``subscribe(watcher)`` and
        ``close()``, which lets the connection go. A call returns a connected :class:`relay.Stream`, and raises
        :class:`relay.ConnectError` (refused, unreachable, timed out, denied by the server's policy),
        :class:`relay.HostKeyError`, :class:`relay.AuthenticationError` or :class:`relay.CarrierError`.
        It takes the keywords ``peer``, ``deadline`` and ``cancel``, as all factories do; see :func:`relay.target`.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument cannot be right; :class:`relay.AddressError` for ``server`` and ``via``.

    Source: the project's API, section 2; ssh(1), ``-L``.
    """
    check_place(host, port)
    options = {
        "backend": backend,
        "keyfile": keyfile,
        "identities_only": identities_only,
        "passphrase": passphrase,
        "password": password,
        "known_hosts": known_hosts,
        "config": config,
        "hostkey": hostkey,
        "accept_new": accept_new,
        "keepalive": keepalive,
        "compress": compress,
    }
    last = server_with(server, options)
    return chain((*parse_hops(via, str(last)), last), TCPAddress(host, port))


def ssh_listen(
    server: str,
    bind_host: str = "127.0.0.1",
    bind_port: int = 0,
    *,
    backend: str | None = None,
    keyfile: Path | None = None,
    identities_only: bool = True,
    passphrase: Secret | None = None,
    password: Secret | None = None,
    known_hosts: Path | None = None,
    config: Path | None = None,
    hostkey: str | None = None,
    accept_new: bool = False,
    keepalive: float | None = 15.0,
    compress: bool | None = None,
    via: Sequence[str] = (),
) -> SSHListener:
    """Have an SSH server listen for us: ``ssh -R``. What connects there is accepted here.

    The forward is asked for again, with the same port, whenever the connection has been lost and made again.

    :param server: and all keywords: as for :func:`relay.ssh`.
    :param bind_host: where the server listens; anything but its loopback needs its ``GatewayPorts``.
    :param bind_port: from 0 to 65535; 0 lets the server choose a port, which is then kept.
    :returns: a listener for :class:`relay.Tunnel`, once the server has granted the forward. The caller owns it.
    :raises ForwardError: if the server does not allow it, or cannot bind it.
    :raises HostKeyError: if the server's host key is not to be trusted.
    :raises AuthenticationError: if the server takes none of the credentials.
    :raises ConnectError: if the server cannot be reached or does not answer within 30 seconds.
    :raises CarrierError: if the connection is lost before that.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument cannot be right; :class:`relay.AddressError` for ``server`` and ``via``.

    Source: the project's API, section 2; ssh(1), ``-R``.
    """
    check_place(bind_host, bind_port, least=0)
    options = {
        "backend": backend,
        "keyfile": keyfile,
        "identities_only": identities_only,
        "passphrase": passphrase,
        "password": password,
        "known_hosts": known_hosts,
        "config": config,
        "hostkey": hostkey,
        "accept_new": accept_new,
        "keepalive": keepalive,
        "compress": compress,
    }
    return listen_ssh(server_with(server, options), TCPAddress(bind_host, bind_port), parse_hops(via))


def listen_ssh(
    server: SSHServer,
    place: TCPAddress | UnixAddress,
    via: Route = (),
    opening: Callable[[SSHListener], object] | None = None,
) -> SSHListener:
    """Have an SSH server listen for us.

    :param server: the server.
    :param place: where it listens, also at a Unix socket where it allows that.
    :param via: the hops on the way to it, the nearest first.
    :param opening: called with the listener before it starts, which then retries without a limit of time while the
        server cannot be reached; closing the listener ends that. ``None`` for one attempt.
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


def server_with(server: str, options: dict[str, Any]) -> SSHServer:
    """A server as text, with the keywords that say more than their default.

    :raises AddressError: if it cannot be understood.
    :raises TypeError: if a keyword has the wrong type.
    :raises ValueError: if a keyword cannot be right.
    """
    given = {name: _text(value) for name, value in options.items() if value != _DEFAULTS[name]}
    return dataclasses.replace(parse_ssh_server(server), **given)


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
