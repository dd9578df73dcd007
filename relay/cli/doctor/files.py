"""The files of a route: what is wrong with the configuration, and who else may read or write what matters."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Any

from ...addresses.hops import Route
from ...addresses.i2p import I2PRouter
from ...addresses.resume import place_of
from ...addresses.ssh import SSHServer
from ...api.urls import dialer
from ...daemon.preflight import Preflight, Routes
from ...errors import AddressError, RelayError
from .report import Check, Status
from .wording import split


def configuration(where: Any, before: Route, route: Route, target: Any, subject: str) -> list[Check]:
    """Check what a tunnel needs on this machine, as ``relay check`` does, without host names.

    :param where: the address to listen on; empty for none.
    :param before: the hops to that.
    :param route: the hops to the target.
    :param target: ``None`` for the targets that clients name.
    :param subject: what the checks are about.
    """
    errors: list[Exception] = []
    make = functools.partial(_nothing if target is None else functools.partial(dialer, route, target))
    # Names are not looked up here: the probe does that as a step of its own, with its time.
    Preflight(names=False).check(Routes(where, before, [(route, target)]), make, lambda error, _: errors.append(error))
    seen = dict.fromkeys(map(str, errors))
    first = {str(error): error for error in reversed(errors)}
    checks = []
    for detail in seen:
        problem, advice = split("configuration", first[detail], subject)
        checks.append(Check("configuration", subject, Status.FAILED, problem, advice or _ADVICE))
    return checks


_ADVICE = "correct the address, or the file that it names"


def _nothing() -> None:
    return None


def permissions(hops: Iterable[object]) -> list[Check]:
    """Check the rights of the key files, the known hosts and the secrets of hops."""
    private: dict[str, None] = {}
    public: dict[str, None] = {}
    for hop in map(place_of, hops):
        for name in ("password_file", "passphrase_file"):
            if (path := getattr(hop, name, None)) is not None:
                private[os.path.expanduser(path)] = None
        if isinstance(hop, I2PRouter) and hop.keys is not None:
            private[os.path.expanduser(hop.keys)] = None
        if isinstance(hop, SSHServer):
            identities, known_hosts = _of_server(hop)
            private |= dict.fromkeys(identities)
            public |= dict.fromkeys(known_hosts)
    checks = [check for path in private for check in mode_checks("key file", path, 0o077)]
    return checks + [check for path in public for check in mode_checks("known hosts", path, 0o022)]


def _of_server(server: SSHServer) -> tuple[Sequence[str], Sequence[str]]:
    from ...transports.ssh.config.settings import resolve_settings

    try:
        settings = resolve_settings(server)
    except (RelayError, AddressError, OSError):
        return (), ()  # the configuration check reports it
    return [path for path in settings.identities if not path.endswith(".pub")], settings.known_hosts


def mode_checks(step: str, path: str, forbidden: int) -> list[Check]:
    """Check who may use a file; return nothing if it does not exist.

    :param step: the name of the check.
    :param path: of the file.
    :param forbidden: bits of its mode that let others in.
    """
    try:
        status = os.stat(path)
    except OSError:
        return []
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(mode | stat.S_IFMT(status.st_mode)):
        return []
    if status.st_uid not in (0, os.geteuid()):
        detail = f"it belongs to the user with the ID {status.st_uid}"
        return [Check(step, path, Status.WARNING, detail, "make a copy of your own, or chown it")]
    if mode & forbidden:
        what, command = ("read", "chmod 600") if forbidden & 0o044 else ("write to", "chmod go-w")
        detail = f"others can {what} it (mode {mode:04o})"
        return [Check(step, path, Status.WARNING, detail, f"{command} it; the OpenSSH client refuses such a file")]
    return [Check(step, path, Status.OK, f"mode {mode:04o}")]
