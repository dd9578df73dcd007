"""Programs that listen as values, apart from the others so that a program without one does not load them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .hops import Command

_PLACES = ("{port}", "{path}")


@dataclass(frozen=True, slots=True)
class PortProgram(Command):
    """``port:program {port}``: a program of this machine that listens there, and to which each stream is a connection.

    ``{port}`` is a port of the loopback that relay chooses at each start, ``{host}`` the address of the loopback, and
    ``{path}``, instead of the port, that of a Unix socket in a private directory. The rest is as for
    :class:`~relay.addresses.hops.Command`, also ``%h`` and ``%p`` of a hop.

    :param text: as for :class:`~relay.addresses.hops.Command`.
    :raises TypeError: if it is not text.
    :raises ValueError: as for :class:`~relay.addresses.hops.Command`, and unless it has ``{port}`` or ``{path}``.
    """

    scheme: ClassVar[str] = "port"
    example: ClassVar[str] = "port:kubectl port-forward svc/db {port}:5432"

    def __post_init__(self) -> None:
        Command.__post_init__(self)  # super() finds no class here, because the decorator makes another one
        if sum(any(place in word for word in self.argv) for place in _PLACES) != 1:
            raise ValueError(f"port: {{port}} or {{path}} is missing, or both are there; for example {self.example}")

    @property
    def has_path(self) -> bool:
        """``True`` if the program listens on a Unix socket."""
        return any("{path}" in word for word in self.argv)

    def at(self, place: str, host: str) -> list[str]:
        """Return the argument list for one start.

        :param place: the port, or the path of the socket.
        :param host: the address of the loopback.
        """
        # In one pass for each word: a place that is filled in is not searched again.
        return [_filled(word, place, host) for word in self.words]


def _filled(word: str, place: str, host: str) -> str:
    return host.join(
        place.join(part.split(_PLACES[0])) for part in word.replace(_PLACES[1], _PLACES[0]).split("{host}")
    )
