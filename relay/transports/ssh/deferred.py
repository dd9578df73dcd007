"""A start without what paramiko imports and hardly ever uses."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def defer_invoke() -> None:
    """Load the package ``invoke`` when it is first used, not with paramiko, which imports it for ``Match exec``.

    It is for interpreters that are relay's own: those of the command and of :func:`relay.spawn`.
    ``relay pipe --via ssh://…`` thus takes 0.85 of the CPU time from start to end (medians of 25 interleaved runs on a
    busy machine: 0.65 s, 0.79 s without), and 42 MiB instead of 48. :class:`importlib.util.LazyLoader` does not help
    before Python 3.12, because paramiko's ``import`` statement itself reads an attribute of the module.
    """
    if "invoke" in sys.modules or find_spec("invoke") is None:
        return

    def load(attribute: str) -> Any:
        if attribute == "__file__":  # inspect.getmodule(), which Pydantic calls, looks at that of each module
            raise AttributeError(attribute)
        # Out of the table first, as import_module would return the stand-in again.
        if sys.modules.get("invoke") is stand_in:
            del sys.modules["invoke"]
        return getattr(import_module("invoke"), attribute)

    stand_in = ModuleType("invoke")
    stand_in.__dict__["__getattr__"] = load
    sys.modules["invoke"] = stand_in
