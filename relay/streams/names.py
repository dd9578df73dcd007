"""Host names that are looked up for every connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..eventloop.sockets import Endpoint
from .source import Source

Found = Sequence[Endpoint] | BaseException
"""The result of a look-up: the addresses, or what it has raised."""


class Name(Protocol):
    """A host name that is looked up for every connection."""

    host: str

    def look_up(self) -> Sequence[Endpoint]:
        """Ask the system; blocks as long as its resolver does. Raises what the system raises."""

    def endpoints(self, found: Found) -> Sequence[Endpoint]:
        """Return where to connect, given what a look-up of the same host returned or raised.

        :raises ConnectError: if there is nothing to connect to.
        """


def resolved(name: Name) -> Sequence[Endpoint]:
    """Look a name up and return where to connect; blocks.

    :raises ConnectError: if there is no address (``unreachable``), or none may be connected to (``denied``).
    """
    found: Found
    try:
        found = name.look_up()
    except (OSError, UnicodeError) as error:
        found = error
    return name.endpoints(found)


class BoundName:
    """A name to which connections come from one address of this machine.

    :param target: the name of the target, for errors.
    :param name: looks it up.
    :param source: the address of this machine.
    """

    __slots__ = ("host", "look_up", "_target", "_name", "_source")

    def __init__(self, target: str, name: Name, source: Source) -> None:
        self.host = name.host
        # The look-up of the host alone, so that clients with other sources share it; the family is chosen from its
        # result.
        self.look_up = name.look_up
        self._target = target
        self._name = name
        self._source = source

    def endpoints(self, found: Found) -> Sequence[Endpoint]:
        """Return the addresses of the source's family; see :meth:`Name.endpoints`."""
        return self._source.of(self._target, self._name.endpoints(found))
