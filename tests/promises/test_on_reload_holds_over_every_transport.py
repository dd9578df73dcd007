"""Reloads that reroute, move and remove tunnels of every transport: open connections end as ``on_reload`` says."""

import contextlib
import ssl
import time

import pytest
from group_rig import letter, repeats, running
from helpers import WAIT, receive_exactly, wait_until

import relay
from relay.testing import SAMBridge

MODES = ("keep", "drain", "cut")


class Transport:
    """The addresses of tunnels over one transport, and their clients. This one is TCP.

    :param stack: closes what is made.
    :param servers: the addresses of two servers, which send the letters a and b.
    """

    top = ""
    via = ""

    def __init__(self, stack, servers):
        self.stack = stack
        self.servers = servers

    def listen(self, name, number):
        return f"127.0.0.{number}:0"

    def target(self, which):
        return self.servers["ab".index(which)]

    def connect(self, tunnel):
        return self.dial(f"{tunnel.address[0]}:{tunnel.address[1]}")

    def dial(self, address):
        factory = self.stack.enter_context(relay.target(address))
        made = factory(deadline=time.monotonic() + WAIT)
        made.socket.settimeout(WAIT)
        self.stack.callback(made.close)
        return made.socket


class TLS(Transport):
    """TLS on both sides."""

    def __init__(self, stack, servers, certificates):
        super().__init__(stack, servers)
        self._files = certificates

    def listen(self, name, number):
        return f"tls://{super().listen(name, number)}?cert={self._files.cert}&key={self._files.key}"

    def target(self, which):
        """A tunnel of its own that speaks TLS, before the server."""
        made = relay.Tunnel(relay.listen(self.listen("", 1)), relay.target(super().target(which)))
        self.stack.enter_context(made)
        port = made.address[1]
        return f"tls://localhost:{port}?ca={self._files.ca}"

    def connect(self, tunnel):
        context = ssl.create_default_context(cafile=str(self._files.ca))
        context.check_hostname = False
        return self.stack.enter_context(context.wrap_socket(super().connect(tunnel)))


class SSH(Transport):
    """Listening on an SSH server, and out over one."""

    via = 'via = ["bastion"]\n'

    def __init__(self, stack, servers, server, backend):
        super().__init__(stack, servers)
        self._url = f"{server.url}&backend={backend}"
        self.top = f'[hops]\nbastion = "{self._url}"\n'

    def listen(self, name, number):
        return f"{self._url}&listen={super().listen(name, number)}"

    def connect(self, tunnel):
        return self.dial(f"127.0.0.1:{tunnel.address[1]}")  # the server listens there, also for other addresses


class I2P(Transport):
    """Destinations, and out to destinations."""

    def __init__(self, stack, servers, folder):
        super().__init__(stack, servers)
        self._folder = folder
        self._router = stack.enter_context(SAMBridge())
        self._targets = {}

    def listen(self, name, number):
        return f"i2p:?sam={self._router.sam}&keys={self._folder}/{name}{number}.dat"

    def target(self, which):
        if which not in self._targets:
            made = relay.Tunnel(relay.listen(self.listen(which, 0)), relay.target(super().target(which)))
            self._targets[which] = self.stack.enter_context(made).address
        return f"i2p://{self._targets[which]}?sam={self._router.sam}"

    def connect(self, tunnel):
        return self.dial(f"i2p://{tunnel.address}?sam={self._router.sam}")


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=["tcp", "tls", "ssh paramiko", "ssh openssh", "i2p"])
def transport(request, stack, serve, tmp_path):
    """Runs a test with each transport."""
    name, _, backend = request.param.partition(" ")
    servers = ["{}:{}".format(*serve(letter(which)).address) for which in (b"a", b"b")]
    if name == "tls":
        return TLS(stack, servers, request.getfixturevalue("certificates"))
    if name == "ssh":
        return SSH(stack, servers, request.getfixturevalue("ssh_server"), backend)
    return I2P(stack, servers, tmp_path) if name == "i2p" else Transport(stack, servers)


def test_open_connections_end_as_on_reload_says_and_new_ones_go_the_new_way(transport, stack, tmp_path):
    targets = {which: transport.target(which) for which in "ab"}

    def text(which, number):
        tunnels = [
            f'[tunnels.{name}]\nlisten = "{transport.listen(name, number)}"\ntarget = "{targets[which]}"\n'
            f'{transport.via}on_reload = "{name}"\ndrain = 0.2\n'
            for name in MODES
        ]
        return transport.top + "".join(tunnels) + STAYS

    def is_open(name):
        return group.now(name).state.value == "listening"

    def client(name, which):
        wait_until(lambda: is_open(name))
        made = transport.connect(group.tunnel(name))
        assert receive_exactly(made, 1) == which.encode()
        return made

    group = stack.enter_context(running(tmp_path / "relay.toml", text("a", 1)))
    known = {name: client(name, "a") for name in MODES}
    for before, after, word in (
        (text("b", 1), "b", "rerouted"),
        (text("b", 2), "b", "moved"),
        (transport.top + STAYS, "", "gone"),
    ):
        verdicts = group.rewrite(before)
        assert {name: verdicts[name] for name in MODES} == dict.fromkeys(MODES, word)
        assert verdicts["stays"] == "same"
        for name in ("cut", "drain"):
            wait_until(lambda one=known[name]: is_over(one))
        assert repeats(known["keep"])
        if after:
            kept = known["keep"]
            known = {name: client(name, after) for name in MODES}
            assert repeats(kept)
            kept.close()
    known["keep"].close()
    wait_until(lambda: group.leaving == ())


STAYS = '[tunnels.stays]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n'


def is_over(client):
    """Return whether a connection was reset or has ended; a server that is alive repeats."""
    try:
        client.sendall(b"x")
        return client.recv(1) == b""
    except (OSError, ssl.SSLError):
        return True
