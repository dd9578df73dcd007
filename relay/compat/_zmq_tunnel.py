"""SSH tunnels in child processes for :mod:`relay.compat.zmqssh`."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import getpass
import os
import shutil
import signal
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ..addresses.hops import Route, is_slow, keeps_half_close
from ..addresses.i2p import CONNECT_TIMEOUT, LINGER
from ..addresses.parse import parse_hops, parse_ssh_server
from ..addresses.ssh import SSHServer, full_address
from ..addresses.values import TCPAddress
from ..api.urls import listen as listen_at
from ..engine.tunnel import Tunnel
from ..errors import AddressError, AuthenticationError, RelayError
from ..spawning.child_tunnel import ChildTunnel
from ..spawning.pool import open_child
from ..spawning.recipes import Recipe
from ..streams.checks import check_time
from ..transports.chain import chain

__all__ = ["Password", "SSHTunnel", "ServerRoute", "backend_of", "ssh_exceptions"]

_DRAIN = 30.0  # seconds, as in the command
_ACCEPTED = 1.0  # seconds for a ØMQ socket to connect on this machine
_READY = (30.0, 120.0)  # seconds to log in: directly; over I2P, where relay may have to create a session first

Password = str | Literal[False] | None

_living: weakref.WeakSet[SSHTunnel] = weakref.WeakSet()


class SSHTunnel(ChildTunnel):
    """A tunnel over SSH in a child process, which ends with the program, even if that is killed.

    It has the members of a :class:`relay.Tunnel`, and :attr:`pid`. When the program exits, it calls :meth:`close`.
    """

    def close(self, drain: float = _DRAIN) -> None:
        """Stop listening, drain the open connections, and wait for the child to end. Idempotent.

        No message of a ØMQ socket is lost if you close the socket before, with its linger: its connection ends after
        the last message, and the tunnel's connection once the other side has received it. The connection of an open
        socket ends once it has been idle for half a second.

        :param drain: seconds for this; connections that are still open then are reset.
        :raises TypeError: if ``drain`` is not a number.
        :raises ValueError: if it is negative.
        """
        super().close(drain)

    def terminate(self) -> None:
        """End at once, with every connection, and wait for the child to end. Idempotent."""
        self.close(0.0)

    def wait_for_client(self) -> None:
        """Wait for a moment until a client has connected, so that :meth:`close` knows of the connection."""
        with contextlib.suppress(RelayError):
            self._order("wait_for_client", _ACCEPTED)


@dataclasses.dataclass(frozen=True, slots=True)
class ServerRoute:
    """The route to an SSH server, and the login there.

    :param server: the server.
    :param before: the hops to it, as text.
    :param asks: prompt for a password if the server requires one.
    """

    server: SSHServer
    before: tuple[str, ...] = ()
    asks: bool = False

    @classmethod
    def made(
        cls, server: str, backend: str, keyfile: str | os.PathLike[str] | None, password: Password, via: Sequence[str]
    ) -> ServerRoute:
        """Return the route for the arguments of :mod:`relay.compat.zmqssh`; with ``False`` as password, never prompt.

        :raises AddressError: if an address is invalid.
        :raises TypeError: if an argument has the wrong type.
        :raises ValueError: if an argument is invalid.
        """
        if not (password is None or password is False or isinstance(password, str)):
            raise TypeError(f"password: expected a str, got {type(password).__name__}")
        # The original added its key file to those of the agent and of the configuration, and did not exclude them.
        options: dict[str, Any] = {"backend": backend, "identities_only": False}
        if keyfile is not None:
            options["keyfile"] = os.fspath(keyfile)
        named = dataclasses.replace(parse_ssh_server(server), **options)
        parse_hops(via, str(named))
        made = cls(named, tuple(via), asks=password is None)
        return made.with_password(password) if password else made

    def with_password(self, password: str) -> ServerRoute:
        """Return the route with a password, which also decrypts the key file, as in the original."""
        return dataclasses.replace(
            self, server=dataclasses.replace(self.server, password=password, passphrase=password)
        )

    @property
    def hops(self) -> Route:
        """All hops, including the server."""
        return (*parse_hops(self.before, str(self.server)), self.server)

    def ready(self) -> None:
        """Log in once, from this process.

        :raises OSError: if that fails.
        """
        factory = chain(self.hops, TCPAddress("localhost", 1))
        try:
            # The target is never dialled: ready() brings up the hops alone, so any address will do as the last one.
            factory.ready(_READY[is_slow(self.hops)])
        finally:
            factory.close_when_idle()

    def is_refused(self, error: AuthenticationError) -> bool:
        """Return true if the server itself rejects the login, and not a hop before it."""
        # An error of a chain names the hop that failed, by the number among all hops; with a single hop it has no
        # number.
        count = len(self.before) + 1
        return str(error).startswith(f"{self.server}: " if count == 1 else f"hop {count} of {count} (")

    def tunnel(self, listen: str | None, place: TCPAddress, timeout: float | None) -> SSHTunnel:
        """Start a tunnel, and prompt for a password that is required and missing.

        :param listen: address to listen on; ``None`` for an owner-only Unix socket.
        :param place: the target, as seen from the server.
        :param timeout: seconds without any connection after which it ends.
        :raises paramiko.SSHException: if the server cannot be reached, is not trusted or rejects the login.
        :raises ValueError: if the configuration, or a file that it names, cannot be used.
        :raises OSError: if nothing can listen there.
        """
        unused = check_time("timeout", timeout)
        with ssh_exceptions():
            try:
                return self._started(listen, place, unused)
            except AuthenticationError as error:
                # A password is asked for only when the named server has said that one would help. For any other refusal
                # the prompt would make the user type a password that goes nowhere, or to another host.
                if not (self.asks and error.wants_secret and self.is_refused(error)):
                    raise
                refusal = error
            return self._with_password(refusal)._started(listen, place, unused)

    def stay(self, listen: str, place: TCPAddress) -> None:
        """Run a tunnel in this process until it is killed.

        :param listen: and all others as for :meth:`tunnel`.
        :raises Exception: as for :meth:`tunnel`.
        """
        # Ctrl-C goes to every process of the terminal's group; the parent decides whether its tunnels end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # in a terminal it is meant for the parent process
        with listen_at(listen) as receive, contextlib.closing(chain(self.hops, place)) as make_send:
            with ssh_exceptions():
                # After the socket listens: clients that come during the login wait in its backlog instead of being
                # refused.
                make_send.ready(_READY[is_slow(self.hops)])
            with Tunnel(receive, make_send, timeout=None) as tunnel:
                tunnel.join()

    def _with_password(self, refusal: AuthenticationError) -> ServerRoute:
        password = _ask_password(str(self.server).removeprefix("ssh://"))
        if not password:
            why = "none was typed" if password is not None else "there is no terminal to ask for one at"
            raise AuthenticationError(f"{refusal}; a password is required, and {why}: give password=") from refusal
        return self.with_password(password)

    def _started(self, listen: str | None, place: TCPAddress, unused: float | None) -> SSHTunnel:
        tunnel = open_child(SSHTunnel, self.recipe(listen, place), None, {**self.options(place), "unused": unused})
        _living.add(tunnel)
        return tunnel

    def recipe(self, listen: str | None, place: TCPAddress) -> Recipe:
        """Return how the child makes the tunnel; it may contain a password."""
        via = [*self.before, full_address(self.server)]
        arguments = {"listen": listen, "target": f"tcp://{place}", "via": via}
        return Recipe(f"{Recipe.__module__}:by_address", arguments, _READY[is_slow(self.hops, place)])

    def options(self, place: TCPAddress) -> dict[str, Any]:
        """Return the options of the tunnel, which drains as the command does and outlives a silent client."""
        return {
            "nconnect": -1,
            "timeout": None,
            "connect_timeout": CONNECT_TIMEOUT if is_slow(self.hops, place) else 30.0,
            "idle_timeout": None,
            "linger": 60.0 if keeps_half_close(self.hops, place) else LINGER,
            "name": f"{self.server} to {place}",
        }


def backend_of(paramiko: bool | None) -> str:
    """Return the chosen backend; by default the OpenSSH client if it is installed, else paramiko."""
    if paramiko is None:
        return "openssh" if shutil.which("ssh") else "paramiko"
    return "paramiko" if paramiko else "openssh"


@contextlib.contextmanager
def ssh_exceptions() -> Iterator[None]:
    """Raise failures at the server or a hop as paramiko's exceptions."""
    try:
        yield
    except AddressError:
        raise
    except RelayError as error:
        import paramiko

        refused = isinstance(error, AuthenticationError)
        kind = paramiko.AuthenticationException if refused else paramiko.SSHException
        raise kind(str(error)) from error


def _ask_password(login: str) -> str | None:
    """Prompt on the program's terminal; return ``None`` without one, or if the program is in the background."""
    try:
        # The controlling terminal and not standard input, which may be a pipe with the program's data.
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    try:
        # A read from the terminal by a background process stops the whole program by SIGTTIN (termios(3)).
        is_foreground = os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)
    try:
        return getpass.getpass(f"{login}'s password: ") if is_foreground else None
    except EOFError:
        return ""


def _close_all() -> None:
    """Close all tunnels concurrently when the program exits."""
    # Two rounds: all drain at the same time, and the program waits for the longest one. Closing each in turn would add
    # their times up.
    living = [tunnel for tunnel in list(_living) if tunnel.state in ("open", "paused")]
    for tunnel in living:
        tunnel.start_close(_DRAIN)
    for tunnel in living:
        tunnel.close()


atexit.register(_close_all)
