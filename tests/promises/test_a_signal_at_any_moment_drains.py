"""From the first client on, a SIGTERM drains, whatever relay does at that moment; before it listens, no client gets in.

``MOMENTS=100`` in the environment tries so many; ``SEED`` chooses them.
"""

import os
import random
import signal
import socket
import threading

import pytest
from command_rig import commands
from helpers import WAIT, Thread, ending, receive_exactly, reserved_port, wait_until

MOMENTS = int(os.environ.get("MOMENTS", "6"))
SEED = int(os.environ.get("SEED", "1"))
LATEST = 0.1  # seconds after the first client


def connected(port):
    """Connect as soon as the port is open, which is before the line that says so."""
    found = []

    def connect():
        client = socket.socket()
        client.settimeout(WAIT)
        if client.connect_ex(("127.0.0.1", port)) == 0:
            found.append(client)
        else:
            client.close()
        return found

    wait_until(connect)
    return found[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_after_the_first_client(workers, listener):
    moments = random.Random(SEED)
    target = "{}:{}".format(*listener.getsockname())
    with commands() as start:
        for number in range(MOMENTS):
            delay = moments.uniform(0, LATEST) if number % 2 else 0.0
            with reserved_port() as port:
                command = start(str(port), target, "--workers", str(workers), "--drain", str(WAIT))
                with connected(port) as client:
                    far, _ = listener.accept()
                    with far:
                        far.settimeout(WAIT)
                        threading.Event().wait(delay)  # the moment of the signal
                        command.process.send_signal(signal.SIGTERM)
                        command.hear("closing; 1 open")
                        client.sendall(b"ping")
                        assert receive_exactly(far, 4) == b"ping", (number, delay)
                        far.sendall(b"pong")
                        assert receive_exactly(client, 4) == b"pong", (number, delay)
                        client.shutdown(socket.SHUT_WR)
                        assert ending(far) == "end of file"
                    assert ending(client) == "end of file"
                line = command.process.stdout.readline()
                status, said = command.wait()
            assert (status, line.startswith("listening on ")) == (0, True), (number, delay, said)


@pytest.mark.parametrize("workers", [1, 2])
def test_before_it_says_that_it_listens_no_client_gets_in(workers, listener):
    target = "{}:{}".format(*listener.getsockname())
    with commands() as start, reserved_port() as port:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        try:
            while True:  # fill the pipe of its standard output, so that it cannot print
                os.write(writing, bytes(1 << 12))
        except BlockingIOError:
            os.set_blocking(writing, True)
        command = start(str(port), target, "--workers", str(workers), stdout=writing)
        os.close(writing)
        with connected(port) as client, open(reading, "rb") as output:
            client.sendall(b"ping")
            listener.settimeout(0.5)
            with pytest.raises(TimeoutError):
                listener.accept()
            listener.settimeout(WAIT)
            rest = Thread(output.read)
            far, _ = listener.accept()
            with far:
                assert receive_exactly(far, 4) == b"ping"
            client.close()
            assert command.end()[0] == 0
            assert b"listening on " in rest.result()
