"""The line that tells who connects may come in any pieces, and what comes with it is the stream's."""

import socket
import threading

import pytest
from helpers import BLOCK, WAIT, Thread, receive_exactly
from i2p_world import SHORT
from sam_rig import ScriptedBridge

import relay
from relay.addresses.destinations import PrivateKey

DEST = PrivateKey.generate().destination
LINE = DEST.encode() + b" FROM_PORT=1 TO_PORT=2\n"
DATA = b"\nfirst\nbytes\r\n" + BLOCK[:50_000]


class Bridge(ScriptedBridge):
    """A router to which one stream comes at a time, in the pieces that the test wants."""

    def __init__(self):
        super().__init__()
        self.pieces = None
        self.port = 0  # where streams are to be forwarded to
        self.served = threading.Event()
        self._wanted = threading.Semaphore(0)
        self._over = False

    def answer_to(self, line):
        if line.startswith("STREAM FORWARD"):
            self.port = int(line.partition(" PORT=")[2].split()[0])
        return self._hand_one_over if line.startswith("STREAM ACCEPT") else super().answer_to(line)

    def _hand_one_over(self, end):
        end.say("STREAM STATUS RESULT=OK")
        self._wanted.acquire()
        if not self._over:
            send(end.socket, self.pieces)
            self.served.wait(WAIT)

    def bring(self, pieces):
        """A stream comes, and stays until it is ``served``."""
        if self.port:
            with socket.create_connection(("127.0.0.1", self.port), WAIT) as connection:
                send(connection, pieces)
                self.served.wait(WAIT)
        else:
            self.pieces = pieces
            self._wanted.release()

    def close(self):
        self._over = True
        self.served.set()
        for _ in range(100):
            self._wanted.release()
        super().close()


def send(connection, pieces):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        connection.sendall(piece)
        threading.Event().wait(0.01)  # so that it is read before the next one comes


@pytest.fixture(params=["accept", "forward"])
def rig(request, listener):
    """The bridge, the tunnel of a server, and the service that it leads to."""
    bridge = Bridge()
    port = listener.getsockname()[1]
    try:
        with relay.TunnelServer("", port, bridge.name, accept=request.param, **SHORT) as tunnel:
            yield bridge, tunnel, listener
    finally:
        bridge.close()


def check(rig, pieces, data=DATA, ports=(1, 2)):
    bridge, tunnel, listener = rig
    bringing = Thread(bridge.bring, pieces)
    with listener.accept()[0] as far:
        far.settimeout(WAIT)
        assert receive_exactly(far, len(data)) == data
        (record,) = tunnel.connections()
        assert record.peer == DEST
        assert (record.peer.port, record.peer.to_port) == ports
        bridge.served.set()
    bringing.result()


def test_all_at_once(rig):
    check(rig, [LINE + DATA])


@pytest.mark.parametrize("cut", [1, 4, len(DEST) - 1, len(DEST), len(DEST) + 1, len(LINE) - 2, len(LINE) - 1])
def test_cut_in_the_line(rig, cut):
    check(rig, [LINE[:cut], LINE[cut:] + DATA])


@pytest.mark.parametrize("cut", [0, 1, 2, 1000])
def test_cut_after_the_line(rig, cut):
    check(rig, [LINE + DATA[:cut], DATA[cut:]])


def test_in_many_pieces(rig):
    check(rig, [LINE[start : start + 9] for start in range(0, len(LINE), 9)] + [DATA])


def test_without_ports(rig):
    check(rig, [DEST.encode() + b"\nhello"], b"hello", (0, 0))
