"""The user's SSH configuration for a server: read by ``ssh -G`` if the client is installed, else by paramiko."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from shutil import which
from typing import IO, Any, TypeVar

from ....addresses.printable import one_line, printable
from ....addresses.ssh import SSHServer
from ....addresses.values import is_i2p, is_onion
from ....errors import AddressError, ConnectError
from ....process import DEVNULL, PIPE, start
from ...files import has_entry, home
from ..internals import LISTS, supported
from .known_hosts import matches

Value = TypeVar("Value")

LONGEST_SHOWN = 300  # characters of an error of a parser
ANSWER_TIME = 10.0  # seconds for `ssh -G`, which may resolve names and run the user's `Match exec`

_KEYS = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
_MARKS = "+-^"  # change a list instead of replacing it; ssh_config(5), "Ciphers"

logger = logging.getLogger("relay")

# The defaults of the client, by its path and the time of its file: it may be updated while this process runs.
_defaults: dict[tuple[str, int], Mapping[str, list[str]]] = {}
_warned: set[str] = set()


class Options:
    """The options of one server, by their names in small letters.

    :param values: every value of each option.
    :param defaults: the same for a user without a configuration.
    """

    def __init__(self, values: Mapping[str, list[str]], defaults: Mapping[str, list[str]]) -> None:
        self._values = values
        self._defaults = defaults

    def all(self, name: str) -> list[str]:
        """Return all values of an option that may have several."""
        return self._values.get(name, [])

    def text(self, name: str) -> str:
        """Return the value of an option; empty if it is not set or set to ``none``."""
        value = self._values.get(name, [""])[0]
        return "" if value.lower() == "none" else value

    def is_yes(self, name: str) -> bool:
        """Return whether a switch is on."""
        return self.text(name).lower() in ("yes", "true")

    def is_no(self, name: str) -> bool:
        """Return whether a switch is set to off."""
        return self.text(name).lower() in ("no", "false", "off")

    def algorithms(self, name: str) -> tuple[str, ...]:
        """Return a list of algorithms; empty if it is the default of the client, or only adds to that."""
        value = self.text(name)
        return tuple(value.split(",")) if value and not value.startswith(self._default(name)) else ()

    def added(self, name: str) -> tuple[str, ...]:
        """Return the algorithms that the user adds to the default of the client (``+…``)."""
        value, default = self.text(name), self._default(name)
        return tuple(value[len(default) :].split(",")[1:]) if value.startswith(default) else ()

    def _default(self, name: str) -> str:
        return self._defaults.get(name, ["none"])[0]


def read(server: SSHServer, *, behind: bool = False) -> Options:
    """Read the user's configuration for a server; again at each call.

    :param server: the server. Its ``config``, a path without ``~``, replaces the files of the user and the system.
    :param behind: whether it is behind hops. Then its name is not canonicalized, which would need a DNS query here.
    :returns: the options.
    :raises AddressError: if the configuration is malformed; with the parser's message.
    :raises ConnectError: if ``ssh -G`` does not end in time, or is killed.
    :raises OSError: if it cannot be started.

    Both parsers run ``Match exec`` at each connection, as ``ssh`` does. paramiko's parser needs the package ``invoke``
    for that, and does not follow ``Include``.
    """
    program = which("ssh")
    if program is None or not has_entry():
        return Options(_by_paramiko(server), {name: [",".join(supported(name))] for name in LISTS})
    place = [*(["-p", str(server.port)] if server.port else []), *(["-l", server.user] if server.user else [])]
    if behind or is_i2p(server.host) or is_onion(server.host):
        place += ["-o", "CanonicalizeHostname=no"]
    config = [] if server.config is None else ["-F", server.config]
    # Two runs of `ssh -G` side by side; without the defaults a list that the user has set looks like any other.
    defaults = _meanwhile(_defaults_of, server, program)
    try:
        values = _ask(server, [program, *config, *place, "-T", "-G", "--", server.host])
    finally:
        # Also after an error: the thread must not go on behind a caller who has given up.
        wait([defaults])
    return Options(values, defaults.result())


def _meanwhile(function: Callable[..., Value], *arguments: object) -> Future[Value]:
    """Call a function in a thread, and return its future result."""
    outcome: Future[Value] = Future()

    def call() -> None:
        try:
            outcome.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  (it is raised where the result is used)
            outcome.set_exception(error)

    try:
        threading.Thread(target=call, name="relay ssh -G", daemon=True).start()
    except RuntimeError:
        call()  # the system has no threads left
    return outcome


def local_user() -> str:
    """Return the user's name on this machine, or the user ID if it has no name."""
    return pwd.getpwuid(os.getuid()).pw_name if has_entry() else str(os.getuid())


def _defaults_of(server: SSHServer, program: str) -> Mapping[str, list[str]]:
    key = (program, os.stat(program).st_mtime_ns)
    known = _defaults.get(key)
    if known is None:
        known = _ask(server, [program, "-F", os.devnull, "-T", "-G", "--", "localhost"])
        _defaults.clear()
        _defaults[key] = known
    return known


def _ask(server: SSHServer, argv: Sequence[str]) -> Mapping[str, list[str]]:
    """Run ``ssh -G``."""
    # Not a pipe: a program that `Match exec` leaves behind may keep it open for ever.
    with _memory() as complaints:
        process = start(argv, stdin=DEVNULL, stdout=PIPE, stderr=complaints)
        late = threading.Event()

        def end() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(
                    process.pid, signal.SIGKILL
                )  # with the programs of `Match exec`; the process group is its own until it is reaped

        timer = threading.Timer(ANSWER_TIME, end)
        timer.daemon = True
        timer.start()
        assert process.stdout is not None
        with process.stdout as answer:
            output = answer.read()
        timer.cancel()
        # Before the process is reaped: a timer that is just running would signal a process group that may be another's.
        timer.join()
        status = process.wait()
        complaints.seek(0)
        complaint = complaints.read(1 << 16)
    if late.is_set():
        problem = f"`ssh -G` has not ended after {ANSWER_TIME:.0f} s"
        hint = "check Match exec and CanonicalizeHostname in the SSH configuration"
        raise ConnectError(f"{server}: {problem}; {hint}", reason="connect_timeout")
    if status < 0:  # not the fault of the configuration: the system had no memory left, for example
        problem = f"`ssh -G` was killed by signal {-status}; relay tries again"
        raise ConnectError(f"{server}: {problem}", reason="unreachable")
    if status != 0:
        raise AddressError(f"{server}: ssh cannot use its configuration: {_first_line(complaint)}")
    return _parsed(output)


def _memory() -> IO[bytes]:
    """Return a file without a name; on Linux it needs no folder in which this program may write."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("relay ssh -G"), "w+b")
    return tempfile.TemporaryFile()


def _first_line(complaint: bytes) -> str:
    for line in complaint.decode("utf-8", "replace").splitlines():
        if shown := one_line(line, LONGEST_SHOWN):
            return shown
    return "no reason is known; run ssh -G"


def _parsed(output: bytes) -> Mapping[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in output.decode("utf-8", "surrogateescape").split("\n"):
        name, _, value = line.partition(" ")
        values.setdefault(name.lower(), []).append(value)
    return values


def _by_paramiko(server: SSHServer) -> Mapping[str, list[str]]:
    """Read the configuration by paramiko's parser, and add the defaults of the client."""
    import paramiko

    class Parser(paramiko.SSHConfig):  # type: ignore[misc]
        # Other tokens are expanded later, with the caller's parameters.
        TOKENS_BY_CONFIG_KEY = {"match-exec": paramiko.SSHConfig.TOKENS_BY_CONFIG_KEY["match-exec"]}  # noqa: RUF012

        def _does_match(self, match_list: Any, *rest: Any) -> Any:
            """Skip an empty list, for which paramiko would need the user's name."""
            return match_list and super()._does_match(match_list, *rest)

    parser = Parser()
    try:
        for file in _files(server):
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                parser.parse(_without_includes(server, file, lines.read().splitlines()))
        try:
            found = parser.lookup(server.host)
        except OSError as error:  # from Python 3.13 for a user without a name
            raise KeyError(str(error)) from error
    except (paramiko.ConfigParseError, paramiko.CouldNotCanonicalize, ValueError) as error:
        problem = printable(str(error), LONGEST_SHOWN)  # it may repeat a line of the file
        raise AddressError(f"{server}: the SSH configuration cannot be used: {problem}") from None
    except ImportError:
        need = "Match exec in the SSH configuration needs the OpenSSH client (ssh) or the Python package invoke"
        raise AddressError(f"{server}: {need}") from None
    except KeyError:
        problem = "Match in the SSH configuration asks for the user's name, and there is none"
        raise AddressError(f"{server}: {problem}; set the environment variable USER") from None
    values = {name: value if isinstance(value, list) else [value or "none"] for name, value in found.items()}
    values["hostname"] = [values["hostname"][0].replace("%h", server.host).replace("%%", "%")]
    values.setdefault("user", [local_user()])
    values.setdefault("port", ["22"])
    values.setdefault("identityfile", [f"~/.ssh/{name}" for name in _KEYS])
    values.setdefault("userknownhostsfile", ["~/.ssh/known_hosts ~/.ssh/known_hosts2"])
    values.setdefault("globalknownhostsfile", ["/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"])
    for name in LISTS:
        if name in values:
            values[name] = [",".join(_resolved(values[name][0], supported(name)))]
    return values


def _files(server: SSHServer) -> list[str]:
    """Return the configuration files; the first one has precedence."""
    if server.config is None:
        own = [os.path.join(home(), ".ssh", "config"), "/etc/ssh/ssh_config"]
        return [file for file in own if os.path.exists(file)]
    if server.config.lower() == "none":
        return []
    if not os.path.exists(server.config):
        raise AddressError(f"{server}: config={server.config}: no such file; check the path")
    return [server.config]


def _without_includes(server: SSHServer, file: str, lines: list[str]) -> list[str]:
    kept = [line for line in lines if not line.lower().lstrip().startswith("include ")]
    if len(kept) < len(lines) and file not in _warned:
        _warned.add(file)
        logger.warning("%s: Include in %s is followed only where the OpenSSH client (ssh) is installed", server, file)
    return kept


def _resolved(value: str, own: Sequence[str]) -> list[str]:
    """Resolve a list that may begin with a mark that changes the default list (ssh_config(5), "Ciphers")."""
    named = value.lstrip(_MARKS).split(",")
    if value.startswith("+"):
        return [*own, *named]  # also algorithms that relay does not offer by default
    if value.startswith("-"):
        return [name for name in own if not any(matches(name, pattern) for pattern in named)]
    if value.startswith("^"):
        return [*named, *(name for name in own if name not in named)]
    return named
