"""Urgent data may be lost or come in line; nothing ends or spins because of it."""

from __future__ import annotations

import resource
import socket
import threading

import pytest
from helpers import ended, exchange, receive_all, send_and_end


@pytest.mark.parametrize("who", ["client", "target"])
def test_urgent_data(relayed, any_engine, who):
    rig = relayed()
    client, far = rig.connect()
    exchange(client, far)
    sender, receiver = (client, far) if who == "client" else (far, client)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sender.sendall(b"before ")
    sender.send(b"!", socket.MSG_OOB)
    begin = resource.getrusage(resource.RUSAGE_SELF)
    threading.Event().wait(0.5)
    end = resource.getrusage(resource.RUSAGE_SELF)
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 0.25, "something spins"
    send_and_end(sender, b"after")
    assert receive_all(receiver).replace(b"!", b"") == b"before after"
    send_and_end(receiver, b"")
    assert receive_all(sender) == b""
    assert ended(rig.tunnel) == ["done"]
