"""Types for annotations: what public functions take, return, and pass to callbacks.

The protocols (``Listener``, ``Sender``, ``WholeSender``) are for listeners, streams and factories of your own. Of the
classes that relay makes, only those attributes are public that the reference names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .access.limit import LimitsLike
    from .access.policy import Admit, Entries
    from .addresses.destinations import Peer
    from .addresses.options import Secret
    from .api.i2p import OnState
    from .carriers.link import CarrierState
    from .engine.observer import OnEnd
    from .engine.records import ConnectionRecord, Metrics, Stats, WarmFigures
    from .eventloop.histogram import Histogram
    from .spawning.child_tunnel import ChildTunnel
    from .spawning.pool_tunnel import PoolTunnel
    from .spawning.worker_slot import WorkerStatus
    from .streams.dialer import Dialer
    from .streams.identity import Certificate
    from .streams.listener import TunnelListener
    from .streams.protocols import Listener, MakeSend, Sender, StreamLike, WholeSender

__all__ = [
    "Admit",
    "CarrierState",
    "Certificate",
    "ChildTunnel",
    "ConnectionRecord",
    "Dialer",
    "Entries",
    "Histogram",
    "LimitsLike",
    "Listener",
    "MakeSend",
    "Metrics",
    "OnEnd",
    "OnState",
    "Peer",
    "PoolTunnel",
    "Secret",
    "Sender",
    "Stats",
    "StreamLike",
    "TunnelListener",
    "WarmFigures",
    "WholeSender",
    "WorkerStatus",
]

_MODULES = {
    "Admit": "access.policy",
    "CarrierState": "carriers.link",
    "Certificate": "streams.identity",
    "ChildTunnel": "spawning.child_tunnel",
    "ConnectionRecord": "engine.records",
    "Dialer": "streams.dialer",
    "Entries": "access.policy",
    "Histogram": "eventloop.histogram",
    "LimitsLike": "access.limit",
    "Listener": "streams.protocols",
    "MakeSend": "streams.protocols",
    "Metrics": "engine.records",
    "OnEnd": "engine.observer",
    "OnState": "api.i2p",
    "Peer": "addresses.destinations",
    "PoolTunnel": "spawning.pool_tunnel",
    "Secret": "addresses.options",
    "Sender": "streams.protocols",
    "Stats": "engine.records",
    "StreamLike": "streams.protocols",
    "TunnelListener": "streams.listener",
    "WarmFigures": "engine.records",
    "WholeSender": "streams.protocols",
    "WorkerStatus": "spawning.worker_slot",
}

# For a type checker any name would do otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __package__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
