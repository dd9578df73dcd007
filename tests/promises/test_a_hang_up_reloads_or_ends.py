"""SIGHUP reloads in ``relay up``, as in other daemons; on a terminal that closes it ends the program."""

import contextlib
import os
import signal
import subprocess

import pytest
from command_rig import Terminal, commands

FILE = '[tunnels.one]\nlisten = ":0"\ntarget = "127.0.0.1:1"\n'
WITHOUT_INPUT = ("sh", "-c", 'exec "$0" "$@" < /dev/null')


@pytest.fixture
def start(tmp_path):
    file = tmp_path / "relay.toml"
    file.touch(0o600)
    file.write_text(FILE)
    with commands() as make:

        def run(*prefix, stdin=subprocess.DEVNULL):
            command = make(str(file), "--control", "none", command="up", prefix=prefix, stdin=stdin)
            command.hear("1 of 1 tunnels listen")
            return command

        yield run


@pytest.fixture
def terminal():
    """A terminal; ``close`` closes it, as its window does."""
    with contextlib.ExitStack() as stack:
        made = Terminal(stack)
        held = stack.pop_all()
        made.close = held.close
        stack.callback(held.close)
        yield made


def reloads(command):
    command.process.send_signal(signal.SIGHUP)
    return command.hear("reload: 0 of 1 tunnels changed")


@pytest.mark.parametrize("prefix", [("nohup",), ("setsid",)], ids=" ".join)
def test_without_a_terminal_it_reloads(start, prefix):
    command = start(*prefix)
    assert reloads(command) and reloads(command)
    assert command.end()[0] == 0


def test_a_terminal_that_closes_ends_it(start, terminal):
    command = start("setsid", "--ctty", stdin=terminal.its)
    terminal.close()
    assert "SIGHUP: closing" in command.hear("SIGHUP")
    assert command.wait()[0] == 0


def test_with_another_standard_input_a_terminal_that_closes_reloads(start, terminal):
    """As a daemon in the background of a shell: it goes on without the terminal."""
    command = start("setsid", "--ctty", *WITHOUT_INPUT, stdin=terminal.its)
    terminal.close()
    assert command.hear("reload: 0 of 1 tunnels changed")
    assert reloads(command)
    assert command.end()[0] == 0


def test_under_nohup_a_terminal_that_closes_does_not_end_it(start, terminal):
    command = start("setsid", "--ctty", "sh", "-c", 'trap "" HUP; exec "$0" "$@"', stdin=terminal.its)
    terminal.close()
    assert command.hear("reload: 0 of 1 tunnels changed")
    assert command.end()[0] == 0


def test_other_commands_end():
    with commands() as make:
        command = make(":0", "127.0.0.1:1", prefix=("setsid",), stdin=subprocess.DEVNULL)
        command.address()
        assert command.end(signal.SIGHUP)[0] == 0
        ignoring = make(":0", "127.0.0.1:1", prefix=("nohup",), stdin=subprocess.DEVNULL)
        ignoring.address()
        ignoring.process.send_signal(signal.SIGHUP)
        os.kill(ignoring.process.pid, signal.SIGTERM)
        status, said = ignoring.wait()
        assert status == 0 and "SIGHUP" not in said
