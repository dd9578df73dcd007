"""A command that starts fast: most of the time until its first byte is spent on imports."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from ..addresses.hops import Route
from ..addresses.ssh import SSHServer
from ..addresses.values import TCPAddress

__all__ = ["begin", "climbing", "is_over", "quicken"]

_GARBAGE = 20_000  # objects more than before until Python looks for garbage; there is next to none in what is imported
_USUAL = gc.get_threshold()
_BACKEND = "relay.transports.ssh.paramiko.backend"


def quicken() -> None:
    """Leave out what takes time at the start of this program and is of no use to it."""
    gc.set_threshold(_GARBAGE, *_USUAL[1:])
    _put_off("importlib.metadata")  # for plugins and versions
    _put_off("invoke")  # for `Match exec` in an SSH configuration that only paramiko reads


def is_over() -> None:
    """The start is over: garbage is looked for as in every program, lest one that runs for years keeps it."""
    gc.set_threshold(*_USUAL)


def begin(route: Iterable[object]) -> None:
    """Begin to load what the hops of a way need, in a thread: meanwhile others wait for servers and programs.

    :param route: the hops.
    """
    if any(isinstance(hop, SSHServer) and hop.backend != "openssh" for hop in route):
        threading.Thread(target=_load, name="relay-imports", daemon=True).start()


@contextmanager
def climbing(route: Route, timeout: float | None) -> Iterator[None]:
    """Begin with every SSH server of a way at once: what the configuration says of the next one is asked meanwhile.

    :param route: the hops.
    :param timeout: seconds for each; ``None`` for as long as it takes.
    """
    from ..transports.chain import chain

    with ExitStack() as held:
        for number, hop in enumerate(route[:-1], 1):
            if isinstance(hop, SSHServer):
                # The place does not matter: nothing is opened to it.
                factory: Any = chain(route[:number], TCPAddress("127.0.0.1", 1))
                held.callback(factory.close)
                threading.Thread(target=_climb, args=(factory, timeout), name="relay-hop", daemon=True).start()
        yield


def _climb(factory: Any, timeout: float | None) -> None:
    try:
        factory.ready(timeout)
    except (OSError, ValueError, TypeError):
        pass  # whoever needs it is told


def _load() -> None:
    try:
        import_module(_BACKEND)
    except ImportError:
        pass  # whoever needs it is told


def _put_off(name: str) -> None:
    """Have a module loaded when something of it is used, and not by those who import it in case they need it.

    :class:`importlib.util.LazyLoader` does not help them before Python 3.12: their ``import`` itself looks into it.
    """
    if name in sys.modules or find_spec(name) is None:
        return

    def of_the_real_one(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    stand_in = ModuleType(name)
    stand_in.__dict__["__getattr__"] = of_the_real_one
    sys.modules[name] = stand_in
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, stand_in)
