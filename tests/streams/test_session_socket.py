"""Sockets with a session on them: what they share with a kernel socket, and what differs."""

import socket

import pytest

from relay.streams.session_socket import SessionSocket, close_descriptor, session_of
from relay.streams.stream import Stream


class Abandoned(SessionSocket):
    """A session that only counts."""

    count = 0

    def abandon(self):
        self.count += 1


@pytest.fixture
def near():
    near, far = socket.socketpair()
    with near, far:
        yield near


def test_it_has_the_descriptor_and_the_options_of_its_transport(near):
    session = SessionSocket(near)
    assert session.family == socket.AF_UNIX
    assert session.fileno() == near.fileno()
    assert session.getpeername() == ""
    session.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert session.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_it_differs_from_a_kernel_socket(near):
    session = SessionSocket(near)
    assert session_of(session) is session
    assert session_of(near) is None
    assert Stream(session).socket is session


def test_a_forked_child_closes_a_socket_and_lets_a_session_do_so(near):
    session = Abandoned(near)
    close_descriptor(session)
    assert session.count == 1
    assert near.fileno() >= 0
    close_descriptor(near)
    assert near.fileno() == -1


@pytest.mark.parametrize("name", ["has_input", "must_flush", "is_stalled"])
def test_a_session_tells_its_state(near, name):
    with pytest.raises(NotImplementedError):
        getattr(SessionSocket(near), name)


@pytest.mark.parametrize(
    ("name", "arguments"), [("recv", (1,)), ("send", (b"",)), ("shutdown", (1,)), ("close", ()), ("abandon", ())]
)
def test_a_session_does_what_a_socket_does(near, name, arguments):
    with pytest.raises(NotImplementedError):
        getattr(SessionSocket(near), name)(*arguments)
