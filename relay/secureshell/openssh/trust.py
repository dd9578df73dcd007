"""Trusting the key of a server that nothing is known of: only where it can be written down."""

from __future__ import annotations

import os

from ...errors import HostKeyError
from ..connection import Settings
from ..knownhosts import find, open_to_append

__all__ = ["UNWRITTEN", "check_writable", "is_accepting", "unwritten_error"]

UNWRITTEN = "Failed to add the host to the list of known hosts"  # ssh says that, and goes on


def is_accepting(settings: Settings) -> bool:
    """Whether the key of an unknown server is written down and trusted."""
    return settings.accept_new and settings.server.hostkey is None


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
