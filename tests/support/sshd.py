"""Real SSH servers for the tests, above all OpenSSH's: each has its own port, keys and configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import re
import select
import shutil
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from helpers import WAIT, Relayed, stop, wait_until
from namespace import Namespace

import relay
from relay.addresses.ssh import SSHServer
from relay.process import DEVNULL, PIPE, start

PROGRAM = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
LOOPBACK = "127.0.0.1"


def make_key(path: Path, passphrase: str | None = None) -> str:
    """Write a new private key, and its public one beside it; returns the public key's line."""
    key = Ed25519PrivateKey.generate()
    encryption: Any = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    form = serialization.PrivateFormat.OpenSSH
    path.touch(0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
    public = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    line = key.public_key().public_bytes(*public).decode()
    path.with_name(path.name + ".pub").write_text(line + "\n")
    return line


def server_url(server: SSHServer, **more: object) -> str:
    """A server that has a user and a port as an address, which holds no secret; ``more`` replaces parameters of it."""
    fields = ("backend", "keyfile", "known_hosts", "config", "hostkey")
    given = {name: getattr(server, name) for name in fields} | more
    query = "&".join(f"{name}={quote(str(value), safe='/:')}" for name, value in given.items() if value is not None)
    return f"ssh://{server.user}@{server.host}:{server.port}?{query}"


class RealServer:
    """A server program on a port of 127.0.0.1 that stays its own while the server is down.

    :param folder: where it may put its files; a directory that exists.
    :param port: 0 for any.
    :param namespace: a network that it runs in, with its port there; a door on the machine's 127.0.0.1 leads to it.
    """

    ready = "Server listening on"  # is in the log once it listens

    def __init__(self, folder: Path, *, port: int = 0, namespace: Namespace | None = None) -> None:
        self.folder = folder
        self.user = getpass.getuser()
        self.keyfile = folder / "client_key"
        self.known_hosts = folder / "known_hosts"
        # A socket that is bound and never listens: it reserves the port, and connections to it are refused.
        self._reservation = socket.socket() if namespace is None else namespace.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind((LOOPBACK, port))
        self.inner_port: int = self._reservation.getsockname()[1]
        self._namespace = namespace
        self._door = namespace.door(self.inner_port) if namespace is not None else None
        self.port: int = self._door.address[1] if self._door is not None else self.inner_port
        self._process: Any = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._pipe: Any = None  # while the server may write
        self._rest = b""  # of a line
        self._write_files()

    def _write_files(self) -> None:
        self.host_key_line = make_key(self.folder / "host_key")
        authorized = make_key(self.keyfile)
        (self.folder / "authorized_keys").write_text(authorized + "\n")
        self.known_hosts.write_text(f"[{LOOPBACK}]:{self.port} {self.host_key_line}\n")

    def command(self) -> list[str]:
        """The argument list that starts it."""
        raise NotImplementedError

    def environment(self) -> dict[str, str] | None:
        """Its environment; ``None`` for that of the tests."""
        return None

    @property
    def server(self) -> SSHServer:
        """The server as a value, with everything that a client needs and nothing of the user's own configuration."""
        files = {"keyfile": str(self.keyfile), "known_hosts": str(self.known_hosts), "config": os.devnull}
        return SSHServer(LOOPBACK, self.user, self.port, **files)

    @property
    def url(self) -> str:
        """The same as an address."""
        return server_url(self.server)

    def start(self) -> Self:
        """Start it; returns when it listens."""
        assert self._process is None, "it runs already"
        seen = len(self._lines)
        run = start if self._namespace is None else self._namespace.run
        self._process = run(self.command(), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, env=self.environment())
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), name="sshd log", daemon=True)
        self._reader.start()
        try:
            self.wait_for(self.ready, since=seen, timeout=3 * WAIT)
        except BaseException:
            self.kill()
            raise
        if self._door is not None:
            self._door.open()
        return self

    def _read(self, pipe: Any) -> None:
        os.set_blocking(pipe.fileno(), False)
        with pipe:
            with self._news:
                self._pipe, self._rest = pipe, b""
            while self._pipe is not None:
                select.select([pipe], [], [])
                self._take_lines()

    def _take_lines(self) -> None:
        """Take what the server has written by now, in any thread."""
        with self._news:
            while self._pipe is not None:
                try:
                    data = os.read(self._pipe.fileno(), 1 << 16)
                except BlockingIOError:
                    return
                *lines, self._rest = (self._rest + data).split(b"\n")
                if not data:
                    self._pipe, lines = None, [one for one in (self._rest, b"(end of the log)") if one]
                self._lines += [line.decode(errors="replace").rstrip() for line in lines]
                self._news.notify_all()

    def wait_for(self, text: str, *, since: int = 0, count: int = 1, timeout: float = WAIT) -> None:
        """Wait until so many lines of the log hold the text."""

        def seen() -> bool:
            lines = self._lines[since:]
            return sum(text in line for line in lines) >= count or "(end of the log)" in lines

        with self._news:
            self._news.wait_for(seen, timeout)
            assert sum(text in line for line in self._lines[since:]) >= count, f"no {text!r} in:\n{self.log()}"

    def forget(self) -> None:
        """Forget the log up to now, and with it the logins."""
        with self._news:
            self._lines.clear()

    def log(self) -> str:
        """Its log so far."""
        return "\n".join(self._lines)

    def processes(self) -> list[int]:
        """The process ids of the listening server and of its sessions, each before its children."""
        return [] if self._process is None else _family(self._process.pid)

    def sessions(self) -> list[int]:
        """The process ids of the sessions alone."""
        return self.processes()[1:]

    def freeze(self) -> None:
        """Stop it and its sessions as they are (SIGSTOP): connections stay up, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and its sessions (SIGKILL); :meth:`start` brings it back on the same port. Idempotent."""
        if self._process is None:
            return
        if self._door is not None:
            self._door.shut()
        self._signal(signal.SIGSTOP)  # so that none of them has new children
        self._signal(signal.SIGKILL)
        self._process.wait(WAIT)
        self._process = None
        if self._reader is not None:
            self._reader.join(WAIT)

    def kill_sessions(self) -> None:
        """Kill the sessions and let it take new ones."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kill it and give up the port. Idempotent."""
        self.kill()
        self._reservation.close()
        if self._door is not None:
            self._door.close()

    def _signal(self, number: int) -> None:
        """Signal each before its children; one that stops has no new ones by then."""
        waiting = [self._process.pid]
        while waiting:
            pid = waiting.pop()
            children = _children(pid)
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGSTOP:
                    stop(pid)
                    children = _children(pid)
                else:
                    os.kill(pid, number)
            waiting += children


class Sshd(RealServer):
    """OpenSSH's server, and nothing of the system's service.

    :param folder: and what else there is: as for :class:`RealServer`.
    :param config: lines of sshd_config(5), which go before the usual ones and so replace them.
    """

    def __init__(self, folder: Path, *, config: Sequence[str] = (), **options: Any) -> None:
        assert PROGRAM is not None, "there is no sshd"
        self._config = config
        super().__init__(folder, **options)

    def _write_files(self) -> None:
        super()._write_files()
        self.configure(*self._config)

    def configure(self, *config: str) -> None:
        """Replace the configuration's first lines; a server that runs keeps what it has."""
        usual = (
            f"ListenAddress {LOOPBACK}:{self.inner_port}",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/authorized_keys",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "UseDNS no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "MaxStartups 500",
            "KexAlgorithms -sntrup*",  # ssh takes 0.2 s of CPU for it at each of a thousand logins
            "SetEnv SHLVL=1",  # else bash reads the user's ~/.bashrc for each command, which may take any time
            "LogLevel VERBOSE",
        )
        (self.folder / "sshd_config").write_text("\n".join((*config, *usual)) + "\n")

    def command(self) -> list[str]:
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", 0o755, exist_ok=True)  # without it a server of root refuses to start
        return [str(PROGRAM), "-D", "-e", "-f", f"{self.folder}/sshd_config"]

    @property
    def logins(self) -> int:
        """The number of clients that have logged in. One that has a channel is among them."""
        self._take_lines()
        return sum(re.match(r"Accepted [a-z/-]+ for ", line) is not None for line in self._lines)


def embedded(rig: Any, **more: Any) -> SSHServer:
    """The address of a server of relay.testing, as a value."""
    files = {"keyfile": rig.keyfile, "known_hosts": rig.known_hosts, "config": os.devnull}
    return SSHServer(rig.address[0], rig.user, rig.address[1], **{**files, **more})


class FarEnd:
    """A server of either kind, to be used with one of the backends.

    ``kind`` is ``embedded``, ``sshd`` or another server's name, ``rig`` what runs, ``server`` and ``url`` how to reach
    it with ``backend``.
    """

    def __init__(self, kind: str, backend: str, rig: Any) -> None:
        self.kind = kind
        self.backend = backend
        self.rig = rig
        server = rig.server if isinstance(rig, RealServer) else embedded(rig)
        self.server: SSHServer = dataclasses.replace(server, backend=backend)

    @property
    def url(self) -> str:
        """The server as an address."""
        return server_url(self.server)

    def address(self, **more: object) -> str:
        """The server as an address with other parameters."""
        return server_url(self.server, **more)

    @property
    def logins(self) -> int:
        """The number of clients that have logged in."""
        return int(self.rig.logins)

    def down(self) -> None:
        """End the server and all its connections at once; its port stays its own."""
        (self.rig.kill if isinstance(self.rig, RealServer) else self.rig.stop)()

    def up(self) -> None:
        """Bring it back at the same port."""
        self.rig.start()

    def freeze(self) -> None:
        """Let it answer nothing any more; TCP stays up."""
        self.rig.freeze()


class OverSSH(Relayed):
    """A tunnel between clients and a target that the test plays itself, over a server at ``url``.

    ``way_out`` is ``tcp`` or ``unix``; what else is given goes to the tunnel.
    """

    def __init__(self, url: str | Sequence[str], folder: Path, **options: Any) -> None:
        self._via = [url] if isinstance(url, str) else list(url)
        options.setdefault("timeout", None)
        super().__init__(None, folder, None, **options)

    def _factory(self) -> Any:
        address = self.target.getsockname()
        target = f"unix://{address}" if isinstance(address, str) else "{}:{}".format(*address)
        self.factory: Any = relay.target(target, via=self._via)
        return self.factory

    def wait_for_loss(self) -> None:
        """Wait until the loss of the connection is known: later streams wait for the next one."""
        wait_until(lambda: self.factory.state != "up")


def _family(pid: int) -> list[int]:
    return [pid, *(one for child in _children(pid) for one in _family(child))]


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []
