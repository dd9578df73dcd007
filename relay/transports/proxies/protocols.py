"""Listeners for proxy clients, by the protocol of an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addresses.hops import ProxyProtocol
from ...addresses.options import Secret
from ..tcp import Inherited, listen_tcp
from .http_server import HTTPListener
from .listener import ProxyListener, login_of
from .socks_server import SOCKSListener

if TYPE_CHECKING:
    from ..tls.context import Path


def listen_proxy(
    protocol: ProxyProtocol,
    host: str,
    port: int,
    user: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
    inherited: Inherited | None = None,
) -> ProxyListener:
    """Listen for proxy clients.

    :param protocol: ``socks5``, ``http``, ``sni`` or ``redirect``.
    :param host: and the others: as for :func:`relay.http_listen`.
    :param inherited: as for :func:`~relay.transports.tcp.listen_tcp`.
    :returns: a listener for :class:`relay.Tunnel`; the caller owns it.
    :raises OSError: as :func:`relay.http_listen` does.
    """
    login = login_of(user, password, password_file, password_env)
    return _kind(protocol)(listen_tcp(host, port, inherited=inherited), login)


def _kind(protocol: ProxyProtocol) -> type[ProxyListener]:
    # Here and not above: a start with another one does not load these two.
    if protocol == "sni":
        from .sni_server import SNIListener

        return SNIListener
    if protocol == "redirect":
        from .redirect_server import RedirectListener

        return RedirectListener
    return SOCKSListener if protocol == "socks5" else HTTPListener


def http_listen(
    host: str,
    port: int,
    *,
    user: str | None = None,
    password: Secret | None = None,
    password_file: str | None = None,
    password_env: str | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    groups: str | None = None,
) -> ProxyListener:
    """Listen for clients of an HTTP proxy that ask for CONNECT, as browsers do for ``https://`` addresses.

    Other methods are answered with 405. With ``cert`` the clients speak TLS to it, as for an ``https://`` proxy.

    :param host: an IPv4 or IPv6 address (no brackets) or a name; only the loopback keeps others from using it.
    :param port: from 0 to 65535; 0 picks a free one.
    :param user: the only user that is allowed, by the Basic scheme; ``None`` to allow every client that can connect.
    :param password: text, or a callable that returns it; it is asked for once, here.
    :param password_file: an owner-only file that holds it.
    :param password_env: an environment variable that holds it.
    :param cert: a PEM file with the certificate of the proxy; ``None`` for no TLS.
    :param key: and ``client_ca`` and ``groups``: as for :func:`relay.transports.tls.listener.listen_tls`.
    :returns: a listener for :class:`relay.Tunnel`, whose factory then is asked for a ``destination``, as
        :func:`relay.dynamic` is; the caller owns it.
    :raises AuthenticationError: if the file or variable has no password.
    :raises TypeError: if an argument has the wrong type.
    :raises ValueError: if an argument cannot be right, or a file does not hold what it should.
    :raises OSError: if it cannot listen at the address, or a file cannot be read.

    Source: RFC 9110, sections 9.3.6, 11.7 and 15.5; RFC 7617.
    """
    if cert is None and not (key is client_ca is groups is None):
        raise ValueError("cert: missing; key, client_ca and groups are for a proxy over TLS")
    login = (user, password, password_file, password_env)
    if cert is None:
        return listen_proxy("http", host, port, *login)
    from .https_server import listen_https  # a proxy without TLS does not load ssl

    return listen_https("https", host, port, *login, cert=cert, key=key, client_ca=client_ca, groups=groups)
