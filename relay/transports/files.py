"""The user's home directory."""

from __future__ import annotations

import os
import pwd


def has_entry() -> bool:
    """Return true if the password file has the user; ssh refuses to run for a user without entry (as in containers)."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def home() -> str:
    """The user's home directory as the client sees it: the one of the password file, whatever ``HOME`` says."""
    return pwd.getpwuid(os.getuid()).pw_dir if has_entry() else os.path.expanduser("~")
