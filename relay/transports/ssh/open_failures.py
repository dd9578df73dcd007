"""Why a server did not open a stream: one text for one event, whichever backend has asked."""

from __future__ import annotations

from ...addresses.printable import printable
from ...errors import ConnectError

__all__ = ["CONNECT_FAILED", "PROHIBITED", "SHORTAGE", "UNKNOWN_KIND", "refusal"]

PROHIBITED, CONNECT_FAILED, UNKNOWN_KIND, SHORTAGE = 1, 2, 3, 4  # RFC 4254, section 5.1

_SSHD = "open failed"  # what OpenSSH's server says of whatever it keeps to itself
_LONGEST = 200  # characters of a server's words


def refusal(place: str, server: str, code: int, words: str) -> ConnectError:
    """The error for a stream that the server did not open.

    :param place: where to.
    :param server: its name.
    :param code: the reason code (RFC 4254, section 5.1).
    :param words: what the server says, which may be empty.
    :returns: the server's own words, where it has some; else what a server of OpenSSH means.
    """
    words = printable(words.strip(), _LONGEST)
    told = "" if words in ("", _SSHD) else f": {words}"
    denied = f"{place}: denied, says {server}{told}"
    if code == PROHIBITED:
        settings = " (AllowTcpForwarding, PermitOpen, AllowStreamLocalForwarding)" if words == _SSHD else ""
        problem = denied if told else f"{denied}; the server's policy forbids it{settings}"
        return ConnectError(problem, reason="denied")
    if code == UNKNOWN_KIND:
        return ConnectError(f"{denied}; it knows no forwarding of this kind", reason="denied")
    if code == SHORTAGE:
        return ConnectError(f"{denied}; it is short of something; see MaxSessions and its limits", reason="denied")
    lowered = words.lower()
    if "refused" in lowered:
        return ConnectError(f"{place}: connection refused, says {server}; is the service running?", reason="refused")
    if "timed out" in lowered or "timeout" in lowered:
        problem = f"no answer in time, says {server}; is the host up and the port open?"
        return ConnectError(f"{place}: {problem}", reason="connect_timeout")
    # A Unix socket that is not there, or at which nobody listens: a server of OpenSSH does not tell.
    problem = f"{words if told else 'the connect failed'}, says {server}; is it there, and can the server reach it?"
    return ConnectError(f"{place}: {problem}", reason="unreachable")
