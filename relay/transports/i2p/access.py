"""The access lists of an I2P listener, for streams that a program accepts itself."""

from __future__ import annotations

from ...access.access_list import AccessList
from ...addresses.destinations import b32_of
from ...streams.identity import Identity


def refusal(name: str, lists: AccessList, peer: str) -> str | None:
    """Return why a peer is rejected; reads the files of the lists that have changed, so it may block.

    :param name: of the listener, for the log.
    :param lists: the access lists.
    :param peer: its destination, in base64.
    :returns: the reason, for the log; ``None`` if the peer is allowed.
    """
    if not lists:
        return None
    try:
        address = b32_of(peer)
    except ValueError:
        return "the peer has no valid destination"
    lists.refresh(name)
    decision = lists.decide(Identity("i2p", address, destination=address))
    if decision.is_allowed:
        return None
    return f"{address} is denied" if decision.rule.startswith("deny") else f"{address} is not allowed"
