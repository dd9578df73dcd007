"""``relay.process``: any program as a child that ends with this one."""

import logging
import os
import select
import subprocess
import sys
import threading

import pytest
from helpers import WAIT, Thread

from relay import process
from relay.addresses.ssh import SSHServer
from relay.eventloop.loop import Loop
from relay.process import PIPE, StandardError, StandardErrorPipe, program_error, start


def output(argv, **options):
    """Return what a child says on its standard output; it must end with status 0."""
    with start(argv, stdout=PIPE, **options) as child:
        said, _ = child.communicate(timeout=WAIT)
    assert child.returncode == 0
    return said.decode()


def test_arguments_arrive_as_they_are():
    assert output(["printf", "%s|", "a b", "", "$HOME", "*", "'", "--", "ü"]) == "a b||$HOME|*|'|--|ü|"


def test_a_path_and_its_own_name():
    assert output(["/bin/sh", "-c", "echo $0"]) == "/bin/sh\n"


def test_standard_input():
    with start(["cat"], stdin=PIPE, stdout=PIPE) as child:
        assert child.communicate(b"through", timeout=WAIT)[0] == b"through"
    assert output(["cat"]) == ""


def test_the_environment(monkeypatch):
    monkeypatch.setenv("INHERITED", "yes")
    assert output(["sh", "-c", "echo $INHERITED $GIVEN"]) == "yes\n"
    assert output(["sh", "-c", "echo $INHERITED $GIVEN"], env={"GIVEN": "too"}) == "too\n"


def test_a_variable_with_a_secret_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("RELAY_TEST_SECRET_OF_A_PROCESS", "word")
    monkeypatch.setenv("INHERITED", "yes")
    show = ["sh", "-c", "echo $RELAY_TEST_SECRET_OF_A_PROCESS $INHERITED"]
    assert output(show) == "word yes\n", "nobody has named it yet"
    SSHServer("host", password_env="RELAY_TEST_SECRET_OF_A_PROCESS")
    assert output(show) == "yes\n"
    assert output(show, env={**os.environ, "INHERITED": "given"}) == "given\n"
    assert os.environ["RELAY_TEST_SECRET_OF_A_PROCESS"] == "word"


def test_descriptors_are_passed_by_number_and_no_others():
    reader, writer = os.pipe()
    other = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(other, True)
    try:
        assert output(["sh", "-c", f"echo passed >/dev/fd/{writer}"], pass_fds=[writer]) == ""
        assert os.read(reader, 100) == b"passed\n"
        code = "import os; print([n for n in range(256) if os.path.exists(f'/dev/fd/{n}')])"
        assert output([sys.executable, "-c", code], pass_fds=[writer]) == f"{[0, 1, 2, writer]}\n"
    finally:
        for descriptor in (reader, writer, other):
            os.close(descriptor)


def test_a_session_of_its_own_and_no_blocked_signals():
    asked = "import os, signal; print(os.getsid(0) == os.getpid(), len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    code = (
        "import signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"  # which threads inherit
        "from relay.process import start\n"
        "start([sys.executable, '-c', sys.argv[1]], stdout=None).wait()\n"
    )
    program = subprocess.run([sys.executable, "-c", code, asked], capture_output=True, timeout=WAIT, check=True)
    assert program.stdout == b"True 0\n"


@pytest.mark.parametrize("name", ["no-such-program-anywhere", "./no-such-program", "/", "/etc/passwd"])
def test_what_is_no_program(name):
    with pytest.raises(FileNotFoundError) as caught:
        start([name])
    assert caught.value.filename == name


def test_an_executable_file_that_is_no_program(tmp_path):
    path = tmp_path / "nonsense"
    path.write_bytes(b"\x7fnonsense")
    path.chmod(0o700)
    with start([str(path)], stderr=PIPE) as child:
        said = child.communicate(timeout=WAIT)[1].decode()
    assert child.returncode == 126
    assert said == f"{path}: Exec format error\n"


def test_a_null_byte_is_refused_at_the_call():
    with pytest.raises(ValueError, match="null"):
        start(["true", "a\0b"])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has PR_SET_PDEATHSIG")
def test_a_killed_program_takes_its_child_with_it():
    code = (
        "from relay.process import start\n"
        "import sys\n"
        "child = start(['sh', '-c', 'trap : TERM HUP INT; echo ready; while :; do read line; done'], stdin=None,"
        " stdout=None)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as program:
        lines = {program.stdout.readline().strip() for _ in range(2)}
        [pid] = map(int, lines - {"ready"})
        descriptor = os.pidfd_open(pid)
        try:
            program.kill()
            assert select.select([descriptor], [], [], WAIT)[0]
        finally:
            os.close(descriptor)


def test_a_child_whose_program_died_at_once_does_not_begin():
    """The parent-death signal had not been asked for yet, and will not come any more."""
    argv = [sys.executable, "-c", process._GUARD, str(os.getpid() + 1), "/bin/echo", "echo", "begun"]
    assert subprocess.run(argv, capture_output=True, timeout=WAIT, check=True).stdout == b""


def test_a_child_outlives_the_thread_that_asked_for_it():
    asked = Thread(lambda: start(["cat"], stdin=PIPE, stdout=PIPE))
    with asked.result() as child:
        asked.join(WAIT)
        assert child.communicate(b"alive", timeout=WAIT)[0] == b"alive"


def test_many_threads_and_one_spawner():
    asked = [Thread(output, ["echo", str(number)]) for number in range(20)]
    assert [thread.result() for thread in asked] == [f"{number}\n" for number in range(20)]
    assert [thread.name for thread in threading.enumerate()].count("relay-spawner") == 1


def test_standard_error_is_the_programs_own(capfd):
    assert output(["sh", "-c", "echo word >&2"]) == ""
    assert capfd.readouterr().err == "word\n"


# The lines that a program writes on its standard error.


@pytest.fixture
def lines(caplog):
    """Return the messages of the log."""
    caplog.set_level(logging.INFO, "relay")
    return lambda: [one.getMessage() for one in caplog.records]


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets."""
    time = [5.0]
    monkeypatch.setattr(process.time, "monotonic", lambda: time[0])
    return time


def test_lines_are_put_together(lines):
    said = StandardError("exec:x")
    for piece in b"on", b"e\ntw", b"o\r\n", b"\n", b"  \nthe e", b"nd":
        said.feed(piece)
    assert said.last == "two"
    said.end()
    said.end()
    assert said.last == "the end"
    assert lines() == ["exec:x: one", "exec:x: two", "exec:x: the end"]


def test_the_lines_of_a_chunk_and_of_a_second_are_counted(lines, now):
    said = StandardError("exec:x")
    said.feed(b"first\n")
    said.feed(b"".join(b"%d\n" % number for number in range(1, 1000)) + b"be")
    assert said.last == "999"
    assert len(lines()) == process._RATE
    now[0] = 6.0
    said.feed(b"gun\n")
    assert lines()[-2:] == [f"exec:x: it said {1000 - process._RATE} lines more", "exec:x: begun"]
    said.feed(b"the end")
    said.end()
    assert said.last == "the end"


def test_a_line_without_end_is_cut_and_takes_no_memory(lines):
    said = StandardError("exec:x")
    for _ in range(100):
        said.feed(b"x" * 65536)
        assert len(said._rest) <= process._LONGEST
    said.feed(b"\nshort\n")
    assert lines() == [f"exec:x: {'x' * process._LONGEST}", "exec:x: short"]


def test_what_is_not_printable_is_not_printed(lines):
    said = StandardError("exec:x")
    said.feed(b"\x1b[31mred\0 \xff\x9b ok\n")
    assert lines() == [r"exec:x: \x1b[31mred\x00 " + "\ufffd\ufffd ok"]


def test_an_error_tells_how_and_why():
    assert str(program_error("exec:x", "ended with status 1", "no more")) == "exec:x: ended with status 1 (no more)"
    error = program_error("exec:x", "was ended by SIGKILL", "")
    assert str(error) == "exec:x: was ended by SIGKILL"
    assert error.reason == "target_reset"


@pytest.fixture
def pipe():
    said = []
    made = StandardErrorPipe(said.append)
    yield made, said
    made.close()


def test_what_is_written_is_passed_on_until_every_copy_is_closed(pipe):
    made, said = pipe
    loop = Loop()
    theirs = os.dup(made.theirs)
    made.start(loop)
    os.write(theirs, b"one")
    loop.turn()
    os.close(theirs)
    loop.turn()
    assert said == [b"one"] and made.descriptor not in loop.handlers, "it would report the end again and again"
    made.close()
    made.close()
    loop.close()


def test_the_rest_of_a_program_that_has_ended_is_bounded(pipe, monkeypatch):
    made, said = pipe
    monkeypatch.setattr(process.os, "read", lambda descriptor, size: b"more")  # a child of it writes without end
    made.finish()
    assert len(said) == process._AT_THE_END
