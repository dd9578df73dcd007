"""``relay pipe``, as its users run it: what goes in and out, what is said, and how it ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from command_rig import RELAY, commands, run, squeezed
from helpers import (
    PROMPT,
    WAIT,
    black_hole,
    closed,
    echo,
    ending,
    makes,
    receive_all,
    receive_exactly,
    refusing,
    wait_until,
)
from sshd import server_url

import relay
from relay.addresses.parse import parse_hops, parse_target
from relay.cli.commands.pipe import EXAMPLES
from relay.testing import SAMBridge


@pytest.fixture
def start():
    with commands() as make:

        def begin(*arguments, **options):
            return make(*arguments, command="pipe", **{"stdin": subprocess.PIPE, **options})

        yield begin


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(WAIT)
        yield made


@pytest.fixture
def place(listening):
    return "{}:{}".format(*listening.getsockname())


@pytest.fixture
def accept(listening):
    def make():
        accepted = listening.accept()[0]
        accepted.settimeout(WAIT)
        return accepted

    yield from makes(make)


def pipe(*arguments, **options):
    """A command that ends by itself; its output is bytes."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([RELAY, "pipe", *arguments], timeout=WAIT, check=False, **options)


def test_a_question_gets_its_whole_answer_and_nothing_else_is_printed(serve):
    server = serve(lambda end: end.sendall(receive_all(end)[::-1]))
    done = pipe("{}:{}".format(*server.address), input=b"question")
    assert (done.stdout, done.stderr, done.returncode) == (b"noitseuq", b"", 0)


def shell(script, *arguments, **options):
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *arguments], capture_output=True, timeout=WAIT, check=False, **options
    )


def test_a_closed_input_is_an_empty_one(target):
    done = shell('exec "$1" pipe "$2" <&-', RELAY, target)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_a_closed_output_is_told_when_there_is_something_to_write(target):
    silent = shell('exec "$1" pipe "$2" >&- </dev/null', RELAY, target)
    assert (silent.stderr, silent.returncode) == (b"", 0)
    done = shell('printf x | "$1" pipe "$2" >&-', RELAY, target)
    assert (done.stderr, done.returncode) == (b"relay: standard output: Bad file descriptor\n", 1)


def test_with_everything_closed_no_connection_gets_a_standard_number(listening, place, accept):
    """The log and the data would meet there."""
    command = subprocess.Popen(["/bin/sh", "-c", 'exec "$1" pipe "$2" <&- >&- 2>&-', "sh", RELAY, place])
    with command:
        far = accept()
        assert receive_all(far) == b""
        far.sendall(b"x")
        assert command.wait(WAIT) == 1


def test_a_full_disk_is_told(target):
    done = shell('printf x | "$1" pipe "$2" >/dev/full', RELAY, target)
    assert (done.stderr, done.returncode) == (b"relay: standard output: No space left on device\n", 1)


def test_an_output_that_nobody_reads_ends_it_as_it_ends_every_program(place, accept, start):
    reader, writer = os.pipe()
    command = start(place, stdout=writer)
    os.close(writer)
    far = accept()
    far.sendall(b"x")
    assert os.read(reader, 1) == b"x"
    command.process.send_signal(signal.SIGSTOP)
    far.sendall(b"y")
    os.close(reader)  # it learns of both at once
    command.process.send_signal(signal.SIGCONT)
    status, said = command.wait()
    assert status == -signal.SIGPIPE
    assert said == ""


def test_it_ends_in_silence_with_whoever_started_it(place, accept, start):
    """As ``ssh`` closes both pipes at its end, and the target says no more."""
    command = start(place)
    far = accept()
    command.process.stdin.write("last words")
    command.process.stdin.flush()
    command.process.stdout.close()
    command.process.stdin.close()
    assert receive_all(far) == b"last words"
    assert command.process.wait(WAIT) == 0
    assert command.process.stderr.read() == ""


# Failures.


def test_a_refusal_is_one_line():
    with refusing() as (host, port):
        done = pipe(f"{host}:{port}", input=b"x")
    assert done.stderr.decode() == f"relay: {host}:{port}: connection refused; check that the service is running\n"
    assert (done.stdout, done.returncode) == (b"", 1)


def test_a_reset_is_one_line(place, accept, start):
    command = start(place)
    far = accept()
    far.sendall(b"x")
    assert command.process.stdout.read(1) == "x"
    relay.eventloop.sockets.reset(far)
    status, said = command.wait()
    assert (status, said) == (1, f"relay: {place}: the connection was reset; the transfer was cut\n")


def test_a_hop_that_refuses_is_tried_once(tmp_path):
    with refusing() as (host, port):
        started = time.monotonic()
        done = pipe("127.0.0.1:1", "--via", f"ssh://me@{host}:{port}?config=/dev/null", input=b"x")
    assert time.monotonic() - started < PROMPT  # it does not wait for the server to come back
    assert (done.stdout, done.returncode) == (b"", 1)
    assert done.stderr.decode().count("\n") == 1
    assert "connection refused" in done.stderr.decode()


def test_the_time_to_connect_has_a_limit():
    with black_hole() as hole:
        done = pipe("{}:{}".format(*hole.getsockname()), "--connect-timeout", "0.3", input=b"")
    assert done.returncode == 1
    assert "no answer in time" in done.stderr.decode()


def test_the_limits_of_a_connection(place, accept, start):
    idle = start(place, "--idle-timeout", "0.2")
    assert idle.process.wait(WAIT) == 1
    assert "no byte has moved for 0.2 s (--idle-timeout)" in idle.process.stderr.read()
    lingering = start(place, "--linger", "0.2", stdin=subprocess.DEVNULL)
    assert lingering.process.wait(WAIT) == 1
    assert "after one end (--linger)" in lingering.process.stderr.read()


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_at_once_and_resets_the_target(place, accept, start, number):
    command = start(place)
    far = accept()
    command.process.stdin.write("x")
    command.process.stdin.flush()
    assert receive_exactly(far, 1) == b"x"
    command.process.send_signal(number)
    assert command.process.wait(WAIT) == -number  # which a shell calls 128 + number; its input is open until then
    assert command.process.stderr.read() == ""
    assert ending(far) == "reset"


def test_a_signal_ends_it_while_it_connects(start):
    with black_hole() as hole:
        command = start("{}:{}".format(*hole.getsockname()))
        wait_until(lambda: len(os.listdir(f"/proc/{command.process.pid}/task")) > 1)
        wait_until(lambda: _catches(command.process.pid, signal.SIGTERM))
        assert command.end()[0] == -signal.SIGTERM


def _catches(pid, number):
    with open(f"/proc/{pid}/status") as lines:
        (caught,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")]
    return caught >> (number - 1) & 1


# What is loaded, and when.


def test_help_has_examples_and_they_are_right():
    shown = squeezed(run("pipe", "--help").stdout)
    examples = re.findall(r"relay pipe (\S+?)'?(?: --via (\S+?)'?)?(?=[\s\"'|])", EXAMPLES)
    assert len(examples) >= 4
    assert any(via for _, via in examples)
    for target, via in examples:
        assert squeezed(f"relay pipe {target}") in shown
        place = target.replace("%h", "inner.example").replace("%p", "22")
        parse_target(place)
        parse_hops([via] if via else [], place)


def loaded_by(*arguments):
    """The modules that a command has loaded in the end."""
    code = "import sys; from relay.cli import main; main(); print(*sys.modules, file=sys.stderr)"
    run = [sys.executable, "-c", code, "pipe", *arguments]
    return set(subprocess.run(run, input="", capture_output=True, timeout=WAIT, check=True, text=True).stderr.split())


def test_it_starts_without_what_it_does_not_need(target):
    loaded = loaded_by(target)
    assert "relay.engine.stdio" in loaded
    unwanted = {
        "rich.console",
        "paramiko",
        "ssl",
        "asyncio",
        "http.server",
        "relay.engine.tunnel",
        "relay.cli.commands.demo",
    }
    assert not loaded & unwanted


def test_over_ssh_it_starts_without_what_paramiko_does_not_need(sshd, target):
    loaded = loaded_by(target, "--via", server_url(sshd.server))
    assert "paramiko" in loaded
    assert not loaded & {"invoke.tasks", "asyncio", "unittest.mock", "rich.console"}


def test_each_command_is_loaded_alone_and_all_of_them_for_help():
    done = run("--help")
    assert done.returncode == 0
    for name in ("forward", "expose", "pipe", "demo", "keys"):
        assert f" {name} " in done.stdout
    assert "did you mean pipe?" in run("pip").stderr


# Over I2P, and over SSH.


@pytest.fixture
def router():
    yield from closed(SAMBridge())


def test_over_i2p_a_request_gets_its_answer_though_its_end_cannot_be_told(router, serve, start):
    server = serve(lambda end: end.sendall(receive_exactly(end, 8)))
    with _published(router, server) as place:
        done = pipe(place, "--linger", str(WAIT), input=b"question")
    assert (done.stdout, done.stderr, done.returncode) == (b"question", b"", 0)
    with _published(router, serve(echo)) as place:
        process = start(place, "--linger", "0.3", stdin=subprocess.PIPE).process
        process.stdin.write("question")
        process.stdin.flush()
        assert process.stdout.read(8) == "question"  # before the time begins, which a busy machine may exceed
        assert (*process.communicate(timeout=WAIT), process.returncode) == ("", "", 0)


@contextlib.contextmanager
def _published(router, server):
    """A server at I2P; gives its place."""
    with relay.Tunnel(relay.i2p_listen("", sam=router.sam), relay.tcp(*server.address), timeout=None) as tunnel:
        place = f"{tunnel.address}?sam={router.sam}"
        yield place if "//" in place else f"i2p://{place}"


def test_over_i2p_a_service_that_is_down_is_told(router):
    with (
        refusing() as (host, port),
        relay.Tunnel(relay.i2p_listen("", sam=router.sam), relay.tcp(host, port)) as tunnel,
    ):
        place = f"{tunnel.address}?sam={router.sam}"
        done = pipe(place if "//" in place else f"i2p://{place}", stdin=subprocess.DEVNULL)
    assert (done.stdout, done.returncode) == (b"", 1)
    assert "closed before sending any data; check that the service is running\n" in done.stderr.decode()


@pytest.mark.parametrize("kind", ["paramiko", "openssh"])
def test_what_a_server_refuses_is_one_line(sshd, kind):
    with refusing() as (host, port):
        done = pipe(f"{host}:{port}", "--via", server_url(sshd.server, backend=kind), input=b"x")
    assert (done.stdout, done.returncode) == (b"", 1)
    assert done.stderr.decode().count("\n") == 1
    assert f"{host}:{port}" in done.stderr.decode()
    assert "refused" in done.stderr.decode()


@pytest.mark.parametrize("kind", ["paramiko", "openssh"])
def test_a_proxy_behind_a_server_that_never_answers_does_not_hold_up_the_end(sshd, place, accept, kind):
    """It keeps its side of the stream open, so that ssh does not release the channel."""
    server = server_url(sshd.server, backend=kind)
    hops = ["--via", server, "--via", f"socks5://{place}"]
    done = pipe("127.0.0.1:9", *hops, "--connect-timeout", "3", input=b"")
    with accept():
        assert done.returncode == 1
        assert done.stderr.decode().count("\n") == 1


@pytest.mark.parametrize("kind", ["paramiko", "openssh"])
def test_a_server_that_is_lost_is_one_line(make_sshd, place, accept, start, kind):
    server = make_sshd()
    command = start(place, "--via", server_url(server.server, backend=kind))
    far = accept()
    far.sendall(b"x")
    assert command.process.stdout.read(1) == "x"
    server.kill()
    assert command.process.wait(WAIT) == 1
    said = command.process.stderr.read()
    assert said.count("\n") == 1
    assert "lost" in said or "ssh has ended, and the connection with it" in said


@pytest.mark.parametrize("kind", ["paramiko", "openssh"])
def test_nothing_is_left_of_a_way_over_ssh(sshd, place, accept, start, tmp_path, kind):
    options = {"env": {**os.environ, "TMPDIR": str(tmp_path)}}
    command = start(place, "--via", server_url(sshd.server, backend=kind), **options)
    far = accept()
    far.sendall(b"x")
    assert command.process.stdout.read(1) == "x"
    family = psutil.Process(command.process.pid).children(recursive=True)
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(WAIT) == -signal.SIGTERM
    assert psutil.wait_procs(family, timeout=WAIT)[1] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["paramiko", "openssh"])
def test_over_two_servers_each_sees_one_login_and_nothing_is_left(make_sshd, target, tmp_path, kind):
    (tmp_path / "temporary").mkdir()
    servers = [make_sshd(), make_sshd()]
    hops = [word for one in servers for word in ("--via", server_url(one.server, backend=kind))]
    done = pipe(target, *hops, input=b"hello", env={**os.environ, "TMPDIR": f"{tmp_path}/temporary"})
    assert (done.stdout, done.stderr, done.returncode) == (b"hello", b"", 0)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert [one.logins for one in servers] == [1, 1]


def test_what_is_wrong_at_the_first_of_two_servers_is_told_once(make_sshd, target):
    first, second = make_sshd(), make_sshd()
    hops = [
        server_url(first.server, known_hosts=second.known_hosts, hostkey="SHA256:" + "A" * 43),
        server_url(second.server),
    ]
    done = pipe(target, "--via", hops[0], "--via", hops[1], input=b"hello")
    assert (done.stdout, done.returncode) == (b"", 1)
    said = done.stderr.decode()
    assert said.startswith(f"relay: hop 1 of 2 (ssh://{first.user}@127.0.0.1:{first.port}): ")
    assert said.count("\n") == 1
    assert second.logins == 0
