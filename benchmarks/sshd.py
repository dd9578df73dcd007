"""A real SSH server for the measurements: with keys of its own, on a port of its own, for its own user alone."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .machine import LOOPBACK, Process, compiled, free_port, program, run

DELAY = 50  # milliseconds each way
MBITS = 1000
CONFIGURATION = """Port {port}
ListenAddress {address}
HostKey {directory}/host
AuthorizedKeysFile {directory}/client.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
LogLevel ERROR
"""


@dataclass(frozen=True)
class Server:
    """An SSH server.

    :param port: on 127.0.0.1.
    :param user: who may log in.
    :param key: the file of the private key to log in with.
    :param known_hosts: the file that holds the server's key.
    """

    port: int
    user: str
    key: Path
    known_hosts: Path


@contextmanager
def ssh_server(directory: Path) -> Iterator[Server]:
    """Debian's sshd with its own settings wherever they can matter.

    :param directory: an empty one, for keys and configuration.
    """
    port = free_port()
    for name in ("host", "client"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], 10)
    configuration = directory / "sshd.conf"
    configuration.write_text(CONFIGURATION.format(port=port, address=LOOPBACK, directory=directory))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # what it gives up its privileges in
    with Process([program("sshd"), "-D", "-e", "-f", str(configuration)], port, directory / "log"):
        yield _known(Server(port, getpass.getuser(), directory / "client", directory / "known_hosts"))


@contextmanager
def delayed(server: Server, milliseconds: int = DELAY) -> Iterator[Server]:
    """The same server at the far end of a long link: 100 ms there and back, 1 Gbit/s.

    :param server: the server.
    :param milliseconds: of the link, each way.
    """
    with linked(server.port, milliseconds, server.key.parent) as port:
        yield _known(replace(server, port=port))


@contextmanager
def linked(there: int, milliseconds: int, directory: Path) -> Iterator[int]:
    """A port of 127.0.0.1 at the far end of a long link; returns its port at this end.

    :param there: its port.
    :param milliseconds: of the link, each way.
    :param directory: for the program and its log.
    """
    port = free_port()
    delay = compiled(Path(__file__).parent / "c" / "delay.c", directory)
    arguments = [delay, str(port), str(there), str(milliseconds), str(MBITS)]
    with Process(arguments, port, directory / "delay.log"):
        yield port


def _known(server: Server) -> Server:
    """Write its key down under its address."""
    key = server.key.with_name("host.pub").read_text()
    server.known_hosts.write_text(f"[{LOOPBACK}]:{server.port} {key}")
    return server
