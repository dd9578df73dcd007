"""Sockets that systemd has opened, with the variables and descriptors of sd_listen_fds(3)."""

import os
import socket

import pytest

import relay
from relay.errors import AddressError
from relay.transports import activated


@pytest.fixture
def passed(monkeypatch):
    """Passes sockets by their names, as if systemd had."""
    made = []

    def give(**sockets):
        made.extend(one for of_name in sockets.values() for one in of_name)
        monkeypatch.setattr(activated._received, "outcome", sockets)

    yield give
    for one in made:
        one.close()


def listening():
    return socket.create_server(("127.0.0.1", 0))


def test_a_listener_is_a_duplicate_of_the_passed_socket(passed):
    only = listening()
    passed(web=[only])
    for _ in range(2):  # closing it does not take the address away
        with relay.listen("systemd:web") as made:
            assert made.getsockname() == only.getsockname() and made.fileno() != only.fileno()


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_listener_leaves_the_mode_of_the_passed_socket(is_blocking, passed):
    """Another tunnel may accept there."""
    with listening() as other:
        other.setblocking(is_blocking)
        passed(web=[socket.socket(fileno=os.dup(other.fileno()))])
        with relay.listen("systemd:web") as made:
            assert os.get_blocking(other.fileno()) == is_blocking
            assert made.gettimeout() == (None if is_blocking else 0.0)


def test_each_mistake_has_its_line(passed):
    with pytest.raises(AddressError, match=r"web: systemd has passed no socket of this name \(none\); set File"):
        relay.listen("systemd:web")
    datagrams, idle = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    passed(two=[listening(), listening()], datagrams=[datagrams], idle=[idle])
    with pytest.raises(AddressError, match=r"no socket of this name \(datagrams, idle, two\)"):
        relay.listen("systemd:web")
    with pytest.raises(AddressError, match="systemd has passed 2 sockets of this name"):
        relay.listen("systemd:two")
    for name in ("datagrams", "idle"):
        with pytest.raises(AddressError, match="not a socket that listens for streams"):
            relay.listen(f"systemd:{name}")


@pytest.mark.parametrize("text", ["systemd:", "systemd://web", "systemd:a:b", "systemd:a b", "systemd:" + "x" * 256])
def test_a_wrong_name_is_an_error_of_the_address(text):
    with pytest.raises(AddressError):
        relay.listen(text)


def descriptors(*sockets):
    """The descriptors of sockets, at consecutive numbers; the last one may be no socket."""
    first = 200
    for number, one in enumerate(sockets):
        os.dup2(one.fileno(), first + number)
    return first


def test_sockets_are_taken_over_by_name_and_the_variables_removed():
    with listening() as one, listening() as other, open("/dev/null") as no_socket:
        first = descriptors(one, other, no_socket)
        environment = {"LISTEN_FDS": "3", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "web:web:null", "HOME": "/"}
        try:
            found = activated.take_over(environment, first)
            assert environment == {"HOME": "/"}
            assert [each.getsockname() for each in found["web"]] == [one.getsockname(), other.getsockname()]
            assert found.keys() == {"web"} and not any(each.get_inheritable() for each in found["web"])
        finally:
            for each in found["web"]:
                each.close()
            os.close(first + 2)


def test_a_unix_socket_is_taken_over_too(passed, tmp_path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        passed(unix=[made])
        relay.listen("systemd:unix").close()
        assert (tmp_path / "s").exists()  # it is systemd's


@pytest.mark.parametrize("more", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}])
def test_sockets_of_another_process_are_left_alone(more):
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), **more}
    assert activated.take_over(environment, 200) == {}
    assert environment == {}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"LISTEN_PID": "x"}, "LISTEN_PID: expected a number, got 'x'"),
        ({"LISTEN_PID": "9" * 99}, "LISTEN_PID: expected a number, got '999"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS: expected a number, got '-1'"),
        ({"LISTEN_FDS": "99999"}, "LISTEN_FDS: expected a number, got '99999'"),
        ({"LISTEN_FDS": "1\n"}, r"LISTEN_FDS: expected a number, got '1\\n'"),
        ({"LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES: it has 2 names for 1 descriptors"),
        ({}, "LISTEN_FDS: descriptor 200 is not open"),
    ],
)
def test_malformed_variables_are_one_line_at_each_use(more, problem, monkeypatch):
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), **more}
    with pytest.raises(AddressError, match=problem + ".*; only systemd sets this variable, unset it elsewhere"):
        activated.take_over(environment, 200)
    monkeypatch.setattr(activated._received, "outcome", None)
    monkeypatch.setattr(os, "environ", {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())})
    for _ in range(2):
        with pytest.raises(AddressError, match="LISTEN_FDS: expected a number"):
            relay.listen("systemd:web")
