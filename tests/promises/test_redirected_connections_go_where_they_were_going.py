"""``redirect://`` behind real nftables, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from command_rig import Command, run
from helpers import WAIT, Server, Thread, ended, fate_of_client, receive_all, receive_exactly
from namespace import Namespace, Unavailable, enter

import relay

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NFT, CURL = (shutil.which(name, path=PATH) for name in ("nft", "curl"))
FAR = "198.51.100.7"  # of the namespace's loopback, as if it were the network's
PORT = 1081
NOBODY = 65534

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may redirect connections"),
    pytest.mark.skipif(not (NFT and CURL), reason="there is no nft (Debian: nftables), or no curl"),
]


class World:
    """A network with a firewall."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._namespace = stack.enter_context(Namespace([FAR]))

    def inside(self, work: Callable[[], Any]) -> Any:
        """Call a function in a thread that is in the namespace, as are the threads and the sockets that it makes."""

        def entered() -> Any:
            enter(self._namespace.pid)
            return work()

        return Thread(entered).result(3 * WAIT)

    def nft(self, words: str, text: str = "") -> None:
        """Change the firewall by a command, and what it reads."""
        done = self.run([str(NFT), *words.split()], input=text)
        if done.returncode and "not supported" in done.stderr:
            pytest.skip(f"this machine cannot redirect: {done.stderr}")
        assert not done.returncode, done.stderr

    def redirect(self, what: str) -> None:
        """Redirect what the programs of the namespace send."""
        hook = "type nat hook output priority -100"
        self.nft("-f -", text=f"table inet relay {{ chain out {{ {hook}; {what} redirect to :{PORT}; }}; }}")

    def serve(self, host: str, handler: Callable[[socket.socket], object]) -> Server:
        """A server at any port of an address of the namespace."""

        def made() -> Server:
            return Server(handler, (host, 0))

        found: Server = self.inside(made)
        self._stack.callback(found.close)
        return found

    def run(self, argv: list[str], **options: Any) -> Any:
        """A program that ends by itself."""
        how = {"capture_output": True, "text": True, "timeout": WAIT, "cwd": "/", **options}
        return self.inside(lambda: subprocess.run(argv, **how))

    def curl(self, url: str) -> str:
        """Ask as another user."""
        done = self.run([str(CURL), "-sS", "-m", "60", "--noproxy", "*", url], user=NOBODY)
        assert not done.returncode, done.stderr
        return str(done.stdout)


@pytest.fixture
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        try:
            made = World(stack)
        except Unavailable as error:
            pytest.skip(f"this machine has {error}")
        yield made


def answer(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")


def greet(connection: socket.socket) -> None:
    """Speak first, as servers of SSH and SMTP do."""
    connection.sendall(b"220 hello\r\n")
    connection.sendall(receive_all(connection))


@contextlib.contextmanager
def listening(world: World, address: str, **options: Any) -> Iterator[relay.Tunnel]:
    def made() -> relay.Tunnel:
        return relay.Tunnel(relay.listen(address), relay.dynamic(**options), timeout=None)

    with world.inside(made) as tunnel:
        yield tunnel


def test_the_lines_of_the_help_redirect_the_programs_of_a_machine(world: World) -> None:
    """Those of relay itself are left out, so that it reaches the target."""
    before, table, after = re.split(r"^(table.*^}\n)", run("help", "redirect").stdout, flags=re.DOTALL | re.MULTILINE)
    assert "\n" in before
    server = world.serve(FAR, answer)
    world.nft("-f -", text=table.replace("10.0.0.0/8", "198.51.100.0/24").replace("!= relay", "!= root"))
    argv = [f"redirect://127.0.0.1:{PORT}", "--rule", "198.51.100.0/24=direct", "-v"]
    # With a prefix, as what is forked from a process of the rig would be in the network of that.
    command = world.inside(lambda: Command(*argv, command="socks", prefix=["env"]))
    with command.process, contextlib.ExitStack() as stack:
        stack.callback(command.process.kill)
        assert command.address() == ("127.0.0.1", PORT)
        assert "hello" in world.curl(f"http://{FAR}:{server.address[1]}/")
        status, said = command.end()
    assert status == 0
    assert f" → {FAR}:{server.address[1]}: done after" in said
    world.nft(after[after.index("nft ") + 4 :].partition("   ")[0])


@pytest.mark.parametrize("listen", [f"127.0.0.1:{PORT}", f"0.0.0.0:{PORT}", f"[::]:{PORT}"])
def test_a_server_may_speak_first_and_rules_see_the_address(world: World, listen: str) -> None:
    world.redirect("ip daddr 198.51.100.0/24 tcp dport 7000-7099")
    server = world.serve("127.0.0.1", greet)
    rules = [f"198.51.100.0/24:7001=tcp://127.0.0.1:{server.address[1]}", "[::]/0=direct"]
    with listening(world, f"redirect://{listen}", rules=rules) as tunnel:
        with world.inside(lambda: socket.create_connection((FAR, 7001), WAIT)) as client:
            assert receive_exactly(client, 11) == b"220 hello\r\n"
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"question"
        assert world.inside(lambda: fate_of_client((FAR, 7002))) == "reset"
        assert ended(tunnel, 2) == ["done", "denied"]
        assert tunnel.recent()[1].target == f"{FAR}:7002"


def test_ipv6(world: World) -> None:
    def answering() -> socket.socket:
        return socket.create_server(("::1", 0), family=socket.AF_INET6)

    world.redirect("ip6 daddr ::1 tcp dport 7001")
    with world.inside(answering) as server:
        place = f"[::1]:{server.getsockname()[1]}"
        with listening(world, f"redirect://[::1]:{PORT}", rules=[f"[::1]:7001=tcp://{place}"]) as tunnel:
            with world.inside(lambda: socket.create_connection(("::1", 7001), WAIT)) as client:
                far, _ = server.accept()
                with far:
                    far.sendall(b"hello")
                    assert receive_exactly(client, 5) == b"hello"
            assert ended(tunnel)[0] in ("done", "target_reset")
            assert tunnel.recent()[0].target == place


def test_the_listener_itself_is_no_target(world: World) -> None:
    world.redirect("tcp dport 7001")
    with listening(world, f"redirect://0.0.0.0:{PORT}") as tunnel:
        for host in ("127.0.0.1", FAR):
            assert world.inside(lambda host=host: fate_of_client((host, PORT))) == "reset"
        assert ended(tunnel, 2) == ["denied", "denied"]


def test_a_target_that_refuses_is_a_reset(world: World) -> None:
    world.redirect("tcp dport 7001")
    with listening(world, f"redirect://127.0.0.1:{PORT}", rules=["*=tcp://127.0.0.1:1"]) as tunnel:
        assert world.inside(lambda: fate_of_client((FAR, 7001))) == "reset"
        assert ended(tunnel) == ["refused"]


def test_what_relay_sends_itself_and_gets_back_is_ended(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The firewall does not leave relay out: each connection would make the next one."""
    world.redirect("tcp dport 7001")
    with listening(world, f"redirect://127.0.0.1:{PORT}") as tunnel:
        assert world.inside(lambda: fate_of_client((FAR, 7001), b"hello")) == "reset"
        assert tunnel.metrics().accepted <= 300
    assert [line for line in caplog.messages if "its target leads back to the tunnel" in line]
