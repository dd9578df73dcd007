"""What ssh leaves open about trust: a pinned key that is revoked, and a new one that cannot be written down."""

from __future__ import annotations

import os

from ....errors import HostKeyError
from ..config.known_hosts import REVOKED, find, fingerprint, open_to_append
from ..connection import Settings

__all__ = ["UNWRITTEN", "check_pin", "check_writable", "is_accepting", "unwritten_error"]

UNWRITTEN = "Failed to add the host to the list of known hosts"  # ssh says that, and goes on


def is_accepting(settings: Settings) -> bool:
    """Whether the key of an unknown server is written down and trusted."""
    return settings.accept_new and settings.server.hostkey is None


def check_pin(settings: Settings) -> None:
    """Refuse a pinned key that is revoked: with a pin ssh reads no ``known_hosts``, and so sees no ``@revoked``.

    :raises HostKeyError: if it is.
    """
    pin = settings.server.hostkey
    if pin is None:
        return
    for entry in (entry for name in settings.host_key_names for entry in find(settings.known_hosts, name)):
        if entry.marker == REVOKED and fingerprint(entry.blob) == pin:
            problem = f"the host key {pin}, which hostkey pins, is revoked ({entry})"
            raise HostKeyError(f"{settings.name}: {problem}; do not connect")


def check_writable(settings: Settings) -> None:
    """Make sure that the key can be written down if it must be: else each one to come would be as new as the first.

    :raises HostKeyError: if it cannot.
    """
    if not is_accepting(settings) or not settings.known_hosts or find(settings.known_hosts, settings.host_key_name):
        return
    try:
        os.close(open_to_append(settings.known_hosts[0]))
    except OSError as error:
        raise unwritten_error(settings, error.strerror or str(error)) from None


def unwritten_error(settings: Settings, why: str = "") -> HostKeyError:
    """What to say if it cannot.

    :param why: the system's reason, if that is known.
    """
    file = settings.known_hosts[0] if settings.known_hosts else "known_hosts"
    problem = f"its host key cannot be written to {file}{why and f': {why}'}"
    return HostKeyError(f"{settings.name}: {problem}; accept_new needs a file that it can write, give known_hosts=FILE")
