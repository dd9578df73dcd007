"""With ``resume=yes`` a stream goes on when its SSH connection is killed: every byte, and both ends."""

import os
import random
import shlex
import subprocess
import sys

import pytest
from command_rig import RELAY
from helpers import Thread, echo, ending, receive_all, receive_exactly, send_and_end, wait_until
from sshd import FarEnd, server_url

import relay
from relay.transports.resume.figures import BUDGET


@pytest.fixture
def server(make_sshd, tmp_path):
    """An OpenSSH server whose logins find relay, and have a runtime directory."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    programs = os.path.dirname(sys.executable)
    return make_sshd(f"SetEnv PATH={programs}:/usr/bin:/bin XDG_RUNTIME_DIR={runtime}")


@pytest.fixture
def resume_server(start, tmp_path, environment):
    """The far end, in the foreground; returns the path of its socket."""
    path = tmp_path / "resume.sock"
    command = start(f"unix://{path}", "--resume-for", "60", command="resume-server", env=environment)
    assert command.process.stdout.readline().startswith(f"listening on unix://{path}")
    return path


@pytest.fixture
def dialed():
    """Makes streams over a hop: ``dialed(hop, address)`` returns the dialer and the stream."""
    made = []

    def dial(hop, address):
        dialer = relay.target("{}:{}".format(*address), via=[hop])
        made.append(dialer)
        made.append(dialer(deadline=None))
        made[-1].socket.settimeout(60)
        return dialer, made[-1]

    yield dial
    for one in reversed(made):
        one.close()
    wait_until(lambda: BUDGET.offered == BUDGET.held == 0)


def test_the_ssh_connection_is_killed_while_bytes_flow(backend, server, resume_server, dialed, serve):
    hop = FarEnd("sshd", backend, server).address(resume=str(resume_server))
    _, stream = dialed(hop, serve(echo).address)
    data = random.Random(2).randbytes(4 << 20)
    sending = Thread(send_and_end, stream.socket, data)
    got, kills = bytearray(), 0
    while piece := stream.socket.recv(1 << 16):
        got += piece
        if len(got) > (kills + 1) << 20 and kills < 3:
            server.kill_sessions()
            kills += 1
    sending.result()
    assert kills == 3
    assert bytes(got) == data
    assert stream.failure() is None
    wait_until(lambda: server.logins > 1)  # two kills may meet one login


def test_the_ends_of_both_directions_outlive_a_killed_connection(backend, server, resume_server, dialed, serve):
    def late(connection):
        asked = receive_all(connection)
        server.kill_sessions()
        connection.sendall(asked[::-1])

    hop = FarEnd("sshd", backend, server).address(resume=str(resume_server))
    _, stream = dialed(hop, serve(late).address)
    send_and_end(stream.socket, b"question")
    assert receive_all(stream.socket) == b"noitseuq"
    assert stream.failure() is None


def test_nothing_has_to_be_set_up_and_a_restart_is_noticed(server, dialed, serve):
    """The login starts the far end; a far end that is killed does not know its streams any more."""
    hop = FarEnd("sshd", "paramiko", server).address(resume="yes")
    dialer, stream = dialed(hop, serve(echo).address)
    stream.socket.sendall(b"hello")
    assert receive_exactly(stream.socket, 5) == b"hello"
    kill_resume_servers(server)
    assert ending(stream.socket) == "reset"
    assert stream.failure().reason == "resume_lost"
    with dialer(deadline=None) as again:
        again.socket.settimeout(60)
        again.socket.sendall(b"hello")
        assert receive_exactly(again.socket, 5) == b"hello"
    wait_until(lambda: BUDGET.offered == 0)  # else the last word starts another far end
    kill_resume_servers(server)


def test_an_ssh_session_by_a_proxy_command_outlives_its_way(server, make_sshd, tmp_path, backend):
    """The original client, which knows nothing of it: ``relay pipe --resume`` is its ProxyCommand."""
    far = make_sshd().server
    hop = server_url(server.server, backend=backend)
    settings = {
        "HostName": far.host,
        "Port": far.port,
        "User": far.user,
        "IdentityFile": far.keyfile,
        "UserKnownHostsFile": far.known_hosts,
        "BatchMode": "yes",
        "ProxyCommand": shlex.join([RELAY, "pipe", "%h:%p", "--via", hop.replace("%", "%%"), "--resume"]),
    }
    config = tmp_path / "config"
    config.write_text("Host far\n" + "".join(f"  {name} {value}\n" for name, value in settings.items()))
    ssh = ["ssh", "-F", str(config), "far", "cat"]
    with subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as session:
        for number in range(3):
            session.stdin.write(b"%d\n" % number)
            assert session.stdout.readline() == b"%d\n" % number
            server.kill_sessions()
        session.stdin.close()
        assert session.stdout.read() == b""
    assert session.returncode == 0
    kill_resume_servers(server)


def test_a_server_without_relay_is_named_with_what_to_do(make_sshd, dialed, serve, tmp_path):
    server = make_sshd(f"SetEnv PATH=/usr/bin:/bin HOME={tmp_path}")
    hop = FarEnd("sshd", "paramiko", server).address(resume="yes")
    with pytest.raises(relay.ConnectError, match="relay is not installed there.*pipx install"):
        dialed(hop, serve(echo).address)


def kill_resume_servers(server):
    """Kill the far ends that logins of this test have started."""
    import signal

    folder = os.path.dirname(str(server.folder)).encode()
    killed = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
        except OSError:
            continue
        if b"resume-server" in words and b"--ends-idle" in words and folder in words:
            os.kill(int(pid), signal.SIGKILL)
            killed += 1
    assert killed == 1
