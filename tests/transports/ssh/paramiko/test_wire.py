"""``relay.transports.ssh.paramiko.wire``: the end of the stream under an SSH connection."""

import signal
import time

from helpers import WAIT, wait_until

from relay.streams import pair_end
from relay.transports import program
from relay.transports.program_dialer import Programs
from relay.transports.ssh.paramiko.wire import Wire


def test_a_program_on_the_way_that_reads_nothing_ends_soon_after_the_connection(monkeypatch):
    monkeypatch.setattr(program, "_MOMENT", 0.05)
    monkeypatch.setattr(pair_end, "LINGER", 1000.0)
    stream = Programs(["sleep", "1000"], "exec:sleep")(deadline=time.monotonic() + WAIT)
    wire = Wire(stream)
    stream.socket.sendall(b"a farewell")
    wire.release()
    wait_until(lambda: stream.status is not None)
    assert stream.status == -signal.SIGTERM
