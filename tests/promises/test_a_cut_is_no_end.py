"""A stream that relay knows was cut is an error to the holder of its socket, after the bytes that came before."""

import asyncio
import contextlib
import select
import socket
import ssl
import sys
import threading

import pytest
from helpers import BLOCK, WAIT, Thread, TLSEnd, ended, receive_all, receive_until_reset
from program_rig import BRIDGE

import relay
from relay.eventloop.sockets import reset
from relay.eventloop.unix_reset import socketpair

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a Unix socket has nothing but an end of file"),
    pytest.mark.usefixtures("spawner_thread"),
]

HALF = b"the first half"


@pytest.fixture
def truncating(certificates, listener):
    """The address of a TLS server that sends a half and then cuts; the argument is how."""
    with contextlib.ExitStack() as stack:

        def serve(how):
            def play():
                connection = stack.enter_context(listener.accept()[0])
                connection.settimeout(WAIT)
                end = TLSEnd(connection, certificates.server(), server_side=True)
                end.sendall(b"!")
                assert end.recv(1) == b"?"  # the holder is there, and reads
                end.sendall(HALF)
                connection.close() if how == "FIN" else reset(connection)

            playing = Thread(play)
            stack.callback(playing.result)
            return f"tls://localhost:{listener.getsockname()[1]}?ca={certificates.ca}"

        yield serve


def read(made):
    """Return what comes, up to a reset."""
    made.settimeout(WAIT)
    assert made.recv(1) == b"!"
    made.sendall(b"?")
    return receive_until_reset(made)


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_relay_connect(truncating, how):
    with relay.connect(truncating(how)) as made:
        assert read(made) == HALF


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_relay_connect_whose_socket_was_handed_over(truncating, how):
    made = relay.connect(truncating(how))
    with socket.socket(fileno=made.detach()) as other:
        assert read(other) == HALF


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_relay_aio_connect(truncating, how):
    async def fetch():
        made = await relay.aio.connect(truncating(how))
        reader, writer = await asyncio.open_connection(sock=made)
        got = b""
        try:
            assert await reader.readexactly(1) == b"!"
            writer.write(b"?")
            with pytest.raises(ConnectionResetError):
                while piece := await reader.read(100):
                    got += piece
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return got

    assert HALF.startswith(asyncio.run(asyncio.wait_for(fetch(), WAIT)))  # asyncio drops what is not read yet


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_relay_local(truncating, how):
    with relay.local(truncating(how)) as path, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert read(client) == HALF


def test_a_client_of_a_tunnel(truncating):
    """TCP's reset may overtake the bytes before it."""
    with relay.Tunnel(relay.listen(":0"), relay.target(truncating("FIN"))) as tunnel:
        with socket.create_connection(tunnel.address) as client:
            assert HALF.startswith(read(client))
        assert ended(tunnel) == ["target_reset"]


def test_a_program_that_fails():
    with relay.connect('exec:sh -c \'printf "!"; head -c 1 >&2; printf "the first half"; exit 3\'') as made:
        assert read(made) == HALF


def test_a_program_that_fails_while_another_one_has_its_standard_input():
    """The one that is left is in a session of its own: nothing ends it, and no test waits for it."""
    shell = "printf '!'; head -c 1 >&2; setsid sleep 5 & exit 3"
    with relay.connect(f'exec:sh -c "{shell}"') as made:
        made.settimeout(WAIT)
        assert made.recv(1) == b"!"
        made.sendall(b"?")
        with contextlib.suppress(ConnectionResetError):
            assert made.recv(1) == b""


def test_a_program_that_ends_well(echo_server):
    host, port = echo_server.address
    with relay.connect(f"exec:{' '.join(BRIDGE)} {host} {port}") as made:
        made.settimeout(WAIT)
        made.sendall(b"word")
        made.shutdown(socket.SHUT_WR)
        assert receive_all(made) == b"word"


def test_a_session_that_ends_well(certificates, listener):
    def play():
        with listener.accept()[0] as connection:
            end = TLSEnd(connection, certificates.server(), server_side=True)
            end.sendall(HALF)
            end.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ssl.SSLError, OSError):
                receive_all(end)

    playing = Thread(play)
    with relay.connect(f"tls://localhost:{listener.getsockname()[1]}?ca={certificates.ca}") as made:
        made.settimeout(WAIT)
        assert receive_all(made) == HALF
    playing.result()


def test_what_came_before_is_passed_on_though_the_client_takes_nothing_for_now():
    """A reset of a Unix socket stands behind the bytes, which are in the kernel of this machine already."""
    near, theirs = socketpair()
    with relay.Tunnel(relay.listen(":0"), lambda: theirs) as tunnel, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(WAIT)
        client.connect(tunnel.address)
        sent = 0
        while select.select([], [near], [], 0.3)[1]:  # until all buffers on the way are full
            sent += near.send(BLOCK[: 1 << 16])
        reset(near)
        turned = threading.Event()
        tunnel._relay.loop.call(turned.set)
        assert turned.wait(WAIT)
        threading.Event().wait(0.05)  # the reset may be seen now, while nothing can be passed on
        assert tunnel.stats().active == 1
        with contextlib.suppress(ConnectionResetError):  # the last bytes are lost where it overtakes them
            receive_all(client)
        assert ended(tunnel) == ["target_reset"]
        assert tunnel.recent()[-1].sent == sent
