"""``relay.transports.port.dialer``: streams to a program that listens, which all of them share."""

import pytest
from helpers import WAIT, wait_until
from port_rig import Hijacker, children, double

import relay
from relay.errors import ConnectError, RelayError
from relay.transports.port import dialer
from relay.transports.port.place import Port
from relay.transports.port.processes import HiddenProcessError


def test_two_dialers_share_one_program():
    with relay.target(double()) as first, relay.target(double()) as second, relay.target(double("child")) as other:
        for one in (first, second, other):
            one.ready(WAIT)
        assert len(children()) == 2
        first.close()
        second().close()
        assert second.state == "up"
        assert len(children()) == 2
    wait_until(lambda: not children())
    assert first.state == "closed"


@pytest.fixture
def taken(monkeypatch):
    """Lets another program take the first ports."""

    def take(count):
        others = []

        class Taken(Port):
            def __init__(self):
                super().__init__()
                if len(others) < count:
                    others.append(Hijacker(int(self.word)))

        monkeypatch.setattr("relay.transports.port.program.Port", Taken)
        return others

    return take


@pytest.mark.parametrize("count", [2, 3])
def test_a_port_that_another_program_has_taken(taken, count, caplog):
    others = taken(count)
    with relay.target(double("late=/dev/null")) as factory:
        if count < dialer._PLACES:
            factory.ready(WAIT)
        else:
            with pytest.raises(ConnectError, match="another program, of user"):
                factory.ready(WAIT)
    assert caplog.text.count("starting it at another port") == 2
    for other in others:
        with other:
            pass


def test_a_program_into_which_relay_cannot_look_is_not_tried_again(monkeypatch, caplog):
    def hide(*_):
        raise HiddenProcessError("process 7 of it hides what it has")

    monkeypatch.setattr("relay.transports.port.place.has_socket", hide)
    with relay.target(double()) as factory:
        with pytest.raises(RelayError, match=r"^port:python\S* …: .*; run relay as that user, or the program without"):
            factory.ready(WAIT)
        assert factory.state == "failed"
    assert "another port" not in caplog.text


def test_as_a_hop_the_host_and_the_port_are_filled_in(echo_server):
    host, port = echo_server.address
    with relay.connect(f"{host}:{port}", via=[double("%h:%p")]) as end:
        end.sendall(b"ping")
        assert end.recv(4) == b"ping"
