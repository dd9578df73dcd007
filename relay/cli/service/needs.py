"""The files, directories and privileges that the tunnels of a file use, for the sandbox of their unit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...access.rules import has_kind
from ...addresses.hops import AT_PORT, Command, Listen, owner_of_keys
from ...addresses.i2p import I2PRouter
from ...addresses.options import FILE, options_of
from ...addresses.parse import parse_listen
from ...addresses.ssh import SSHServer
from ...addresses.values import UnixAddress, UnixListen
from ...config import Config, Entry

_LOW = 1024  # the first port for which no privilege is needed


@dataclass(frozen=True, slots=True)
class Needs:
    """The needs of a file of tunnels; all paths are absolute.

    :param reads: files to read.
    :param writes: directories in which relay creates or changes files.
    :param sockets: Unix sockets to connect to.
    :param programs: why relay starts other programs, such as ``exec:``; empty if it starts none.
    :param has_low_port: whether it listens at a port below 1024.
    :param groups: those of listening Unix sockets, by name or number.
    :param shared: listening Unix sockets for clients of other users.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sockets: tuple[str, ...]
    programs: tuple[str, ...]
    has_low_port: bool
    groups: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths."""
        return (*self.reads, *self.writes, *self.sockets)


def needs_of(config: Config, home: str, is_program_needed: Callable[[SSHServer], bool]) -> Needs:
    """Return what the tunnels of a file use.

    :param config: the file, which has no problems.
    :param home: the home directory of the user who runs it.
    :param is_program_needed: returns whether an SSH server needs the OpenSSH client or a ``ProxyCommand``.
    """
    found = _Found(config.folder, home, is_program_needed)
    file = config.file
    for entry in config.entries:
        found.add_entry(entry)
    for value in _values((config.hops, [_addresses(entry) for entry in config.entries])):
        found.add(value)
    found.read(file.status_token_file)
    found.write(file.log_file)
    found.write(None if file.state == "none" else file.state)
    found.write(None if file.control == "none" else file.control)
    if file.status is not None and file.status != "none":
        found.add_listening(parse_listen(file.status))
    return Needs(
        tuple(dict.fromkeys(found.reads)),
        tuple(dict.fromkeys(found.writes)),
        tuple(dict.fromkeys(found.sockets)),
        tuple(dict.fromkeys(found.programs)),
        found.has_low_port,
        tuple(dict.fromkeys(found.groups)),
        tuple(dict.fromkeys(found.shared)),
    )


def _addresses(entry: Entry) -> list[object]:
    routes = [(rule.route, rule.target) for rule in entry.rules]
    return [entry.target, entry.via, list(entry.others), entry.listen_via, entry.bridges, routes]


def _values(value: object) -> Iterator[object]:
    """Yield the addresses in a value, also those that are parts of others."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _values(each)
    elif isinstance(value, dict):
        yield from _values([*value.values()])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        yield from _values([getattr(value, field.name) for field in dataclasses.fields(value)])


class _Found:
    """The needs that were found so far.

    :param folder: of the file; relative paths begin there.
    :param home: replaces ``~``.
    :param is_program_needed: as for :func:`needs_of`.
    """

    def __init__(self, folder: str, home: str, is_program_needed: Callable[[SSHServer], bool]) -> None:
        self.reads: list[str] = []
        self.writes: list[str] = []
        self.sockets: list[str] = []
        self.programs: list[str] = []
        self.groups: list[str] = []
        self.shared: list[str] = []
        self.has_low_port = False
        self._folder = folder
        self._home = home
        self._is_program_needed = is_program_needed

    def path(self, text: str) -> str:
        """Return the absolute path of a path in the file."""
        if text == "~" or text.startswith("~/"):
            text = self._home + text[1:]
        return os.path.normpath(os.path.join(self._folder, text))

    def read(self, text: str | None) -> None:
        """Note a file to read."""
        if text is not None:
            self.reads.append(self.path(text))

    def write(self, text: str | None) -> None:
        """Note a file to write, by its directory."""
        if text is not None:
            # The directory, because the file may not exist at the start, and another one may be put in its place later.
            self.writes.append(os.path.dirname(self.path(text)))

    def add_entry(self, entry: Entry) -> None:
        """Note what only a tunnel's own table has, and where it listens."""
        tunnel, listen = entry.tunnel, entry.listen
        self.read(tunnel.password_file)
        for text in (*(tunnel.allow or ()), *(tunnel.deny or ())):
            path = text[5:] if text[:5].lower() == "file:" else text
            # A word without a kind may be a rule or the name of a file; only a file that exists can be read by the
            # service.
            if not has_kind(text) and os.path.exists(self.path(path)):
                self.read(path)
        self.add_listening(listen)
        if (owner := owner_of_keys(listen)) is not None:
            self.write(tunnel.keys)
            if tunnel.keys is None and owner.keys is None and not tunnel.transient:
                # Where a destination is stored that has no key file of its own.
                self.writes.append(os.path.join(self._home, ".local/share/relay"))
        for value in _values(listen):
            if not isinstance(value, UnixAddress):  # its own, or one on a server
                self.add(value)

    def add_listening(self, listen: Listen | None) -> None:
        """Note the needs of a socket that listens on this machine."""
        if isinstance(listen, AT_PORT):
            self.has_low_port |= 0 < listen.port < _LOW
        if not isinstance(listen, UnixListen):
            return
        self.write(listen.path)
        if listen.group is not None:
            self.groups.append(listen.group)
        if listen.group is not None or listen.mode is not None:
            self.shared.append(self.path(listen.path))

    def add(self, value: object) -> None:
        """Note the needs of an address."""
        if isinstance(value, UnixAddress):
            self.sockets.append(self.path(value.path))
        elif isinstance(value, Command):
            self.programs.append(f"{value.scheme}:")
        elif isinstance(value, SSHServer) and self._is_program_needed(value):
            self.programs.append("the OpenSSH client")
        self._add_files(value)

    def _add_files(self, value: object) -> None:
        for name, one in options_of(type(value)).items():
            if one.kind is not FILE:
                continue
            path = getattr(value, name)
            if isinstance(value, I2PRouter) and name == "keys":
                self.write(path)
            else:
                self.read(path)
        # The first login writes the host key there.
        if isinstance(value, SSHServer) and value.accept_new:
            self.write(value.known_hosts or "~/.ssh/known_hosts")
