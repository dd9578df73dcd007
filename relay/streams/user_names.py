"""The names of the users of this machine, as clients at Unix sockets have them.

The system may ask a server for a name (nsswitch.conf(5)), so a look-up may block. What was found is kept.
"""

from __future__ import annotations

import pwd
import threading

from .identity import Identity, name_of

_MOST = 1024  # users that are kept

_names: dict[int, str] = {}  # by the number of the user; that looked up first comes first
_changing = threading.Lock()


def look_up(number: int) -> None:
    """Look up the name of a user; may block.

    :param number: the user. One without a name keeps the number; so does one whose name is a number, as that could be
        taken for another user.
    """
    try:
        name = name_of(pwd.getpwuid(number).pw_name)
    except (KeyError, OverflowError):
        name = str(number)
    # Two relay threads may look up two users at once; readers need no lock, as a dict's get is one step.
    with _changing:
        _names[number] = str(number) if name.isdecimal() else name
        if len(_names) > _MOST:
            del _names[next(iter(_names))]


def is_user(name: str) -> bool:
    """Return whether this machine has a user; may block.

    :param name: of the user. A number may always be one: users in containers have no name.
    """
    if name.isdecimal():
        return True
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def unnamed_user(identity: Identity | None) -> int | None:
    """Return the user of a client at a Unix socket of this machine, if the name is still to be looked up.

    :param identity: the client's.
    :returns: the number of the user; ``None`` if there is nothing to look up.
    """
    number = _number_of(identity) if identity is not None else None
    return number if number not in _names else None


def named(identity: Identity) -> Identity:
    """Return a client at a Unix socket of this machine with the name of its user, if that was looked up.

    Does not block. Any other client stays as it is.
    """
    number = _number_of(identity)
    name = _names.get(number) if number is not None else None
    return identity._replace(name=name, user=name) if name is not None else identity


def _number_of(identity: Identity) -> int | None:
    """Return the user of a client of this machine if it is a number; one that a balancer reports has no process."""
    if identity.kind != "unix" or identity.process is None or identity.user is None or not identity.user.isdecimal():
        return None
    return int(identity.user)
