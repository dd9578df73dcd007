"""Applications of others at I2P: a SAM client that gives no options, and npm's ``@diva.exchange/i2p-sam``.

Each is a client and a server for relay, over two real routers. Making their sessions takes half a minute, so it
runs as a program beside the other tests: ``python i2p_peers.py FOLDER [SCENARIO]...`` prints one line of JSON: a
scenario → the seconds that it took, and what went wrong or nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import i2pd
from helpers import Server, Thread, echo, receive_exactly, wait_until
from i2p_restarts import reach, serve, until_served
from i2p_world import NODE, NPM
from plain_sam import PlainSAM, blaming
from scenarios import check_routers, journal, read_line, run_all

import relay
from relay.process import PIPE

DEADLINE = 240.0  # seconds for each step that waits for routers
PUBLISHED = 75.0  # seconds for a client of a session that others publish, if the router publishes it at all
SESSIONS = 3
ANSWER = 15.0  # seconds for one stream to bring bytes
LATEST = 580.0  # seconds; before the tests give up
TEXT = b"anybody?"
NPM_PEER = Path(__file__).with_name("npm_peer.mjs")

Scenario = Callable[[i2pd.Network, relay.TunnelServer], float]


def a_plain_sam_client_reaches_us(network: i2pd.Network, server: relay.TunnelServer) -> float:
    """A session with the default options of i2pd must be able to reach relay."""
    begin = time.monotonic()
    with contextlib.closing(PlainSAM(network.router(2), "plain-client")) as session:

        def is_answered() -> bool:
            try:
                with session.connect(server.dest) as stream:
                    stream.settimeout(ANSWER)
                    stream.sendall(TEXT)
                    return receive_exactly(stream, len(TEXT)) == TEXT
            except OSError as error:
                journal.info("%r", error)
                return False

        with blaming(network.router(1), network.router(2)):
            wait_until(is_answered, DEADLINE)
    return time.monotonic() - begin


def we_reach_a_plain_sam_server(network: i2pd.Network, server: relay.TunnelServer) -> float:
    """The other way round."""
    begin = time.monotonic()

    def once(number: int) -> None:
        with contextlib.closing(PlainSAM(network.router(1), f"plain-server-{number}")) as session:
            threading.Thread(target=session.serve, daemon=True).start()
            with reach(network.router(2), session.dest) as client:
                until_served(client, PUBLISHED)

    with blaming(network.router(1), network.router(2)):
        _until_published(once)
    return time.monotonic() - begin


def npm_s_client_reaches_us(network: i2pd.Network, server: relay.TunnelServer) -> float:
    """The library makes a session for each stream."""
    begin = time.monotonic()
    assert server.wait_published(DEADLINE), "the destination is not published yet"
    with (
        blaming(network.router(1), network.router(2)),
        npm_peer(network, "client", network.router(2), server.dest) as said,
    ):
        assert read_line(said) == f"answered {TEXT.decode()}\n"
    return time.monotonic() - begin


def we_reach_npm_s_server(network: i2pd.Network, server: relay.TunnelServer) -> float:
    """The library has the router forward streams to a port of its program."""
    begin = time.monotonic()

    def once(_: int) -> None:
        with npm_peer(network, "server", network.router(1)) as said:
            dest = read_line(said).split()[1]
            journal.info("npm's server has its session")
            with reach(network.router(2), dest) as client:
                until_served(client, PUBLISHED)

    with blaming(network.router(1), network.router(2)):
        _until_published(once)
    return time.monotonic() - begin


def _until_published(once: Callable[[int], None]) -> None:
    """Do it again with another session, if the router has not published the last one.

    i2pd publishes a lease set at one floodfill after another. This network has two: if they do not confirm, or the
    session's tunnels are gone at that moment, the router tries no more until it makes new tunnels, after ten minutes.
    """
    for number in range(SESSIONS):
        try:
            return once(number)
        except AssertionError:
            if number == SESSIONS - 1:
                raise
            check_routers()
            journal.info("once more, with another session")


@contextlib.contextmanager
def npm_peer(network: i2pd.Network, role: str, router: i2pd.Router, *arguments: str) -> Iterator[Any]:
    """The program with npm's library, inside the network, where the router can connect to it; what it prints."""
    assert NODE is not None, "there is no node"
    argv: Sequence[str] = (NODE, str(NPM_PEER), str(NPM), role, str(router.inside[1]), *arguments)
    process = network.run(argv, stdout=PIPE, stderr=PIPE)
    errors = Thread(_journalize, process.stderr)
    said = open(process.stdout.fileno(), closefd=False)  # noqa: SIM115  (closed below)
    try:
        yield said
    finally:
        process.kill()  # which also ends a thread that reads a line, and so has the file
        process.wait(DEADLINE)
        errors.result(DEADLINE)
        said.close()
        process.stdout.close()


def _journalize(said: Any) -> None:
    """Put what a program says into the journal, until it ends."""
    with said:
        for line in said:
            journal.info("npm: %s", line.decode(errors="replace").rstrip())


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        a_plain_sam_client_reaches_us,
        we_reach_a_plain_sam_server,
        npm_s_client_reaches_us,
        we_reach_npm_s_server,
    )
}


@contextlib.contextmanager
def _ground(folder: Path) -> Iterator[tuple[Any, ...]]:
    service = Server(echo)
    try:
        with i2pd.Network(folder, 2, exploratory=0, loglevel="warn", floodfills=2) as network:
            with serve(network.router(1), "{}:{}".format(*service.address)) as server:
                yield network, network, server
    finally:
        service.close()


if __name__ == "__main__":
    run_all(SCENARIOS, _ground, LATEST)
