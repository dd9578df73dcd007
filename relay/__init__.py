"""Relay TCP, Unix, TLS, SSH and I2P streams.

The public names are loaded when they are first used, so that ``import relay`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from . import aio as aio
    from . import types as types
    from .access.limit import Limit
    from .api.i2p import i2p, i2p_listen
    from .api.i2p_tunnels import TunnelClient, TunnelServer
    from .api.local import local
    from .api.ssh import ssh, ssh_listen
    from .api.tor import tor_listen
    from .api.urls import connect, listen, target
    from .engine.tunnel import Tunnel
    from .errors import (
        AddressError,
        AuthenticationError,
        CarrierError,
        ConnectError,
        ForwardError,
        HostKeyError,
        RelayError,
        SAMError,
    )
    from .spawning.spawn import spawn
    from .streams.identity import Identity
    from .streams.stream import Stream, nonblocking
    from .transports.dynamic import dynamic
    from .transports.proxies.protocols import http_listen
    from .transports.proxies.socks_server import socks_listen
    from .transports.tcp import tcp
    from .transports.tls.client import tls
    from .transports.unix import unix

__all__ = [
    "AddressError",
    "AuthenticationError",
    "CarrierError",
    "ConnectError",
    "ForwardError",
    "HostKeyError",
    "Identity",
    "Limit",
    "RelayError",
    "SAMError",
    "Stream",
    "Tunnel",
    "TunnelClient",
    "TunnelServer",
    "connect",
    "dynamic",
    "http_listen",
    "i2p",
    "i2p_listen",
    "listen",
    "local",
    "nonblocking",
    "socks_listen",
    "spawn",
    "ssh",
    "ssh_listen",
    "target",
    "tcp",
    "tls",
    "tor_listen",
    "unix",
]

_PUBLIC_MODULES = ("aio", "types")

# No module at this level may have the name of one of these: its import would put it in the name's place.
_MODULES = {
    "Identity": "streams.identity",
    "Limit": "access.limit",
    "Stream": "streams.stream",
    "Tunnel": "engine.tunnel",
    "TunnelClient": "api.i2p_tunnels",
    "TunnelServer": "api.i2p_tunnels",
    "connect": "api.urls",
    "dynamic": "transports.dynamic",
    "http_listen": "transports.proxies.protocols",
    "i2p": "api.i2p",
    "i2p_listen": "api.i2p",
    "tor_listen": "api.tor",
    "listen": "api.urls",
    "local": "api.local",
    "nonblocking": "streams.stream",
    "socks_listen": "transports.proxies.socks_server",
    "spawn": "spawning.spawn",
    "ssh": "api.ssh",
    "ssh_listen": "api.ssh",
    "target": "api.urls",
    "tcp": "transports.tcp",
    "tls": "transports.tls.client",
    "unix": "transports.unix",
}


# For a type checker any name would do otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _PUBLIC_MODULES:
            return import_module(f".{name}", __name__)
        if name == "__version__":
            return import_module("importlib.metadata").version("relay-toolkit")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PUBLIC_MODULES])
