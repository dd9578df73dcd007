"""``relay.transports.program``: a program of this machine as a stream, its beginning, its ends and what it says."""

import gc
import logging
import os
import shlex
import signal
import socket
import threading
import time
from concurrent.futures import Future

import pytest
from helpers import (
    BLOCK,
    PROMPT,
    WAIT,
    Thread,
    fate_of_client,
    in_child,
    is_running,
    receive_all,
    receive_exactly,
    receive_until_reset,
    refusing,
    wait_until,
)
from program_rig import BRIDGE, CASES, command, failure, finish, said
from state_table import rows_of

import relay
from relay.addresses.hops import Command
from relay.addresses.values import TCPAddress
from relay.errors import ConnectError, RelayError
from relay.eventloop import unix_reset
from relay.eventloop.background import IOThread
from relay.streams import pair_end
from relay.streams.promise import Cancellation, Promise
from relay.testing import check_factory, check_stream
from relay.transports import program
from relay.transports.program import ProgramState, ProgramStream, _Program, end_error, run, start_error
from relay.transports.program_dialer import Local, Programs

STUBBORN = "trap '' TERM; echo on; while :; do sleep 1000; done"


@pytest.fixture
def quick(monkeypatch):
    """Programs that are to end have less time."""
    monkeypatch.setattr(program, "_MOMENT", 0.05)
    monkeypatch.setattr(program, "_PATIENCE", 0.1)


def opened(*words):
    stream = Programs(words, f"exec:{words[0]}")(deadline=time.monotonic() + WAIT)
    stream.socket.settimeout(WAIT)
    return stream


def told_pid(stream):
    """The number that a program says first, on a line of its own."""
    line = b""
    while not line.endswith(b"\n"):
        line += receive_exactly(stream.socket, 1)
    return int(line)


def test_it_keeps_every_promise_of_a_stream(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(WAIT)
        listener.bind(str(tmp_path / "far"))
        listener.listen()
        check_stream(lambda: (opened(*BRIDGE, str(tmp_path / "far")), listener.accept()[0]))


def test_the_socket_is_a_kernel_socket_that_does_not_block():
    with Programs(["cat"], "exec:cat")() as stream:
        assert isinstance(stream, ProgramStream)
        assert stream.socket.gettimeout() == 0
        assert stream.half_close
        assert stream.target == "exec:cat"
        assert stream.status is None


# Its beginning.


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["no-such-program"], "there is no no-such-program in PATH; install it, or give its whole path"),
        (["/no/such/program"], "there is no /no/such/program; check the spelling"),
        ([__file__], f"{__file__} is not an executable file; check the path, or run chmod +x"),
        (["/"], "/ is not an executable file; check the path, or run chmod +x"),
    ],
    ids=["no name", "no path", "no mode", "a directory"],
)
def test_a_program_that_is_missing_is_unreachable(words, problem):
    with pytest.raises(ConnectError) as failed:
        Programs(words, "exec:it")()
    assert str(failed.value) == f"exec:it: {problem}"
    assert failed.value.reason == "unreachable"


def test_a_file_that_is_no_program_after_all(tmp_path):
    file = tmp_path / "program"
    file.write_bytes(b"\x7fELF and nothing")
    file.chmod(0o755)
    with opened(str(file)) as stream:
        assert receive_until_reset(stream.socket) == b""
        assert str(failure(stream)).endswith(f"ended with status 126 ({file}: Exec format error)")


def test_arguments_that_are_too_long():
    with pytest.raises(ConnectError, match="exec:echo: cannot be started: Argument list too long"):
        opened("echo", "x" * (1 << 21))


class Slow:
    """A spawner that takes its time: what it was asked for is started when the test says so."""

    def __init__(self, monkeypatch):
        self.future = Future()
        self.asked = threading.Event()
        self._begin = program.begin
        monkeypatch.setattr(program, "begin", self.begin)

    def begin(self, words, **options):
        self._rest = words, options
        self.asked.set()
        return self.future

    def go_on(self):
        words, options = self._rest
        self.future.set_result(self._begin(words, **options).result(WAIT))


def test_starting_does_not_block(monkeypatch):
    slow = Slow(monkeypatch)
    answer = Promise()
    begun = time.monotonic()
    run(["cat"], "exec:cat", None, answer.put)
    assert time.monotonic() - begun < PROMPT
    slow.go_on()
    with answer.get(time.monotonic() + WAIT, None) as stream:
        assert finish_of(stream) == b"here"


def finish_of(stream):
    stream.socket.settimeout(WAIT)
    return finish(stream, b"here")


def test_a_deadline_while_it_starts(monkeypatch, quick):
    slow = Slow(monkeypatch)
    with pytest.raises(ConnectError, match="exec:cat: not started in time") as failed:
        Programs(["cat"], "exec:cat")(deadline=time.monotonic() + 0.05)
    assert failed.value.reason == "connect_timeout"
    slow.go_on()  # it is ended as soon as it is there, which the check for leaks sees


def test_giving_up_while_it_starts(monkeypatch, quick):
    slow = Slow(monkeypatch)
    outcomes = []
    give_up = run(["sh", "-c", STUBBORN], "exec:sh", None, outcomes.append)
    give_up()
    give_up()
    slow.go_on()
    wait_until(lambda: IOThread._current is None)
    assert outcomes == []


def test_cancelling_a_call(monkeypatch, quick):
    slow = Slow(monkeypatch)
    cancel = Cancellation()
    calling = Thread(lambda: Programs(["cat"], "exec:cat")(cancel=cancel))
    assert slow.asked.wait(WAIT)
    cancel.set()
    with pytest.raises(ConnectError, match="given up"):
        calling.result()
    cancel.close()
    slow.go_on()


@pytest.mark.parametrize("where", ["socketpair", "pipe", "acquire", "pidfd_open"])
def test_no_descriptor_for_it(monkeypatch, where):
    def fail(*args, **options):
        raise OSError(24, "Too many open files")

    module = {"socketpair": program.socket, "pipe": program.os, "acquire": program.IOThread, "pidfd_open": program.os}[
        where
    ]
    outcomes = Promise()
    outcomes._there.fileno()
    monkeypatch.setattr(module, where, fail)
    run(["sh", "-c", STUBBORN], "exec:sh", None, outcomes.put)
    with pytest.raises(ConnectError, match="exec:sh: cannot be started: Too many open files"):
        outcomes.get(time.monotonic() + WAIT, None)


# Its end.


def test_its_exit_is_the_end_though_what_it_has_left_behind_has_its_output(quick):
    with opened("sh", "-c", "sleep 1000 & echo $!; exit 0") as stream:
        left = told_pid(stream)
        assert receive_all(stream.socket) == b""
        assert failure(stream) is None
        wait_until(lambda: not is_running(left))


def test_its_exit_is_the_end_though_another_session_has_its_output():
    with opened("sh", "-c", "setsid sh -c 'echo $$; exec sleep 1000' & read line; exit 0") as stream:
        other = told_pid(stream)
        try:
            stream.socket.sendall(b"go\n")
            assert receive_all(stream.socket) == b""
            assert failure(stream) is None
            assert is_running(other)
        finally:
            os.kill(other, signal.SIGKILL)


def test_what_it_has_not_read_does_not_make_its_end_a_reset():
    with opened("sh", "-c", "read line; echo answer") as stream:
        stream.socket.sendall(b"line\n" + bytes(10000))
        wait_until(lambda: stream.status is not None and IOThread._current is None)
        assert receive_all(stream.socket) == b"answer\n"
        assert failure(stream) is None


def test_one_that_closes_its_output_goes_on(tmp_path):
    """The end of its output is reported when it has ended, because only then it is known what that end was."""
    with opened("sh", "-c", 'echo first; exec >&-; cat >"$0"; exit 4', str(tmp_path / "taken")) as stream:
        assert receive_exactly(stream.socket, 6) == b"first\n"
        assert finish(stream, b"the rest") == b""
        assert failure(stream).args[0].endswith("ended with status 4")
        assert (tmp_path / "taken").read_bytes() == b"the rest"


def test_the_failure_is_known_with_the_end_of_file():
    for _ in range(20):
        with opened("sh", "-c", "echo no >&2; exit 7") as stream:
            assert receive_until_reset(stream.socket) == b""
            assert str(failure(stream)) == "exec:sh: ended with status 7 (no)"
            assert stream.status == 7


@pytest.mark.parametrize("end", ["cat", "sleep 1000"])
def test_who_only_closes_the_socket_leaves_nothing(quick, end, any_engine):
    stream = opened("sh", "-c", f"echo $$; exec {end}")
    pid = told_pid(stream)
    user = stream.socket
    del stream
    user.close()
    wait_until(lambda: not is_running(pid))


def test_one_that_ignores_the_end_of_its_input_is_ended(quick, monkeypatch):
    monkeypatch.setattr(program, "_PATIENCE", WAIT)
    stream = opened("sh", "-c", "echo $$; exec sleep 1000")
    pid = told_pid(stream)
    stream.close()
    wait_until(lambda: stream.status is not None)
    assert stream.status == -signal.SIGTERM
    assert not is_running(pid)


def test_one_that_ignores_sigterm_is_killed_with_what_it_has_started(quick):
    stream = opened("sh", "-c", f"sleep 1000 & echo $!; {STUBBORN}")
    child = told_pid(stream)
    assert receive_exactly(stream.socket, 3) == b"on\n"
    stream.close()
    wait_until(lambda: stream.status is not None)
    assert stream.status == -signal.SIGKILL
    wait_until(lambda: not is_running(child))


def test_one_that_does_not_read_ends_soon_if_it_need_not(quick, monkeypatch):
    monkeypatch.setattr(pair_end, "LINGER", 1000.0)
    stream = opened("sleep", "1000")
    stream.socket.sendall(b"the end of a protocol")
    stream.close_soon()
    wait_until(lambda: stream.status is not None)
    assert stream.status == -signal.SIGTERM


def test_one_that_needs_a_moment_after_the_close_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "_MOMENT", WAIT)
    stream = opened("sh", "-c", 'cat >"$0.part"; sleep 0.2; mv "$0.part" "$0"', str(tmp_path / "taken"))
    stream.socket.sendall(b"all of it")
    stream.close()
    wait_until(lambda: stream.status is not None)
    assert stream.status == 0
    assert (tmp_path / "taken").read_bytes() == b"all of it"


def test_a_reset_ends_it_before_it_sees_the_end_of_its_input(tmp_path):
    """Output that was cut must not be taken for the whole."""
    for number in range(5):
        stream = opened("sh", "-c", 'echo on; cat >"$0.part" && mv "$0.part" "$0"', str(tmp_path / str(number)))
        assert receive_exactly(stream.socket, 3) == b"on\n"
        stream.socket.sendall(b"half of it")
        stream.reset()
        wait_until(lambda stream=stream: stream.status is not None)
        assert stream.status == -signal.SIGTERM
        assert not (tmp_path / str(number)).exists()


def test_the_holder_may_end_both_directions_and_go_on_later(quick):
    stream = opened("cat")
    stream.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: stream.status is not None)
    assert stream.status in (0, -signal.SIGTERM)
    stream.close()


def test_a_forked_child_disturbs_nothing():
    with opened("cat") as stream:
        assert in_child(lambda: _mistake(stream)) == 0
        assert finish(stream, b"still there") == b"still there"
        assert failure(stream) is None


def _mistake(stream):
    """Everything that a child may do with it by itself, or by mistake."""
    stream.on_close()
    stream._program.terminate()
    del stream
    gc.collect()


def test_a_copy_of_the_socket_in_a_forked_child_keeps_no_program(quick):
    stream = opened("sleep", "1000")
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        stream.close()
        wait_until(lambda: stream.status is not None)
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)


def test_no_thread_but_the_io_thread_for_many():
    before = set(threading.enumerate())
    streams = [opened("cat") for _ in range(5)]
    assert {one.name for one in set(threading.enumerate()) - before} == {"relay-io"}
    for stream in streams:
        stream.close()


# What it says.


def lines(caplog):
    return [one.getMessage() for one in caplog.records]


def test_its_standard_error_is_logged_line_by_line(caplog):
    caplog.set_level(logging.INFO, "relay")
    with opened("sh", "-c", r"printf 'one\ntwo\033[31m\n\nlast' >&2") as stream:
        receive_all(stream.socket)
        assert failure(stream) is None
    assert lines(caplog) == ["exec:sh: one", r"exec:sh: two\x1b[31m", "exec:sh: last"]


def test_standard_error_without_end_takes_neither_memory_nor_the_log(caplog):
    caplog.set_level(logging.INFO, "relay")
    with opened("sh", "-c", "yes 'a line that is said again and again' | head -c 20000000 >&2; exit 1") as stream:
        assert receive_until_reset(stream.socket) == b""
        assert "ended with status 1 (a line that is said" in str(failure(stream))
    assert len(lines(caplog)) < 400
    assert sum("lines more" in line for line in lines(caplog)) >= 1


def test_a_line_without_end_is_cut(caplog):
    caplog.set_level(logging.INFO, "relay")
    with opened("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 1") as stream:
        receive_until_reset(stream.socket)
        assert str(failure(stream)) == f"exec:sh: ended with status 1 ({'x' * 300})"
    assert lines(caplog) == [f"exec:sh: {'x' * 300}"]


def test_one_that_keeps_its_standard_error_open_for_others_ends(quick):
    with opened("sh", "-c", "(trap '' TERM; while :; do echo noise; done) >&2 & exit 0") as stream:
        assert receive_all(stream.socket) == b""
        assert failure(stream) is None


def test_others_may_want_what_it_says():
    said, news = [], threading.Condition()

    def take(data):
        with news:
            said.append(data)
            news.notify_all()

    answer = Promise()
    run(["sh", "-c", "echo word >&2; cat"], "exec:sh", None, answer.put, said=take)
    with answer.get(time.monotonic() + WAIT, None), news:
        assert news.wait_for(lambda: b"".join(said) == b"word\n", WAIT)


# Dialers: a command of this machine as a target or as a hop.


@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_a_program(case):
    def opened(*words):
        stream = Local(command(*words))(deadline=time.monotonic() + WAIT)
        stream.socket.settimeout(WAIT)
        return stream

    case(opened)


def test_a_hop_that_fails_is_named_by_the_error():
    with refusing() as (host, port), Local(Command(f"{shlex.join(BRIDGE)} %h %p").to(TCPAddress(host, port)))() as made:
        made.socket.settimeout(WAIT)
        assert receive_until_reset(made.socket) == b""
        text = str(failure(made))
    assert text.startswith("exec:") and "ended with status 1 (ConnectionRefusedError: " in text


def test_a_factory_in_a_tunnel(listener):
    check_factory(Local(command(*BRIDGE, *map(str, listener.getsockname()))), listener)


def test_a_program_that_reads_slowly_gets_all_that_was_sent_before_the_close(tmp_path, monkeypatch):
    """It is sent SIGTERM only when it has read nothing for a while; several moments pass before it begins to read."""
    monkeypatch.setattr("relay.transports.program._MOMENT", 0.05)
    script = 'echo on; while ! test -e "$0.go"; do sleep 0.02; done; cat >"$0.part" && mv "$0.part" "$0"'
    with relay.connect(f"exec:sh -c '{script}' {tmp_path / 'taken'}") as user:
        user.settimeout(WAIT)
        assert user.recv(10) == b"on\n"
        user.sendall(BLOCK[:100_000])
    threading.Event().wait(0.3)
    (tmp_path / "taken.go").touch()
    wait_until((tmp_path / "taken").exists)
    assert (tmp_path / "taken").read_bytes() == BLOCK[:100_000]


@pytest.mark.parametrize("text", ["exec:cat", "exec:sh -c 'cat; exec sleep 1000'"])
def test_a_socket_of_connect_leaves_nothing(text, monkeypatch):
    monkeypatch.setattr("relay.transports.program._MOMENT", 0.05)
    with relay.connect(text) as user:
        user.settimeout(WAIT)
        user.sendall(b"word")
        assert user.recv(10) == b"word"


def test_a_detached_socket_leaves_nothing_either():
    user = Local(Command("cat")).open_socket(time.monotonic() + WAIT)
    os.close(user.detach())


def test_a_program_that_fails_resets_the_client_of_a_tunnel(relayed, caplog):
    caplog.set_level(logging.INFO, "relay")
    rig = relayed(Local(Command("sh -c 'echo half of it; echo no more >&2; exit 1'")))
    assert fate_of_client(rig.tunnel.address) == "reset"
    wait_until(rig.tunnel.recent)
    assert rig.tunnel.recent()[0].reason == "target_reset"
    assert "exec:sh …: no more" in said(caplog)
    assert any("exec:sh …: ended with status 1 (no more)" in one.getMessage() for one in caplog.records)


def test_closing_a_tunnel_ends_its_programs(relayed):
    rig = relayed(Local(Command("sh -c 'echo on; exec sleep 1000'")))
    clients = [rig.client() for _ in range(5)]
    for client in clients:
        assert receive_exactly(client, 3) == b"on\n"
    rig.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(24, "Too many open files"), "exec:it: cannot be started: Too many open files"),
        (RuntimeError("no thread"), "exec:it: cannot be started: no thread"),
    ],
)
def test_a_program_that_was_not_started(error, text):
    made = start_error("exec:it", error)
    assert isinstance(made, ConnectError)
    assert str(made) == text


def test_an_error_of_relay_stays_as_it_is():
    error = RelayError("relay ends")
    assert start_error("exec:it", error) is error


@pytest.mark.parametrize(
    ("status", "last", "text"),
    [
        (3, "", "exec:it: ended with status 3"),
        (1, "no such host", "exec:it: ended with status 1 (no such host)"),
        (-15, "", "exec:it: was ended by SIGTERM"),
        (-63, "last words", "exec:it: was ended by signal 63 (last words)"),
    ],
)
def test_a_failure_at_its_end(status, last, text):
    made = end_error("exec:it", status, last)
    assert str(made) == text
    assert made.reason == "target_reset"


SOON = 1000.0  # seconds; the tests call what a timer would


class Child:
    """A process that is only a number; it ends when it is signalled, or when the test says so."""

    pid = 0
    status = 0

    def wait(self):
        return self.status


class Rig:
    """A program, and what was done to it. Its events are called on the I/O thread, as always."""

    def __init__(self, monkeypatch):
        self.signals = []
        self.future = Future()
        self.answer = Promise()
        self.child = Child()
        self.stream = self.copy = None
        monkeypatch.setattr(program, "begin", lambda *_, **__: self.future)
        monkeypatch.setattr(program, "_MOMENT", SOON)
        monkeypatch.setattr(program, "_PATIENCE", SOON)
        monkeypatch.setattr(program, "_signal_group", lambda _, number: self.signals.append(signal.Signals(number)))
        monkeypatch.setattr(os, "pidfd_open", lambda _: os.eventfd(0))
        self.io_thread = IOThread.acquire(self)  # it lasts as long as the test
        self.program = _Program("exec:it", "exec:it", None, self.answer.put, None, False)
        self.program.begin(["it"])

    def do(self, call, *arguments):
        """Call it on the I/O thread, and wait until all that it has asked for there is done."""
        failed = []

        def run():
            try:
                call(*arguments)
            except BaseException as error:  # noqa: BLE001  (raised below)
                failed.append(error)

        loop = self.io_thread.loop
        loop.call(run)
        for _ in range(3):
            done = threading.Event()
            loop.call(done.set)
            assert done.wait(WAIT)
        if failed:
            raise failed[0]

    def started(self):
        self.do(self.future.set_result, self.child)

    def failed(self):
        self.do(self.future.set_exception, OSError(24, "Too many open files"))

    def report(self):
        """Return the outcome that was reported; the stream is kept open."""
        outcome = self.answer.get(time.monotonic() + WAIT, None)
        self.stream = outcome
        return outcome

    def closed(self):
        self.do(self.program.closed)

    def reset(self):
        self.do(self.program.terminate)

    def time_is_over(self):
        self.do(self.program._end_it, time.monotonic())

    def ends(self, status=0):
        self.child.status = status
        self.do(self.program._on_exit, 0, 0.0)

    def finish(self):
        state = self.program._state
        if state is ProgramState.STARTING:
            self.failed()
        elif state in program._STARTED:
            self.ends()
        elif state is ProgramState.RESETTING:
            self.do(self.program._copies_closed, 0.0)
        if self.copy is not None:
            self.copy.close()
        if self.stream is not None:
            self.stream.close()
        self.io_thread.release(self)

    def abandon(self):
        """No test forks."""


@pytest.fixture
def rig(monkeypatch):
    made = Rig(monkeypatch)
    yield made
    made.finish()


def reads(rig):
    """The program has something to read, and has read some of it a moment ago."""
    rig.stream.socket.send(b"bytes")
    rig.time_is_over()


def deadline(rig):
    rig.do(rig.program._too_late, 0.0)
    with pytest.raises(ConnectError, match="not started in time"):
        rig.report()


def started(rig):
    rig.started()
    assert rig.report().status is None


def not_started(rig):
    rig.failed()
    with pytest.raises(ConnectError, match="cannot be started: Too many open files"):
        rig.report()


def ends_well(rig):
    rig.ends()
    assert rig.stream.socket.recv(1) == b""


def fails(rig):
    """Let it fail, while another process keeps a copy of its end."""
    rig.copy = rig.program._theirs.dup()
    rig.ends(3)
    assert rig.stream.failure().reason == "target_reset"


def fails_when_closed(rig):
    rig.stream.socket.close()
    rig.ends(3)


def a_bug(rig):
    rig.do(rig.program.crashed, 0.0)


def copies_are_closed(rig):
    rig.copy.close()
    wait_until(lambda: rig.program._far is None)
    with pytest.raises(ConnectionResetError):
        rig.stream.socket.recv(1)


def copies_stay_open(rig):
    rig.do(rig.program._copies_closed, 0.0)


TERM, KILL = signal.SIGTERM, signal.SIGKILL
RUNNING = [started]
LEAVING = [started, Rig.closed]
TERMINATED = [started, Rig.reset]
RESETTING = [started, fails]
WAY = {
    "STARTING": [],
    "RUNNING": RUNNING,
    "LEAVING": LEAVING,
    "TERMINATED": TERMINATED,
    "RESETTING": RESETTING,
    "STARTED": RUNNING,
    "any": [started, ends_well],
}
# The columns of the table, then the event, and the signals that it sends. At the end its process group is killed.
ROWS = [
    ("STARTING", "started", "RUNNING", started, []),
    ("STARTING", "cannot be started", "OVER", not_started, []),
    ("STARTING", "deadline", "STARTING", deadline, []),
    ("RUNNING", "the stream is closed", "LEAVING", Rig.closed, []),
    ("RUNNING", "the stream is reset", "TERMINATED", Rig.reset, [TERM]),
    ("LEAVING", "the time is over, it reads", "LEAVING", reads, []),
    ("LEAVING", "the time is over", "TERMINATED", Rig.time_is_over, [TERM]),
    ("LEAVING", "the stream is reset", "TERMINATED", Rig.reset, [TERM]),
    ("TERMINATED", "the stream is reset", "TERMINATED", Rig.reset, [TERM]),
    ("TERMINATED", "the time is over", "TERMINATED", Rig.time_is_over, [KILL]),
    ("STARTED", "it ends well", "OVER", ends_well, [KILL]),
    ("STARTED", "it fails", "OVER", fails_when_closed, [KILL]),
    ("STARTED", "it fails", "RESETTING", fails, [KILL]),
    ("STARTED", "a bug in a handler", "the same", a_bug, [KILL]),
    ("RESETTING", "the copies are closed", "OVER", copies_are_closed, []),
    ("RESETTING", "the time is over", "OVER", copies_stay_open, []),
    ("any", "another one", "the same", Rig.closed, []),
]


def test_the_table_has_the_same_rows():
    assert rows_of(program) == [row[:3] for row in ROWS]


@pytest.mark.parametrize(("state", "event", "next_state", "act", "signals"), ROWS)
def test_each_row(rig, monkeypatch, state, event, next_state, act, signals):
    if not unix_reset_works() and next_state == "RESETTING":
        pytest.skip("this machine has no reset of Unix sockets")
    for step in WAY[state]:
        step(rig)
    rig.signals.clear()
    before = rig.program._state
    act(rig)
    assert rig.program._state is (before if next_state == "the same" else ProgramState[next_state])
    assert rig.signals == signals


@pytest.mark.parametrize("state", ["RUNNING", "LEAVING", "TERMINATED"])
def test_what_holds_for_each_that_has_started(rig, state):
    for step in WAY[state]:
        step(rig)
    ends_well(rig)
    assert rig.program._state is ProgramState.OVER


def unix_reset_works():
    near, far = unix_reset.socketpair()
    with near, far:
        copy = unix_reset.leave_unread(near)
        if copy is not None:
            copy.close()
    return copy is not None
