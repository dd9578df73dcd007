"""``port:``: a program that opens a local port is a hop or a target, with ssh, socat and a double of kubectl."""

import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest
from command_rig import run, tunnel
from doctor_rig import diagnose
from helpers import (
    WAIT,
    Thread,
    echo,
    ending,
    family,
    fate_of_client,
    is_running,
    receive_all,
    receive_exactly,
    send_and_end,
    wait_until,
)
from port_rig import children, double

import relay
from relay.errors import AddressError, ConnectError

SIZE = 5 << 20  # bytes each way
SECRET = "hunter2"


def address_of(server):
    return "{}:{}".format(*server.address)


def check_repeated(end):
    """Send much, with an end, and get all of it back."""
    data = os.urandom(SIZE)
    end.settimeout(3 * WAIT)
    sending = Thread(send_and_end, end, data)
    assert receive_all(end) == data
    sending.result(3 * WAIT)


def by_ssh(server, forward):
    """``ssh -N -L`` to a real server."""
    options = [
        "-F",
        os.devnull,
        "-i",
        server.keyfile,
        "-p",
        server.port,
        "-o",
        f"UserKnownHostsFile={server.known_hosts}",
    ]
    words = ["ssh", "-N", *options, "-o", "ExitOnForwardFailure=yes", "-L", forward, f"{server.user}@127.0.0.1"]
    return "port:" + shlex.join(map(str, words))


def by_socat(place, server):
    listening = "UNIX-LISTEN:{path}" if place == "{path}" else "TCP-LISTEN:{port},bind={host},reuseaddr"
    return f"port:socat {listening},fork TCP:{server}"


def test_ssh_as_a_target_and_as_a_hop(sshd, echo_server):
    host, port = echo_server.address
    with relay.connect(by_ssh(sshd, f"{{host}}:{{port}}:{host}:{port}")) as end:
        check_repeated(end)
    with relay.connect(f"{host}:{port}", via=[by_ssh(sshd, "{port}:%h:%p")]) as end:
        check_repeated(end)
    with relay.connect(by_ssh(sshd, f"{{path}}:{host}:{port}")) as end:
        check_repeated(end)


@pytest.mark.parametrize("place", ["{port}", "{path}"])
def test_socat(serve, place):
    with relay.connect(by_socat(place, address_of(serve(echo)))) as end:
        check_repeated(end)


@pytest.mark.parametrize("backend", ["paramiko", "openssh"])
def test_the_hop_before_an_ssh_server(sshd, echo_server, backend):
    """The program decides where its stream goes; relay verifies the server that it finds there."""
    server = f"{sshd.url}&backend={backend}"
    with relay.connect(address_of(echo_server), via=[by_socat("{port}", f"127.0.0.1:{sshd.port}"), server]) as end:
        check_repeated(end)


def test_a_program_is_on_this_machine_alone(target):
    for via, last in ((["ssh://bastion"], double()), (["ssh://bastion", double()], target), ([double()], double())):
        with pytest.raises(AddressError, match="runs on this machine alone|here it|on this machine"):
            relay.target(last, via=via)


def breaks(connection):
    """A server that repeats four bytes; the next ones break the stream."""
    connection.sendall(receive_exactly(connection, 4))
    if receive_exactly(connection, 1):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def ask(address):
    """Connect, and wait for an answer; the connection, and the seconds that this took."""
    begun = time.monotonic()
    client = socket.create_connection(address, WAIT)
    client.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"
    return client, time.monotonic() - begun


def test_a_lost_pod_costs_its_own_streams_and_a_second(serve, caplog):
    """Each time that it is lost, also if it was up for a moment only."""
    factory = relay.target(double(address_of(serve(breaks))))
    with relay.Tunnel(relay.listen(":0"), factory, timeout=None) as tunnel:
        client, start = ask(tunnel.address)
        times = []
        for _ in range(3):
            with client:
                client.sendall(b"x")
                assert ending(client) == "reset"
            client, seconds = ask(tunnel.address)
            times.append(seconds)
            assert len(children()) == 1
        client.close()
        assert sorted(times)[1] < start + 1  # one of them may have met a busy machine
        wait_until(lambda: len(tunnel.recent()) == 4)
        assert [record.reason for record in tunnel.recent()].count("carrier_lost") == 3
    assert "ended with status 1 (" in caplog.text and "error: lost connection to pod); trying again in " in caplog.text


def test_a_program_that_is_killed_is_started_again(serve):
    factory = relay.target(double(address_of(serve(echo))))
    with relay.Tunnel(relay.listen(":0"), factory, timeout=None) as tunnel:
        client, start = ask(tunnel.address)
        times = []
        for _ in range(3):
            with client:
                os.kill(*children(), signal.SIGKILL)
                assert ending(client) == "reset"
            client, seconds = ask(tunnel.address)
            times.append(seconds)
        client.close()
        assert sorted(times)[1] < start + 1


def test_clients_wait_while_it_starts(tmp_path, target):
    os.mkfifo(tmp_path / "late")
    factory = relay.target(double(target, f"late={tmp_path / 'late'}"))
    with relay.Tunnel(relay.listen(":0"), factory, timeout=None) as tunnel:
        waiting = [Thread(ask, tunnel.address) for _ in range(5)]
        try:
            with open(tmp_path / "late", "wb"):  # which waits until the program opens it
                pass
        finally:
            for one in waiting:
                one.result()[0].close()
        assert len(children()) == 1


def test_a_program_that_never_listens(caplog):
    factory = relay.target(double("never"))
    with relay.Tunnel(relay.listen(":0"), factory, timeout=None, connect_timeout=0.3) as tunnel:
        assert fate_of_client(tunnel.address) == "reset"
        wait_until(tunnel.recent)
        assert tunnel.recent()[0].reason == "connect_timeout"


def test_it_ends_with_its_last_user(start, tmp_path, target):
    """Two tunnels of a file share one program, which starts with them."""
    program = double(target, "child")
    file = tmp_path / "relay.toml"
    text = tunnel("a", "{target}").replace("{target}", program.replace('"', '\\"'))
    file.write_text(text + text.replace("tunnels.a", "tunnels.b"))
    command = start(str(file), "--debug", command="up")
    command.hear("Forwarding from")
    (process,) = children(command.process.pid)
    status, said = command.end()
    assert (status, said.count("Forwarding from")) == (0, 1)
    assert not is_running(process)


@pytest.mark.parametrize("place", ["{port}", "{path}"])
def test_nothing_is_left_of_it_if_relay_is_killed(start, target, place):
    command = start(":0", double(target, "child", place=place), "--debug")
    said = command.hear("Forwarding from")
    below = family(command.process.pid)[1:]
    assert len(below) == 3  # its keeper, the program, its child
    command.end(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, below)))
    if place == "{path}":
        folder = os.path.dirname(re.search(r"from (\S+),", said)[1])
        wait_until(lambda: not os.path.exists(folder))


@pytest.fixture
def file(tmp_path):
    """A file with a program that fails, and has a secret among its words."""
    path = tmp_path / "relay.toml"
    path.write_text(tunnel("db", "db:1", f"via = [{json.dumps(double('fails', SECRET))}]"))
    path.chmod(0o600)
    return path


def test_operators_see_why_it_has_ended_and_no_secret(start, file, environment):
    command = start(str(file), command="up", env=environment)
    command.hear("trying again")
    shown = run("ctl", "carriers", env=environment).stdout
    assert re.search(r"port:python\S* …\s+port\s+(backing off|connecting)", shown)
    assert "ended with status 1 before it listened at 127.0.0.1:" in shown
    assert "error: unable to forward port / see the log: 3" in shown
    printed = run("check", "--print", str(file)).stdout
    _, said = command.end()
    assert ' …"' in printed
    assert SECRET not in said + shown + printed


def test_doctor_starts_it_and_says_why_it_fails(capsys, target):
    found = diagnose(capsys, double(target))
    assert found.steps[:3] == ["program", "route", "connect"]
    assert re.fullmatch(r"listens at 127.0.0.1:\d+, which the kernel says is its own", found.check("program")["text"])
    failed = diagnose(capsys, double("fails"))
    failed.names("program", "ended with status 1", "see the log: 3")
    assert not children()


def test_check_finds_a_program_that_is_missing():
    done = run("check", "--", "forward", "1234", "port:no-such-program {port}")
    assert done.returncode != 0
    assert "port:no-such-program …: program not found; install it, or give its path" in done.stderr


def test_nothing_of_it_is_loaded_before_it_is_used():
    code = "import relay, sys; relay.target('127.0.0.1:1'); relay.target('exec:cat'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "relay.addresses.hops" in loaded
    assert not [name for name in loaded if ".port" in name or "sock_diag" in name]


def test_a_client_of_trio(echo_server, monkeypatch):
    """As the cookbook says."""
    trio = pytest.importorskip("trio")
    # Else the test waits for the end of trio's spare thread, which it has no other way to end.
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)

    async def talk():
        connected = await trio.to_thread.run_sync(relay.connect, double(address_of(echo_server)))
        connected.setblocking(False)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(connected)) as stream:
            await stream.send_all(b"ping")
            await stream.send_eof()
            return b"".join([data async for data in stream])

    assert trio.run(talk) == b"ping"


def test_the_error_of_a_call_names_it():
    with pytest.raises(ConnectError, match=r"^port:python\S* …: ended with status 1 before it listened"):
        relay.connect(double("fails"))
