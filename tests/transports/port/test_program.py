"""``relay.transports.port.program``: one start of a program that listens, its states, and whose its place is."""

import contextlib
import os
import signal
import socket
import threading
import time

import pytest
from helpers import PROMPT, WAIT, Thread, in_child, is_running, receive_all, wait_until
from port_rig import Hijacker, children, control, double, port_of
from state_table import rows_of

from relay.addresses.parse import parse_hop
from relay.errors import CarrierError, ConnectError, RelayError
from relay.streams.promise import Cancellation, Promise
from relay.streams.trace import SILENT
from relay.transports.port import keeper, program
from relay.transports.port.place import StrangerError
from relay.transports.port.program import ListeningProgram, ProgramState

HIJACKS = 1000


@pytest.fixture
def begin():
    """Starts a program, with a list for why it was lost; it is closed with the test."""
    with contextlib.ExitStack() as stack:

        def make(*words, place="{port}"):
            lost = []
            made = ListeningProgram(parse_hop(double(*words, place=place)), lost.append, SILENT)
            made.lost = lost
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def up(begin):
    """Starts one, and waits until it listens."""

    def make(*words, **options):
        made = begin(*words, **options)
        wait(made)
        return made

    return make


def wait(made, seconds=WAIT):
    cancel = Cancellation()
    try:
        made.wait(time.monotonic() + seconds, cancel)
    finally:
        cancel.close()


def dialed(made, *, alone=False):
    """A stream to it; or the error is raised."""
    answer = Promise()
    made.open("there", time.monotonic() + WAIT, answer.put, alone=alone)
    return answer.get(time.monotonic() + WAIT, None)


def repeats(made, **options):
    """Return whether it answers."""
    with dialed(made, **options) as stream:
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"ping")
        stream.socket.shutdown(socket.SHUT_WR)
        return receive_all(stream.socket) == b"ping"


def it_listens(up, **_):
    made = up()
    assert repeats(made) and made._state is ProgramState.UP
    return made


def another_has_it_at_the_start(begin, tmp_path, **_):
    with control(tmp_path / "control") as order:
        made = begin(f"control={tmp_path / 'control'}")
        with Hijacker(made.place.endpoint.address[1]):
            with pytest.raises(StrangerError, match=f"another program, of user {os.geteuid()}, listens there"):
                wait(made)
        del order
    return made


def it_is_late(begin, **_):
    made = begin("never")
    with pytest.raises(ConnectError, match=r"does not listen at 127.0.0.1:\d+; check its arguments"):
        wait(made, 0.02)
    cancel = Cancellation()
    cancel.set()
    with pytest.raises(ConnectError, match="given up"):
        made.wait(time.monotonic() + WAIT, cancel)
    cancel.close()
    return made


def it_ends_at_the_start(begin, **_):
    made = begin("fails")
    said = r"ended with status 1 before it listened at 127.0.0.1:\d+ \(error: unable to forward port / see the log: 3\)"
    with pytest.raises(ConnectError, match=said):
        wait(made)
    assert not made.lost
    return made


def it_is_closed_at_the_start(begin, **_):
    made = begin("never")
    closing = Thread(made.close)
    closing.result()
    return made


def another_takes_it(up, tmp_path, **_):
    with control(tmp_path / "control") as order:
        waiting = Thread(up, f"control={tmp_path / 'control'}")
        order(b"l")
        made = waiting.result()
        order(b"c")
        with Hijacker(made.place.endpoint.address[1]):
            with pytest.raises(ConnectError, match="another program") as refused:
                dialed(made)
            assert refused.value.reason == "denied"
        assert [type(error) for error in made.lost] == [CarrierError]
    return made


def it_lets_it_go(up, tmp_path, **_):
    with control(tmp_path / "control") as order:
        waiting = Thread(up, f"control={tmp_path / 'control'}")
        order(b"l")
        made = waiting.result()
        order(b"c")
        with pytest.raises(CarrierError, match="does not listen at .* any more"):
            dialed(made)
        order(b"l")  # the carrier has not ended it yet: it may be used until then
        assert repeats(made)
    return made


def it_is_killed(up, **_):
    made = up()
    with dialed(made) as stream:
        (process,) = children()
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: made.lost)
        assert str(made.lost[0]).startswith("port:python")
        assert "was ended by SIGKILL" in str(made.lost[0])
        assert stream.failure() is made.lost[0]
    with pytest.raises(CarrierError, match="SIGKILL"):
        dialed(made)
    return made


def it_is_closed(up, **_):
    made = up()
    made.close()
    assert not made.lost
    return made


def its_keeper_is_stopped(up, monkeypatch, **_):
    monkeypatch.setattr(program, "PATIENCE", -0.9)
    made = up("stubborn")
    (process,) = children()
    os.kill(made._process.pid, signal.SIGSTOP)
    made.close()
    wait_until(lambda: not is_running(process))
    return made


def it_is_closed_again(up, **_):
    made = up()
    for _ in range(2):
        made.close()
    return made


ROWS = {
    ("STARTING", "it listens", "UP"): it_listens,
    ("STARTING", "another listens", "STARTING"): another_has_it_at_the_start,
    ("STARTING", "deadline or cancel", "STARTING"): it_is_late,
    ("STARTING", "it ends", "ENDED"): it_ends_at_the_start,
    ("STARTING", "close", "CLOSING"): it_is_closed_at_the_start,
    ("UP", "another listens", "UP"): another_takes_it,
    ("UP", "none listens", "UP"): it_lets_it_go,
    ("UP", "it ends", "ENDED"): it_is_killed,
    ("UP", "close", "CLOSING"): it_is_closed,
    ("CLOSING", "it ends", "ENDED"): it_is_closed,
    ("CLOSING", "the time is over", "CLOSING"): its_keeper_is_stopped,
    ("ENDED", "close", "ENDED"): it_is_closed_again,
}


def test_the_table_is_complete():
    assert list(ROWS) == rows_of(program)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_a_row(row, begin, up, tmp_path, monkeypatch):
    made = ROWS[row](begin=begin, up=up, tmp_path=tmp_path, monkeypatch=monkeypatch)
    if row[2] in ("CLOSING", "ENDED"):
        wait_until(lambda: made._state is ProgramState.ENDED)  # which follows at once
    else:
        assert made._state is ProgramState[row[2]]


def test_a_unix_socket_in_a_private_directory(up):
    made = up(place="{path}")
    folder = os.stat(made.place.folder)
    assert (folder.st_mode & 0o777, folder.st_uid) == (0o700, os.geteuid())
    assert repeats(made)
    made.close()
    assert not os.path.exists(made.place.folder)


def test_another_program_at_the_path(up):
    made = up(place="{path}")
    with socket.socket(socket.AF_UNIX) as other:
        os.unlink(made.place.word)
        other.bind(made.place.word)
        other.listen()
        with pytest.raises(ConnectError, match=rf"of user \d+, listens there \(process {os.getpid()}\)"):
            dialed(made)


def test_a_child_of_it_may_listen(up):
    made = up("child")
    assert repeats(made)
    (parent,) = children()
    made.close()
    assert not is_running(parent) and not is_running(made._process.pid)


def test_a_program_that_goes_into_the_background_is_none(begin):
    made = begin("background", "never")
    with pytest.raises(ConnectError, match="ended with status 0 before it listened .*; it must stay in the foreground"):
        wait(made)
    assert not children()


def test_what_it_leaves_behind_ends_with_it(up):
    made = up("child", "stubborn")
    (parent,) = children()
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        (child,) = map(int, file.read().split())
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: made.lost)
    assert not is_running(child)


def test_a_program_that_ignores_sigterm_is_killed(up, monkeypatch):
    assert f"signal.alarm({keeper.PATIENCE})" in keeper._KEEPER
    quick = keeper._KEEPER.replace("signal.alarm(2)", "signal.setitimer(signal.ITIMER_REAL, 0.2)")
    monkeypatch.setattr(keeper, "_KEEPER", quick)
    made = up("stubborn")
    (process,) = children()
    begun = time.monotonic()
    made.close()
    assert 0.15 < time.monotonic() - begun < 0.2 + PROMPT
    assert not is_running(process)


def test_its_streams_are_counted(up):
    made, idle = up(), threading.Event()
    first, second = dialed(made), dialed(made, alone=True)
    assert made.streams == 2
    made.when_idle(idle.set)
    first.close()
    assert made.streams == 1 and not idle.is_set()
    second.socket.close()  # its holder has the socket alone
    assert idle.wait(WAIT)
    assert made.streams == 0
    made.when_idle(idle.clear)  # at once
    assert not idle.is_set()
    third = []
    give_up = made.open("there", None, third.append, alone=False)
    give_up()  # after the outcome: it does nothing
    assert made.streams == 1
    third[0].close()
    assert made.streams == 0


def test_a_stream_that_is_alone_works(up):
    assert repeats(up(), alone=True)


@pytest.mark.parametrize("word", ["no-such-program", "/no/such/program"])
def test_a_program_that_is_missing(word):
    with pytest.raises(RelayError, match=rf"^port:{os.path.basename(word)} …: there is no {word}"):
        ListeningProgram(parse_hop(f"port:{word} {{port}}"), print, SILENT)


def test_a_file_that_is_no_program(tmp_path):
    file = tmp_path / "program"
    file.write_bytes(b"\x7fELF and nothing")
    file.chmod(0o755)
    made = ListeningProgram(parse_hop(f"port:{file} {{port}}"), print, SILENT)
    with pytest.raises(ConnectError, match="Exec format error"):
        wait(made)


def test_a_system_that_does_not_say_whose_a_port_is(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(RelayError, match=r"^port:python\S* …: the system does not say who listens .*; use \{path\}"):
        ListeningProgram(parse_hop(double()), print, SILENT)


class Raced:
    """A place that another program takes at one moment of a connect: before relay's look, after it, or later."""

    def __init__(self, place, moment, hijack):
        self._place, self._moment, self._hijack = place, moment, hijack
        self.endpoint, self.folder, self.close = place.endpoint, place.folder, place.close

    def find(self, root):
        self._at("before the look")
        found = self._place.find(root)
        self._at("before the connect")
        return found

    def leads_to(self, *arguments):
        self._at("after the connect")
        return self._place.leads_to(*arguments)

    def _at(self, moment):
        if moment == self._moment:
            self._hijack()


def hijacked(made, place, program, moment):
    """Return what becomes of a client whose program loses its port to another one meanwhile."""
    with contextlib.ExitStack() as stack:

        def hijack():
            program.shutdown(socket.SHUT_RDWR)  # for each process that has it
            others.append(stack.enter_context(Hijacker(place.endpoint.address[1])))

        others = []
        made.place = Raced(place, moment, hijack)
        beside = Thread(hijack) if moment == "at any time" else None
        try:
            dialed(made).close()
        except (ConnectError, CarrierError) as error:
            return error.reason
        finally:
            if beside is not None:
                beside.result()
            made.place = place
            stack.close()
            program.listen()
    return "hijacked" if others[0].clients else "connected"


def test_a_thousand_hijacks(begin, tmp_path):
    """The program and its test have the same socket, so that no other process has to run for a hijack."""
    with socket.socket(socket.AF_UNIX) as giving:
        giving.bind(str(tmp_path / "holds"))
        giving.listen()
        made = begin(f"holds={tmp_path / 'holds'}")
        place, seen = made.place, set()
        with giving.accept()[0] as given, socket.create_server(place.endpoint.address) as program:
            given.settimeout(WAIT)
            socket.send_fds(given, [b"x"], [program.fileno()])
            assert given.recv(1)  # it has the socket, which is its own from now on
            wait(made)
            for moment in ("before the look", "before the connect", "after the connect", "at any time"):
                for _ in range(HIJACKS // 4):
                    outcome = hijacked(made, place, program, moment)
                    if moment == "at any time":
                        seen.add(outcome)
                    else:
                        assert outcome == "denied", moment
            assert seen <= {"denied", "carrier_lost", "connected"}
            dialed(made).close()
    assert len(made.lost) == 1


def test_a_forked_child_closes_its_copies(up):
    made = up()
    assert in_child(lambda: made._pid > 0) == 0
    assert repeats(made)


def test_the_port_is_the_one_that_was_given(up):
    made = up()
    assert port_of(children()[0]) == made.place.endpoint.address[1]
