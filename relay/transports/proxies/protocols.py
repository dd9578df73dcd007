"""Listeners for proxy clients, by the protocol of an address."""

from __future__ import annotations

from typing import Literal

from ...addresses.options import Secret
from .http_server import http_listen
from .listener import ProxyListener
from .socks_server import socks_listen

__all__ = ["listen_proxy"]


def listen_proxy(
    protocol: Literal["socks5", "http"],
    host: str,
    port: int,
    user: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
) -> ProxyListener:
    """Listen for proxy clients.

    :param protocol: ``socks5`` or ``http``.
    :param host: and the others: as for :func:`relay.socks_listen`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises OSError: as :func:`relay.socks_listen` does.
    """
    listen = socks_listen if protocol == "socks5" else http_listen
    return listen(host, port, user=user, password=password, password_file=password_file, password_env=password_env)
