"""A forked child does not disturb its parent's SSH connections, and the client program dies with its program."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import WAIT, exchange, family, in_child, is_running, wait_until
from sshd import FarEnd

import relay


def test_a_child_that_exits_or_closes(far_end, over_ssh):
    rig = over_ssh(far_end.url)
    client, far = rig.connect()
    exchange(client, far)
    for work in (lambda: None, rig.tunnel.close):
        assert in_child(work) == 0
        exchange(client, far)
        exchange(*rig.connect())
    assert far_end.logins == 1


def test_a_child_makes_its_own(far_end, over_ssh, echo_server):
    rig = over_ssh(far_end.url)
    client, far = rig.connect()
    target = "{}:{}".format(*echo_server.address)

    def work():
        with relay.connect(target, via=[far_end.url]) as own:
            own.settimeout(WAIT)
            own.sendall(b"x")
            assert own.recv(1) == b"x"

    assert in_child(work) == 0
    exchange(client, far)
    assert far_end.logins == 2


def test_a_listener_goes_on(far_end, listener):
    with relay.Tunnel(relay.ssh_listen(far_end.url), relay.tcp(*listener.getsockname())) as tunnel:
        assert in_child(tunnel.close) == 0
        with relay.connect("{}:{}".format(*tunnel.address)) as client, listener.accept()[0] as far:
            client.settimeout(WAIT)
            far.settimeout(WAIT)
            exchange(client, far)


PROGRAM = """
import sys, threading, relay
factory = relay.target("127.0.0.1:9", via=[sys.argv[1]])
factory.ready(60)
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_connection_ends_with_the_program(backend, sshd, number):
    url = FarEnd("sshd", backend, sshd).url
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE)
    with program, contextlib.ExitStack() as on_failure:
        on_failure.callback(program.kill)
        assert program.stdout.readline() == b"ready\n"
        children = family(program.pid)[1:]
        assert bool(children) == (backend == "openssh")
        program.send_signal(number)
        program.wait(WAIT)
        wait_until(lambda: not sshd.sessions())
        wait_until(lambda: not any(is_running(pid) for pid in children))


@pytest.mark.parametrize("url", ["secret"])
def test_no_secret_is_in_the_arguments_of_a_child(make_ssh_server, spawner_thread, url):
    """The command line in ps(1), which all users see, has no password."""
    server = make_ssh_server(users={"ann": "wonderland"}, methods=["password"])
    factory = relay.ssh(
        f"ann@127.0.0.1:{server.address[1]}",
        "127.0.0.1",
        9,
        password="wonderland",
        known_hosts=server.known_hosts,
        config="/dev/null",
        backend="openssh",
    )
    try:
        factory.ready(WAIT)
        for pid in family(os.getpid())[1:]:
            for what in ("cmdline", "environ"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    assert b"wonderland" not in Path(f"/proc/{pid}/{what}").read_bytes()
    finally:
        factory.close()
