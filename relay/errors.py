"""Every exception that ``relay`` raises on purpose.

All of them are :class:`OSError`, so that code which already handles socket errors handles these too.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "AuthenticationError",
    "CarrierError",
    "ConnectError",
    "ForwardError",
    "HostKeyError",
    "RelayError",
    "SAMError",
]


class RelayError(OSError):
    """The base of every error of this package."""


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
    """The connection under a stream (an SSH connection, a SAM session) was lost.

    :param message: what failed and what to do.
    :param stage: how far the login had come when the other side ended the connection; empty if it was up, or if that
        is not known.
    """

    reason = "carrier_lost"

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
