"""Errors for streams and commands that a server did not open: one text and one reason for one event, in both backends.

======================================== =================== ==========================
code of the server (RFC 4254, 5.1)       words of the server reason of the error
======================================== =================== ==========================
``SSH_OPEN_ADMINISTRATIVELY_PROHIBITED`` any                 ``denied``
``SSH_OPEN_UNKNOWN_CHANNEL_TYPE``        any                 ``denied``
``SSH_OPEN_RESOURCE_SHORTAGE``           any                 ``denied``
``SSH_OPEN_CONNECT_FAILED``, any other   timed out, timeout  ``connect_timeout``
``SSH_OPEN_CONNECT_FAILED``, any other   refused             ``refused``
``SSH_OPEN_CONNECT_FAILED``, any other   any other           ``unreachable``
======================================== =================== ==========================
"""

from __future__ import annotations

from ...addresses.printable import printable
from ...errors import ConnectError

PROHIBITED, CONNECT_FAILED, UNKNOWN_KIND, SHORTAGE = 1, 2, 3, 4  # RFC 4254, section 5.1

CHECK_HOST = "check that the host is up and the port is open"
CHECK_SERVICE = "check that the service is running"

_SSHD = "open failed"  # OpenSSH's server sends this when it does not want to give the reason
_SSHD_POLICY = " (AllowTcpForwarding, PermitOpen, AllowStreamLocalForwarding)"
_LONGEST = 200  # characters of a server's words

_REASONS = (("timed out", "connect_timeout"), ("timeout", "connect_timeout"), ("refused", "refused"))


def reason_for(words: str) -> str:
    """Return the reason for a failed connect.

    :param words: the server's, or the system's.
    :returns: ``connect_timeout``, ``refused`` or ``unreachable``.
    """
    lowered = words.lower()
    return next((reason for part, reason in _REASONS if part in lowered), "unreachable")


def open_failure(place: str, server: str, code: int, words: str) -> ConnectError:
    """Make the error for a stream that the server did not open.

    :param place: the target.
    :param server: the name of the server.
    :param code: the reason code (RFC 4254, section 5.1).
    :param words: the description that the server has sent; may be empty.
    :returns: the error, with the server's own description if it has sent one.
    """
    words = printable(words.strip(), _LONGEST)
    detail = "" if words in ("", _SSHD) else f": {words}"
    denied = f"{place}: denied by {server}{detail}"
    if code == PROHIBITED:
        problem = f"the server's policy forbids it{_SSHD_POLICY if words == _SSHD else ''}"
        return ConnectError(denied if detail else f"{denied}; {problem}", reason="denied")
    if code == UNKNOWN_KIND:
        return ConnectError(f"{denied}; the server does not support this kind of forwarding", reason="denied")
    if code == SHORTAGE:
        problem = "the server has reached a limit; check MaxSessions and its resources"
        return ConnectError(f"{denied}; {problem}", reason="denied")
    reason, reporter = reason_for(words), f"(reported by {server})"
    if reason == "refused":
        problem = f"connection refused {reporter}; {CHECK_SERVICE}"
    elif reason == "connect_timeout":
        problem = f"no answer in time {reporter}; {CHECK_HOST}"
    else:  # such as a Unix socket that does not exist or has no listener: OpenSSH's server does not distinguish them
        what = words if detail else "the connect failed"
        problem = f"{what} {reporter}; check that it exists and that the server can reach it"
    return ConnectError(f"{place}: {problem}", reason=reason)


def open_timeout(place: str, server: str) -> ConnectError:
    """Make the error for a stream that the server did not open before the deadline."""
    return ConnectError(f"{place}: no answer in time through {server}; {CHECK_HOST}", reason="connect_timeout")


def session_rejected(command: str, server: str, words: str) -> ConnectError:
    """Make the error for a command whose session the server did not open.

    :param command: the name of the command.
    :param server: the name of the server.
    :param words: the description that the server has sent; may be empty.
    """
    detail = f" ({words})" if words else ""
    problem = f"denied by {server}{detail}; check that this user may run commands there, and MaxSessions"
    return ConnectError(f"{command}: {problem}", reason="denied")


def command_rejected(command: str, server: str) -> ConnectError:
    """Make the error for a command that the server does not run."""
    return ConnectError(f"{command}: denied by {server}; it does not run this command for this user", reason="denied")
