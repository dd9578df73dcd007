"""A resumable stream as a kernel socket, where its thread ends; test_client.py and test_server.py have the rest."""

import threading
from types import SimpleNamespace

from helpers import WAIT, Thread, wait_until

from relay.transports.resume.joint import Joint
from relay.transports.resume.session import Budget, Session


class EndingHome:
    """A thread of a tunnel that ends as soon as it has a client: it lets it leave, and its loop takes no call."""

    def __init__(self):
        self.loop = SimpleNamespace(call=lambda function: False, timers=None)
        self.clients = set()
        self.leaving = None

    def hold(self, client):
        self.clients.add(client)
        begun = threading.Event()
        self.leaving = Thread(lambda: (begun.set(), client.leave()))
        assert begun.wait(WAIT)

    def release(self, client):
        self.clients.discard(client)


def test_a_home_that_ends_while_a_joint_is_made_is_left():
    budget, over = Budget(), threading.Event()
    home = EndingHome()
    joint = Joint(Session(budget), "far", "target_reset", home)
    joint.on_over = over.set
    home.leaving.result(WAIT)
    assert not home.clients
    joint.stream.socket.setblocking(True)
    joint.stream.socket.sendall(b"hello")  # what the I/O thread takes, as if the other end had room
    joint.call(lambda: joint.session.attach(100, 0))
    joint.wake()
    wait_until(lambda: joint.session.kept == 5)
    joint.call(lambda: joint.lose("it is over"))
    assert over.wait(WAIT)
    joint.stream.close()
    assert budget.held == budget.offered == 0
