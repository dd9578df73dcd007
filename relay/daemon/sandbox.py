"""The sandbox of a running relay: Landlock, by which a process gives up rights that it does not need, for good.

Landlock restricts the calling thread and the threads and children that it starts later. So the sandbox is applied while
the main thread is the only one. What runs later can open the paths and the ports of the rules, and no others.

Descriptors that are open already, Unix sockets that relay connects to, UDP, and ports that relay listens at are not
restricted.

Source: landlock(7); https://docs.kernel.org/userspace-api/landlock.html.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import operator
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..extras import missing

_PORTS_ABI = 4  # the first one that restricts connections

_Identity = tuple[int, int]  # device and inode: the kernel knows files by these, not by their paths


class SandboxError(OSError):
    """The sandbox cannot be applied here."""


class Access(enum.Flag):
    """The use of a file, or of a folder and all in it."""

    READ = enum.auto()
    WRITE = enum.auto()
    """Write to files; in a folder also create and remove files and Unix sockets."""
    EXECUTE = enum.auto()
    """Start a program."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The paths and the ports that relay needs.

    :param paths: absolute paths of files and folders. A folder stands for all that is in it, now or later.
    :param ports: the TCP ports that relay may connect to; ``None`` for every port.
    :param any_port: why it needs every port; empty if it does not.
    """

    paths: Mapping[str, Access]
    ports: frozenset[int] | None = frozenset()
    any_port: str = ""


def merged(rules: Iterable[Rules]) -> Rules:
    """Return the rules that allow what any of the given ones allows."""
    paths: dict[str, Access] = {}
    ports: frozenset[int] | None = frozenset()
    reason = ""
    for one in rules:
        for path, access in one.paths.items():
            paths[path] = paths.get(path, access) | access
        ports = None if ports is None or one.ports is None else ports | one.ports
        reason = reason or one.any_port
    return Rules(paths, ports, reason)


class Sandbox:
    """The sandbox of this process, once it is applied.

    :param rules: what it allows.
    :param abi: the version of Landlock in the kernel.
    :param held: descriptors of files of ``/proc``. If none is open, the kernel forgets the inode of such a file under
        memory pressure, and makes another one later, for which there is no rule.
    """

    def __init__(self, rules: Rules, abi: int, held: contextlib.ExitStack | None = None) -> None:
        self.rules = rules
        self.abi = abi
        self._held = held
        self._granted: dict[_Identity, Access] = {}
        for path, access in rules.paths.items():
            if (identity := _identity(path)) is not None:
                self._granted[identity] = self._granted.get(identity, access) | access

    @property
    def limits_ports(self) -> bool:
        """True if relay can connect to the ports of the rules only."""
        return self.rules.ports is not None and self.abi >= _PORTS_ABI

    def allows(self, path: str, access: Access) -> bool:
        """Return whether relay may use a path. A file that replaced the one of the rules is another file.

        :param path: absolute; if nothing is there, the answer is that of its folder.
        :param access: the use.
        """
        missing = access
        for parent in _with_parents(os.path.realpath(path)):
            identity = _identity(parent)
            if identity is not None:
                missing &= ~self._granted.get(identity, Access(0))
        return not missing

    def problems(self, rules: Rules) -> list[str]:
        """Return what further rules need and the sandbox does not allow, one text each."""
        words = {Access.READ: "read", Access.WRITE: "write to", Access.EXECUTE: "run"}
        found = [
            f"{words[one]} {path}"
            for path, access in rules.paths.items()
            for one in access
            if not self.allows(path, one)
        ]
        if self.limits_ports:
            assert self.rules.ports is not None
            if rules.ports is None:
                found.append("connect to every port")
            else:
                found += [f"connect to port {port}" for port in sorted(rules.ports - self.rules.ports)]
        return found

    def __str__(self) -> str:
        """The log line: the version of Landlock, and what relay can still do."""
        written = sorted(path for path, access in self.rules.paths.items() if Access.WRITE in access)
        written = [path for path in written if not path.startswith("/dev/")]
        if self.limits_ports:
            assert self.rules.ports is not None
            ports = f"connects to the ports {', '.join(map(str, sorted(self.rules.ports)))} only"
        else:
            reason = self.rules.any_port or f"ports need ABI {_PORTS_ABI}, Linux 6.7"
            ports = f"connects to any port ({reason})"
        return f"Landlock ABI {self.abi}; relay reads its own files only, writes to {_listed(written)}, {ports}"


def apply(rules: Rules) -> Sandbox:
    """Restrict this process to some paths and ports, for as long as it lives. Call it before a thread is started.

    :param rules: what it may still use. Paths at which nothing is are left out.
    :returns: the sandbox.
    :raises SandboxError: if the kernel does not support it, or threads run that it would not restrict; nothing is
        restricted then.

    Source: landlock(7).
    """
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        raise SandboxError(f"other threads run already ({', '.join(others)})")
    try:
        import landlockpy
    except ImportError as error:
        raise SandboxError(missing("sandbox") or str(error)) from error
    rights = _Rights(landlockpy)
    net = landlockpy.AccessNet.NONE if rules.ports is None else landlockpy.AccessNet.CONNECT_TCP
    try:
        with landlockpy.Ruleset(handled_fs=rights.all, handled_net=net) as ruleset, contextlib.ExitStack() as held:
            for path, access in rules.paths.items():
                try:
                    if path.startswith("/proc/"):
                        held.callback(os.close, os.open(path, os.O_PATH | os.O_CLOEXEC))
                    ruleset.allow_path(path, rights.of(access, is_folder=os.path.isdir(path)))
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    continue  # nothing is there that relay could use without the sandbox
            for port in rules.ports or ():
                ruleset.allow_port(port, landlockpy.AccessNet.CONNECT_TCP)
            abi = ruleset.abi_version
            ruleset.restrict()
            return Sandbox(rules, abi, held.pop_all())
    except landlockpy.UnsupportedError as error:
        raise SandboxError(f"this kernel has no Landlock, or it is switched off ({error.strerror})") from error
    except OSError as error:
        raise SandboxError(f"the kernel refuses Landlock ({error.strerror})") from error


class _Rights:
    """The rights of Landlock for each kind of access."""

    def __init__(self, landlockpy: Any) -> None:
        fs = landlockpy.AccessFS
        on_files = fs.EXECUTE | fs.READ_FILE | fs.WRITE_FILE | fs.TRUNCATE
        makes = fs.MAKE_REG | fs.MAKE_SOCK | fs.MAKE_DIR | fs.MAKE_SYM | fs.MAKE_FIFO | fs.MAKE_CHAR | fs.MAKE_BLOCK
        # Not IOCTL_DEV: the terminal is open already. Not RESOLVE_UNIX: agents, name services and targets are Unix
        # sockets, and their programs replace the files.
        self.all = on_files | fs.READ_DIR | makes | fs.REMOVE_FILE | fs.REMOVE_DIR | fs.REFER
        self._on_files = on_files
        self._of = {
            Access.READ: fs.READ_FILE | fs.READ_DIR,
            Access.WRITE: fs.WRITE_FILE | fs.TRUNCATE | fs.MAKE_REG | fs.MAKE_SOCK | fs.REMOVE_FILE,
            Access.EXECUTE: fs.EXECUTE | fs.READ_FILE,
        }

    def of(self, access: Access, *, is_folder: bool) -> Any:
        rights = functools.reduce(operator.or_, (self._of[one] for one in access))
        return rights if is_folder else rights & self._on_files  # the kernel rejects others for a file


def _identity(path: str) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _with_parents(path: str) -> Iterator[str]:
    yield path
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _listed(paths: list[str]) -> str:
    return ", ".join(paths) if paths else "no file"
