"""The network behind a hop with ``resume``: where its carriers go, what starts the far end, and what is refused."""

import math

import pytest
from helpers import echo, wait_until
from resume_rig import Rig

import relay
from relay.addresses.hops import Command, check_route
from relay.addresses.parse import parse_hops
from relay.addresses.ssh import SSHListen, SSHServer
from relay.addresses.values import TCPAddress, UnixAddress
from relay.streams.dialer import Dialer
from relay.streams.stream import Stream
from relay.transports.proxies.resumed import START, at_server
from relay.transports.resume.figures import NEAR
from relay.transports.resume.wire import UNKNOWN, Answer

PLACE = TCPAddress("db", 5432)


class View:
    """The places of a server: a starter that prints a line, and sockets of the test."""

    def __init__(self, line, sockets):
        self.line = line
        self.sockets = sockets
        self.asked = []

    def to(self, place):
        return _To(self, place)


class _To(Dialer):
    def __init__(self, view, place):
        super().__init__(str(place))
        self._view = view
        self._place = place

    def dial(self, deadline, done, *, self_contained=False, wait_for_reconnect=True):
        import socket

        view = self._view
        view.asked.append(self._place)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        if isinstance(self._place, Command):
            with ours:
                ours.sendall(view.line)
            done(Stream(theirs))
        elif self._place.path in view.sockets:
            with ours:
                ours.sendall(Answer(UNKNOWN).encode())
            done(Stream(theirs))
        else:
            ours.close()
            theirs.close()
            done(relay.ConnectError("refused", reason="refused"))
        return lambda: None


def dial(server, view):
    dialer = at_server(server, view, ()).to(PLACE)
    with pytest.raises(relay.ConnectError) as caught:
        dialer(deadline=None)
    return str(caught.value)


def test_a_path_is_asked_for_its_socket_and_nothing_is_started():
    view = View(b"", {"/far.sock"})
    assert "answers what was not asked" in dial(SSHServer("s", resume="/far.sock"), view)
    assert view.asked == [UnixAddress("/far.sock")]


def test_yes_starts_it_and_goes_to_the_socket_that_it_prints():
    view = View(b"unix /run/far.sock\n", {"/run/far.sock"})
    assert "answers what was not asked" in dial(SSHServer("s", resume="yes"), view)
    assert view.asked == [Command(f"sh -c '{START}'"), UnixAddress("/run/far.sock")]


@pytest.mark.parametrize(("resume_for", "text"), [(600.0, "600.0"), (None, "none")])
def test_limits_of_the_hop_are_those_of_the_far_end_that_it_starts(resume_for, text):
    view = View(b"missing\n", set())
    dial(SSHServer("s", resume="yes", resume_for=resume_for, resume_buffer="1MiB"), view)
    assert view.asked == [Command(f"sh -c '{START} --resume-for {text} --resume-buffer 1048576'")]


@pytest.mark.parametrize(("far", "near"), [(math.inf, 1.0), (1.0, math.inf)])
def test_the_end_that_keeps_streams_for_less_counts(tmp_path, serve, far, near):
    rig = Rig(tmp_path, serve(echo).address, near={"kept": near}, kept=far)
    rig.dial()
    rig.cutter.is_down = True
    rig.cutter.cut()
    wait_until(lambda: NEAR.losses == 1)
    rig.cutter.is_down = False
    rig.tunnel.close()  # a far end that keeps it for ever has it until then
    rig.close()


def test_one_that_has_ended_meanwhile_is_started_again():
    view = View(b"unix /run/far.sock\n", {"/run/far.sock"})
    dialer = at_server(SSHServer("s", resume="yes"), view, ()).to(PLACE)
    for _ in range(2):
        with pytest.raises(relay.ConnectError):
            dialer(deadline=None)
    assert len(view.asked) == 3  # the socket is known
    view.sockets = set()
    with pytest.raises(relay.ConnectError, match="refused"):
        dialer(deadline=None)
    assert [type(one) for one in view.asked[3:]] == [UnixAddress, Command, UnixAddress]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"missing\n", "relay is not installed there, which resume needs; run pipx install"),
        (b"Usage: relay\n", "cannot serve resumable streams ('Usage: relay'); check its version"),
        (b"", "did not start"),
        (b"x" * 5000, "did not start"),
    ],
)
def test_a_server_that_cannot_start_it_is_named_with_what_to_do(line, text):
    error = dial(SSHServer("s", resume="yes"), View(line, set()))
    assert text in error
    assert error.startswith("ssh://s: ")


@pytest.mark.parametrize("place", [UnixAddress("/x"), Command("cat")])
def test_the_far_relay_dials_hosts_and_ports_only(place):
    with pytest.raises(relay.AddressError, match="leave resume out"):
        check_route((SSHServer("s", resume="yes"),), place)


@pytest.mark.parametrize(("text", "value"), [("yes", "yes"), ("no", None), ("/a/b", "/a/b")])
def test_the_option_is_a_word_or_a_path(text, value):
    assert parse_hops([f"ssh://s?resume={text}"]) == (SSHServer("s", resume=value),)


@pytest.mark.parametrize("text", ["maybe", "a/b", "/" + 120 * "x"])
def test_another_value_is_rejected(text):
    with pytest.raises(relay.AddressError, match="yes, no, and the absolute path"):
        parse_hops([f"ssh://s?resume={text}"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("resume_for=0", "resume_for=0; a number of seconds above 0"),
        ("resume_buffer=4M", "resume_buffer=4M; expected a size such as 4MiB"),
        ("resume_buffer=1KiB", "resume_buffer=1KiB; must be 64KiB or more"),
    ],
)
def test_a_wrong_limit_is_named(text, error):
    with pytest.raises(relay.AddressError, match=error):
        parse_hops([f"ssh://s?resume=yes&{text}"])
    name, _, value = text.partition("=")
    if name == "resume_buffer":
        with pytest.raises(ValueError, match="resume_buffer: '"):
            SSHServer("s", resume_buffer=value)


def test_a_listener_on_a_server_has_no_resume():
    with pytest.raises(ValueError, match="resume: this is for hops only"):
        SSHListen(SSHServer("s", resume="yes"))
