"""``relay.transports.ssh.openssh.sessions``: commands over ssh, what it tells of them, and what becomes of it."""

from __future__ import annotations

import array
import os
import queue
import signal
import socket
import struct
import threading
from typing import Any

import pytest
from helpers import WAIT, receive_exactly, receive_until_reset, wait_until
from program_rig import MUCH, Remote, failure, finish, remote
from sshd import FarEnd

from relay.addresses.hops import Command
from relay.errors import CarrierError, ConnectError
from relay.eventloop.loop import Loop
from relay.transports.ssh.openssh import sessions
from relay.transports.ssh.openssh.channel_log import ChannelLog
from relay.transports.ssh.openssh.control import SessionControl

NEW = b"debug1: channel %d: new session [client-session] (inactive timeout: 0)\r"
OLD_NEW = b"debug1: channel %d: new [client-session]\r"
CONTROL = b"debug1: channel %d: new mux-control [mux-control] (inactive timeout: 0)\r"
FREE_CONTROL = b"debug1: channel %d: free: mux-control, nchannels 5\r"
ASKED = (
    b"debug2: mux.c:mux_master_process_new_session():387 (pid=9): channel %d: request tty 0, X 0, agent 0, subsys 0, "
    b'term "%s", cmd "cat", env 0\r'
)
LINKED = b"debug2: mux.c:mux_master_process_new_session():476 (pid=9): channel_new: %d linked to control channel %d\r"
CONFIRMED = b"debug2: channels.c:channel_input_open_confirmation():3518 (pid=9): channel %d: open confirm rwindow 0\r"
ACCEPTED = b"debug2: clientloop.c:client_status_confirm():669 (pid=9): exec request accepted on channel %d\r"
EOF = b"debug2: nchan.c:chan_rcvd_ieof():257 (pid=9): channel %d: rcvd eof\r"
EMPTY = b"debug2: nchan.c:chan_obuf_empty():153 (pid=9): channel %d: obuf empty\r"
CLOSED = b"debug2: nchan.c:chan_rcvd_oclose():270 (pid=9): channel %d: rcvd close\r"
FREE = b"debug1: channel %d: free: client-session, nchannels 5\r"


class Told:
    """Collects the events of one command's channel."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.events.append(name)


# What ssh says.


def read(channels: ChannelLog, *lines: bytes) -> None:
    assert all(channels.read(line) for line in lines)


def asked(channels: ChannelLog, session: Any, control: int, number: int) -> tuple[bytes, bytes, bytes]:
    """The lines of ssh about the request of a command."""
    return ASKED % (control, channels.name(session).encode()), NEW % number, LINKED % (number, control)


@pytest.mark.parametrize("new", [NEW, OLD_NEW])
def test_the_lines_of_a_channel_are_those_of_its_command(new: bytes) -> None:
    channels, told = ChannelLog(Told), Told()
    first, second = channels.name(Told()).encode(), channels.name(told).encode()
    read(channels, CONTROL % 2, CONTROL % 3, ASKED % (3, second), ASKED % (2, first), new % 4, LINKED % (4, 3))
    read(channels, *(line % 4 for line in (CONFIRMED, ACCEPTED, EOF, EMPTY, CLOSED, FREE)))
    assert list(dict.fromkeys(told.events)) == ["opened", "accepted", "ended", "drained", "freed"]
    assert told.events.count("freed") == told.events.count("accepted") == 1
    assert not channels._numbers and not channels._sessions and not channels._asked


def test_numbers_are_used_again() -> None:
    """The reply to the first request may not have been read yet."""
    channels, first, second, third = ChannelLog(Told), Told(), Told(), Told()
    read(channels, CONTROL % 2, CONTROL % 3, *asked(channels, first, 2, 4), ACCEPTED % 4, FREE % 4)
    read(channels, *asked(channels, second, 3, 4), ACCEPTED % 4, EMPTY % 4)
    assert (first.events, second.events) == (["accepted", "freed"], ["accepted", "drained"])
    read(channels, FREE % 4, FREE % 2, CONTROL % 4, *asked(channels, third, 4, 2), ACCEPTED % 2, FREE % 4)
    assert third.events == ["accepted"]
    read(channels, CONTROL % 4, NEW % 5, LINKED % (5, 4), ACCEPTED % 5)  # not one of relay's
    assert third.events == ["accepted"]


def test_connections_of_others_to_the_control_socket() -> None:
    channels, told = ChannelLog(Told), Told()
    read(channels, CONTROL % 1, FREE_CONTROL % 1, CONTROL % 1, *asked(channels, told, 1, 2))
    read(channels, CONTROL % 3, FREE_CONTROL % 3, ACCEPTED % 2)
    assert told.events == ["accepted"]


def test_what_is_over_is_forgotten() -> None:
    channels, told = ChannelLog(Told), Told()
    channels.forget(name := channels.name(told))
    channels.forget(name)
    read(channels, ASKED % (1, name.encode()), NEW % 2, LINKED % (2, 1), ACCEPTED % 2)
    lines = asked(channels, told, 1, 2)
    channels.clear()
    read(channels, *lines, ACCEPTED % 2)
    assert told.events == []


def test_a_command_cannot_imitate_a_request() -> None:
    channels, told = ChannelLog(Told), Told()
    name = channels.name(told).encode()
    forged = (
        b'x", term "'
        + name
        + b'", cmd "debug2: channel 9: request tty 0, X 0, agent 0, subsys 0, term "'
        + name
        + b'", '
    )
    read(channels, ASKED.partition(b"cat")[0] % (1, b"99") + forged)
    read(channels, NEW % 2, LINKED % (2, 1), NEW % 3, LINKED % (3, 9), ACCEPTED % 2, ACCEPTED % 3)
    assert told.events == []


def test_lines_about_numbers_that_are_no_commands() -> None:
    channels = ChannelLog(Told)
    for line in ACCEPTED, EMPTY, b"debug2: exec request accepted on channel %d%%s" % 4:
        channels.read(line.replace(b"%d", b"999999999999999999999999"))
    assert not channels._sessions


# What is said to ssh.


class Rig:
    """A control connection for a session, in a loop of its own, and its other end."""

    def __init__(self, path: str) -> None:
        self.broken: list[Any] = []
        self.replies: list[Any] = []
        self.loop = Loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self.control = SessionControl(self.loop, path, self.broken.append)
            self.end = listener.accept()[0]
        self.end.settimeout(WAIT)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def answer(self, *words: int, text: bytes = b"") -> None:
        body = struct.pack(f">{len(words)}I", *words) + text
        self.end.sendall(struct.pack(">I", len(body)) + body)

    def close(self) -> None:
        self.loop.call(lambda: (self.control.close(), self.loop.stop()))
        self.thread.join(WAIT)
        self.loop.close()
        self.end.close()


def test_a_session_is_asked_for_as_the_protocol_says(tmp_path: Any) -> None:
    rig = Rig(str(tmp_path / "control"))
    files = [os.open(tmp_path / name, os.O_CREAT | os.O_RDWR) for name in "abc"]
    try:
        rig.loop.call(lambda: rig.control.open("printf 'ü'", "7", files, rig.replies.append))
        receive_exactly(rig.end, 12)
        (length,) = struct.unpack(">I", receive_exactly(rig.end, 4))
        command = "printf 'ü'".encode()
        wanted = struct.pack(">9I", 0x10000002, 1, 0, 0, 0, 0, 0, 0xFFFFFFFF, 1) + b"7"
        assert receive_exactly(rig.end, length) == wanted + struct.pack(">I", len(command)) + command
        for file in files:
            data, ancillary, _, _ = rig.end.recvmsg(1, socket.CMSG_SPACE(4))
            (got,) = array.array("i", ancillary[0][2])
            assert data == b"\0" and os.path.sameopenfile(got, file)
            os.close(got)
        rig.answer(1, 4)
        rig.answer(0x80000006, 1, 7)
        rig.answer(0x80000004, 7, 42)
        wait_until(lambda: rig.control.status is not None)
        assert (rig.replies, rig.control.status, rig.broken) == ([7], 42, [])
        rig.end.shutdown(socket.SHUT_WR)
        wait_until(lambda: rig.broken)
    finally:
        for file in files:
            os.close(file)
        rig.close()


def test_an_end_message_that_is_cut_short_breaks_it(tmp_path: Any) -> None:
    rig = Rig(str(tmp_path / "control"))
    rig.answer(1, 4)
    rig.answer(0x80000004, 7)
    wait_until(lambda: rig.broken)
    assert isinstance(rig.broken[0], CarrierError) and rig.control.status is None
    rig.close()


# With a real ssh.


@pytest.fixture
def far(make_sshd: Any) -> FarEnd:
    return FarEnd("sshd", "openssh", make_sshd("MaxSessions 100"))


def process(link: Remote) -> int:
    """The number of ssh."""
    return int(link.connection._master._process.pid)


def test_ssh_that_is_killed_is_a_lost_connection(far: FarEnd) -> None:
    with remote(far) as link:
        streams = [link.open("cat") for _ in range(3)]
        os.kill(process(link), signal.SIGSTOP)
        asked = [link.begin("cat", seconds=None)[0] for _ in range(50)]
        os.kill(process(link), signal.SIGKILL)
        for stream in streams:
            with stream:
                assert receive_until_reset(stream.socket) == b""
                assert isinstance(failure(stream), CarrierError)
        for answer in asked:
            with pytest.raises(CarrierError):
                answer.get(None, None)
        wait_until(lambda: link.lost)
        assert not os.path.exists(link.connection._master.folder)


def test_everybody_gives_up_before_ssh_has_answered(far: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep their channels if a connection of its control socket were closed before it has answered."""
    monkeypatch.setattr(sessions, "_MOMENT", 0.05)
    with remote(far) as link, link.open("cat") as stream:
        far.freeze()
        try:
            asked = [link.begin("cat") for _ in range(50)]
            done = threading.Event()
            link.connection._master.loop.call(done.set)
            assert done.wait(WAIT)
            for _, give_up in asked:
                give_up()
            threading.Event().wait(0.3)  # for the moments to pass: that nothing is done then is what is looked at
        finally:
            far.rig.thaw()
        assert finish(stream, MUCH) == MUCH
        assert not link.lost
        idle = threading.Event()
        link.connection.when_idle(idle.set)
        assert idle.wait(WAIT)


def test_no_descriptors_for_it(far: FarEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    with remote(far) as link:
        link.open("true").close()

        def fail(*args: Any) -> None:
            raise OSError(24, "Too many open files")

        for name, module in (("socketpair", sessions), ("pipe", os)):
            outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
            with monkeypatch.context() as patch:
                patch.setattr(module, name, fail)
                link.connection.open(Command("cat"), None, outcomes.put)
                error = outcomes.get(timeout=WAIT)
            assert isinstance(error, ConnectError)
            assert str(error) == "exec:cat: ssh accepts no command: Too many open files"
        with link.open("cat") as stream:
            assert finish(stream, b"here") == b"here"
