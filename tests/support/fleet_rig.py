"""Relays behind HAProxy, set up as docs/fleet.md shows."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess

from documents import PAGES
from group_rig import repeats
from helpers import WAIT, ending, is_gone, receive_exactly, reserved_port, wait_until
from upgrade_rig import Clients

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NAMES = {"one": b"1", "two": b"2", "three": b"3"}  # each with its letter
HEADER = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"
# One thread, so that what it says of a server holds for each client from then on.
GLOBAL = """
global
    nbthread 1
    stats socket {folder}/stats mode 600 level admin
defaults
    timeout check 60s
"""


def shown(start):
    """Return the example of the page that begins with this text."""
    [found] = re.findall(rf"^```\w+\n({re.escape(start)}.*?)^```", PAGES["fleet"], re.DOTALL | re.MULTILINE)
    return found


def replaced(text, changes):
    """Return a text with changes, each of which has one place there."""
    for before, after in changes.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


class Instance:
    """A place of the fleet, and the relay that has it.

    :param folder: of its file.
    :param target: the address of its server, which sends its letter.
    :param more: changes of the example, beside those of its addresses.
    """

    def __init__(self, folder, name, target, port, status, **more):
        self.name, self.letter = name, NAMES[name]
        self.address, self.status = ("127.0.0.1", port), status
        self.file = folder / f"{name}.toml"
        changes = {
            "10.0.0.1:9464": f"127.0.0.1:{status}",
            "10.0.0.1:5432": f"127.0.0.1:{port}",
            "db.internal:5432": "{}:{}".format(*target),
            "10.0.0.9": "127.0.0.1",
            "shutdown_delay = 5\n": "shutdown_delay = 3600\n",
        }
        self.file.write_text(replaced(shown("status ="), changes | more))

    def start(self):
        """Start a relay there."""
        raise NotImplementedError

    def send(self, number):
        """Send it a signal."""
        raise NotImplementedError

    def wait(self):
        """Wait until it has ended; return its exit status."""
        raise NotImplementedError

    def serves(self):
        """Return whether it accepts a client; then it has accepted each client that came before that."""
        with socket.create_connection(self.address, WAIT) as client:
            client.sendall(HEADER)
            return receive_exactly(client, 1) == self.letter


class Command(Instance):
    """A relay as a command.

    :param make: starts it.
    """

    def __init__(self, make, *arguments):
        super().__init__(*arguments)
        self._make = make

    def start(self):
        self._command = self._make(str(self.file), "--control", "none", command="up")
        line = self._command.process.stdout.readline()
        assert "listening on" in line, self._command.wait()

    def send(self, number):
        self._command.process.send_signal(number)

    def wait(self):
        return self._command.wait()[0]


class Fleet:
    """The instances, and a HAProxy in front of them.

    :param make: makes an instance: of the folder, its name, its target, its port and that of its status server.
    """

    def __init__(self, stack, folder, make, targets):
        self._folder, self._stack = folder, stack
        (folder / "status-token").write_text("a-token-of-the-tests")
        (folder / "status-token").chmod(0o600)
        self.instances = []
        for name, target in zip(NAMES, targets, strict=True):
            ports = [stack.enter_context(reserved_port()) for _ in range(2)]
            self.instances.append(make(folder, name, target, *ports))
            self.instances[-1].start()
        front = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = front.getsockname()[1]
        [server] = re.findall(r"^ +server one .*\n", shown("frontend"), re.MULTILINE)
        changes = {
            "bind :5432": f"bind fd@{front.fileno()}",
            "Bearer TOKEN": "Bearer a-token-of-the-tests",
            "inter 1s": "inter 100ms",
            re.search(r"^ +server two .*\n", shown("frontend"), re.MULTILINE)[0]: "",
            server: "".join(map(self._server(server), self.instances)),
        }
        (folder / "haproxy.cfg").write_text(GLOBAL.format(folder=folder) + replaced(shown("frontend"), changes))
        process = subprocess.Popen(
            [HAPROXY, "-db", "-q", "-f", folder / "haproxy.cfg"],
            pass_fds=[front.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(process.wait, WAIT)
        stack.callback(process.terminate)
        wait_until(self._listens)
        for instance in self.instances:
            self.wait_for(instance, "UP", "L7OK")

    @staticmethod
    def _server(line):
        def made(instance):
            port = str(instance.address[1])
            changes = {"one": instance.name, "10.0.0.1:5432": f"127.0.0.1:{port}", "9464": str(instance.status)}
            return replaced(line, changes)

        return made

    def _listens(self):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return bool(self.say("show stat"))
        return False

    def say(self, words):
        """Tell HAProxy something; its answer."""
        with socket.socket(socket.AF_UNIX) as stats:
            stats.settimeout(WAIT)
            stats.connect(f"{self._folder}/stats")
            stats.sendall(words.encode() + b"\n")
            with stats.makefile() as answer:
                return answer.read()

    def known_of(self, instance):
        """The facts that HAProxy has about an instance."""
        first, *rows = self.say("show stat").splitlines()
        [row] = [row for row in rows if row.startswith(f"relays,{instance.name},")]
        return dict(zip(first.removeprefix("# ").split(","), row.split(","), strict=False))

    def wait_for(self, instance, state, check=""):
        """Wait until HAProxy thinks so of an instance."""

        def holds():
            found = self.known_of(instance)
            return found["status"] == state and check in found["check_status"]

        wait_until(holds)

    def connect(self):
        """A client of HAProxy."""
        return self._stack.enter_context(socket.create_connection(("127.0.0.1", self.port), WAIT))

    def fill(self, opened):
        """Open connections until there is one through each instance, by its letter."""
        while len(opened) < len(NAMES):  # HAProxy takes the instance with the fewest
            client = self.connect()
            opened.setdefault(receive_exactly(client, 1), []).append(client)


def replace_all(fleet):
    """Replace one relay after the other, under load: no client notices."""
    load, opened = Clients(fleet.port, programs=3, pause=0.01), {}
    try:
        for instance in fleet.instances:
            fleet.fill(opened)
            instance.send(signal.SIGTERM)
            fleet.wait_for(instance, "DOWN", "L7STS")
            assert instance.serves(), "its shutdown delay is not over"
            instance.send(signal.SIGTERM)
            wait_until(lambda instance=instance: is_gone(instance.address))
            known = fleet.known_of(instance)
            assert known["wretr"] == known["wredis"] == "0", "no client was refused"
            assert all(repeats(client) for clients in opened.values() for client in clients)
            for client in opened.pop(instance.letter):
                client.close()
            assert instance.wait() == 0, "with the last of its connections"
            instance.start()
            fleet.wait_for(instance, "UP")
    finally:
        served, failures, longest = load.end()
    print(f"\n{served} clients, the longest {longest:.3f} s")
    assert failures == []
    assert served > len(NAMES)


def lose_one(fleet):
    """Kill a relay: its own connections end, and no others. HAProxy sends clients to it, who get another one."""
    opened, dead = {}, fleet.instances[1]
    fleet.fill(opened)
    fleet.say(f"disable health relays/{dead.name}")
    dead.send(signal.SIGKILL)
    dead.wait()
    for client in opened.pop(dead.letter):
        assert ending(client) in ("reset", "end of file")
    assert all(repeats(client) for clients in opened.values() for client in clients)
    clients = [fleet.connect() for _ in range(4)]
    assert {receive_exactly(client, 1) for client in clients} <= opened.keys()
    assert int(fleet.known_of(dead)["wredis"]) > 0
    fleet.say(f"enable health relays/{dead.name}")
    fleet.wait_for(dead, "DOWN", "L4CON")
    dead.start()
    fleet.wait_for(dead, "UP", "L7OK")
    fleet.fill(opened)
