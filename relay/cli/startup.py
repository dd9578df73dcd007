"""A command that starts fast: most of the time until its first byte is spent on imports."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from ..addresses.hops import Route
from ..addresses.ssh import SSHServer
from ..addresses.values import TCPAddress

_BACKEND = "relay.transports.ssh.paramiko.backend"


def preload_backend(route: Iterable[object]) -> None:
    """Import the SSH backend in a thread if a hop needs it, while the caller waits for servers and programs.

    :param route: the hops.
    """
    if any(isinstance(hop, SSHServer) and hop.backend != "openssh" for hop in route):
        threading.Thread(target=_load, name="relay-imports", daemon=True).start()


@contextmanager
def preconnect_hops(route: Route, timeout: float | None) -> Iterator[None]:
    """Connect to every SSH server of a route at once, so that their configurations are read at the same time.

    :param route: the hops.
    :param timeout: seconds for each; ``None`` for as long as it takes.
    """
    from ..transports.chain import chain

    with ExitStack() as held:
        for number, hop in enumerate(route[:-1], 1):
            if isinstance(hop, SSHServer):
                # Any address: no stream is opened to it.
                factory: Any = chain(route[:number], TCPAddress("127.0.0.1", 1))
                held.callback(factory.close)
                threading.Thread(target=_connect, args=(factory, timeout), name="relay-hop", daemon=True).start()
        yield


def _connect(factory: Any, timeout: float | None) -> None:
    try:
        factory.ready(timeout)
    except (OSError, ValueError, TypeError):
        pass  # the connection that needs it reports the error


def _load() -> None:
    try:
        import_module(_BACKEND)
    except ImportError:
        pass  # the connection that needs it reports the error
