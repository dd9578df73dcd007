"""After a change of the network a connection that it has cut is given up at once, and one that it has not stays."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from helpers import WAIT, ending, exchange, stop, wait_until
from namespace import Namespace
from sshd import Sshd, server_url

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may join two networks by a link")

NEAR, MOVED, NOWHERE, FAR, BEYOND = (f"198.18.{end}" for end in ("1.1", "1.3", "1.9", "1.2", "2.2"))
NEVER = 1000  # seconds between keepalive probes, which therefore notice nothing


class World:
    """relay in a near network, and behind a link a far one with an SSH server."""

    def __init__(self, folder, opened):
        self.near, self.far = opened.enter_context(Namespace()), opened.enter_context(Namespace())
        self.ip("link add near type veth peer far netns", str(self.far.pid))
        self.ip(f"address add {NEAR}/24 dev near")
        self.ip(f"address add {FAR}/24 dev far", inside=self.far)
        self.ip(f"address add {BEYOND}/32 dev lo", inside=self.far)
        self.ip("link set near up")
        self.ip("link set far up", inside=self.far)
        self.sshd = Sshd(
            folder, namespace=self.far, config=[f"ListenAddress {FAR}:22022", f"ListenAddress {BEYOND}:22022"]
        )
        self.sshd.known_hosts.write_text(f"[{FAR}]:22022,[{BEYOND}]:22022 {self.sshd.host_key_line}\n")
        opened.callback(self.sshd.stop)
        self.sshd.start()
        self.target = opened.enter_context(self.far.socket())
        self.target.bind(("127.0.0.1", 0))
        self.target.listen()
        self.target.settimeout(WAIT)
        self.folder, self.opened = folder, opened

    def ip(self, words, *more, inside=None):
        with (inside or self.near).run(["ip", *words.split(), *more]) as process:
            assert process.wait(WAIT) == 0, words

    def relay(self, backend, host=FAR, *, options=(), stderr=None, **more):
        """Start a relay in the near network, with options; its clients come over a Unix socket."""
        server = dataclasses.replace(self.sshd.server, host=host, port=22022, backend=backend)
        listen = self.folder / f"{backend}.sock"
        target = f"127.0.0.1:{self.target.getsockname()[1]}"
        url = server_url(server, **{"keepalive": NEVER, **more})
        program = [sys.executable, "-m", "relay", "forward", f"unix://{listen}", target, "--via", url, *options]
        self.process = self.near.run(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
        process = self.process
        self.opened.callback(process.stdout.close)
        assert b"listening" in process.stdout.readline()
        return listen

    def is_connecting(self):
        """Return whether the near network has a connection whose SYN has no answer."""
        with open(f"/proc/{self.near.pid}/net/tcp") as table:
            return any(line.split()[3] == "02" for line in table.readlines()[1:])

    def stream(self, listen):
        """Open a stream and use it; returns both ends."""
        client = self.opened.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(WAIT)
        client.connect(os.fspath(listen))
        target = self.opened.enter_context(self.target.accept()[0])
        target.settimeout(WAIT)
        exchange(client, target)
        return client, target


@pytest.fixture
def world(tmp_path):
    with contextlib.ExitStack() as opened:
        yield World(tmp_path, opened)


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
def test_an_address_that_moves_ends_the_connection_and_the_next_one_is_there(world, backend):
    listen = world.relay(backend)
    client, _ = world.stream(listen)
    world.ip(f"address del {NEAR}/24 dev near")
    world.ip(f"address add {MOVED}/24 dev near")
    assert ending(client)
    world.stream(listen)


def test_an_attempt_whose_address_is_gone_is_begun_anew(world):
    """The kernel goes on to send from the old address, for longer than the client waits."""
    world.ip(f"route add blackhole {NEAR}/32", inside=world.far)
    listen = world.relay("paramiko", options=["--connect-timeout", "20"])
    wait_until(world.is_connecting)
    world.ip(f"address del {NEAR}/24 dev near")
    world.ip(f"address add {MOVED}/24 dev near")
    world.stream(listen)


def test_a_default_route_that_leads_nowhere_ends_it_and_one_that_leads_there_serves_at_once(world):
    world.ip(f"route add default via {FAR}")
    listen = world.relay("paramiko", BEYOND)
    client, _ = world.stream(listen)
    world.ip(f"route replace default via {NOWHERE}")
    assert ending(client)
    world.ip(f"route replace default via {FAR}")
    world.stream(listen)


def test_after_a_stop_of_the_process_a_connection_that_is_dead_ends_at_once(world):
    """The link that was cut is the server's, of which the kernel tells relay nothing."""
    listen = world.relay("paramiko", keepalive=4, stderr=subprocess.PIPE)
    with world.process.stderr as said:
        client, _ = world.stream(listen)
        stop(world.process.pid)
        world.ip(f"route add blackhole {NEAR}/32", inside=world.far)
        threading.Event().wait(10.0)  # longer than the pause of the keepalive by what tells a stop
        os.kill(world.process.pid, signal.SIGCONT)
        assert ending(client)
        assert b"this process was stopped for" in said.readline()
        world.ip(f"route del blackhole {NEAR}/32", inside=world.far)
        world.stream(listen)


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
def test_a_connection_that_is_still_good_stays(world, backend):
    """The probe that each change causes is answered."""
    pair = world.stream(world.relay(backend))
    for words in ("link set near down", "link set near up", f"address add {MOVED}/24 dev near"):
        world.ip(words)
    exchange(*pair)
    world.ip(f"address del {MOVED}/24 dev near")
    exchange(*pair)
