"""Programs that were written for ``x2go.rforward`` run with one import changed, beside the original where that is."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT, echo, ending, is_gone, makes, receive_all, receive_exactly, send_and_end, wait_until
from rforward_rig import LOOPBACK, reserved

import relay

# A program as it would be found: PulseAudio of this computer for a session on a terminal server, with X2Go's book of
# tunnels on the transport. It does what the lines of its control socket say.
PROGRAM = """
import socket
import sys

import paramiko
from x2go.rforward import X2GoRevFwTunnel


class Session(object):
    def HOOK_rforward_request_denied(self, server_port=0):
        say("denied %d" % server_port)


def say(text):
    control.write(text + "\\n")
    control.flush()


def connect(host, port, username, keyfile):
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.WarningPolicy())
    client.connect(host, int(port), username, key_filename=keyfile, look_for_keys=False, allow_agent=False)
    return client


def main(snd_port, pulse_port):
    transport = client.get_transport()
    transport.reverse_tunnels = {}
    tunnel = X2GoRevFwTunnel(
        server_port=int(snd_port),
        remote_host="127.0.0.1",
        remote_port=int(pulse_port),
        ssh_transport=transport,
        session_instance=Session(),
    )
    transport.reverse_tunnels["session"] = {"snd": (int(snd_port), tunnel), "sshfs": (0, None)}
    tunnel.start()
    say("started")
    for line in control:
        command = line.strip()
        if command == "exec":
            stdin, stdout, stderr = client.exec_command("echo usable")
            say(stdout.read().decode().strip())
        else:
            getattr(tunnel, command)()
            say(command)


control = socket.create_connection(("127.0.0.1", int(sys.argv[1]))).makefile("rw")
client = connect(*sys.argv[2:6])
main(*sys.argv[6:])
client.close()
"""

# The flow of the original's session: a handler of its own queues each channel and tells the tunnel whose it is.
QUEUES = (
    PROGRAM[: PROGRAM.index("def main")]
    + """
def main(*targets):
    transport = client.get_transport()
    tunnels = {}

    def handler(chan, origin, server):
        transport._queue_incoming_channel(chan)
        tunnels[server[1]].notify()

    for target in targets:
        tunnel = X2GoRevFwTunnel(0, "127.0.0.1", int(target), transport)
        tunnel.start()
        server_port = transport.request_port_forward("127.0.0.1", 0, handler=handler)
        tunnels[server_port] = tunnel
        say("%d" % server_port)
    control.readline()
    for tunnel in tunnels.values():
        tunnel.stop_thread()

"""
    + PROGRAM[PROGRAM.index("\ncontrol = ") :]
)

IMPORT = "from x2go.rforward import"
DEBIAN = "/usr/bin/python3"


class Running:
    """A program, and what it says."""

    def __init__(self, python, folder, text, *arguments):
        path = folder / "program.py"
        path.write_text(text)
        root = {"PYTHONPATH": str(Path(relay.__file__).parents[1])} if IMPORT not in text else {}
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"], **root}
        with socket.create_server((LOOPBACK, 0)) as listening:
            listening.settimeout(2 * WAIT)
            number = listening.getsockname()[1]
            self._process = subprocess.Popen(
                [python, "-W", "ignore", str(path), *map(str, (number, *arguments))], env=environment
            )
            try:
                with listening.accept()[0] as connection:
                    connection.settimeout(2 * WAIT)
                    self._control = connection.makefile("rw")
            except BaseException:
                self._process.kill()
                self._process.wait(WAIT)
                raise

    def line(self):
        return self._control.readline().strip()

    def say(self, command):
        self._control.write(f"{command}\n")
        self._control.flush()
        return self.line()

    def end(self):
        """End what it reads, and wait for it."""
        self._control.close()
        assert self._process.wait(WAIT) == 0

    def close(self):
        self._process.kill()
        self._process.wait(WAIT)
        self._control.close()


@pytest.fixture
def run(tmp_path):
    yield from makes(lambda first, *more: Running(first, tmp_path, *more))


def changed(text):
    """The program with one import changed."""
    assert text.count(IMPORT) == 1
    return text.replace(IMPORT, "from relay.compat.rforward import")


def original():
    """Debian's Python if it has the original."""
    if shutil.which(DEBIAN) is None or subprocess.run([DEBIAN, "-c", "import x2go"], capture_output=True).returncode:
        pytest.skip("x2go is not installed (Debian: python3-x2go)")
    return DEBIAN


def hosts(server):
    return (LOOPBACK, server.port, server.user, server.keyfile)


def exchanged(port, text):
    """Return whether a new client at a port gets back what it says."""
    with socket.create_connection((LOOPBACK, port), WAIT) as client:
        client.sendall(text)
        return receive_exactly(client, len(text)) == text


def test_a_program_for_the_original(sshd, echo_server, run):
    with reserved() as kept:
        port = kept.getsockname()[1]
        program = run(sys.executable, changed(PROGRAM), *hosts(sshd), port, echo_server.address[1])
        assert program.line() == "started"
        assert exchanged(port, b"sound" * 10000)
        with socket.create_connection((LOOPBACK, port), WAIT) as live:
            live.sendall(b"x")
            assert live.recv(1) == b"x"
            assert program.say("pause") == "pause"
            assert ending(live) == "end of file"
        assert is_gone((LOOPBACK, port))
        assert program.say("resume") == "resume"
        with socket.create_connection((LOOPBACK, port), WAIT) as client:
            send_and_end(client, b"to the end")
            assert receive_all(client) == b"to the end"  # which the original loses
        assert program.say("stop_thread") == "stop_thread"
        assert is_gone((LOOPBACK, port))
        assert program.say("exec") == "usable"
        program.end()


def test_the_same_on_the_original(sshd, echo_server, run):
    """The part that the original does: it serves, once it is ready, without a word. Its cancels are not heeded."""

    def served():
        try:
            return exchanged(port, b"sound" * 100)
        except ConnectionError:
            return False

    with reserved() as kept:
        port = kept.getsockname()[1]
        program = run(original(), PROGRAM, *hosts(sshd), port, echo_server.address[1])
        assert program.line() == "started"
        wait_until(served)
        assert program.say("exec") == "usable"
        assert program.say("pause") == "pause"
        assert not is_gone((LOOPBACK, port))


def test_its_hook_is_called(sshd, echo_server, run):
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        program = run(sys.executable, changed(PROGRAM), *hosts(sshd), port, echo_server.address[1])
        assert program.line() == f"denied {port}"
        assert program.line() == "started"
        assert program.say("exec") == "usable"
        program.end()


def test_a_handler_that_queues_and_notifies(sshd, serve, run):
    targets = [serve(lambda connection, letter=letter: said(connection, letter)) for letter in (b"1", b"2")]
    program = run(sys.executable, changed(QUEUES), *hosts(sshd), *(target.address[1] for target in targets))
    ports = [int(program.line()) for _ in targets]
    clients = [socket.create_connection((LOOPBACK, port), WAIT) for port in ports * 20]
    assert [receive_exactly(client, 1) for client in clients] == [b"1", b"2"] * 20
    for client in clients:
        client.close()
    program.end()


def said(connection, letter):
    connection.sendall(letter)
    echo(connection)
