"""Real SSH servers that are not OpenSSH's, and what each of them supports; docs/ssh.md is its table."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helpers import WAIT
from sshd import LOOPBACK, RealServer, server_url

from relay.process import DEVNULL, PIPE, start

PASSWORD = "correct horse"
# The same for crypt(3).
_HASHED = "$6$relay$bztxngTRgskuE7RA.dyCMZ6w79g7h00/yTZ0UilmH4.B8yY6HGBKR32IuTTmhaplxs.1ttBAdUDVfiE2sUXc/0"

_PROGRAMS = Path(__file__).with_name("foreign_servers")
_DROPBEAR = shutil.which("dropbear", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
_GO = shutil.which("go")
_GO_SOURCES = Path("/usr/share/gocode")
# Takes the place of the system's database of users.
_NSS_WRAPPER = next(Path("/usr/lib").glob("*/libnss_wrapper.so"), None)


class ForeignServer(RealServer):
    """A server that accepts its client key and :data:`PASSWORD`.

    :param built: where programs are kept that are built for the tests.
    """

    def __init__(self, folder: Path, built: Path, **options: Any) -> None:
        self._built = built
        super().__init__(folder, **options)

    def _write_files(self) -> None:
        super()._write_files()
        self.password_file = self.folder / "password"
        self.password_file.touch(0o600)
        self.password_file.write_text(PASSWORD)

    def url_of(self, backend: str, login: str = "key", **more: object) -> str:
        """The server as an address for a client that logs in by ``key`` or by ``password``."""
        server = dataclasses.replace(self.server, backend=backend)
        if login == "password":
            more |= {"keyfile": None, "password_file": self.password_file}
        return server_url(server, **more)


class Dropbear(ForeignServer):
    """dropbear. It knows users by the system's database alone, so that it gets one with the test's user in it."""

    ready = "Not backgrounding"

    def _write_files(self) -> None:
        super()._write_files()
        home = self.folder / "home"
        (home / ".ssh").mkdir(0o700, parents=True)
        home.chmod(0o700)
        shutil.copy(self.folder / "authorized_keys", home / ".ssh")
        (self.folder / "passwd").write_text(f"{self.user}:x:{os.getuid()}:{os.getgid()}::{home}:/bin/sh\n")
        (self.folder / "group").write_text(f"{self.user}:x:{os.getgid()}:\n")
        (self.folder / "shadow").write_text(f"{self.user}:{_HASHED}:20000:0:99999:7:::\n")
        _run("dropbearconvert", "openssh", "dropbear", f"{self.folder}/host_key", f"{self.folder}/dropbear_key")

    def environment(self) -> dict[str, str]:
        database = {f"NSS_WRAPPER_{name.upper()}": f"{self.folder}/{name}" for name in ("passwd", "group", "shadow")}
        return {**os.environ, **database, "LD_PRELOAD": str(_NSS_WRAPPER)}

    def command(self) -> list[str]:
        key, pid = f"{self.folder}/dropbear_key", f"{self.folder}/pid"
        return [str(_DROPBEAR), "-F", "-E", "-r", key, "-P", pid, "-p", f"{LOOPBACK}:{self.inner_port}"]


class _Python(ForeignServer):
    program: str

    def command(self) -> list[str]:
        return [sys.executable, str(_PROGRAMS / self.program), str(self.folder), self.user, str(self.port)]


class Asyncssh(_Python):
    """asyncssh."""

    program = "asyncssh_server.py"


class Conch(_Python):
    """Twisted Conch."""

    program = "conch_server.py"


class Go(ForeignServer):
    """Go's x/crypto/ssh."""

    def command(self) -> list[str]:
        return [str(_built_by_go(self._built)), str(self.folder), self.user, str(self.port)]


def _built_by_go(folder: Path) -> Path:
    """The server as a program, built at most once for each version of it, whatever runs side by side."""
    source = _PROGRAMS / "server.go"
    program = folder / f"server-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            made = program.with_suffix(".new")
            # Debian's packages are sources in a GOPATH; nothing is downloaded.
            settings = {"GO111MODULE": "off", "GOPATH": str(_GO_SOURCES), "GOFLAGS": "", "CGO_ENABLED": "0"}
            environment = {**os.environ, **settings, "GOCACHE": str(folder / "cache")}
            _run(str(_GO), "build", "-o", str(made), str(source), env=environment)
            made.rename(program)
    return program


def _run(*argv: str, env: Mapping[str, str] | None = None) -> None:
    process = start(argv, stdout=DEVNULL, stderr=PIPE, env=env)
    assert process.stderr is not None
    with process.stderr as errors:
        text = errors.read().decode()
    assert process.wait(WAIT) == 0, text


class Peer(NamedTuple):
    """A kind of server.

    :param server: makes one.
    :param packages: what has to be installed.
    :param needs: files of these packages.
    :param limits: what it does not support, a column → the words of the table; it supports the rest.
    """

    server: Callable[[Path, Path], ForeignServer]
    packages: str
    needs: tuple[str | Path | None, ...] = ()
    limits: Mapping[str, str] = {}

    def is_there(self) -> bool:
        """Return true if it is installed."""
        return all(one is not None and Path(one).exists() for one in self.needs)

    def supports(self, column: str) -> bool:
        """Return true if it supports a column of the table."""
        assert column in COLUMNS
        return column not in self.limits


COLUMNS = (
    "login by key",
    "login by password",
    "64 MiB each way",
    "100 streams",
    "half-close",
    "target ends first",
    "refused target",
    "expose",
    "expose: any port",
    "expose: half-close",
    "restart",
)

PEERS = {
    "dropbear": Peer(Dropbear, "Debian: dropbear-bin, libnss-wrapper", (_DROPBEAR, _NSS_WRAPPER)),
    "asyncssh": Peer(Asyncssh, "PyPI: asyncssh"),
    "Go x/crypto/ssh": Peer(Go, "Debian: golang-go, golang-golang-x-crypto-dev", (_GO, _GO_SOURCES)),
    "Twisted Conch": Peer(
        Conch,
        "PyPI: twisted[conch]",
        limits={
            "half-close": "no: the target does not see it",
            "target ends first": "no: the rest from the client is lost",
            "refused target": "no: end of file",
            "expose: any port": "`backend=paramiko` only; else give `listen=HOST:PORT`",
            "expose: half-close": "no: the answer is lost",
        },
    ),
}


def table() -> list[str]:
    """The lines of the table in docs/ssh.md."""
    rows = [("", *PEERS), ("---",) * (len(PEERS) + 1)]
    rows += [(column, *(peer.limits.get(column, "yes") for peer in PEERS.values())) for column in COLUMNS]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
