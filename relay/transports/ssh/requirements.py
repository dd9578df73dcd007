"""The needs of a connection to an SSH server on this machine: files, programs, and a port to connect to."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ...addresses.options import files_of
from ...addresses.ssh import SSHServer
from ...errors import AddressError
from ..files import home
from .config.settings import resolve_settings
from .connection import Settings
from .connector import backend_for

_DEEPEST = 8  # servers of ProxyJump, and files of Include
_LINE = re.compile(r"\s*(include|match)(?:\s+|\s*=\s*)(.*)", re.IGNORECASE)
_SYSTEM = "/etc/ssh"


@dataclass(slots=True)
class Requirements:
    """The needs of a connection to a server, and to those of its ``ProxyJump``.

    :param reads: files; some may be missing.
    :param appends: files of host keys, to which relay adds unknown hosts.
    :param port: the port of the first TCP connection; ``None`` if hops lead to the server.
    :param program: why another program is started; empty if none is.
    """

    reads: list[str] = field(default_factory=list)
    appends: list[str] = field(default_factory=list)
    port: int | None = None
    program: str = ""


def requirements(server: SSHServer, *, behind: bool) -> Requirements:
    """Return the needs of a connection to a server, by the user's SSH configuration of now. Blocks as ``ssh -G`` does.

    :param server: the server.
    :param behind: whether hops lead to it.
    :raises AddressError: if the configuration is unusable, and as :func:`resolve_settings` does.
    :raises OSError: the same.
    """
    found = Requirements()
    found.port = _add(found, server, behind=behind, depth=0)
    return found


def _add(found: Requirements, server: SSHServer, *, behind: bool, depth: int) -> int | None:
    """Add the needs of a server; return the port of the first TCP connection."""
    if depth > _DEEPEST:
        raise AddressError(f"{server}: more than {_DEEPEST} servers before it; check ProxyJump for a loop")
    # Read here and not asked of `ssh -G`, which names no files: a sandbox must know them before the first connection.
    for file, lines in _configuration(server):
        found.reads.append(file)
        if any(word.lower() == "match" and re.search(r"\bexec\b", rest, re.IGNORECASE) for word, rest in lines):
            found.program = found.program or f"Match exec in {file} runs a program"
    settings = resolve_settings(server, behind=behind)
    _add_files(found, settings)
    if backend_for(settings) == "openssh":
        found.program = found.program or f"{server} uses the OpenSSH client"
    if behind:
        return None
    if settings.jumps:
        ports = [_add(found, jump, behind=bool(number), depth=depth + 1) for number, jump in enumerate(settings.jumps)]
        return ports[0]
    if settings.command is not None:
        found.program = found.program or f"{server} has a ProxyCommand"
    return settings.port


def _add_files(found: Requirements, settings: Settings) -> None:
    server = settings.server
    found.reads += files_of(replace(server, config=None))  # its files are in the list
    for path in (*settings.identities, *settings.certificates):
        found.reads += [path, f"{path}.pub", f"{path}-cert.pub"]
    found.reads += settings.known_hosts
    if settings.accept_new and server.hostkey is None:
        found.appends.append(settings.known_hosts[0])


def _configuration(server: SSHServer) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the files of the SSH configuration, each with its lines of ``Include`` and ``Match`` (ssh_config(5))."""
    users = os.path.join(home(), ".ssh")
    if server.config is None:
        yield from _file(os.path.join(users, "config"), users, 0)
        yield from _file(os.path.join(_SYSTEM, "ssh_config"), _SYSTEM, 0)
    elif server.config.lower() != "none":
        yield from _file(os.path.abspath(os.path.expanduser(server.config)), users, 0)


def _file(path: str, folder: str, depth: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [(found[1], found[2]) for line in file if (found := _LINE.match(line)) is not None]
    except OSError:
        lines = []  # it is missing or unreadable; ssh says so, if that is an error
    yield path, lines
    for word, rest in lines:
        if word.lower() != "include" or depth >= _DEEPEST:
            continue
        for text in _words(rest):
            pattern = os.path.join(folder, os.path.expandvars(os.path.expanduser(text)))
            for included in sorted(glob.glob(pattern)):
                yield from _file(included, folder, depth + 1)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return []  # ssh rejects the line
