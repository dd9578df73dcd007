"""The policy of a tunnel: one value, which its options make and a reload replaces."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..streams.identity import Identity
from .limit import Action, Limit, must_stay_whole
from .senders import Senders


class Decision(NamedTuple):
    """The decision of access rules about a client."""

    is_allowed: bool
    rule: str = ""
    """``allow`` or ``deny`` and the rule that has decided; ``allow`` alone if none matches; empty without a list."""


class AccessRules(Protocol):
    """Rules that allow or deny clients."""

    def decide(self, identity: Identity | None, /) -> Decision:
        """Decide about a client; ``None`` for one of whom nothing is known. Must not block."""

    def decide_by_address(self, identity: Identity, /) -> Decision:
        """Decide about a client that has yet to shake hands; it is denied only if no certificate could change that."""

    @property
    def files(self) -> Sequence[str]:
        """The paths of the files that they are read from."""

    def refresh(self, name: str, /) -> None:
        """Read the files that have changed; may block. ``name`` is that of the tunnel, for the log."""


Admit = Callable[[Identity | None], bool | Limit | Sequence[Limit]]
"""The question of a program about a client; ``None`` for one of whom nothing is known. Limits mean yes, within them."""

Entries = Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None
"""The entries of an access list: rules, and paths of files."""


class Denial(NamedTuple):
    """The rejection of a client."""

    rule: str
    """The rule, for the record and the log."""
    action: Action = Action.RESET
    """The way to end the connection."""
    seconds: float = 0.0
    """How long a tarpit keeps the client."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """Plain data: what a tunnel demands of its clients.

    :param rules: who may connect; ``None`` for everyone.
    :param admit: asked about each client that the rules allow, on another thread.
    :param limits: how often, how many, how fast and how much.
    :param accept_proxy: the balancers that may connect, each with a header of the PROXY protocol; ``None`` for clients
        without a header.
    """

    rules: AccessRules | None = None
    admit: Admit | None = None
    limits: tuple[Limit, ...] = ()
    accept_proxy: Senders | None = None

    @property
    def is_empty(self) -> bool:
        """True if it demands nothing of a client whose identity is known."""
        return self.rules is None and self.admit is None and not self.limits

    @property
    def must_stay_whole(self) -> bool:
        """True if all clients of the tunnel must be counted in one process."""
        return must_stay_whole(self.limits)
