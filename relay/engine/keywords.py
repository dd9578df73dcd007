"""The keywords of tunnels, for type checkers; docs/write_reference.py writes this file."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypedDict

from ..access.limit import LimitsLike
from ..access.policy import Admit, Entries
from .observer import OnEnd


class SharedKeywords(TypedDict, total=False):
    """Options that a tunnel may have in another process, too, without nconnect and timeout."""

    connect_timeout: float | None
    idle_timeout: float | None
    linger: float | None
    first_byte_timeout: float | None
    warm: int
    warm_for: float
    source: str | None
    limit: LimitsLike | None
    accept_proxy: Collection[str] | None
    send_proxy: Literal["v1", "v2"] | None
    name: str | None
    tag: str | None
    allow: Entries | None
    deny: Entries | None


class TunnelKeywords(SharedKeywords, total=False):
    """All options, without nconnect and timeout."""

    admit: Admit | None
    on_end: OnEnd | None
