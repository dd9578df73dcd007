"""The real OpenSSH server of the tests."""

import socket
import subprocess

import pytest
from helpers import WAIT, wait_until
from sshd import RealServer

ANSWER = b"SSH-2.0-OpenSSH"


def client(server, *more):
    """Start the client, with nothing of the user's own configuration."""
    options = ["-F", "none", "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "BatchMode=yes"]
    argv = ["ssh", *options, "-i", server.keyfile, "-p", str(server.port), *more, f"{server.user}@127.0.0.1"]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process):
    """The exit status, and what it said."""
    with process:
        _, said = process.communicate(timeout=WAIT)
    return process.returncode, said.decode()


def logged_in(server):
    """A client whose login is over on both sides: one that is frozen in the middle of it may give up."""
    process = client(server, "-v", "-N")
    for line in process.stderr:
        if b"Entering interactive session" in line:
            return process
    raise AssertionError(server.log())


def greeting(server, timeout=WAIT):
    with socket.create_connection(("127.0.0.1", server.port), timeout) as peer:
        return peer.recv(len(ANSWER))


def test_a_client_logs_in(sshd):
    process = client(sshd, "-N")
    sshd.wait_for("Accepted publickey")
    assert sshd.logins == 1
    assert sshd.sessions()
    process.kill()
    ended(process)
    wait_until(lambda: not sshd.sessions())


def test_killed_its_sessions_end_and_its_port_refuses_until_it_is_back(make_sshd):
    server = make_sshd()
    process = client(server, "-N")
    server.wait_for("Accepted publickey")
    server.kill()
    assert ended(process)[0] == 255
    with pytest.raises(ConnectionRefusedError):
        greeting(server)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", server.port))
    server.start()
    assert greeting(server) == ANSWER


def test_frozen_it_says_nothing_and_its_connections_stay(sshd):
    process = logged_in(sshd)
    sshd.freeze()
    with pytest.raises(TimeoutError):
        greeting(sshd, 0.1)
    assert process.poll() is None
    sshd.thaw()
    assert greeting(sshd) == ANSWER
    assert process.poll() is None
    process.kill()
    ended(process)


def test_its_configuration_can_be_changed(make_sshd):
    one, other = make_sshd(), make_sshd("PubkeyAuthentication no", "PasswordAuthentication yes")
    assert one.port != other.port
    status, said = ended(client(other, "-N"))
    assert (status, "Permission denied (password)" in said) == (255, True)


class Speaker(RealServer):
    """A program that says something, and ends."""

    ready = "words"

    def command(self):
        return ["sh", "-c", "printf 'first\\nlast words' >&2"]


def test_its_last_words_need_no_end_of_line(tmp_path):
    server = Speaker(tmp_path).start()
    server.wait_for("(end of the log)")
    server.stop()
    assert server.log().splitlines() == ["first", "last words", "(end of the log)"]


def test_one_that_cannot_start_says_why(make_sshd):
    with pytest.raises(AssertionError, match="NoSuchOption"):
        make_sshd("NoSuchOption yes")
