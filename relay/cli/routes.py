"""The routes of a planned tunnel, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..addresses.hops import Route

__all__ = ["Routes"]


class Routes(NamedTuple):
    """The hops and the ends of a planned tunnel.

    :param where: the address to listen at.
    :param before: the hops to that.
    :param out: the targets: the hops to each, and the target, ``None`` for whatever clients ask for.
    """

    where: Any
    before: Route = ()
    out: Sequence[tuple[Route, Any]] = ()
