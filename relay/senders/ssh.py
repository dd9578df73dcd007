"""The way out over SSH: what a server connects to for us (RFC 4254, section 7.2)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from ..address import Secret, SSHServer, TCPAddress, check_place
from ..dialing import Dialed
from ..parsing import parse_hops, parse_ssh_server
from .chain import chain

__all__ = ["server_with", "ssh"]

Path = str | os.PathLike[str]

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
) -> Dialed:
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
