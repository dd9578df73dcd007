"""SSH server inside the process, for tests without sshd, and with faults on demand."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType
from urllib.parse import quote

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .pairs import bound_socket
from .ssh.login import Rules, State
from .ssh.session import LOG, Session

__all__ = ["SSHServer"]

logging.getLogger(LOG).addHandler(logging.NullHandler())  # errors of clients are no warnings to the program

_CLOSE_TIME = 0.8  # seconds that close waits for threads
_CONNECTIONS = 1000  # concurrent ones; further ones are closed
_USERS: Mapping[str, str | None] = {"relay": None}


class SSHServer:
    """An SSH server on the loopback with port forwarding and faults on demand. It runs once it is constructed.

    It works with any client: ``ssh -N -L``, ``-R`` and ``-W`` as well as ``relay``, dropbear's ``dbclient`` and PuTTY's
    ``plink``. JSch 0.1 has no Ed25519 and so needs ``host_key=paramiko.ECDSAKey.generate()``. Channels have half-close.

    It has no shell and no SFTP, and runs commands only if you allow them. A client acts with the rights of this
    process, so each login needs a credential: by default the key in :attr:`keyfile`, which is owner-only::

        with relay.testing.SSHServer() as server:
            make = relay.target("127.0.0.1:5432", via=[server.url])

    :param users: names and passwords; ``None`` for a user without password. The first one is in :attr:`url`.
    :param authorized_keys: public keys that are valid for every user, besides the server's own: keys of paramiko, or
        lines such as ``ssh-ed25519 AAAA…``.
    :param questions: of keyboard-interactive (RFC 4256), each with its correct answer.
    :param methods: required methods, as ``AuthenticationMethods`` in sshd_config(5): each text is a list with commas
        whose steps are all required, in this order; any one of the texts suffices. ``None``: any method that is
        configured above (``publickey``, ``password``, ``keyboard-interactive``) suffices.
    :param permit: allowed targets: a collection of targets such as ``127.0.0.1:5432`` and ``unix:///run/db.sock``, or a
        function that returns whether a target is allowed; it runs on a thread that may block. ``None`` for all.
    :param allow_forwarding: ``False`` forbids all forwarding; ``'local'`` allows only connections to targets,
        ``'remote'`` only listening (``AllowTcpForwarding``).
    :param commands: commands that clients may run, by ``/bin/sh -c`` with the rights of this process: a collection of
        them, or a function that returns whether one is allowed; it must not block. ``None`` for none.
    :param max_channels: concurrent channels on one connection; further ones are refused.
    :param host_key: the server's private key; ``None`` for a new Ed25519 key.
    :param banner: shown to clients before the login; empty for none.
    :param strict: whether a client that requests the login service a second time is disconnected (RFC 4253,
        section 10), as at servers of Go, Erlang and asyncssh. OpenSSH accepts every request. The client of paramiko
        sends one for each credential, so ``False`` is for one that has several.
    :param host: address to listen on.
    :param port: port to listen on; 0 for any free one.
    :raises OSError: if it cannot listen.
    :raises ValueError: if an argument is invalid; the error names it.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str | None] = _USERS,
        authorized_keys: Iterable[paramiko.PKey | str] = (),
        questions: Sequence[tuple[str, str]] = (),
        methods: Sequence[str] | None = None,
        permit: Callable[[str], object] | Collection[str] | None = None,
        allow_forwarding: bool | str = True,
        commands: Callable[[str], object] | Collection[str] | None = None,
        max_channels: int = 1000,
        host_key: paramiko.PKey | None = None,
        banner: str = "",
        strict: bool = True,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if allow_forwarding not in (True, False, "local", "remote"):
            raise ValueError(f"allow_forwarding: must be True, False, 'local' or 'remote', got {allow_forwarding!r}")
        client_key, text = _new_key()
        rules = Rules.made(users, [client_key, *authorized_keys], questions, methods, banner)
        runs = None if commands is None else _permission(commands)
        self._state = State(_permission(permit), allow_forwarding, max_channels, rules, runs, strict)
        self.host_key: paramiko.PKey = host_key if host_key is not None else _new_key()[0]
        self.user: str = next(iter(users))
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as undo:
            # Bound and never listening, for the whole life of the server: between stop() and start() no other program
            # gets the port, and the kernel refuses clients.
            self._reservation = undo.enter_context(bound_socket(host, port))
            self.address: tuple[str, int] = self._reservation.getsockname()[:2]
            # Before the files are made: where no thread is left, nothing lies in the temporary directory.
            self.start()
            undo.callback(self.stop)
            folder = tempfile.mkdtemp(prefix="relay-ssh-")
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            self.keyfile: str = _write(folder, "client_key", text)
            self.known_hosts: str = _write(folder, "known_hosts", self.known_hosts_line + "\n")
            # Only after the last step that may fail; until then an error undoes all that was done.
            self._undo = undo.pop_all()

    # -- address --

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the host key, in the form of ``ssh-keygen -l``: ``SHA256:…``."""
        digest = hashlib.sha256(self.host_key.asbytes()).digest()
        return f"SHA256:{b64encode(digest).decode().rstrip('=')}"

    @property
    def known_hosts_line(self) -> str:
        """Line for a known_hosts file; :attr:`known_hosts` is the path of a file with it."""
        host, port = self.address
        return f"[{host}]:{port} {self.host_key.get_name()} {self.host_key.get_base64()}"

    @property
    def url(self) -> str:
        """Address with the host key's fingerprint and the path of a private key, without a password."""
        host, port = self.address
        shown = f"[{host}]" if ":" in host else host
        files = {"keyfile": self.keyfile, "hostkey": self.fingerprint, "config": os.devnull}
        query = "&".join(f"{name}={quote(value, safe='/:')}" for name, value in files.items())
        return f"ssh://{quote(self.user)}@{shown}:{port}?{query}"

    # -- faults --

    def drop(self) -> None:
        """Cut every connection; new ones are accepted."""
        for session in self._live():
            session.cut()

    def freeze(self) -> None:
        """Stop responding on all connections, old and new; TCP stays up, as with a stopped process."""
        self._state.frozen = True
        for session in self._live():
            session.freeze()

    def thaw(self) -> None:
        """Continue after :meth:`freeze`, and process the packets that came meanwhile."""
        self._state.frozen = False
        for session in self._live():
            session.thaw()

    def slow(self, seconds: float) -> None:
        """Delay the opening of every channel, in both directions, by this many seconds; 0 for no delay."""
        self._state.delay = seconds

    def refuse_channels(self, refuse: bool = True) -> None:
        """Refuse every channel and forward, as by policy; ``False`` ends that."""
        self._state.refusing = refuse

    def rekey(self) -> None:
        """Start a key re-exchange on every connection (RFC 4253, section 9), and wait for it."""
        for session in self._live():
            session.rekey()

    def stop(self) -> None:
        """Cut every connection and refuse new ones, like a host without a server; the port stays reserved."""
        with self._lock:
            listening, self._listening = self._listening, None
            thread, self._thread = self._thread, None
        if listening is not None and thread is not None:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # wakes accept
            # After the shutdown and before the close: a thread that still waits in accept() could otherwise wait on a
            # number that belongs to another socket by now.
            thread.join()
            listening.close()
        # One deadline for all of them, and all are cut before the first is waited for.
        sessions, deadline = self._live(), time.monotonic() + _CLOSE_TIME
        for session in sessions:
            session.cut()
        for session in sessions:
            session.join(deadline)

    def start(self) -> None:
        """Accept connections again after :meth:`stop`, on the same port. Does nothing while it runs.

        :raises OSError: if no socket or thread is available, or after :meth:`close`.
        """
        with self._lock:
            if self._listening is not None:
                return
            listening = bound_socket(*self._reservation.getsockname()[:2])
            listening.listen(128)
            self._listening = listening
            self._thread = threading.Thread(target=self._accept, args=(listening,), name="ssh server", daemon=True)
            self._thread.start()

    # -- history --

    @property
    def logins(self) -> int:
        """Number of successful logins."""
        return self._state.logins

    @property
    def attempts(self) -> list[tuple[str, str]]:
        """The last thousand login attempts, each a user name and a method.

        Clients first query the methods with ``none``, and with ``publickey`` whether a key is accepted.
        """
        return list(self._state.attempts)

    @property
    def opened(self) -> int:
        """Number of channels that were opened, in both directions."""
        return self._state.opened

    @property
    def refused(self) -> int:
        """Number of channels that were refused, by the server or by a client with a remote forward."""
        return self._state.refused

    @property
    def connections(self) -> int:
        """Number of connections, logged in or not."""
        return len(self._sessions)

    @property
    def channels(self) -> int:
        """Number of channels that are open or being opened."""
        return sum(session.channels for session in self._live())

    # -- end --

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        if len(self._sessions) >= _CONNECTIONS:
            sock.close()
            return
        session = Session(sock, self.host_key, self._state, self._over)
        with self._lock:
            self._sessions.add(session)
        # After it is in the set: a thaw() that comes between finds it there.
        if self._state.frozen:
            session.freeze()
        try:
            session.start()
        except RuntimeError:
            # No thread is left: the session never ran, so it does not report its end itself.
            self._over(session)

    def _over(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)

    def _live(self) -> list[Session]:
        with self._lock:
            return list(self._sessions)

    def close(self) -> None:
        """Close every connection, stop listening and remove the files, within a second. Idempotent."""
        self._undo.close()

    def __enter__(self) -> SSHServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.address
        return f"<relay.testing.SSHServer at {host}:{port}, {self.connections} connections>"


def _write(folder: str, name: str, text: str) -> str:
    path = os.path.join(folder, name)
    # The mode is there from the start: ssh refuses a key that others can read, and there is no moment in which they
    # can.
    with open(path, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(text)
    return path


def _permission(permit: Callable[[str], object] | Collection[str] | None) -> Callable[[str], object]:
    if permit is None:
        return lambda target: True
    return permit if callable(permit) else frozenset(permit).__contains__


def _new_key() -> tuple[paramiko.PKey, str]:
    """Return a new private key, and its text in OpenSSH's format."""
    form, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    text = Ed25519PrivateKey.generate().private_bytes(serialization.Encoding.PEM, form, plain).decode()
    return paramiko.Ed25519Key(file_obj=io.StringIO(text)), text
