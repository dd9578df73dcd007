"""Listeners for proxy clients, by the protocol of an address."""

from __future__ import annotations

from typing import Literal

from ...addresses.options import Secret
from ..tcp import Inherited, listen_tcp
from .http_server import HTTPListener
from .listener import ProxyListener, login_of
from .socks_server import SOCKSListener


def listen_proxy(
    protocol: Literal["socks5", "http"],
    host: str,
    port: int,
    user: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
    inherited: Inherited | None = None,
) -> ProxyListener:
    """Listen for proxy clients.

    :param protocol: ``socks5`` or ``http``.
    :param host: and the others: as for :func:`relay.socks_listen`.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises OSError: as :func:`relay.socks_listen` does.
    """
    kind = SOCKSListener if protocol == "socks5" else HTTPListener
    login = login_of(user, password, password_file, password_env)
    return kind(listen_tcp(host, port, inherited=inherited), login)
