"""Every exception that ``relay`` raises on purpose.

All of them are :class:`OSError`, so that code which already handles socket errors handles these too.
"""

from __future__ import annotations

import errno

__all__ = [
    "AddressError",
    "AuthenticationError",
    "CarrierError",
    "ConnectError",
    "ForwardError",
    "HostKeyError",
    "RelayError",
    "SAMError",
    "can_retry",
]

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)


class RelayError(OSError):
    """The base of every error of this package."""

    advice = ""
    """The end of the message that says what to do, where a log need not repeat it with every retry."""


class AddressError(RelayError, ValueError):
    """An address that cannot be understood; raised at once, before anything is opened."""


class ConnectError(RelayError):
    """An outgoing stream that could not be made.

    :param message: what failed and what to do.
    :param reason: the word for it in a connection's record: ``refused``, ``unreachable``, ``connect_timeout``,
        ``denied``, ``overloaded`` or ``factory_error``.
    """

    def __init__(self, message: str, *, reason: str = "unreachable") -> None:
        super().__init__(message)
        self.reason = reason


class HostKeyError(RelayError):
    """A server's host key is unknown, changed or revoked; nothing secret has been sent."""

    reason = "denied"


class AuthenticationError(RelayError):
    """The server (or bridge) accepted none of the credentials.

    :param message: what failed and what to do.
    :param wants_secret: whether a password, or a passphrase of a key, might have helped, and none was given.
    """

    reason = "denied"

    def __init__(self, message: str, *, wants_secret: bool = False) -> None:
        super().__init__(message)
        self.wants_secret = wants_secret


class ForwardError(RelayError):
    """The server does not allow, or cannot bind, the forward that was asked for."""

    reason = "denied"


class CarrierError(RelayError):
    """The connection under a stream (an SSH connection, a SAM session, a program that listens) was lost.

    :param message: what failed and what to do.
    :param stage: how far the login had come when the other side ended the connection; empty if it was up, or if that
        is not known.
    """

    reason = "carrier_lost"
    final = False  # whether the connection makes no further attempt by itself
    pause: float | None = None  # seconds to the next attempt; None if they depend on the failures before

    def __init__(self, message: str, *, stage: str = "") -> None:
        super().__init__(message)
        self.stage = stage


class SAMError(RelayError):
    """A SAM bridge refused a command.

    :param message: what failed and what to do.
    :param result: SAM's own word for it, such as ``CANT_REACH_PEER`` (SAM v3, "STREAM STATUS").
    """

    passing = False  # whether the same may succeed later, so that it is tried again

    def __init__(self, message: str, *, result: str = "") -> None:
        super().__init__(message)
        self.result = result


def can_retry(error: Exception) -> bool:
    """Decide whether a retry can succeed without a change by the user: the one policy for starts and reconnects.

    A server that is away may return. A host key, a login, an address in use, a missing file and bad configuration stay
    as they are.

    :param error: why something could not be opened.
    :returns: whether to retry.
    """
    if isinstance(error, SAMError):
        return error.passing
    if isinstance(error, (ConnectError, CarrierError, TimeoutError, ConnectionError)):
        return True
    return isinstance(error, OSError) and error.errno in _SHORTAGES
