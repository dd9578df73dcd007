"""HTTP proxies over TLS as values, apart from the others so that a program without one does not load them."""

from __future__ import annotations

from dataclasses import dataclass, field

from .hops import Proxy, ProxyListen
from .values import CA, CERT, CLIENT_CA, CLIENT_CERT, KEY, KEY_GROUPS, SERVERNAME, TLSListen, TLSTarget, WithCertificate


@dataclass(frozen=True, slots=True)
class HTTPSProxy(Proxy):
    """``https://[user@]host[:port]``: an HTTP proxy over TLS, which relay verifies; without a port it is 443.

    The other parameters and the errors are those of :class:`Proxy`.

    :param servername: the name that its certificate must have; ``None`` for ``host``. The files are PEM files.
    """

    servername: str | None = field(default=None, kw_only=True, metadata=SERVERNAME)
    ca: str | None = field(default=None, kw_only=True, metadata=CA)
    cert: str | None = field(default=None, kw_only=True, metadata=CLIENT_CERT)
    key: str | None = field(default=None, kw_only=True, metadata=KEY)
    groups: str | None = field(default=None, kw_only=True, metadata=KEY_GROUPS)

    @property
    def server(self) -> TLSTarget:
        """The address of the proxy, with the options of TLS."""
        return TLSTarget(self.host, self.port, self.servername, self.ca, self.cert, self.key, self.groups)


@dataclass(frozen=True, slots=True)
class HTTPSListen(ProxyListen):
    """``https://[user@]host:port`` to listen on: an HTTP proxy over TLS.

    The other parameters are those of :class:`ProxyListen`; ``cert`` may hold the key as well.
    """

    cert: str = field(kw_only=True, metadata=CERT)
    key: str | None = field(default=None, kw_only=True, metadata=KEY)
    client_ca: str | None = field(default=None, kw_only=True, metadata=CLIENT_CA)
    groups: str | None = field(default=None, kw_only=True, metadata=KEY_GROUPS)

    def __str__(self) -> str:
        tls = TLSListen(self.host, self.port, self.cert, self.key, self.client_ca, groups=self.groups)
        return f"https{str(tls).removeprefix('tls')}"


WITH_CERTIFICATE = TLSListen | HTTPSListen | WithCertificate
"""The addresses to listen on at which clients speak TLS."""
