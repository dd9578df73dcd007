"""Multipath TCP (RFC 8684) for all of a tunnel that is TCP on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from ..errors import AddressError
from .hops import Listen, Route
from .values import TCPAddress, TLSListen, TLSTarget, has_mptcp, is_i2p

End = TypeVar("End")
Value = TypeVar("Value")


def with_mptcp(listen: Listen, routed: Sequence[tuple[Route, End]]) -> tuple[Listen, list[tuple[Route, End]]]:
    """Return the addresses of a tunnel with MPTCP wherever relay itself listens or connects over TCP.

    :param listen: the address to listen on.
    :param routed: the hops to each target, and the target. What is after a hop stays as it is.
    :raises AddressError: if relay neither listens nor connects over TCP; the text does not name the option.
    """
    where = _with(listen, TCPAddress | TLSListen)
    changed = [(hops, end if hops else _with(end, TCPAddress | TLSTarget)) for hops, end in routed]
    if not any(has_mptcp(one) for one in (where, *(end for _, end in changed))):
        raise AddressError("relay neither listens nor connects over TCP here; leave it out")
    return where, changed


def without_mptcp(value: Value) -> Value:
    """Return an address without MPTCP."""
    return _set(value, mptcp=False) if has_mptcp(value) else value


def _with(value: Value, kinds: Any) -> Value:
    return _set(value, mptcp=True) if isinstance(value, kinds) and not is_i2p(value.host) else value


def _set(value: Any, *, mptcp: bool) -> Any:
    return dataclasses.replace(value, mptcp=mptcp)
