"""``relay.testing.SSHServer``, with paramiko and with OpenSSH's client."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import paramiko
import pytest
from helpers import (
    BLOCK,
    PROMPT,
    WAIT,
    Thread,
    black_hole,
    echo,
    ending,
    flood,
    is_gone,
    receive_all,
    receive_exactly,
    refusing,
    reserved_port,
    send_and_end,
    sha256_of,
    wait_until,
)
from paramiko.common import MSG_CHANNEL_CLOSE, MSG_CHANNEL_FAILURE
from sshd import make_key

from relay.testing import SSHServer, check_leaks
from relay.testing.ssh import channel as sshchannel

# OpenSSH's words for why a channel was not opened.
LOST = (paramiko.SSHException, EOFError)  # what paramiko raises then
PROHIBITED, CONNECT_FAILED, UNKNOWN_KIND, SHORTAGE = 1, 2, 3, 4


@pytest.fixture(autouse=True)
def quiet():
    """The log of paramiko's client about the failures that this test makes."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("paramiko").setLevel(logging.NOTSET)


@contextlib.contextmanager
def connected(server):
    """A client of paramiko's that has not logged in."""
    connection = socket.create_connection(server.address, WAIT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(connection)
    try:
        transport.start_client(timeout=WAIT)
        yield transport
    finally:
        transport.close()
        transport.join(WAIT)


def key_of(server):
    return paramiko.Ed25519Key(filename=server.keyfile)


@contextlib.contextmanager
def logged_in(server):
    with connected(server) as transport:
        transport.auth_publickey(server.user, key_of(server))
        yield transport


def direct(transport, address):
    channel = transport.open_channel("direct-tcpip", address, ("127.0.0.1", 1), timeout=WAIT)
    channel.settimeout(WAIT)
    return channel


def refusal(transport, address):
    with pytest.raises(paramiko.ChannelException) as refused:
        direct(transport, address)
    return refused.value.code


@pytest.fixture
def ssh(ssh_server, tmp_path, spawner_thread):
    """Starts the client with some options and waits until it has logged in."""
    if shutil.which("ssh") is None:
        pytest.skip("there is no ssh (Debian: openssh-client)")
    started = []

    def run(*options, server=ssh_server):
        usual = ["-F", "none", "-N", "-v", "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "BatchMode=yes"]
        place = ["-i", server.keyfile, "-p", str(server.address[1]), f"{server.user}@{server.address[0]}"]
        argv = ["ssh", *usual, "-o", "ExitOnForwardFailure=yes", *options, *place]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for line in process.stderr:
            if b"Entering interactive session" in line:
                break
        started.append((process, Thread(process.stderr.read)))  # it says more than a pipe holds
        return process

    yield run
    for process, reading in started:
        # Not SIGTERM: one between OpenSSH 9.2's look for signals and its poll is not seen for up to 300 s.
        process.kill()
        reading.result()
        process.stderr.close()
        process.wait(WAIT)


def unix_client(path):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(WAIT)
    wait_until(lambda: client.connect_ex(str(path)) == 0)  # the path is there a moment before its listener listens
    return client


# -- how to reach it ----------------------------------------------------------------------------------------------


def test_importing_relay_testing_does_not_import_paramiko():
    code = "import sys, relay.testing; assert 'paramiko' not in sys.modules; relay.testing.SSHServer; import paramiko"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT)


def test_its_files_are_private_and_are_removed(ssh_server):
    folder = Path(ssh_server.keyfile).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(ssh_server.keyfile).st_mode) == 0o600
    assert Path(ssh_server.known_hosts).read_text() == ssh_server.known_hosts_line + "\n"
    ssh_server.close()
    assert not folder.exists()


def test_the_address_holds_all_but_secrets(make_ssh_server):
    server = make_ssh_server(users={"ann": "wonderland"})
    assert server.url.startswith(f"ssh://ann@127.0.0.1:{server.address[1]}?")
    assert server.keyfile in server.url
    assert "wonderland" not in server.url
    assert "+" not in server.url


def test_a_key_of_ones_own(make_ssh_server):
    key = paramiko.ECDSAKey.generate()
    with connected(make_ssh_server(host_key=key)) as transport:
        assert transport.get_remote_server_key() == key


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"users": {}}, "users"),
        ({"methods": ["telepathy"]}, "methods"),
        ({"methods": []}, "methods"),
        ({"allow_forwarding": "sideways"}, "allow_forwarding"),
        ({"authorized_keys": ["ssh-ed25519"]}, "authorized_keys"),
        ({"authorized_keys": ["ssh-ed25519 %%%"]}, "authorized_keys"),
    ],
)
def test_wrong_arguments_are_named(wrong, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        SSHServer(**wrong)


def test_a_port_that_is_taken(ssh_server):
    with pytest.raises(OSError, match="in use"):
        SSHServer(port=ssh_server.address[1])


# -- who gets in --------------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_a_credential(make_ssh_server):
    server = make_ssh_server(strict=False)
    with connected(server) as transport:
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_none("relay")
        assert refused.value.allowed_types == ["publickey"]
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("relay", paramiko.ECDSAKey.generate())
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("nobody", key_of(server))
    assert server.logins == 0


def test_the_service_is_requested_once(ssh_server):
    """RFC 4253, section 10; paramiko's own client requests it before each attempt."""
    with connected(ssh_server) as transport:
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_none("relay")
        with pytest.raises(LOST):
            transport.auth_publickey("relay", key_of(ssh_server))
    wait_until(lambda: ssh_server.connections == 0)
    assert ssh_server.logins == 0


def test_nothing_can_be_opened_before_the_login(ssh_server, echo_server):
    with connected(ssh_server) as transport:
        assert refusal(transport, echo_server.address) == PROHIBITED
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)
    assert ssh_server.opened == 0


def test_authorized_keys_as_keys_and_as_lines(make_ssh_server, tmp_path):
    key = paramiko.ECDSAKey.generate()
    line = make_key(tmp_path / "key")
    server = make_ssh_server(authorized_keys=[key, line + " a comment"])
    for one in (key, paramiko.Ed25519Key(filename=str(tmp_path / "key"))):
        with connected(server) as transport:
            transport.auth_publickey("relay", one)
            assert transport.is_authenticated()


def test_the_steps_of_one_list_in_their_order(make_ssh_server):
    methods = ["publickey,password", "password,keyboard-interactive"]
    server = make_ssh_server(users={"ann": "a"}, questions=[("?", "!")], methods=methods, strict=False)
    with connected(server) as transport:
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_interactive("ann", lambda *_: ["!"])
        assert transport.auth_publickey("ann", key_of(server)) == ["password"]
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_interactive("ann", lambda *_: ["!"])
        assert not transport.is_authenticated() and server.logins == 0
        assert transport.auth_password("ann", "a", fallback=False) == []
        assert transport.is_authenticated()
    assert server.logins == 1
    assert [method for _, method in server.attempts if method != "none"][-1] == "password"


def test_a_key_that_was_only_offered_is_no_step(make_ssh_server):
    """To offer a key proves nothing; only its signature does."""
    server = make_ssh_server(users={"ann": "wonderland"}, methods=["publickey,password"], strict=False)

    class Unsigned(paramiko.Ed25519Key):
        def sign_ssh_data(self, data, algorithm=None):
            message = super().sign_ssh_data(b"something else", algorithm)
            message.rewind()
            return message

    with connected(server) as transport:
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("ann", Unsigned(filename=server.keyfile))
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_password("ann", "wonderland", fallback=False)
        assert not transport.is_authenticated()


# -- channels -----------------------------------------------------------------------------------------------------


def test_a_target_that_refuses(ssh_server):
    with logged_in(ssh_server) as transport, refusing() as address:
        assert refusal(transport, address) == CONNECT_FAILED
        assert refusal(transport, ("no such host", 1)) == CONNECT_FAILED
        assert refusal(transport, ("127.0.0.1", 0)) == CONNECT_FAILED
    assert (ssh_server.opened, ssh_server.refused) == (0, 3)


def test_what_it_does_not_have(ssh_server):
    with logged_in(ssh_server) as transport:
        for kind, code in (("session", PROHIBITED), ("telepathy", UNKNOWN_KIND)):
            with pytest.raises(paramiko.ChannelException) as refused:
                transport.open_channel(kind, timeout=WAIT)
            assert refused.value.code == code


def test_stopping_it_ends_its_commands(make_ssh_server):
    server = make_ssh_server(commands=lambda text: True)
    with logged_in(server) as transport:
        channel = transport.open_session(timeout=WAIT)
        channel.settimeout(WAIT)
        channel.exec_command("trap '' TERM HUP; echo on; sleep 1000")
        assert channel.recv(10) == b"on\n"
        server.stop()  # what is left is found by the check for leaks
        assert channel.recv(10) == b""


def send_and_receive(channel):
    with contextlib.closing(channel):
        send_and_end_channel(channel, b"ping")
        return receive_all(channel)


def send_and_end_channel(channel, data):
    channel.sendall(data)
    channel.shutdown_write()


# -- forwards -----------------------------------------------------------------------------------------------------


def test_forwards_with_openssh(ssh_server, echo_server, ssh, tmp_path, two_ports):
    port, here = two_ports[0], echo_server.address[1]
    process = ssh("-R", f"{port}:127.0.0.1:{here}", "-R", f"{tmp_path}/out:127.0.0.1:{here}")
    wait_until(lambda: not is_gone(("127.0.0.1", port)))
    with socket.create_connection(("127.0.0.1", port), WAIT) as client, unix_client(tmp_path / "out") as other:
        for one in (client, other):
            upload = Thread(send_and_end, one, BLOCK)
            assert receive_all(one) == BLOCK
            upload.result()
    assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == 0o600
    process.kill()
    wait_until(lambda: is_gone(("127.0.0.1", port)))
    wait_until(lambda: not (tmp_path / "out").exists())


def test_a_place_that_is_taken_is_refused(ssh_server, listener, tmp_path):
    (tmp_path / "taken").touch()
    with logged_in(ssh_server) as transport:
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", listener.getsockname()[1])
        for path in (str(tmp_path / "taken"), "", "a" * 200, "a\0b"):
            message = paramiko.Message()
            message.add_string(path)
            assert transport.global_request("streamlocal-forward@openssh.com", [path]) is None
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 1 << 20)


# -- clients of others ----------------------------------------------------------------------------------------------


@pytest.fixture
def dbclient(make_ssh_server, tmp_path):
    """``dbclient(*options)``: the client of dropbear, logged in by key.

    It sends its first packet of the key exchange before it knows what is agreed on, and guesses wrong.
    """
    server = make_ssh_server()
    key = str(tmp_path / "key")
    with stopped_at_the_end() as start:

        def run(*options, **streams):
            subprocess.run(["dropbearconvert", "openssh", "dropbear", server.keyfile, key], check=True, timeout=WAIT)
            host, port = server.address
            argv = ["dbclient", "-y", "-y", "-i", key, "-p", str(port), *options, f"{server.user}@{host}"]
            return start(argv, tmp_path, server, **streams)

        yield run


@pytest.fixture
def plink(make_ssh_server, tmp_path):
    """``plink(*options)``: the client of PuTTY, logged in by password."""
    server = make_ssh_server(users={"relay": "wonderland"})
    with stopped_at_the_end() as start:

        def run(*options, **streams):
            (tmp_path / "word").write_text("wonderland\n")
            place = ["-P", str(server.address[1]), f"{server.user}@{server.address[0]}"]
            usual = ["-batch", "-noagent", "-no-antispoof", "-hostkey", server.fingerprint]
            argv = ["plink", *usual, "-pwfile", str(tmp_path / "word"), *options, *place]
            return start(argv, tmp_path, server, **streams)

        yield run


@contextlib.contextmanager
def stopped_at_the_end():
    with contextlib.ExitStack() as undo:

        def start(argv, home, server, **streams):
            if shutil.which(argv[0]) is None:
                pytest.skip(f"there is no {argv[0]} (Debian: dropbear-bin, putty-tools)")
            usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
            process = undo.enter_context(subprocess.Popen(argv, env=environment, **usual | streams))
            undo.callback(process.kill)
            wait_until(lambda: server.logins or process.poll() is not None)
            assert process.poll() is None
            return process

        yield start


@pytest.fixture
def two_ports():
    with reserved_port() as first, reserved_port() as second:
        yield first, second


@pytest.mark.parametrize("way", ["-L", "-R"])
@pytest.mark.parametrize("client", ["dbclient", "plink"])
def test_forwards_with_other_clients(request, serve, two_ports, client, way):
    """Bulk both ways; then targets that end first, one after the other, on the same connection."""
    received: queue.SimpleQueue[int] = queue.SimpleQueue()

    def end_first(connection):
        connection.sendall(b"all there is")
        connection.shutdown(socket.SHUT_WR)
        received.put(len(receive_all(connection)))

    targets, ports = (serve(echo), serve(end_first)), two_ports
    places = zip(ports, (target.address[1] for target in targets), strict=True)
    options = [word for port, target in places for word in (way, f"127.0.0.1:{port}:127.0.0.1:{target}")]
    process = request.getfixturevalue(client)("-N", *options)
    wait_until(lambda: not is_gone(("127.0.0.1", ports[0])))
    with socket.create_connection(("127.0.0.1", ports[0]), WAIT) as end:
        upload = Thread(send_and_end, end, BLOCK * 4)
        assert sha256_of(end) == hashlib.sha256(BLOCK * 4).hexdigest()
        upload.result()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", ports[1]), WAIT) as end:
            assert receive_all(end) == b"all there is"
            send_and_end(end, BLOCK)
            assert received.get(timeout=WAIT) == len(BLOCK)
    assert process.poll() is None


def test_nothing_follows_the_end_of_a_channel(ssh_server, listener, monkeypatch):
    """An answer to a request that is under way on the connection's thread while the channel is ended on another."""
    sent, answering, finished = [], threading.Event(), threading.Event()
    send, finish = sshchannel.Transport._send_user_message, sshchannel.Channel.finish

    def sending(transport, message):
        kind = message.asbytes()[0]
        if kind == MSG_CHANNEL_FAILURE:
            answering.set()
            finished.wait(WAIT)
        sent.append(kind)
        send(transport, message)

    def finishing(channel):
        finish(channel)
        finished.set()

    monkeypatch.setattr(sshchannel.Transport, "_send_user_message", sending)
    monkeypatch.setattr(sshchannel.Channel, "finish", finishing)
    with logged_in(ssh_server) as transport:
        channel = direct(transport, listener.getsockname())
        far, _ = listener.accept()
        asking = paramiko.Message()
        asking.add_byte(b"\x62")
        asking.add_int(channel.remote_chanid)
        asking.add_string("winadj@putty.projects.tartarus.org")
        asking.add_boolean(True)
        channel.shutdown_write()
        assert far.recv(1) == b""
        transport._send_user_message(asking)
        assert answering.wait(WAIT)
        far.close()
        assert finished.wait(WAIT)
        wait_until(lambda: MSG_CHANNEL_CLOSE in sent and MSG_CHANNEL_FAILURE in sent)
        assert sent[-1] == MSG_CHANNEL_CLOSE
        transport._send_user_message(asking)  # to which there is no answer any more
        assert transport.global_request("keepalive@openssh.com", wait=True) is None
        assert sent.count(MSG_CHANNEL_FAILURE) == 1
        channel.close()


# -- refusals and faults ------------------------------------------------------------------------------------------


def test_permit(make_ssh_server, echo_server, serve, caplog):
    other = serve(echo)
    allowed = "{}:{}".format(*echo_server.address)
    asked = []

    def function(target):
        asked.append(target)
        return {allowed: True}[target]

    for permit in ([allowed], function):
        with logged_in(make_ssh_server(permit=permit)) as transport:
            assert send_and_receive(direct(transport, echo_server.address)) == b"ping"
            assert refusal(transport, other.address) == PROHIBITED
    assert asked == [allowed, "{}:{}".format(*other.address)]
    assert "permit failed" in caplog.text


@pytest.mark.parametrize("allowed", [False, "local", "remote", True])
def test_allow_forwarding(make_ssh_server, echo_server, allowed):
    with logged_in(make_ssh_server(allow_forwarding=allowed)) as transport:
        if allowed in (True, "local"):
            assert send_and_receive(direct(transport, echo_server.address)) == b"ping"
        else:
            assert refusal(transport, echo_server.address) == PROHIBITED
        if allowed in (True, "remote"):
            assert transport.request_port_forward("127.0.0.1", 0)
        else:
            with pytest.raises(paramiko.SSHException):
                transport.request_port_forward("127.0.0.1", 0)


def test_refuse_channels(ssh_server, echo_server):
    with logged_in(ssh_server) as transport:
        channel = direct(transport, echo_server.address)
        ssh_server.refuse_channels()
        assert refusal(transport, echo_server.address) == PROHIBITED
        assert send_and_receive(channel) == b"ping"
        ssh_server.refuse_channels(False)
        assert send_and_receive(direct(transport, echo_server.address)) == b"ping"
    assert (ssh_server.opened, ssh_server.refused) == (2, 1)


def test_slow(ssh_server, echo_server):
    ssh_server.slow(0.3)
    with logged_in(ssh_server) as transport:
        begin = time.monotonic()
        assert send_and_receive(direct(transport, echo_server.address)) == b"ping"
        assert time.monotonic() - begin >= 0.3
        ssh_server.slow(10 * WAIT)
        waiting = Thread(direct, transport, echo_server.address)
        wait_until(lambda: ssh_server.channels == 1)
        ssh_server.drop()
        with pytest.raises(LOST):
            waiting.result()


def test_freeze_and_thaw(ssh_server, listener):
    with logged_in(ssh_server) as transport:
        channel = direct(transport, listener.getsockname())
        far, _ = listener.accept()
        with far:
            ssh_server.freeze()
            channel.sendall(b"ping")
            far.sendall(b"pong")
            for end in (channel, far):
                end.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    end.recv(4)
            assert transport.is_active()
            with socket.create_connection(ssh_server.address, 0.2) as other, pytest.raises(TimeoutError):
                other.recv(1)
            ssh_server.thaw()
            for end, text in ((channel, b"pong"), (far, b"ping")):
                end.settimeout(WAIT)
                assert receive_exactly(end, 4) == text
        channel.close()


def test_rekey_returns_when_the_next_exchange_may_begin(ssh_server):
    """Else the end of the one would let messages through in the middle of the next."""
    ending, go = threading.Event(), threading.Event()

    class Slow(threading.Event):
        def set(self):
            ending.set()
            go.wait(WAIT)
            super().set()

    with logged_in(ssh_server):
        (session,) = ssh_server._live()
        session.transport.clear_to_send = Slow()
        rekeying = Thread(ssh_server.rekey)
        assert ending.wait(WAIT)
        rekeying.join(0.3)
        assert rekeying.is_alive()
        go.set()
        rekeying.result()


def test_stop_and_start_at_the_same_port(ssh_server):
    with logged_in(ssh_server) as transport:
        ssh_server.stop()
        ssh_server.stop()
        transport.join(WAIT)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(ssh_server.address, WAIT)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(ssh_server.address)
        ssh_server.start()
        ssh_server.start()
    with logged_in(ssh_server) as transport:
        assert transport.is_authenticated()


def no_threads():
    return not [thread.name for thread in threading.enumerate() if thread.name.startswith("ssh server")]


# -- its end ------------------------------------------------------------------------------------------------------


def test_close_is_prompt_and_leaves_nothing(echo_server, tmp_path):
    with check_leaks(WAIT):
        server = SSHServer()
        with logged_in(server) as transport, socket.create_connection(server.address) as silent, black_hole() as hole:
            channels = [direct(transport, echo_server.address) for _ in range(20)]
            port = transport.request_port_forward("127.0.0.1", 0)
            waiting = Thread(direct, transport, hole.getsockname())
            wait_until(lambda: server.channels == 21)
            silent.recv(1)
            server.freeze()
            begin = time.monotonic()
            server.close()
            assert time.monotonic() - begin < PROMPT
            wait_until(no_threads)
            assert is_gone(server.address)
            assert is_gone(("127.0.0.1", port))
            with pytest.raises(LOST):
                waiting.result()
            for channel in channels:
                channel.close()
        server.close()
        with pytest.raises(OSError, match="Bad file"):
            server.start()


def test_close_with_targets_that_do_not_read(listener):
    with check_leaks(WAIT):
        server = SSHServer()
        with logged_in(server) as transport:
            channel = direct(transport, listener.getsockname())
            far, _ = listener.accept()
            with far:
                channel.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    flood(channel)
                begin = time.monotonic()
                server.close()
                assert time.monotonic() - begin < PROMPT
                wait_until(no_threads)
            with contextlib.suppress(EOFError):  # paramiko may not have noticed yet that the server has gone
                channel.close()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n" + bytes(100), b"\xff" * 5000, b""])
def test_clients_that_do_not_speak_ssh_do_no_harm(ssh_server, garbage):
    with socket.create_connection(ssh_server.address, WAIT) as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        ending(client)
    wait_until(lambda: ssh_server.connections == 0)
    with logged_in(ssh_server) as transport:
        assert transport.is_authenticated()
    assert threading.active_count() < 20
