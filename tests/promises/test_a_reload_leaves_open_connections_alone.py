"""Ten reloads in a row under load: no client is refused, no byte is lost, and open connections go on."""

import hashlib
import signal
import socket
import subprocess
import threading

import pytest
from command_rig import commands
from group_rig import letter
from helpers import BLOCK, WAIT, receive_exactly, send_and_end, wait_until

RELOADS = 10
DIGEST = hashlib.sha256(BLOCK).digest()


def hash_of_all(connection):
    """A server that sends the hash of what it gets, as far as the client's EOF."""
    found = hashlib.sha256()
    while data := connection.recv(1 << 16):
        found.update(data)
    connection.sendall(found.digest())


@pytest.fixture
def up(tmp_path):
    """Starts the tunnels of a text; returns the command, a function that reloads, and the ports by name."""
    path = tmp_path / "relay.toml"
    path.touch(0o600)
    with commands() as make:

        def start(text):
            path.write_text(text)
            command = make(str(path), command="up", stdin=subprocess.DEVNULL)
            ports = {}
            for _ in range(text.count("[tunnels.")):
                name, _, rest = command.process.stdout.readline().partition(": listening on 127.0.0.1:")
                ports[name] = int(rest.split()[0])

            def reload(text, words="tunnels changed"):
                path.write_text(text)
                command.process.send_signal(signal.SIGHUP)
                return command.hear(words)

            return command, reload, ports

        yield start


class Clients:
    """Clients that connect one after the other, as fast as they are served, until the test stops them."""

    def __init__(self, port, talk, count=4):
        self.served = 0
        self.failures = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(port, talk)) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self, port, talk):
        while not self._stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), WAIT) as client:
                    talk(client)
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
                return
            with self._lock:
                self.served += 1

    def wait_for(self, more):
        """Wait until so many more have been served."""
        until = self.served + more
        wait_until(lambda: self.served >= until or self.failures)

    def end(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT)
        assert self.failures == []


def tunnel(name, listen, target, *more):
    return "\n".join([f"[tunnels.{name}]", f"listen = {listen}", f'target = "{target}"', *more, ""])


def place(server):
    return "{}:{}".format(*server.address)


def test_ten_reloads_under_load_lose_nothing(up, serve, ssh_server):
    """One tunnel is rerouted each time, one moves, one is tuned, one over SSH stays; others come and go."""
    targets = [place(serve(hash_of_all)) for _ in range(2)]
    talk = place(serve(letter(b"a")))
    over = f'[hops]\nbastion = "{ssh_server.url}"\n' + tunnel("over", 0, talk, 'via = ["bastion"]')

    def text(number):
        return (
            over
            + tunnel("routed", 0, targets[number % 2])
            + tunnel("moving", f'"127.0.0.{1 + number}:0"' if number else 0, talk)
            + tunnel("tuned", 0, talk, f"nconnect = {100 + number}")
            + (tunnel(f"guest{number}", 0, talk) if number else "")
        )

    command, reload, ports = up(text(0))

    def exchange(client):
        threading.Thread(target=send_and_end, args=(client, BLOCK)).start()
        assert receive_exactly(client, len(DIGEST)) == DIGEST

    still = [socket.create_connection(("127.0.0.1", ports[name]), WAIT) for name in ("moving", "tuned", "over")]
    for client in still:
        assert receive_exactly(client, 1) == b"a"
    routed = socket.create_connection(("127.0.0.1", ports["routed"]), WAIT)
    clients = Clients(ports["routed"], exchange)
    try:
        part = len(BLOCK) // (RELOADS + 1)
        routed.sendall(BLOCK[:part])
        for number in range(1, RELOADS + 1):
            come_and_gone = 2 if number > 1 else 1
            assert f"reload: {3 + come_and_gone} of {4 + come_and_gone} tunnels changed" in reload(text(number))
            for client in still:
                client.sendall(b"x")
                assert receive_exactly(client, 1) == b"x"
            routed.sendall(BLOCK[number * part : (number + 1) * part])
            clients.wait_for(2)
        send_and_end(routed, BLOCK[(RELOADS + 1) * part :])
        assert receive_exactly(routed, len(DIGEST)) == DIGEST
    finally:
        clients.end()
        for client in [*still, routed]:
            client.close()
    assert clients.served >= 2 * RELOADS
    assert ssh_server.logins == 1
    status, said = command.end()
    assert status == 0
    assert "Traceback" not in said


def test_a_reroute_under_a_storm_of_clients_refuses_none(up, serve):
    places = [place(serve(letter(which))) for which in (b"a", b"b")]
    _, reload, ports = up(tunnel("one", 0, places[0]))

    def talk(client):
        assert receive_exactly(client, 1) in b"ab"

    clients = Clients(ports["one"], talk)
    try:
        for number in range(1, RELOADS + 1):
            reload(tunnel("one", 0, places[number % 2]))
            clients.wait_for(5)
            with socket.create_connection(("127.0.0.1", ports["one"]), WAIT) as client:
                assert receive_exactly(client, 1) == b"ab"[number % 2 :][:1]
    finally:
        clients.end()


@pytest.mark.parametrize("change", ["another name", "another place", "other names at other places"])
def test_a_tunnel_that_is_renamed_or_changes_places_under_a_storm_refuses_none(up, serve, change):
    """The new tunnel takes over the listening socket, with the clients that have connected to it."""
    places = [place(serve(letter(which))) for which in (b"a", b"b")]
    _, reload, ports = up(tunnel("one", 0, places[0]) + tunnel("two", 0, places[1]))
    numbers = [ports["one"], ports["two"]]

    def text(number):
        turn = number % 2
        names = [f"one{turn}", f"two{turn}"] if "name" in change else ["one", "two"]
        ends = numbers[::-1] if "place" in change and turn else numbers
        return tunnel(names[0], ends[0], places[0]) + tunnel(names[1], ends[1], places[1])

    def talk(client):
        assert receive_exactly(client, 1) in b"ab"

    reload(text(0))
    clients = [Clients(number, talk, 2) for number in numbers]
    try:
        for number in range(1, RELOADS + 1):
            reload(text(number))
            for one in clients:
                one.wait_for(5)
            swapped = "place" in change and number % 2
            for port, expected in zip(numbers, (b"b", b"a") if swapped else (b"a", b"b"), strict=True):
                with socket.create_connection(("127.0.0.1", port), WAIT) as client:
                    assert receive_exactly(client, 1) == expected
    finally:
        for one in clients:
            one.end()
