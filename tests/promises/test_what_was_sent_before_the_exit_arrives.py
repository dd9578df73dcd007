"""A program that sends, closes and exits loses no byte, whatever moves its bytes, and however slow the target is."""

import contextlib
import hashlib
import shutil
import socket
import subprocess
import sys
import threading

import pytest
from helpers import BLOCK, WAIT, Thread
from program_rig import BRIDGE
from sshd import FarEnd

import relay

MUCH = BLOCK * 12  # more than all buffers between a program and its target hold
PIECE = 256 << 10  # bytes that the slow target reads at once
SMALL = 16 << 10
END = 6 << 20  # bytes that may be on their way when the client has sent everything
PAUSE = 0.01  # seconds until it reads the next ones

PROGRAM = """
import pathlib, sys, relay
connected = relay.connect(sys.argv[1], via=sys.argv[3:], timeout=None)
connected.sendall(pathlib.Path(sys.argv[2]).read_bytes())
"""
LAST = {"half-closed": "connected.shutdown(1)", "left open": "", "closed": "connected.close()"}
KINDS = [
    "tcp",
    "tls",
    "ssh embedded paramiko",
    "ssh embedded openssh",
    "ssh sshd paramiko",
    "ssh sshd openssh",
    "exec",
    "i2p",
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "much"
    path.write_bytes(MUCH)
    return path


@pytest.fixture
def listener():
    """A listener with a small receive buffer, so that the kernel does not take it all."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(WAIT)
        yield listening


def address(kind, listener, certificates, request):
    """The address of the target, and the hops."""
    port = listener.getsockname()[1]
    transport, _, rest = kind.partition(" ")
    if transport == "tls":
        return f"tls://127.0.0.1:{port}?ca={certificates.ca}", []
    if transport == "i2p":
        world = request.getfixturevalue("i2p_double")
        server = world.serve(port, timeout=None)  # a busy machine takes longer than the default
        request.addfinalizer(server.close)
        return f"i2p://{server.dest}?sam={world.client}", []
    if transport == "exec":
        return f"exec:{' '.join(BRIDGE)} 127.0.0.1 {port}", []
    if transport == "ssh":
        server, backend = rest.split()
        if backend == "openssh" and shutil.which("ssh") is None:
            pytest.skip("there is no ssh (Debian: openssh-client)")
        rig = request.getfixturevalue("ssh_server" if server == "embedded" else "sshd")
        return f"127.0.0.1:{port}", [FarEnd(server, backend, rig).url]
    return f"127.0.0.1:{port}", []


def slowly(end):
    """Receive everything, a piece at a time."""
    end.settimeout(WAIT)
    digest, size = hashlib.sha256(), 0
    with contextlib.suppress(OSError):  # a cut: the bytes before it count
        while data := end.recv(PIECE):
            digest.update(data)
            before, size = size, size + len(data)
            if before // PIECE != size // PIECE:
                threading.Event().wait(PAUSE)
    return size, digest.hexdigest()


def accepted(kind, listener, certificates):
    end, _ = listener.accept()
    end.settimeout(WAIT)
    return certificates.server().wrap_socket(end, server_side=True) if kind == "tls" else end


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        *((kind, "closed") for kind in KINDS),
        *((kind, last) for kind in KINDS[-4:] for last in ("half-closed", "left open")),
    ],
)
def test_a_program_that_sends_and_exits(kind, last, file, listener, certificates, openssh_server, request):
    url, via = address(kind, listener, certificates, request)
    command = [sys.executable, "-c", PROGRAM + LAST[last], url, str(file), *via]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as program:
        with accepted(kind, listener, certificates) as end:
            assert slowly(end) == (len(MUCH), hashlib.sha256(MUCH).hexdigest())
        assert program.wait(WAIT) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_relay_pipe_fed_by_a_file(kind, file, listener, certificates, openssh_server, request):
    """The target ends its own direction at once, so that nothing but the bytes themselves keeps the command."""
    url, via = address(kind, listener, certificates, request)
    command = [sys.executable, "-m", "relay", "pipe", url, *(word for hop in via for word in ("--via", hop))]
    with file.open() as source, subprocess.Popen(command, stdin=source, stdout=subprocess.DEVNULL) as program:
        with accepted(kind, listener, certificates) as end:
            if kind not in ("tls", "i2p"):  # I2P has no half-close: the end of one direction is that of the stream
                end.shutdown(socket.SHUT_WR)
            assert slowly(end) == (len(MUCH), hashlib.sha256(MUCH).hexdigest())
        assert program.wait(WAIT) == 0


@pytest.mark.parametrize("kind", ["ssh embedded paramiko"])
def test_a_spawned_tunnel_that_is_closed_after_its_last_connection(
    kind, listener, certificates, openssh_server, request
):
    """The child holds bytes then, which the target reads only while the child ends."""
    url, via = address(kind, listener, certificates, request)
    with relay.spawn("127.0.0.1:0", url, via=via, linger=None, timeout=None) as tunnel:
        with socket.create_connection(tunnel.address, WAIT) as client:
            accepting = Thread(accepted, kind, listener, certificates)
            sending = Thread(client.sendall, MUCH)
            end = accepting.result()
            end.shutdown(socket.SHUT_WR)
            received = bytearray(end.recv(PIECE))
            while len(received) < len(MUCH) - END:
                received += end.recv(PIECE)
            sending.result()
        while tunnel.connections():  # an answer of the child for each small piece, so that it is never behind
            received += end.recv(SMALL)
        assert len(received) < len(MUCH)
        closing = Thread(tunnel.close)
        closing.join(0.5)  # a child that waits for no server has ended by then, and what it held is lost
        while data := end.recv(PIECE):
            received += data
        end.close()
        closing.result()
    assert received == MUCH
