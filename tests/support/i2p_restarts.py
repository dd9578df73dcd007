"""Real routers and programs end and come back. That takes minutes, so it runs as a program beside the other tests.

``python i2p_restarts.py FOLDER [SCENARIO]...`` prints one line of JSON: a scenario → the seconds that it took until
all was well again, or what went wrong.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import i2pd
from command_rig import Command, run
from helpers import BLOCK, Server, Thread, echo, ending, receive_exactly, wait_until
from i2p_world import SHORT, Cable
from plain_sam import blaming, wait_until_reached
from scenarios import check_routers, journal, program_log, read_line, run_all

import relay
from relay.addresses.destinations import PrivateKey
from relay.transports.i2p import key_file, reachability, standby

# Seconds for each step that waits for routers. i2pd may try no more to publish a lease set that no floodfill confirms.
# relay replaces such a session after two checks of 95 s; the new one takes 33 s, and the client's 40 s more.
DEADLINE = 330.0
ATTEMPT = 3.0  # seconds for one client
AT_LAST = 20.0  # seconds of service that show that it lasts
FOUND = 120.0  # seconds for a router that has just started to find a destination
RENEWED, RENEWALS = 20.0, 2  # seconds of a session, and how many more there are
RETURN = 180.0  # seconds for a relay to find another one: several sessions of a router that has just started
LATEST = 580.0  # seconds; before the tests give up

LOAD = BLOCK[: 1 << 16]
USERS, USED = 8, 100  # threads with clients of a destination, and how many clients there are at least
OFTEN = (10.0, 20.0)  # seconds from one check of a machine that serves to the next, at least and at most
PAUSE = 0.05  # seconds from one stream to the next, for the other scenarios

Scenario = Callable[[i2pd.Network, str], float]


def place(router: i2pd.Router) -> str:
    """Its bridge, for programs outside the network."""
    return "{}:{}".format(*router.sam)


def serve(router: i2pd.Router | str | list[str], service: str, **options: Any) -> relay.TunnelServer:
    """Publish a service; the session is made in 20 seconds, as for every client."""
    sam = place(router) if isinstance(router, i2pd.Router) else router
    given = {"accept": "accept", **SHORT, **options}  # a router in another network cannot connect to us
    return relay.TunnelServer("", int(service.rpartition(":")[2]), sam, **given)


def reach(router: i2pd.Router, dest: str) -> relay.TunnelClient:
    """Open a port that leads to a destination."""
    return relay.TunnelClient("", 0, dest, place(router), **SHORT)


def is_served(tunnel: relay.TunnelClient) -> bool:
    """Return true if a new client gets an answer. The journal tells what each one got."""
    begin = time.monotonic()
    try:
        with socket.create_connection(tunnel.address, ATTEMPT) as client:
            client.sendall(b"anybody?")
            got = receive_exactly(client, 8)
    except OSError as error:
        outcome = repr(error)
    else:
        if got == b"anybody?":
            return True
        outcome = f"{got!r} and an end"
    journal.info("%s after %.1f s; %s", outcome, time.monotonic() - begin, _state_of(tunnel))
    return False


def _state_of(tunnel: Any) -> str:
    """Describe a tunnel of this process, for the journal."""
    if not isinstance(tunnel, relay.Tunnel):
        return "another process"
    state = getattr(tunnel, "state", "without a session of its own")
    return f"{tunnel.name} is {state}, open {tunnel.connections()}, last {tunnel.recent()[-1:]}"


@contextlib.contextmanager
def live(tunnel: relay.TunnelClient) -> Iterator[socket.socket]:
    """A client that is served."""
    until_served(tunnel)
    with socket.create_connection(tunnel.address, DEADLINE) as client:
        client.sendall(b"hello")
        assert receive_exactly(client, 5) == b"hello"
        yield client


def until_served(tunnel: relay.TunnelClient, deadline: float = DEADLINE) -> float:
    """Seconds from now on."""
    begin = time.monotonic()
    while not is_served(tunnel):
        check_routers()
        assert time.monotonic() < begin + deadline, f"not served for {deadline} s"
        threading.Event().wait(0.002)
    return time.monotonic() - begin


def until_lost(tunnel: relay.TunnelServer | relay.TunnelClient) -> None:
    """Wait until a tunnel has noticed that its session is gone.

    The reason of its connections tells less: their sockets may end long before that of the session on a busy machine.
    """
    wait_until(lambda: tunnel.state not in ("up", "published"))


def the_servers_router_restarts(network: i2pd.Network, service: str) -> float:
    """Traps 1 and 2."""
    router = network.router(1)
    with (
        blaming(router, network.router(2)),
        serve(router, service) as server,
        reach(network.router(2), server.dest) as client,
    ):
        dest = server.dest
        with live(client):
            router.kill()
            until_lost(server)
        router.start()
        seconds = until_served(client)
        assert server.dest == dest
        assert server.wait_published(DEADLINE), "it is served and not published"
        assert until_served(client) < DEADLINE
        return seconds


def the_first_of_the_servers_routers_ends(network: i2pd.Network, service: str) -> float:
    """It does not come back, and the destination is at the second one."""
    first, second = network.router(5), network.router(4)
    with (
        blaming(second, network.router(2)),
        serve([place(first), place(second)], service) as server,
        reach(network.router(2), server.dest) as client,
    ):
        dest = server.dest
        with blaming(first, network.router(2)):
            until_served(client)
        with live(client):
            first.kill()
            until_lost(server)
        seconds = until_served(client)
        assert server.dest == dest
        return seconds


def the_clients_router_restarts(network: i2pd.Network, service: str) -> float:
    """Trap 3."""
    router = network.router(3)
    with (
        blaming(network.router(2), router),
        serve(network.router(2), service) as server,
        reach(router, server.dest) as client,
    ):
        dest = client.dest
        with live(client) as end:
            router.kill()
            ending(end)  # the sockets of its streams and of its session end in any order
            until_lost(client)
        router.start()
        seconds = until_served(client)
        assert client.dest != dest
        return seconds


def the_control_socket_is_cut(network: i2pd.Network, service: str) -> float:
    """Trap 1 while the router lives, and trap 2."""
    with (
        blaming(network.router(4), network.router(2)),
        Cable(place(network.router(4))) as cable,
        serve(cable.sam, service) as server,
        reach(network.router(2), server.dest) as client,
    ):
        dest = server.dest
        with live(client):
            cable.cut_control()
            until_lost(server)
        seconds = until_served(client)
        assert server.dest == dest
        return seconds


def the_router_cannot_connect_to_the_program(network: i2pd.Network, service: str) -> float:
    """It promises to do so, and no stream comes: streams are accepted one by one then."""
    with (
        blaming(network.router(4), network.router(2)),
        serve(network.router(4), service, accept=None) as server,
        reach(network.router(2), server.dest) as client,
    ):
        return until_served(client)


def the_program_is_killed_and_started_again(network: i2pd.Network, service: str) -> float:
    """Trap 1 in another program: the lock that the killed one has left says that its session may have just ended."""
    return _started_again(network, service, signal.SIGKILL)


def the_program_ends_and_is_started_again(network: i2pd.Network, service: str) -> float:
    """Trap 1 is stepped round: a program that ends leaves word."""
    return _started_again(network, service, signal.SIGTERM)


def _started_again(network: i2pd.Network, service: str, number: int) -> float:
    keys = network.router(4).folder / f"program-{number}.dat"
    address = f"i2p:?sam={place(network.router(4))}&accept=accept&in_depth=0&out_depth=0"
    arguments = (service, "--on", address, "--keys", str(keys), "--drain", "0")
    with command(*arguments) as (dest, _, process):
        process.send_signal(number)
        process.wait(DEADLINE)
    begin = time.monotonic()
    with (
        blaming(network.router(4), network.router(2)),
        command(*arguments) as (again, published, _),
        reach(network.router(2), again) as client,
    ):
        assert again == dest
        published.result(DEADLINE)
        return until_served_for(AT_LAST, client) - begin


def sessions_are_renewed_under_load(network: i2pd.Network, service: str) -> float:
    """A new session takes new streams, and the old one ends with its last stream, so that no client notices.

    :returns: the seconds of the slowest stream.
    """
    with (
        blaming(network.router(4), network.router(2)),
        serve(network.router(4), service) as server,
        relay.TunnelClient("", 0, server.dest, place(network.router(2)), renew_after=RENEWED, **SHORT) as client,
        live(client) as lasting,
    ):
        slowest, seen, until = 0.0, {client.dest}, time.monotonic() + DEADLINE
        while len(seen) <= RENEWALS:
            check_routers()
            begin = time.monotonic()
            assert begin < until, f"{len(seen) - 1} renewals in {DEADLINE} s"
            with socket.create_connection(client.address, DEADLINE) as one:
                one.sendall(LOAD)
                assert receive_exactly(one, len(LOAD)) == LOAD
            slowest = max(slowest, time.monotonic() - begin)
            lasting.sendall(b"still")
            assert receive_exactly(lasting, 5) == b"still"
            seen.add(client.dest)
            threading.Event().wait(PAUSE)
        failed = client.stats().failed
        # I2P has no half-close; a client that gave up before the first was served may get its answer later.
        assert {*failed} <= {"linger", "client_reset"}, failed
        return slowest


def the_program_is_upgraded(network: i2pd.Network, service: str) -> float:
    """Its session ends first, because a router has only one of the same keys."""
    router = network.router(4)  # one that no scenario ends
    folder = router.folder / "upgraded"
    folder.mkdir()
    keys, control, key = folder / "keys.dat", folder / "control.sock", PrivateKey.generate()
    key_file.write(keys, key)
    text = f"""
        control = "{control}"
        [tunnels.site]
        listen = "i2p:?sam={place(router)}&accept=accept&in_depth=0&out_depth=0"
        keys = "{keys}"
        target = "{service}"
        drain = 5
    """
    file = folder / "relay.toml"
    file.write_text(text)
    file.chmod(0o600)
    with program_log("up") as log, Command(str(file), "-v", command="up", stderr=log).process as process:
        try:
            with blaming(router, network.router(2)), reach(network.router(2), key.b32) as client:
                until_served(client)
                upgrade = Thread(run, "ctl", "upgrade", "--control", str(control))
                last = time.monotonic()
                while is_served(client):
                    assert time.monotonic() < last + DEADLINE
                    last = time.monotonic()
                    threading.Event().wait(0.2)
                served = until_served_for(AT_LAST, client)
                done = upgrade.result(DEADLINE)
                assert done.returncode == 0, done.stderr
                process.wait(DEADLINE)
                return served - last
        finally:
            run("ctl", "stop", "--control", str(control))
            wait_until(lambda: not control.exists())
            process.kill()


def until_served_for(seconds: float, tunnel: relay.TunnelClient) -> float:
    """Return the moment from which every client is served for so long; in monotonic seconds."""
    since: float = time.monotonic()
    deadline = since + DEADLINE
    while time.monotonic() < since + seconds:
        if not is_served(tunnel):
            since = time.monotonic()
        assert since < deadline, "it does not last"
        threading.Event().wait(0.5)
    return since


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[tuple[str, Thread, Any]]:
    """``relay expose``: its address, a thread that ends when it says that this is published, and its process."""
    with program_log("expose") as log, Command(*arguments, "-v", command="expose", stderr=log).process as process:
        try:
            said = read_line(process.stdout)
            dest = next(word for word in said.split() if word.endswith(".b32.i2p"))
            yield dest, Thread(_published, process), process
        finally:
            process.kill()


def _published(process: Any) -> None:
    assert read_line(process.stdout).startswith("published")


def the_active_machine_dies(network: i2pd.Network, service: str) -> float:
    """Program and router are killed; another machine with the same keys takes over, and is not cut at their return."""
    first, second = network.router(6), network.router(4)
    files = [Path(first.folder, "active.dat"), Path(second.folder, "standby.dat")]
    key = PrivateKey.generate()
    for file in files:
        key_file.write(file, key)

    def arguments(router: i2pd.Router, keys: Path) -> tuple[str, ...]:
        address = f"i2p:?sam={place(router)}&accept=accept&in_depth=0&out_depth=0&standby=yes"
        return (service, "--on", address, "--keys", str(keys), "--drain", "0")

    with contextlib.ExitStack() as stack:
        stack.enter_context(blaming(second, network.router(2)))
        dest, _, active = stack.enter_context(command(*arguments(first, files[0])))
        other = _standing_by(stack, *arguments(second, files[1]))
        client = stack.enter_context(reach(network.router(2), dest))
        with reach(network.router(8), dest) as busy, live(busy):
            is_over = threading.Event()
            users = [Thread(_use, busy, is_over) for _ in range(USERS)]
            wait_until(lambda: busy.stats().accepted > USED)
            active.kill()
            first.kill()
            is_over.set()
        begin = time.monotonic()
        for user in users:
            user.result(DEADLINE)
        _published(other)
        until_served(client)
        seconds = time.monotonic() - begin
        first.start()
        wait_until_reached(dest, first, FOUND)
        with live(client) as end:
            with blaming(second, first):
                _standing_by(stack, *arguments(first, files[0]))
            end.sendall(b"still")
            assert receive_exactly(end, 5) == b"still"
        return seconds


def _use(tunnel: relay.TunnelClient, is_over: threading.Event) -> None:
    while not is_over.is_set():
        is_served(tunnel)


def _standing_by(stack: contextlib.ExitStack, *arguments: str) -> Any:
    """Start ``relay expose``, which says that it stands by; return its process."""
    log = stack.enter_context(program_log("standby"))
    process = stack.enter_context(Command(*arguments, "-v", command="expose", stderr=log).process)
    stack.callback(process.kill)
    read_line(process.stdout)
    assert read_line(process.stdout, RETURN).startswith("standing by")
    return process


def the_network_is_in_two_parts(network: i2pd.Network, service: str) -> float:
    """Both machines serve the destination then; when the parts are one again, one of them ends its session.

    i2pd publishes a destination again up to 100 s after another router has replaced it, so that every second check of a
    machine reaches itself. The checks come more often than otherwise, for the scenario to have an end.

    :returns: the seconds from then on.
    """
    first, second = network.router(7), network.router(4)
    files = [Path(first.folder, "one.dat"), Path(second.folder, "two.dat")]
    key = PrivateKey.generate()
    for file in files:
        key_file.write(file, key)
    with contextlib.ExitStack() as stack:
        stack.enter_context(blaming(second, network.router(2)))
        stack.enter_context(patch.object(reachability, "SHARED", OFTEN))
        with patch.object(standby, "ROUNDS", ()):  # the first of all need not ask for 90 s whether there is another one
            one = stack.enter_context(serve(first, service, keys=files[0], standby=True))
        _until_one_is(one, state="published")
        other = stack.enter_context(serve(second, service, keys=files[1], standby=True))
        assert other.state == "standing by"
        first.part()
        try:
            _until_one_is(other, state="published")
            client = stack.enter_context(reach(network.router(2), other.dest))
            until_served(client)
            assert one.state == "published"  # for the clients of its part
        finally:
            first.join()
        seconds = _until_one_is(one, other, state="standing by")
        assert {one.state, other.state} == {"standing by", "published"}
        until_served(client)
        return seconds


def _until_one_is(*servers: relay.TunnelServer, state: str) -> float:
    """Seconds from now on."""
    begin = time.monotonic()
    while all(server.state != state for server in servers):
        check_routers()
        states = [server.state for server in servers]
        assert time.monotonic() < begin + DEADLINE, f"{states}, not {state}, after {DEADLINE} s"
        threading.Event().wait(0.05)
    return time.monotonic() - begin


STANDBY = (the_active_machine_dies.__name__, the_network_is_in_two_parts.__name__)
RENEWAL = (sessions_are_renewed_under_load.__name__,)
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        the_servers_router_restarts,
        the_first_of_the_servers_routers_ends,
        the_clients_router_restarts,
        the_control_socket_is_cut,
        the_router_cannot_connect_to_the_program,
        the_program_is_killed_and_started_again,
        the_program_ends_and_is_started_again,
        sessions_are_renewed_under_load,
        the_program_is_upgraded,
        the_active_machine_dies,
        the_network_is_in_two_parts,
    )
}


@contextlib.contextmanager
def _ground(folder: Path) -> Iterator[tuple[Any, ...]]:
    service = Server(echo)
    try:
        with i2pd.Network(folder, 8, loglevel="warn") as network:
            yield network, network, "{}:{}".format(*service.address)
    finally:
        service.close()


if __name__ == "__main__":
    run_all(SCENARIOS, _ground, LATEST)
