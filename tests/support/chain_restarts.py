"""Chains of hops over real routers and a real sshd, which end and come back. It runs beside the other tests.

``python chain_restarts.py FOLDER [SCENARIO]...`` prints one line of JSON: a scenario → the seconds that each recovery
took, by what had ended, or what went wrong.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import i2pd
from command_rig import Command
from helpers import Server, Thread, echo, ending, receive_all, receive_exactly, send_and_end
from i2p_restarts import DEADLINE, command, live, place, serve, until_served
from plain_sam import blaming
from scenarios import run_all
from sshd import Sshd, server_url

import relay

SIZE = 5 << 20  # bytes each way
KEEPALIVE = 3  # seconds: only this shows that a router at the far end has gone
LATEST = 580.0  # seconds; before the tests give up
DEPTH = "in_depth=0&out_depth=0"

Recoveries = dict[str, float]


class Way(Protocol):
    """Something with a port of this machine that leads through a chain."""

    @property
    def address(self) -> Any:
        """The port, with its host."""


class Ground:
    """A network, and a service on this machine that the chains lead to.

    Routers 1 and 3 are ended and started by a scenario, router 2 stays; router 4, which is ended as well, has a bridge
    that cannot be reached but from inside the network.
    """

    def __init__(self, network: i2pd.Network, folder: Path, service: str) -> None:
        self.network = network
        self.service = service
        self._folder = folder

    @contextlib.contextmanager
    def sshd(self, name: str, **options: Any) -> Iterator[Sshd]:
        """A server that runs."""
        folder = self._folder / name
        folder.mkdir()
        server = Sshd(folder, **options)
        try:
            yield server.start()
        finally:
            server.stop()


def hop(sam: str) -> str:
    """A router as a hop."""
    return f"i2p:?sam={sam}&{DEPTH}"


def over_i2p(server: Sshd, destination: str) -> str:
    """A server as a hop that is reached at its destination, and known by its key."""
    known = server.folder / "known_over_i2p"
    known.write_text(f"{destination} {server.host_key_line}\n")
    shown = server_url(server.server, known_hosts=known, keepalive=KEEPALIVE)
    return shown.replace(f"127.0.0.1:{server.port}", destination)


@contextlib.contextmanager
def in_python(target: str, *via: str) -> Iterator[Way]:
    """A tunnel in this process."""
    with relay.Tunnel(relay.listen(":0"), relay.target(target, via), timeout=None, connect_timeout=90.0) as tunnel:
        yield tunnel


class Forward:
    """``relay forward`` in a process of its own."""

    def __init__(self, running: Command) -> None:
        self.address = running.address()


@contextlib.contextmanager
def by_command(target: str, *via: str) -> Iterator[Way]:
    """The same with the command."""
    arguments = [word for one in via for word in ("--via", one)]
    running = Command(":0", target, *arguments, "--connect-timeout", "90", stderr=subprocess.DEVNULL)
    with running.process as process:
        try:
            yield Forward(running)
        finally:
            process.kill()


def carry(way: Way, *, half_close: bool = True) -> None:
    """Send five megabytes, get them back, and compare.

    Where a half-close would be held, its ``linger`` ends an answer that pauses for longer, as routers may let it.
    """
    data = os.urandom(SIZE)
    until_served(way)
    with socket.create_connection(way.address, DEADLINE) as client:
        sending = Thread(send_and_end if half_close else socket.socket.sendall, client, data)
        assert (receive_all(client) if half_close else receive_exactly(client, SIZE)) == data
        sending.result(DEADLINE)


def recovery(way: Way, down: Callable[[], object], up: Callable[[], object]) -> float:
    """End something with a client on the way, bring it back; the seconds until new clients are served."""
    with live(way) as client:
        down()
        assert ending(client) == "reset"
    up()
    return until_served(way)


def an_sshd_as_a_destination(ground: Ground) -> Recoveries:
    """Through I2P and then SSH, in Python; what is at the far end goes down."""
    router, near = ground.network.router(1), ground.network.router(2)
    with (
        blaming(router, near),
        ground.sshd("published") as server,
        serve(router, f"127.0.0.1:{server.port}") as published,
    ):
        destination = relay_b32(published)
        via = hop(place(near)), over_i2p(server, destination)
        with in_python(ground.service, *via) as way:
            carry(way)
            seconds = {"sshd": recovery(way, server.kill, server.start)}
            seconds["the server's router"] = recovery(way, router.kill, router.start)
            assert relay_b32(published) == destination
            return seconds


def an_sshd_as_a_destination_by_command(ground: Ground) -> Recoveries:
    """The same with the command at both ends; what is at the near end goes down."""
    router, far = ground.network.router(3), ground.network.router(2)
    with blaming(far, router), ground.sshd("exposed") as server:
        on = f"{hop(place(far))}&accept=accept"
        with command(f"127.0.0.1:{server.port}", "--on", on, "--transient") as (destination, _, _):
            with by_command(ground.service, hop(place(router)), over_i2p(server, destination)) as way:
                carry(way)
                return {"the client's router": recovery(way, router.kill, router.start)}


def a_bridge_behind_sshd(ground: Ground) -> Recoveries:
    """Through SSH to where the router is, and then I2P."""
    router, elsewhere = ground.network.router(4), ground.network.router(2)
    sam = "{}:{}".format(*router.inside)
    with (
        blaming(elsewhere, router),
        serve(elsewhere, ground.service) as published,
        ground.sshd("inside", namespace=ground.network.namespace) as server,
        in_python(relay_b32(published), server.url, hop(sam)) as way,
    ):
        carry(way, half_close=False)
        for other in (router.inside, router.sam):
            assert is_refused(other), f"the bridge can be reached directly, at {other}"
        return {
            "sshd": recovery(way, server.kill, server.start),
            "the router": recovery(way, router.kill, router.start),
        }


def relay_b32(published: relay.TunnelServer) -> str:
    """Its short address."""
    from relay.addresses.destinations import b32_of

    return b32_of(published.dest)


def is_refused(address: tuple[str, int]) -> bool:
    """Return true if the address refuses connections."""
    with socket.socket() as probe:
        probe.settimeout(DEADLINE)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            return True
        return False


SCENARIOS: dict[str, Callable[[Ground], Recoveries]] = {
    scenario.__name__: scenario
    for scenario in (an_sshd_as_a_destination, an_sshd_as_a_destination_by_command, a_bridge_behind_sshd)
}


@contextlib.contextmanager
def _ground(folder: Path) -> Iterator[tuple[Any, ...]]:
    service = Server(echo)
    try:
        with i2pd.Network(folder, 4, exploratory=0, loglevel="warn") as network:
            network.router(4).hide()
            yield network, Ground(network, folder, "{}:{}".format(*service.address))
    finally:
        service.close()


if __name__ == "__main__":
    run_all(SCENARIOS, _ground, LATEST)
