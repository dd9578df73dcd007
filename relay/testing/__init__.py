"""What is needed to test a factory, a stream or a listener of one's own.

Everything here works on real kernel sockets, opens nothing but loopback, and fails with :class:`AssertionError`, so
that any test runner can use it::

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
    from .sshserver import SSHServer

__all__ = ["FakeListener", "Leaks", "SSHServer", "check_factory", "check_leaks", "check_stream", "clogged_pair", "pair"]


def __getattr__(name: str) -> Any:
    if name != "SSHServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module(".sshserver", __name__).SSHServer  # needs paramiko, which the rest does without
    globals()[name] = value
    return value
