"""Lines about streams on ssh's standard error; also lines of other versions, and forged ones."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from relay.addresses.values import TCPAddress, UnixAddress
from relay.transports.ssh.openssh.channel_log import ChannelLog, is_plain, shown

DB = TCPAddress("db.internal", 5432)
CONFIRM = (
    b"debug2: channels.c:channel_input_open_confirmation():3518 (pid=9): channel %d: open confirm rwindow 0 rmax 1\r"
)


class Told:
    """Collects the events of one stream."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def opened(self) -> None:
        self.events.append("opened")

    def refused(self, text: str) -> None:
        self.events.append(text)

    def ended(self) -> None:
        self.events.append("ended")

    def freed(self) -> None:
        self.events.append("freed")


class Rig:
    """ChannelLog, with what was made for the streams of the server."""

    def __init__(self) -> None:
        self.made: list[Told] = []
        self.channels = ChannelLog(self._make)

    def _make(self) -> Told:
        self.made.append(Told())
        return self.made[-1]

    def expect(self, place: Any, count: int = 1) -> list[Told]:
        told = [Told() for _ in range(count)]
        self.channels.expected.setdefault(shown(place), deque()).extend(told)
        return told

    def read(self, *lines: bytes) -> list[bool]:
        return [self.channels.read(line) for line in lines]

    def accept(
        self, number: int, place: bytes = b"db.internal port 5432", form: bytes = b"new direct-tcpip [x]"
    ) -> None:
        requested = b"debug1: Connection to port -2 forwarding to %s requested.\r" % place
        assert self.read(requested, b"debug1: channel %d: %s\r" % (number, form)) == [True, True]


def test_a_stream_from_its_beginning_to_its_end() -> None:
    rig = Rig()
    (told,) = rig.expect(DB)
    rig.accept(3)
    rig.read(
        CONFIRM % 3,
        b"debug2: nchan.c:chan_rcvd_ieof():257 (pid=9): channel 3: rcvd eof\r",
        b"debug2: nchan.c:chan_rcvd_oclose():270 (pid=9): channel 3: rcvd close\r",
        b"debug1: channel 3: free: direct-tcpip: listening port -2 for db.internal port 5432, nchannels 5\r",
        CONFIRM % 3,
    )
    assert told.events == ["opened", "ended", "ended", "freed"]


def test_streams_of_several_targets_are_matched_in_their_order() -> None:
    rig = Rig()
    unix = UnixAddress("/run/ö \\x")
    first, second = rig.expect(DB, 2), rig.expect(unix, 2)
    rig.accept(5)
    rig.accept(2, place=rb"/run/\303\266 \\x port -2", form=b"new direct-streamlocal@openssh.com [x]")
    rig.accept(7, place=rb"/run/\303\266 \\x port -2", form=b"new direct-streamlocal@openssh.com [x]")
    rig.accept(4)
    for number in (7, 5):
        rig.read(CONFIRM % number)
    assert [told.events for told in first + second] == [["opened"], [], [], ["opened"]]


def test_a_number_is_used_again() -> None:
    rig = Rig()
    told = rig.expect(DB, 2)
    rig.accept(3)
    rig.read(b"debug1: channel 3: free: x\r")
    rig.accept(3)
    rig.read(CONFIRM % 3)
    assert [one.events for one in told] == [["freed"], ["opened"]]


def test_other_channels_are_nobodys() -> None:
    rig = Rig()
    (told,) = rig.expect(DB)
    rig.read(b"debug1: channel 1: new mux-control [mux-control] (inactive timeout: 0)\r", CONFIRM % 1)
    rig.read(b"debug1: Connection to port -2 forwarding to other port 1 requested.\r")
    rig.read(b"debug1: channel 2: new direct-tcpip [direct-tcpip] (inactive timeout: 0)\r", CONFIRM % 2)
    assert told.events == []
    # An accept that failed has no channel; the next channel is another stream's.
    rig.read(b"debug1: Connection to port -2 forwarding to db.internal port 5432 requested.\r")
    rig.read(b"debug1: channel 3: new mux-control [mux-control] (inactive timeout: 0)\r", CONFIRM % 3)
    assert told.events == []
    rig.accept(4)
    rig.read(CONFIRM % 4)
    assert told.events == ["opened"]


FORWARDED = b"debug1: client_request_forwarded_tcpip: listen 127.0.0.1 port 80, originator 10.0.0.1 port 99\r"
START = b"debug1: connect_next: start for host /tmp/relay-x/r1 ([unix]:/tmp/relay-x/r1)\r"
PROGRESS = b"debug1: connect_next: connect host /tmp/relay-x/r1 ([unix]:/tmp/relay-x/r1) in progress, fd=8\r"
NEW = b"debug1: channel 6: new forwarded-tcpip [10.0.0.1] (inactive timeout: 0)\r"


def test_a_stream_of_the_server_is_known_before_it_is_connected() -> None:
    rig = Rig()
    arrivals = rig.channels.arrivals[b"/tmp/relay-x/r1"] = deque()
    rig.read(b"debug1: client_input_channel_open: ctype forwarded-tcpip rchan 3 win 1 max 2\r", FORWARDED, START)
    assert [one.peer for one in arrivals] == [("10.0.0.1", 99)]
    rig.read(PROGRESS, NEW, b"debug1: channel 6: connected to /tmp/relay-x/r1 port -2\r")
    rig.read(b"debug2: nchan.c:chan_rcvd_ieof():257 (pid=9): channel 6: rcvd eof\r", b"debug1: channel 6: free: x\r")
    assert rig.made[0].events == ["ended", "freed"]
    assert len(arrivals) == 1


@pytest.mark.parametrize("after", [START, b"connect to /tmp/relay-x/r1 port -2 failed: Connection refused\r"])
def test_a_stream_of_the_server_that_was_not_connected_is_dropped(after: bytes) -> None:
    rig = Rig()
    arrivals = rig.channels.arrivals[b"/tmp/relay-x/r1"] = deque()
    rig.read(FORWARDED, START, after)
    assert rig.made[0].events == ["freed"]
    assert len(arrivals) == (1 if after == START else 0)
    assert len(rig.made) == (2 if after == START else 1)


def test_streams_of_the_server_that_nobody_accepts_are_bounded() -> None:
    rig = Rig()
    arrivals = rig.channels.arrivals[b"/tmp/relay-x/r1"] = deque()
    for _ in range(5000):
        rig.read(FORWARDED, START, NEW)
    assert len(arrivals) == 4096


def test_words_in_the_middle_of_a_line_are_nobodys() -> None:
    rig = Rig()
    (told,) = rig.expect(DB)
    rig.accept(3)
    for line in (
        b"debug1: Remote: channel 3: rcvd eof",
        b"a banner: channel 3: open failed: forged",
        b"debug1: Connection to port -2 forwarding to x channel 3: free port 1 requested.",
    ):
        rig.read(line)
    assert told.events == []


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "\x7f"])
def test_names_that_could_be_lines_are_not_plain(name: str) -> None:
    assert not is_plain(TCPAddress(name, 1))
    assert not is_plain(UnixAddress(f"/{name}"))
    assert is_plain(UnixAddress("/a b/ö"))
