"""Tools to test your own factories, streams and listeners.

They use real kernel sockets on the loopback only, and fail with :class:`AssertionError`, so they work with any test
runner::

    def test_my_factory():
        with socket.create_server(("127.0.0.1", 0)) as server:
            relay.testing.check_factory(lambda: my_connect(server.getsockname()), server)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .conformance import check_factory, check_stream
from .leaks import Leaks, check_leaks
from .pairs import FakeListener, clogged_pair, pair

if TYPE_CHECKING:
    from .sam.values import SAMCommand, SAMSession
    from .sambridge import SAMBridge
    from .sshserver import SSHServer
    from .tor import Tor

__all__ = [
    "FakeListener",
    "Leaks",
    "SAMBridge",
    "SAMCommand",
    "SAMSession",
    "SSHServer",
    "Tor",
    "check_factory",
    "check_leaks",
    "check_stream",
    "clogged_pair",
    "pair",
]

_LATER = {
    "SAMBridge": ".sambridge",
    "SAMCommand": ".sam.values",
    "SAMSession": ".sam.values",
    "SSHServer": ".sshserver",
    "Tor": ".tor",
}  # imported late: they need more modules than the rest


# For a type checker any name would do otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_LATER[name], __name__), name)
        globals()[name] = value
        return value
