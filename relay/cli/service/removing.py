"""The removal of the unit, and what stays of the service: the file of tunnels, keys and state."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator

from ... import config as files
from ...addresses.hops import owner_of_keys
from ...addresses.i2p import I2PListen
from ...addresses.printable import one_line, shown
from ...daemon.failures import configuration_read
from ...daemon.options import Options
from ...daemon.plan_from_file import check_problems, plans_of
from ...process import DEVNULL, PIPE, start
from ...transports.i2p.key_file import path_of_session
from .unit import config_of
from .writing import NAME, check_ours

_STATE = "/var/lib/relay"  # of a service of the system; a link to the one below, for a user that systemd makes
_PRIVATE = "/var/lib/private/relay"


def uninstall(path: str, *, is_users: bool, force: bool, purge: bool) -> Iterator[str]:
    """Stop and disable the service, and remove its unit; yield a line for each thing that was removed or stays.

    :param path: of the unit.
    :param is_users: whether it is of the user's service manager.
    :param force: whether to remove a unit that relay has not written, too.
    :param purge: whether to remove the keys and the state of the service.
    :raises ValueError: if there is no unit, if relay has not written it, or if the file of its tunnels cannot be read,
        which names the keys of a user's own service.
    :raises OSError: if the service cannot be stopped, or a file not removed.
    """
    check_ours(path, force=force, remedy="--force removes it")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            config = config_of(file.read(), os.path.expanduser("~"))
    except FileNotFoundError:  # a link that leads nowhere, with --force
        config = None
    kept = [each for each in (_STATE, _PRIVATE) if os.path.lexists(each)]
    if is_users:
        kept = []
        try:
            kept = _kept(config)
        except (OSError, ValueError):
            if purge:  # before the stop: after a failure everything is as it was
                raise
    _systemctl("disable", "--now", NAME, is_users=is_users)
    yield f"stopped and disabled {NAME}"
    os.unlink(path)
    _systemctl("daemon-reload", is_users=is_users)
    # Otherwise one that had failed stays in the list of failures, without a file.
    _systemctl("reset-failed", NAME, is_users=is_users, must=False)
    yield f"removed {path}"
    if purge:
        for each in kept:
            _remove(each)
            yield f"removed {each}"
    elif kept:
        yield f"kept keys and state; to remove them: rm -r {shlex.join(kept)}"
    if os.path.isdir(f"{path}.d"):
        yield f"kept {path}.d, your changes by systemctl edit"
    if config is not None:
        yield f"kept {shown(config)}, and the files that it names" + (" elsewhere" if purge else "")


def _kept(config: str | None) -> list[str]:
    """Return the files that tunnels of a user's own service have made: keys without a path of their own, and state."""
    if config is None:
        raise ValueError("--purge: the unit names no file of tunnels, which would name the keys; remove them yourself")
    found = []
    with configuration_read(), contextlib.chdir(os.path.dirname(config)):
        read = files.read(config)
        plans = plans_of(read, Options())
        check_problems(read)
        for plan in plans:
            where = plan.routes.where
            owner = owner_of_keys(where)
            if owner is not None and owner.session and owner.keys is None:
                found.append(str(path_of_session(owner.session, "i2p" if isinstance(where, I2PListen) else "tor")))
        if read.file.state not in (None, "none"):
            found.append(os.path.abspath(os.path.expanduser(str(read.file.state))))
    return [each for each in dict.fromkeys(found) if os.path.lexists(each)]


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _systemctl(*words: str, is_users: bool, must: bool = True) -> None:
    manager = ["--user"] if is_users else []
    process = start(["systemctl", *manager, *words], stdout=DEVNULL, stderr=PIPE)
    _, said = process.communicate()
    if process.returncode and must:
        raise OSError(f"systemctl {' '.join(words)}: {one_line(said, 1000) or f'exit status {process.returncode}'}")
