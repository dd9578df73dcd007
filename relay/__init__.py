"""A stream relay that is right in every corner.

The public names are loaded when they are first used, so that ``import relay`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from . import aio as aio
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
    from .i2ptunnel import TunnelClient, TunnelServer
    from .listeners.http import http_listen
    from .listeners.i2p import i2p_listen
    from .listeners.socks import socks_listen
    from .listeners.ssh import ssh_listen
    from .private import local
    from .registry import connect, listen, target
    from .senders.dynamic import dynamic
    from .senders.i2p import i2p
    from .senders.ssh import ssh
    from .senders.tcp import tcp
    from .senders.tls import tls
    from .senders.unix import unix
    from .spawning import spawn
    from .stream import Stream, nonblocking
    from .tunnel import Tunnel

__all__ = [
    "AddressError",
    "AuthenticationError",
    "CarrierError",
    "ConnectError",
    "ForwardError",
    "HostKeyError",
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
    "unix",
]

# No module at this level may have the name of one of these: its import would put it in the name's place.
_MODULES = {
    "Stream": "stream",
    "Tunnel": "tunnel",
    "TunnelClient": "i2ptunnel",
    "TunnelServer": "i2ptunnel",
    "connect": "registry",
    "dynamic": "senders.dynamic",
    "http_listen": "listeners.http",
    "i2p": "senders.i2p",
    "i2p_listen": "listeners.i2p",
    "listen": "registry",
    "local": "private",
    "nonblocking": "stream",
    "socks_listen": "listeners.socks",
    "spawn": "spawning",
    "ssh": "senders.ssh",
    "ssh_listen": "listeners.ssh",
    "target": "registry",
    "tcp": "senders.tcp",
    "tls": "senders.tls",
    "unix": "senders.unix",
}


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module(".aio", __name__)
    if name == "__version__":
        return import_module("importlib.metadata").version("relay-toolkit")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "aio"])
