"""A tunnel of a running relay: it may be paused at first, and shares the access log and the store of its process."""

from __future__ import annotations

from typing import Any

from ..streams.protocols import Listener, MakeSend
from .dormant import DormantThread
from .outlets import Outlets
from .relay_thread import RelayThread
from .tunnel import Tunnel


class ManagedTunnel(Tunnel):
    """A tunnel that others open, pause and continue; one that has nothing to do yet has no thread (:mod:`.dormant`).

    :param receive: and the others: as for :class:`Tunnel`.
    :param outlets: of the process; ``None`` for none.
    :param paused: whether its clients wait in the listen backlog until :meth:`resume`.
    """

    def __init__(
        self,
        receive: Listener,
        make_send: MakeSend,
        *,
        outlets: Outlets | None = None,
        paused: bool = False,
        **options: Any,
    ) -> None:
        self._outlets, self._is_paused_at_first = outlets, paused
        super().__init__(receive, make_send, **options)

    def _start(self, *arguments: Any) -> RelayThread:
        if self._is_paused_at_first:
            return DormantThread(*arguments, outlets=self._outlets)
        return RelayThread(*arguments, outlets=self._outlets)
