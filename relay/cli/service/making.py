"""The unit for a file: its user, and what its sandbox must allow."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import sys
from collections.abc import Iterable

from ... import __file__ as package
from ... import config as files
from ...addresses.options import CONTROL
from ...addresses.printable import shown
from ...addresses.ssh import SSHServer
from ...daemon.failures import configuration_read
from ...daemon.options import Options
from ...daemon.plan_from_file import check_problems, plans_of
from ...process import DEVNULL, PIPE, interpreter, start
from ...transports.unix import group_number
from .needs import Needs, needs_of
from .unit import RELOADS, Sandbox, Unit

_SYSTEM_CONFIG = "/etc/relay/relay.toml"
_HOMES = ("/home", "/root", "/run/user")
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108  (paths to compare with)
_MADE = ("/run/relay", "/var/lib/relay")  # by systemd, for the service of the system


def default_config(*, is_users: bool) -> str:
    """Return the file of a service for which no other is named."""
    return os.path.expanduser("~/.config/relay/relay.toml") if is_users else _SYSTEM_CONFIG


def make_unit(path: str, *, is_users: bool, version: int) -> Unit:
    """Return the unit for a file of tunnels.

    :param path: of the file.
    :param is_users: whether it is for the user's service manager.
    :param version: of systemd.
    :raises ValueError: if the file is missing, if no user can run it, or if a path cannot be written in a unit.
    :raises OSError: if the file cannot be read.
    :raises ProblemsError: if the file has problems.
    """
    path = os.path.abspath(path)
    if not os.path.lexists(path):
        raise ValueError(f"{path}: No such file or directory; write the tunnels there, or name another file")
    with configuration_read():
        owner = os.stat(path).st_uid
        # A unit of the system is written by root for a file of another user, whom it will run as.
        config = files.read(path, owner=os.geteuid() if is_users else owner)
    with contextlib.chdir(config.folder):
        # Before the unit is written: a service whose file has a problem would fail at each start, with the reason in
        # the journal.
        plans_of(config, Options())
    check_problems(config)
    is_in_home = not is_users and _is_in(os.path.realpath(path), _HOMES)
    command = _command()
    user, home = None, os.path.expanduser("~")
    if not is_users:
        user, home = _user(path, owner, is_in_home=is_in_home)
    needs = needs_of(config, home or "/", _needs_program)
    if not is_users and not is_in_home:
        user = _user_for([path, *needs.reads])
    if user == "":
        _check_program(command)
    # A user's manager may not give a process groups that the user's own session does not have.
    if is_users and needs.groups:
        raise ValueError(f"group={needs.groups[0]}: the sandbox of a user's service has no other groups; use --system")
    for each in (path, *command, *needs.paths):
        if CONTROL.search(each) or each.endswith("\\"):  # which would join two lines
            raise ValueError(
                f"{shown(each)}: a path with a control character, or a backslash at its end, cannot be in a unit; "
                "choose another path"
            )
    return Unit(command, path, user, home, version, _sandbox(path, command, needs, is_users=is_users))


def systemd_version() -> int:
    """Return the version of systemd on this machine; of one that has all features if there is none."""
    try:
        process = start(["systemctl", "--version"], stdout=PIPE, stderr=DEVNULL)
    except OSError:
        return RELOADS + 1
    output, _ = process.communicate()
    found = re.match(rb"systemd ([0-9]+)", output)
    return int(found[1]) if found else RELOADS + 1


def _sandbox(path: str, command: Iterable[str], needs: Needs, *, is_users: bool) -> Sandbox:
    made = () if is_users else _MADE
    writes = tuple(each for each in needs.writes if not _is_in(each, made))
    # A virtual environment's interpreter is a link into the prefix that it was made from; the sandbox must show both.
    folders = [sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(package))]
    # As a link and as its target: either may be below a directory that the sandbox hides.
    program = [*map(os.path.realpath, (*command, sys.executable)), *folders]
    return Sandbox(
        writes=writes,
        needs_home=is_users or any(_is_in(each, _HOMES) for each in (path, *program, *command, *needs.paths)),
        needs_tmp=any(_is_in(each, _TEMPORARY) for each in (path, *needs.paths)),
        needs_low_port=needs.has_low_port,
        starts_programs=bool(needs.programs),
        groups=tuple(dict.fromkeys(str(group_number(group)) for group in needs.groups)),
        shares_runtime=any(_is_in(each, _MADE[:1]) for each in needs.shared),
        binds=tuple(each for each in dict.fromkeys(folders) if _is_in(each, _TEMPORARY)),
    )


def _command() -> tuple[str, ...]:
    """Return the words that start this relay: the path of the command, or the interpreter."""
    program = sys.argv[0]
    if os.path.basename(program) == "relay" and (found := shutil.which(program)):
        return (os.path.abspath(found),)
    return (*interpreter(), "-m", "relay")


def _user(path: str, owner: int, *, is_in_home: bool) -> tuple[str, str]:
    """Return the user of a service of the system, and its home directory: the owner of a file in a home."""
    if not is_in_home:
        return "", ""
    if not owner:
        raise ValueError(f"{path}: it is root's, and the service does not run as root; move it to {_SYSTEM_CONFIG}")
    return _name_of(path, owner)


def _user_for(paths: Iterable[str]) -> str:
    """Return the user who can read files: empty, for one that systemd makes, if all users can."""
    private = [path for path in paths if not _is_public(path)]
    owners = {os.stat(path).st_uid: path for path in private}
    if not owners:
        return ""
    if 0 in owners:
        path = owners[0]
        raise ValueError(f"{path}: only root can read it, and the service does not run as root; chown it to a user")
    if len(owners) > 1:
        named = ", ".join(sorted(owners.values()))
        raise ValueError(f"{named}: no user can read all of these files; chown them to the same user")
    ((owner, path),) = owners.items()
    return _name_of(path, owner)[0]


def _name_of(path: str, owner: int) -> tuple[str, str]:
    try:
        entry = pwd.getpwuid(owner)
    except KeyError:
        raise ValueError(f"{path}: its owner {owner} has no name; chown it to a user of this machine") from None
    return entry.pw_name, entry.pw_dir


def _is_public(path: str) -> bool:
    """Return whether every user can read a file, or it does not exist yet."""
    real = os.path.realpath(path)
    try:
        if not os.stat(real).st_mode & stat.S_IROTH:
            return False
        folders = [real]
        while (folder := os.path.dirname(folders[-1])) != folders[-1]:
            folders.append(folder)
        # A file that all may read is out of reach if one directory above it may not be entered.
        return all(os.stat(folder).st_mode & stat.S_IXOTH for folder in folders[1:])
    except FileNotFoundError:
        return True


def _check_program(command: tuple[str, ...]) -> None:
    for path in (command[0], sys.executable, os.__file__, package):
        if not _is_public(path):
            raise ValueError(f"{path}: other users cannot run this relay; install it for all users, such as in /opt")


def _needs_program(server: SSHServer) -> bool:
    from ...transports.ssh.config.settings import resolve_settings

    if server.backend == "openssh":
        return True
    try:
        settings = resolve_settings(server)
    except (OSError, ValueError):
        return False  # the start reports it
    return bool(settings.requires_openssh or settings.command)


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)
