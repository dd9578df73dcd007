"""Real servers that tests reach through chains: PostgreSQL, Redis and nginx of Debian, each with files of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from pwd import getpwnam

from helpers import WAIT, Certificates

from relay.process import DEVNULL, PIPE, end, start

LOOPBACK = "127.0.0.1"
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), default=None)
REDIS = shutil.which("redis-server")
GIT = shutil.which("git")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

PASSWORD = "correct horse"
PAGE = "".join(f"line {number} of a page\n" for number in range(100_000))


class Service:
    """A program that serves at a port of 127.0.0.1 and at a Unix socket, until :meth:`stop`.

    It runs in a directory of its own, as another user where this is root and the program would not have it.

    :param user: that user; ``None`` for the one that the tests run as.
    """

    def __init__(self, user: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="relay-"))  # not below pytest's, which no other user may read
        self._user = user if os.geteuid() == 0 else None
        if self._user is not None:
            entry = getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        # Bound and never listening: it reserves the port.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind((LOOPBACK, 0))
        self.port: int = self._reservation.getsockname()[1]
        self._log: list[str] = []

    @property
    def address(self) -> str:
        """Its TCP address."""
        return f"{LOOPBACK}:{self.port}"

    def as_user(self, *argv: str) -> list[str]:
        """The argument list that runs a program as its user; it ends with this program all the same."""
        if self._user is None:
            return list(argv)
        user = f"--reuid={self._user}", f"--regid={getpwnam(self._user).pw_gid}"
        return ["setpriv", *user, "--clear-groups", "--pdeathsig=KILL", "--", *argv]

    def run(self, *argv: str) -> None:
        """Run a program to its end."""
        process = start(self.as_user(*argv), stdout=DEVNULL, stderr=PIPE, env=self.environment)
        assert process.stderr is not None
        with process.stderr as told:
            text = told.read().decode()
        assert process.wait(WAIT) == 0, text

    def serve(self, *argv: str, ready: str) -> None:
        """Start the server, and wait until a line of its log holds the text."""
        self._process = start(self.as_user(*argv), stdout=PIPE, stderr=PIPE, env=self.environment)
        is_ready = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, ready, is_ready), name="log of a server", daemon=True)
            for pipe in (self._process.stdout, self._process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        if not is_ready.wait(3 * WAIT):
            self.stop()
            raise AssertionError("it does not serve:\n" + "".join(self._log))

    @property
    def environment(self) -> Mapping[str, str]:
        """Its environment, with nothing of the user's own."""
        return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)}

    def _read(self, pipe: object, ready: str, is_ready: threading.Event) -> None:
        with pipe:  # type: ignore[attr-defined]
            for line in pipe:  # type: ignore[attr-defined]
                self._log.append(line.decode(errors="replace"))
                if ready in self._log[-1]:
                    is_ready.set()

    def stop(self) -> None:
        """End it with all connections, and remove its files."""
        self._process.send_signal(signal.SIGINT)
        end(self._process, WAIT)
        for reader in self._readers:
            reader.join(WAIT)
        self._reservation.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(Service):
    """PostgreSQL, which root may not run. Over TCP it asks for the password, over its socket for nothing."""

    name = "relay"  # of the user and of the database

    def __init__(self) -> None:
        super().__init__("postgres")
        data, secret = self.folder / "data", self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        access = "--auth-host=scram-sha-256", "--auth-local=trust", f"--pwfile={secret}"
        fast = "--no-sync", "--encoding=UTF8", "--locale=C"
        self.run(f"{POSTGRES}/initdb", f"--pgdata={data}", f"--username={self.name}", *access, *fast)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.serve(f"{POSTGRES}/postgres", "-D", str(data), *options, ready="ready to accept connections")

    @property
    def socket(self) -> str:
        """The path of its socket, whose name libpq knows."""
        return f"{self.folder}/.s.PGSQL.{self.port}"


class Redis(Service):
    """Redis, which keeps nothing on disk."""

    def __init__(self) -> None:
        super().__init__()
        where = "--bind", LOOPBACK, "--port", str(self.port), "--unixsocket", self.socket, "--dir", str(self.folder)
        self.serve(str(REDIS), *where, "--save", "", "--appendonly", "no", ready="Ready to accept connections")

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return f"{self.folder}/redis.sock"


class Nginx(Service):
    """nginx with one page, over TCP, at its socket, and over TLS at a port of its own."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__()
        (self.folder / "page").write_text(PAGE)
        self._tls = socket.socket()
        self._tls.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tls.bind((LOOPBACK, 0))
        self.tls_port: int = self._tls.getsockname()[1]
        folders = "".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.folder / "nginx.conf").write_text(
            f"""
            daemon off; master_process off; pid {self.folder}/pid; error_log stderr notice;
            events {{}}
            http {{
                access_log off; {folders}
                server {{
                    listen {self.address}; listen unix:{self.socket}; listen {LOOPBACK}:{self.tls_port} ssl;
                    ssl_certificate {certificates.cert}; ssl_certificate_key {certificates.key};
                    root {self.folder};
                }}
            }}
            """
        )
        self.serve(str(NGINX), "-c", f"{self.folder}/nginx.conf", "-e", "stderr", ready="getrlimit")

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return f"{self.folder}/nginx.sock"

    def stop(self) -> None:
        """End it, and remove its files."""
        super().stop()
        self._tls.close()


class GitDaemon(Service):
    """git's own server, with one repository of two hundred commits, ``git://…/origin``, which takes pushes as well."""

    def __init__(self) -> None:
        super().__init__()
        self.repository = self.folder / "origin"
        self.run(str(GIT), "init", "--quiet", "--bare", "--initial-branch=main", str(self.repository))
        with tempfile.NamedTemporaryFile("wb") as history:
            history.write(b"".join(map(_commit, range(1, 201))))
            history.flush()
            self.run("sh", "-c", f"exec git -C {self.repository} fast-import --quiet < {history.name}")
        where = f"--listen={LOOPBACK}", f"--port={self.port}", "--reuseaddr", f"--base-path={self.folder}"
        what = "--export-all", "--enable=receive-pack", "--verbose"
        self.serve(str(GIT), "daemon", *where, *what, str(self.repository), ready="Ready to rumble")

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of git, with nothing of the user's own."""
        return {**super().environment, "GIT_CONFIG_NOSYSTEM": "1"}


def _commit(number: int) -> bytes:
    """One commit, as git-fast-import(1) reads it: a new file, and another that changes."""
    text = hashlib.shake_128(b"%d" % number).hexdigest(5000).encode()
    files = b"".join(
        b"M 644 inline %s\ndata %d\n%s\n" % (name, len(text), text) for name in (b"file-%d" % number, b"changing")
    )
    head = b"commit refs/heads/main\ncommitter Me <me@example> %d +0000\n" % (10**9 + number)
    return head + b"data %d\ncommit %d\n" % (len(b"commit %d" % number), number) + files
