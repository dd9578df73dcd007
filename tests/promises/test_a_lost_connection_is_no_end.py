"""A stream whose SSH connection or I2P session is lost is a reset to the holder of its socket, whatever it leads over.

Each transport whose streams share a connection stands in ``TRANSPORTS``, and each function that gives a socket in
``CALLS``: a new one is a line there.
"""

import asyncio
import contextlib
import functools
import shlex
import socket
import sys

import pytest
from covering import each_value
from helpers import WAIT, Server, TLSEnd, receive_all, receive_until_reset, wait_until
from program_rig import BRIDGE
from sshd import FarEnd

import relay

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a Unix socket has nothing but an EOF")

HALF = b"the first half"
SSH = ("paramiko", "openssh")
PLACES = ("tcp", "unix", "command", "tls")  # at the far end of an SSH connection
TRANSPORTS = [
    *(f"{place} over {backend}" for backend in SSH for place in PLACES),
    *(f"tcp over {backend} over {below}" for backend in SSH for below in SSH),
    "i2p",
    "i2p over openssh",
]


def serve(end):
    """Send a half when asked to, and end at the next request."""
    if end.recv(1):
        end.sendall(HALF)
        end.recv(1)
        end.shutdown(socket.SHUT_WR)
        end.recv(1)


class Rig:
    """A target, and how to lose what leads to it."""

    def __init__(self, url, via, lose):
        self.url = url
        self.via = via
        self.lose = lose


@pytest.fixture(params=TRANSPORTS)
def rig(request, tmp_path, certificates, spawner_thread):
    place, *hops = request.param.split(" over ")
    with contextlib.ExitStack() as stack:
        handler = functools.partial(serve_tls, certificates) if place == "tls" else serve
        server = Server(handler, str(tmp_path / "there") if place == "unix" else ("127.0.0.1", 0))
        stack.callback(server.close)
        ends = [FarEnd("sshd", hop, request.getfixturevalue("make_sshd")()) for hop in reversed(hops)]
        via = [end.url for end in ends]
        if place == "i2p":
            world = request.getfixturevalue("i2p_double")
            published = stack.enter_context(world.serve(server.address[1]))
            lose = world.clients.kill if not ends else ends[-1].rig.kill_sessions
            yield Rig(f"i2p://{published.dest}?sam={world.client}", via, lose)
            return
        port = server.address[1] if place != "unix" else 0
        urls = {
            "tcp": f"127.0.0.1:{port}",
            "unix": f"unix://{tmp_path / 'there'}",
            "command": f"exec:{shlex.join(BRIDGE)} 127.0.0.1 {port}",
            "tls": f"tls://localhost:{port}?ca={certificates.ca}",
        }
        yield Rig(urls[place], via, ends[-1].rig.kill_sessions)


def serve_tls(certificates, connection):
    serve(TLSEnd(connection, certificates.server(), server_side=True))


@contextlib.contextmanager
def by_connect(rig):
    with relay.connect(rig.url, rig.via, timeout=WAIT) as made:
        yield made


@contextlib.contextmanager
def by_connect_and_detach(rig):
    with socket.socket(fileno=relay.connect(rig.url, rig.via, timeout=WAIT).detach()) as made:
        yield made


@contextlib.contextmanager
def by_aio_connect(rig):
    with asyncio.run(relay.aio.connect(rig.url, rig.via, timeout=WAIT)) as made:
        yield made


@contextlib.contextmanager
def by_local(rig):
    with relay.local(rig.url, rig.via) as path, socket.socket(socket.AF_UNIX) as made:
        made.settimeout(WAIT)
        made.connect(path)
        yield made


CALLS = [by_connect, by_connect_and_detach, by_aio_connect, by_local]


@contextlib.contextmanager
def half_way(rig, call):
    """A socket in which the half of a transfer waits to be read."""
    with call(rig) as made:
        made.settimeout(WAIT)
        made.sendall(b"?")
        wait_until(lambda: made.recv(100, socket.MSG_PEEK) == HALF)
        yield made


@pytest.mark.parametrize(
    ("rig", "call"), each_value(TRANSPORTS, CALLS) + each_value(TRANSPORTS, CALLS, shift=2), indirect=["rig"]
)
def test_the_connection_is_lost(rig, call):
    with half_way(rig, call) as made:
        rig.lose()
        assert receive_until_reset(made) == HALF


def test_the_target_ends(rig):
    with half_way(rig, by_connect) as made:
        made.sendall(b"!")
        assert receive_all(made) == HALF
