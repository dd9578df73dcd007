"""``relay run``: the program has the terminal, a kill leaves nothing, and psql is one line over two hops."""

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pexpect
import pytest
from command_rig import RELAY, buffered, commands, run
from helpers import WAIT, is_gone, wait_until
from postgres import PASSWORD
from sshd import FarEnd, server_url
from warm_relay import popen

KILLS = int(os.environ.get("RELAY_KILLS", "10"))
BACKENDS = ["paramiko", "openssh"]


@pytest.fixture
def place(monkeypatch):
    """A folder for private directories, of which none may be left; its path has room for the sockets of ssh."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as made:
        monkeypatch.setenv("TMPDIR", made)
        yield Path(made)
        wait_until(lambda: os.listdir(made) == [])


def marked(mark):
    """The processes with a variable in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] if mark.encode() in path.read_bytes() else []
        except OSError:
            pass
    return found


# Between the end of relay and its own, it may see a reset, which bash would print.
CLIENT = (
    "exec 2>/dev/null 3<>/dev/tcp/{x.host}/{x.port} && echo hello >&3 && read line <&3 && echo {x.port} && exec cat <&3"
)


def test_a_kill_at_any_moment_leaves_nothing(place, target, sshd, warm_command, record_property):
    """Every third relay has an ``ssh``. RELAY_KILLS=1000 is the long run."""
    mark = f"RELAY_TEST_MARK={secrets.token_hex(8)}"
    env = {**buffered(), "RELAY_TEST_MARK": mark.partition("=")[2]}
    via = ["--via", server_url(sshd.server, backend="openssh")]
    span, done = 0.0, {"relay": 0, "program": 0, "relay before the program": 0}
    for seed in range(KILLS):
        chance = random.Random(seed)
        began = time.monotonic()
        words = ["run", f"x={target}", *(via if seed % 3 == 1 else []), "--", "bash", "-c", CLIENT]
        with popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
            port = 0
            if chance.random() < 0.3 or not span:  # while the program is connected
                port = int(command.stdout.readline())
                span = time.monotonic() - began
            else:
                threading.Event().wait(chance.uniform(0, 1.2 * span))
            program = Path(f"/proc/{command.pid}/task/{command.pid}/children")  # those that the main thread has started
            pids = [*map(int, program.read_text().split())] if program.exists() else []
            if chance.random() < 0.5 and pids:
                os.kill(pids[0], signal.SIGKILL)
                expected = 137
            else:
                command.kill()
                expected = -9
            done["program" if expected > 0 else "relay" if pids else "relay before the program"] += 1
            _, said = command.communicate(timeout=WAIT)
            assert (command.returncode, said) == (expected, ""), seed
        wait_until(lambda: marked(mark) == [])
        wait_until(lambda: list(place.iterdir()) == [])
        assert not port or is_gone(("127.0.0.1", port))
    record_property("measured", f"relay run, killed: {', '.join(f'{count} {who}' for who, count in done.items())}")


@pytest.fixture
def hops(sshd, make_sshd):
    """Two real servers, one behind the other."""
    return lambda backend: [w for rig in (sshd, make_sshd()) for w in ("--via", FarEnd("sshd", backend, rig).url)]


@pytest.mark.parametrize(
    ("backend", "where"), [("paramiko", ["-h", "{db.host}", "-p", "{db.port}"]), ("openssh", ["-h", "{db.dir}"])]
)
def test_psql_over_two_hops_is_one_line(place, hops, database, backend, where):
    env = {**os.environ, "PGPASSWORD": PASSWORD}
    psql = ["psql", "-X", "-A", "-t", "-U", database.name, "-d", "postgres", "-c", "SELECT 6 * 7"]
    done = run("run", f"db={database.address}", *hops(backend), "--", *psql, *where, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lost_server_is_reached_again_in_silence(place, make_sshd, target, backend):
    server = make_sshd()
    ask = "exec 3<>/dev/tcp/{x.host}/{x.port} && echo $line >&3 && read answer <&3 && echo $answer"
    script = f"echo ready; while read line; do until ( {ask} ) 2>/dev/null; do :; done; done"
    via = server_url(server.server, backend=backend)
    with commands() as start:
        command = start(f"x={target}", "--via", via, "--", "bash", "-c", script, command="run", stdin=subprocess.PIPE)
        process = command.process
        assert process.stdout.readline() == "ready\n"
        for word in ("before", "after"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{word}\n"
            server.kill_sessions()
        assert command.wait() == (0, "")


# The terminal.

PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGWINCH, lambda *_: print("size", os.get_terminal_size().columns, flush=True))
signal.signal(signal.SIGINT, lambda *_: print("inter" + "rupted", flush=True))
print("tty", os.isatty(0), os.tcgetpgrp(0) == os.getpgrp(), flush=True)
for line in sys.stdin:
    print("got", line.strip(), flush=True)
sys.exit(5)
"""


@pytest.fixture
def shell(place, tmp_path, target):
    """An interactive bash in a terminal, in which ``run`` is relay run with a tunnel, and ``program`` that above."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = {**os.environ, "PS1": "$ ", "TERM": "dumb", "TMPDIR": str(place)}
    with pexpect.spawn(
        "bash", ["--norc", "--noprofile", "-i"], env=env, encoding="utf-8", timeout=WAIT, echo=False
    ) as made:
        made.sendline(f"bind 'set enable-bracketed-paste off'; run() {{ {RELAY} run x={target} -- \"$@\"; }}")
        made.sendline(f"alias program='{sys.executable} -S {program}'; run_program=(run {sys.executable} -S {program})")
        made.sendline("echo re''ady")
        made.expect("ready\r")
        yield made


def says(shell, line, *words):
    """Type a line; expect the words in turn."""
    shell.sendline(line)
    for word in words:
        shell.expect(word)


def test_the_program_has_the_terminal(shell):
    says(shell, '"${run_program[@]}"', "tty True True\r")
    says(shell, "word", "got word\r")
    shell.setwinsize(24, 77)
    shell.expect("size 77\r")
    shell.sendintr()
    shell.expect("interrupted\r")
    for _ in range(2):
        shell.sendcontrol("z")
        shell.expect("Stopped")
        says(shell, "echo in the she''ll", "in the shell\r")
        shell.sendline("fg")
        says(shell, "more", "got more\r")
    shell.sendeof()
    says(shell, "echo status $?", "status 5\r")


def test_a_job_in_the_background_stops_when_it_reads(shell):
    says(shell, '"${run_program[@]}" &', "tty True False\r")
    says(shell, "wait %1 2>/dev/null; jobs", "Stopped")
    shell.sendline("fg")
    says(shell, "word", "got word\r")
    shell.sendeof()
    says(shell, "echo status $?", "status 5\r")


def test_a_pipeline_is_one_job(shell):
    says(shell, '"${run_program[@]}" | cat', "tty True True\r")
    says(shell, "word", "got word\r")
    shell.sendcontrol("z")
    shell.expect("Stopped")
    shell.sendline("fg")
    says(shell, "more", "got more\r")
    shell.sendintr()  # ends cat, and the program goes on
    shell.sendeof()
    says(shell, "echo status ${PIPESTATUS[0]}", "status")


def test_a_shell_as_the_program_has_jobs_of_its_own(shell):
    says(shell, "run bash --norc --noprofile -i", r"\$ ")
    says(shell, "PS1='inner '; bind 'set enable-bracketed-paste off'; echo $RELAY_X_HOST", "127.0.0.1\r")
    says(shell, "cat")
    says(shell, "word", "word\r")
    shell.sendcontrol("z")
    shell.expect("Stopped")
    says(shell, "fg", "cat\r")
    says(shell, "more", "more\r")
    shell.sendeof()
    says(shell, "suspend", "Stopped")
    says(shell, "echo out''er", "outer\r")
    says(shell, "fg", "inner ")
    says(shell, "exit 4")
    says(shell, "echo status $?", "status 4\r")


def test_a_terminal_that_closes_ends_both(place, tmp_path, target):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = ["run", f"x={target}", "--", sys.executable, "-S", str(program)]
    terminal = pexpect.spawn(RELAY, words, encoding="utf-8", timeout=WAIT, echo=False)
    terminal.expect("tty True True\r")
    terminal.ptyproc.fileobj.close()
    assert os.WIFEXITED(os.waitpid(terminal.pid, 0)[1])
    terminal.closed = terminal.ptyproc.closed = True
