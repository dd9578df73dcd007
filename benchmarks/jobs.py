"""Peers and their jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trustme

from .sshd import Server

DIRECT = "direct"  # the peer that is none
HELD = 9000  # connections at once that a peer is set up for, unless a row has more


@dataclass(frozen=True)
class Target:
    """The target of a relay.

    :param port: on 127.0.0.1.
    :param ca: the file of the authority that signed its certificate for ``localhost``, if it speaks TLS.
    :param name: under which it is looked up for each connection, if it is to be.
    :param behind: the port that a proxy is to connect to, if this target is one.
    :param server: the SSH server to go through, if any.
    :param before: the one to go through on the way to that.
    """

    port: int
    ca: Path | None = None
    server: Server | None = None
    before: Server | None = None
    name: str | None = None
    behind: int | None = None


@dataclass(frozen=True)
class Job:
    """The job of a peer.

    :param directory: its own, for its configuration.
    :param port: where to listen on 127.0.0.1.
    :param target: where to lead.
    :param core: an idle core, for the busy thread of the programs that have one.
    :param connections: the most at one time.
    """

    directory: Path
    port: int
    target: Target
    core: int
    connections: int = HELD

    @property
    def server(self) -> Server:
        """The SSH server to go through."""
        assert self.target.server is not None, "this peer goes through an SSH server"
        return self.target.server

    @property
    def route(self) -> list[Server]:
        """The SSH servers to go through, the nearest first."""
        return [server for server in (self.target.before, self.target.server) if server is not None]

    def certify(self) -> Path:
        """Write a certificate for ``localhost`` into the directory; returns the file of its authority."""
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(str(self.directory / "ca.pem"))
        certificate.private_key_pem.write_to_path(str(self.directory / "server.key"))
        for pem in certificate.cert_chain_pems:
            pem.write_to_path(str(self.directory / "server.pem"), append=True)
        # As HAProxy and stunnel read it.
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.directory / "both.pem"))
        return self.directory / "ca.pem"

    def write(self, name: str, text: str) -> str:
        """Write a configuration file; returns its path."""
        path = self.directory / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True)
class Peer:
    """One column of the results.

    :param title: its name for people.
    :param start: returns the argument list that does a job; raises :class:`UnavailableError`.
    """

    title: str
    start: Callable[[Job], list[str]]
