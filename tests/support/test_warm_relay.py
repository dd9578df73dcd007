"""A fork of the command does what the installed command does."""

import os
import pty
import signal
import subprocess

import pytest
import warm_relay
from command_rig import buffered, commands
from helpers import WAIT, wait_until
from warm_relay import RELAY, Fork, popen


def outcome(process):
    with process:
        return process.communicate(timeout=WAIT), process.returncode


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--version"],
        ["forward", "--help"],
        ["forward", ":0"],
        ["check", "--schema"],
        ["nope"],
        ["pipe", "127.0.0.1:1"],
    ],
)
@pytest.mark.parametrize("folder", [None, "/"])
def test_it_says_and_ends_like_a_new_process(words, folder):
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options.update(env={**buffered(), "COLUMNS": "70"}, cwd=folder)
    fork = popen(words, **options)
    assert isinstance(fork, Fork) == (warm_relay._server is not None)
    assert outcome(fork) == outcome(subprocess.Popen([RELAY, *words], **options))


def test_it_has_the_environment_the_folder_and_the_descriptors_of_a_new_process(tmp_path):
    """A program behind ``exec:`` shows what its parent has passed on."""
    look = "exec:sh -c 'env | LC_ALL=C sort; pwd; ls -l /proc/$PPID/fd | wc -l; ulimit -a; readlink /proc/$PPID/exe'"
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    options["env"] = {**buffered(), "SHELL": "/bin/ä", "MINE": "1\udcff2"}
    (said, errors), status = outcome(popen(["pipe", look], **options))
    assert (errors, status) == (b"", 0)
    assert b"MINE=1\xff2\n" in said and str(tmp_path).encode() in said

    def both():
        return outcome(popen(["pipe", look], **options)), outcome(subprocess.Popen([RELAY, "pipe", look], **options))

    wait_until(lambda: len(set(both())) == 1)  # each has one more descriptor for a moment


def test_other_settings_of_the_interpreter_make_a_new_process():
    for more in {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}, {"PYTHONUNBUFFERED": "1"}:
        process = popen(["--version"], env={**buffered(), **more}, stdout=subprocess.PIPE)
        assert type(process) is subprocess.Popen
        assert outcome(process)[1] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(number):
    with commands() as start:
        command = start("127.0.0.1:0", "127.0.0.1:1")
        command.address()
        assert command.process.poll() is None
        status, _ = command.end(number)
    assert status == {signal.SIGKILL: -9}.get(number, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(command.process.pid, 0)


def test_a_session_of_its_own():
    with commands() as start:
        for own in True, False:
            command = start("127.0.0.1:0", "127.0.0.1:1", start_new_session=own)
            command.address()
            assert (os.getsid(command.process.pid) == command.process.pid) is own


def test_a_terminal_is_one():
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", 0) as screen:
        with popen(["nope"], env={**buffered(), "TERM": "xterm"}, stderr=its) as process:
            os.close(its)
            assert process.wait(WAIT) == 2
        assert screen.read(1000).endswith(b"\r\n")
