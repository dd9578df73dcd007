"""The sandbox of a command: applied before its first thread starts, and asked before a reload changes anything.

Its rules are what tunnels, the interpreter and the system's resolver need of this machine. relay may read the folder of
each file that a tunnel names, and not only the file: editors, certbot and Kubernetes replace files by a rename, and the
kernel takes the new file for another one. In a folder that is not made for such files, such as the home directory, it
may read the file alone. A file there that is replaced needs a restart.
"""

from __future__ import annotations

import functools
import logging
import os
import ssl
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from shutil import which
from typing import Any

from ..access.rules import file_of
from ..addresses.hops import Command, Proxy, Route, listens_at_tor
from ..addresses.i2p import I2PListen, I2PRouter, I2PTarget
from ..addresses.options import files_of
from ..addresses.parse import parse_listen
from ..addresses.resume import place_of
from ..addresses.ssh import SSHListen, SSHServer
from ..addresses.values import TargetOverTCP, TCPAddress, TLSTarget, UnixAddress, is_i2p
from ..errors import AddressError, RelayError
from ..process import end_spawner
from ..transports.files import home
from ..transports.ssh.confinement import confine
from .failures import describe_error
from .options import EndpointPlan, LogPlan
from .plan import Plan
from .runtime import default_path
from .sandbox import Access, Rules, Sandbox, SandboxError, apply, merged

logger = logging.getLogger("relay.cli")

_ON = "on"
_NONE = "none"
_END = 5.0  # seconds for threads that have done their work to end


def sandboxed(mode: str | None, plans: Sequence[Plan], endpoints: EndpointPlan, log: LogPlan) -> Sandbox | None:
    """Restrict this process to what its tunnels need, and log that, or why not.

    The main thread must be the only one: the caller has stopped the log's.

    :param mode: ``auto``, or ``on``, with which relay does not run without the sandbox.
    :param plans: the tunnels.
    :param endpoints: where relay listens for operators, and the file of the tunnels.
    :param log: the access log.
    :returns: the sandbox; ``None`` if it is off.
    :raises ValueError: if it is to be on and cannot be.
    """
    try:
        if any(plan.in_workers is not None for plan in plans):
            raise NotConfinableError("workers are new programs, which it would forbid")
        if any(listens_at_tor(plan.routes.where) for plan in plans):
            raise NotConfinableError("tor tells only later where its cookie is, which relay has to read")
        tunnels = TunnelRules()
        found = [system_rules(), _command_rules(endpoints, log)]
        found += [rules for plan in plans for rules in tunnels.of(plan)]
        if any(isinstance(plan.routes.where, I2PListen) for plan in plans):
            from ..transports.i2p.peer_uid import remember_kernel

            remember_kernel()
        end_spawner()
        # Landlock holds for the thread that calls it and for those that it starts later. A thread that is left over
        # from the start would keep all rights.
        _join()
        sandbox = apply(merged(found))
        confine()
    except (NotConfinableError, SandboxError) as error:
        if mode == _ON:
            problem = f"sandbox: cannot be applied: {error}; change that, or set sandbox to auto or off"
            raise ValueError(problem) from error
        logger.info("sandbox: off: %s", error)
        return None
    logger.info("sandbox: on: %s", sandbox)
    return sandbox


def _join() -> None:
    """Wait for threads that have read the configuration; a thread that goes on is found by the sandbox."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(_END)


def _command_rules(endpoints: EndpointPlan, log: LogPlan) -> Rules:
    """Return the rules for the file of the tunnels, the sockets of operators, the access log and the state."""
    control = endpoints.control or (default_path(endpoints.config) if endpoints.config else None)
    status = None
    if endpoints.status is not None:
        with suppress(AddressError):  # who opens it reports that
            status = parse_listen(endpoints.status)
    return file_rules(
        reads=filter(None, [endpoints.config, endpoints.token_file]),
        writes=[
            *([control] if control not in (None, _NONE) else []),
            *([status.path] if isinstance(status, UnixAddress) else []),
            *(path for path in (log.path, log.state) if path not in (None, _NONE)),
        ],
    )


def forbidden(sandbox: Sandbox, plans: Iterable[Plan], endpoints: EndpointPlan, log: LogPlan) -> list[str]:
    """Return why tunnels, sockets of operators or the log are impossible in the sandbox, one line each."""
    tunnels = TunnelRules()
    needs: list[tuple[str, Callable[[], Rules]]] = [
        ("control, status, log_file and state", functools.partial(_command_rules, endpoints, log))
    ]
    needs += [(plan.name, functools.partial(_rules_of, tunnels, plan)) for plan in plans]
    lines = []
    for name, rules in needs:
        try:
            problems = sandbox.problems(rules())
        except NotConfinableError as error:
            lines.append(f"{name}: the sandbox does not let relay do that: {error}; restart relay")
        else:
            if problems:
                lines.append(f"{name}: the sandbox does not let relay {', '.join(problems)}; restart relay")
    return lines


def _rules_of(tunnels: TunnelRules, plan: Plan) -> Rules:
    return merged(tunnels.of(plan))


def unreadable(sandbox: Sandbox, path: str) -> str:
    """Return why the sandbox does not let relay read a file, in one line; empty if it does."""
    if sandbox.allows(path, Access.READ):
        return ""
    return f"{path}: it was replaced, and the sandbox does not let relay read the new file; restart relay"


READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE

_FIRST_PERSON = 1000  # the user IDs below are those of the system (login.defs(5), UID_MIN)
_DNS = 53  # name servers answer long questions over TCP

# A folder of several programs: a rule for one file there is not one for all.
_SHARED = frozenset(
    {"/etc/ssh", "/etc/ssl", "/etc/ssl/private", "/etc/pki/tls", "/run/user", "/usr/local", "/usr/share", "/var/lib"}
)
_FOLDERS = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share", "/usr/local/lib",
    "/usr/local/share", "/nix/store", "/gnu/store", "/sys/devices/system/cpu",
    # Not all of /proc: root may read the environment of other programs there, with their secrets.
    "/proc/self", "/proc/sys", "/proc/stat", "/proc/cpuinfo", "/proc/meminfo",
)  # fmt: skip
_LOADERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/gnu/store")  # the dynamic loader is there
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")
_SYSTEM_FILES = (
    "/dev/random", "/dev/urandom", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf",
    "/etc/gai.conf", "/etc/services", "/etc/protocols", "/etc/passwd", "/etc/group", "/etc/localtime",
    "/etc/timezone", "/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/locale.alias", "/etc/terminfo",
    "/etc/ssl/openssl.cnf", "/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/pki/tls/openssl.cnf", "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem", "/etc/pki/ca-trust/extracted", "/etc/ca-certificates", "/etc/crypto-policies",
)  # fmt: skip


class NotConfinableError(RelayError):
    """A tunnel, or a path, for which there is no sandbox; the text says why."""


def system_rules() -> Rules:
    """Return what the interpreter and the C library read: modules, certificates, the files of the resolver.

    As another user than root, relay may read all of ``/etc`` that its owner lets it read. The resolver's files are
    replaced by renames there, and what only root may read stays closed anyway.
    """
    paths = dict.fromkeys((*_FOLDERS, *_SYSTEM_FILES, *_python()), READ)
    paths |= dict.fromkeys(_DEVICES, READ | WRITE)
    if os.geteuid() != 0:
        paths["/etc"] = READ
    trusted = ssl.get_default_verify_paths()
    found = [trusted.cafile, trusted.capath]
    for path in ("/etc/resolv.conf", *filter(None, found)):
        if os.path.islink(path):  # to a folder of the program that writes it
            paths |= dict.fromkeys(_places(path), READ)
        paths[path] = READ
    return _existing(Rules(paths, frozenset({_DNS})))


def _python() -> Iterator[str]:
    """Yield the folders of modules, which are imported when they are needed, and which children import as well."""
    yield os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # relay itself
    yield os.path.join(sys.base_prefix, "lib")
    if sys.prefix != sys.base_prefix:
        yield sys.prefix  # a virtual environment
    # The first entry is the folder of the script, or the working directory.
    for path in sys.path if sys.flags.safe_path else sys.path[1:]:
        if os.path.isabs(path) and not _is_shared(os.path.realpath(path)):
            yield path


def file_rules(*, reads: Iterable[str] = (), writes: Iterable[str] = ()) -> Rules:
    """Return the rules for files: to read them, or to make, replace and remove them in their folders.

    :param reads: files; ``~`` stands for the home directory.
    :param writes: files, or Unix sockets.
    :raises NotConfinableError: if one to write is in a folder of several programs.
    """
    paths: dict[str, Access] = {}
    for path in map(_absolute, reads):
        paths |= dict.fromkeys(_places(path), READ)
    for path in map(_absolute, writes):
        folder = os.path.dirname(os.path.realpath(path))
        if _is_shared(folder):
            raise NotConfinableError(f"relay would have to write in {folder} ({path}); choose a folder of its own")
        paths[folder] = READ | WRITE
    return _existing(Rules(paths))


class TunnelRules:
    """The rules of tunnels. What several of them share is found once."""

    def __init__(self) -> None:
        self._servers: dict[tuple[SSHServer, bool], tuple[Rules, int | None]] = {}

    def of(self, plan: Plan) -> Iterator[Rules]:
        """Yield what a tunnel needs.

        :raises NotConfinableError: if it starts programs, or writes where others do.
        """
        routes = plan.routes
        lists = [path for entries in routes.lists for entry in entries or () if (path := file_of(entry)) is not None]
        yield file_rules(reads=[*routes.files, *lists])
        if routes.anywhere:
            yield Rules({}, None, f"{plan.name} leads to every port")
        yield from self._end(routes.before, routes.where, listens=True)
        for route, end in (*routes.out, *((route, None) for route in routes.further)):
            yield from self._end(route, end)

    def _end(self, route: Route, end: Any, *, listens: bool = False) -> Iterator[Rules]:
        """Yield what the route to one end of a tunnel needs."""
        places = [*(_server(place_of(hop)) for hop in route), _server(end)]
        for number, place in enumerate(places):
            behind = number > 0
            if isinstance(place, SSHServer):
                rules, port = self._ssh(place, behind=behind)
                ports = frozenset() if port is None else frozenset({port})
                yield rules
            else:
                ports = _ports(place)
                yield _files(place)
            if not behind and isinstance(place, Command):
                raise NotConfinableError(f"{place} is a program")
            if not behind and not (listens and place is end):
                host = getattr(place, "host", "")
                yield Rules({}, _ports(I2PRouter()) if is_i2p(host) else ports)
        if listens:
            yield _listener(end)

    def _ssh(self, server: SSHServer, *, behind: bool) -> tuple[Rules, int | None]:
        key = server, behind
        if key not in self._servers:
            self._servers[key] = _ssh(server, behind=behind)
        return self._servers[key]


def _ssh(server: SSHServer, *, behind: bool) -> tuple[Rules, int | None]:
    """Return what a connection to a server needs, and the port of the first TCP connection."""
    from ..transports.ssh.config.known_hosts import open_to_append
    from ..transports.ssh.requirements import requirements

    try:
        needs = requirements(server, behind=behind)
    except (OSError, ValueError) as error:  # the tunnel reports it; a retry may help
        reason = f"the SSH configuration for {server} cannot be read: {describe_error(error)}"
        return Rules(file_rules(reads=files_of(replace(server, config=None))).paths, None, reason), None
    if needs.program:
        raise NotConfinableError(needs.program)
    paths = dict(file_rules(reads=needs.reads).paths)
    for path in map(_absolute, needs.appends):
        with suppress(OSError):
            os.close(open_to_append(path))  # there is no rule for a file that is missing
        paths[path] = paths.get(path, READ) | WRITE  # not for its folder, in which authorized_keys may be
    if (ssh := which("ssh")) is not None:  # ssh -G reads the configuration again at each connection
        programs = (os.path.realpath(ssh), os.path.realpath(sys.executable), *_LOADERS)
        paths |= {path: paths.get(path, READ) | EXECUTE for path in programs}
    return _existing(Rules(paths)), needs.port


def _server(end: Any) -> Any:
    """Return the server or router of an end of a tunnel, if it has one, else the end itself."""
    if isinstance(end, SSHListen):
        return end.server
    return end.router if isinstance(end, I2PListen | I2PTarget) else end


def _ports(place: Any) -> frozenset[int]:
    """Return the ports to which relay connects."""
    if isinstance(place, I2PRouter):
        return frozenset(bridge.port for bridge in place.sam)
    return frozenset({place.port}) if isinstance(place, TCPAddress | TLSTarget | TargetOverTCP | Proxy) else frozenset()


def _files(place: Any) -> Rules:
    """Return the rules for the files in the options of an address, and of the bridge of a router."""
    if place is None or isinstance(place, TCPAddress | UnixAddress | Command):
        return Rules({})
    if not isinstance(place, I2PRouter):
        return file_rules(reads=files_of(place))
    keys = [] if place.keys is None else [place.keys]  # relay makes them, and a lock beside them
    read = [path for path in files_of(place) if path not in keys]
    bridges = [path for bridge in place.sam if isinstance(bridge, TLSTarget) for path in files_of(bridge)]
    return file_rules(reads=(*read, *bridges), writes=keys)


def _listener(where: Any) -> Rules:
    """Return what a listener needs beside the route to it."""
    if isinstance(where, UnixAddress):
        return file_rules(writes=[where.path])
    if isinstance(where, I2PListen):
        from ..transports.i2p.key_file import path_of_session

        stored = where.router.session and where.router.keys is None
        return file_rules(writes=[str(path_of_session(where.router.session))] if stored else ())
    return Rules({})


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _places(path: str) -> Iterator[str]:
    """Yield the folders of a file and of what it is a link to; the file itself if others share the folder."""
    for place in dict.fromkeys((path, os.path.realpath(path))):
        folder = os.path.dirname(place)
        yield place if _is_shared(os.path.realpath(folder)) else folder


def _is_shared(folder: str) -> bool:
    """Return whether a folder has more than the files of one purpose."""
    if folder.count("/") < 2 or folder in _SHARED:  # /etc, /tmp
        return True
    is_service = 0 < os.getuid() < _FIRST_PERSON  # its home directory is its own folder
    for one in map(os.path.realpath, (home(), os.path.expanduser("~"))):
        if one.startswith(f"{folder}/") or (one == folder and not is_service):
            return True
    try:
        return bool(os.stat(folder).st_mode & stat.S_ISVTX)
    except OSError:
        return False


def _existing(rules: Rules) -> Rules:
    return replace(rules, paths={path: access for path, access in rules.paths.items() if os.path.exists(path)})
