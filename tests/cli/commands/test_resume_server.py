"""``relay resume-server``: where it listens, whom it lets in, and one that starts behind and ends by itself."""

import os
import socket
import stat

import pytest
from command_rig import run
from helpers import echo, receive_all, receive_exactly, send_and_end, wait_until

import relay
from relay.addresses.hops import Proxy
from relay.addresses.values import TCPAddress
from relay.transports.proxies.dialer import Proxied
from relay.transports.resume.client import Resuming
from relay.transports.resume.wire import NEW, Hello, read_answer
from relay.transports.unix import unix


@pytest.fixture
def runtime(runtime_directory, environment):
    """The environment with the runtime directory, and the path of the usual socket in it."""
    return environment, runtime_directory / "resume.sock"


def stream_to(path, address):
    return Proxied(Resuming(unix(str(path)), "far"), Proxy("socks5", "far", 1), TCPAddress(*address), ())


def test_it_serves_streams_at_the_socket_of_its_user(start, runtime, serve):
    env, path = runtime
    command = start(command="resume-server", env=env)
    assert command.process.stdout.readline().startswith(f"listening on unix://{path}")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with stream_to(path, serve(echo).address)(deadline=None) as stream:
        stream.socket.settimeout(60)
        send_and_end(stream.socket, b"hello")
        assert receive_all(stream.socket) == b"hello"
    assert command.end()[0] == 0
    assert not path.exists()


def test_one_that_is_started_behind_serves_all_and_ends_by_itself(runtime, serve):
    env, path = runtime
    target = serve(echo).address

    def serves():
        """Return whether it served a stream and ended; on a busy machine its second of waiting may be over before."""
        begun = [run("resume-server", "--start", "--resume-for", "1", "--resume-streams", "5", env=env) for _ in "12"]
        assert [one.stdout for one in begun] == [f"unix {path}\n"] * 2
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(60)
            try:
                probe.connect(str(path))
                stream = stream_to(path, target)(deadline=None)
            except (OSError, relay.ConnectError):
                return False
            with stream:
                stream.socket.settimeout(60)
                stream.socket.sendall(b"hello")
                assert receive_exactly(stream.socket, 5) == b"hello"
            return probe.recv(1) == b""  # closed by its end, or after the time for a greeting

    wait_until(serves)


def test_its_limits_are_options(start, runtime, serve):
    env, path = runtime
    limits = ("--resume-streams", "1", "--resume-buffer", "64KiB", "--resume-memory", "1MiB")
    command = start(*limits, command="resume-server", env=env)
    assert command.process.stdout.readline().startswith(f"listening on unix://{path}")
    target = serve(echo).address
    with stream_to(path, target)(deadline=None), pytest.raises(relay.ConnectError, match="as many sessions"):
        stream_to(path, target)(deadline=None)
    answers = []

    def is_let_in():  # once the session of the stream that was closed is over
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(60)
            one.connect(str(path))
            one.sendall(Hello(1000).encode())
            data = b""
            while (found := read_answer(data)) is None:
                data += one.recv(1)
        answers.append(found[0])
        return found[0].kind == NEW

    wait_until(is_let_in)
    assert answers[-1].window == 16 << 10  # a quarter of what it may keep


def test_streams_are_kept_for_ever(start, runtime, serve):
    env, path = runtime
    command = start("--resume-for", "none", command="resume-server", env=env)
    assert command.process.stdout.readline().startswith(f"listening on unix://{path}")
    with stream_to(path, serve(echo).address)(deadline=None) as stream:
        stream.socket.settimeout(60)
        send_and_end(stream.socket, b"hello")
        assert receive_all(stream.socket) == b"hello"
    status, said = command.end()
    assert status == 0
    assert "bug" not in said


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--resume-buffer", "4M"), "expected a size such as 4MiB"),
        (("--resume-buffer", "1"), "must be 64KiB or more"),
        (("--resume-memory", "64KiB"), "must be 1024KiB or more"),
        (("--resume-streams", "0"), "0 is not in the range"),
    ],
)
def test_a_wrong_limit_is_named(option, text, environment):
    ended = run("resume-server", *option, env=environment)
    assert ended.returncode == 2
    assert text in ended.stderr


@pytest.mark.parametrize(
    ("listen", "problem"),
    [
        ("127.0.0.1:0", "none is known there; use unix:///PATH"),
        ("socks5://127.0.0.1:0", "none is known there; use unix:///PATH"),
        ("tls://127.0.0.1:0?cert=x", "set client_ca=FILE"),
        ("i2p:", "any destination may begin streams there; name some with allow"),
    ],
)
def test_where_no_user_is_known_it_does_not_listen(listen, problem, environment):
    ended = run("resume-server", listen, env=environment)
    assert ended.returncode == 2
    assert problem in ended.stderr


def test_a_start_that_fails_says_where_to_look(tmp_path, environment):
    ended = run("resume-server", "--start", f"unix://{tmp_path}/missing/s", env=environment)
    assert ended.returncode == 1
    assert "did not start; run relay resume-server to see why" in ended.stderr
