"""A command on a server is a stream like every other, over both backends and with both servers."""

import contextlib
import logging
import os
import socket
import threading
import time

import pytest
from helpers import PROMPT, WAIT, Thread, in_child, is_running, receive_all, receive_exactly, wait_until
from program_rig import BRIDGE, CASES, MUCH, failure, finish, remote, said
from sshd import FarEnd

import relay
from relay.errors import CarrierError, ConnectError
from relay.testing import check_stream

KINDS = ["embedded", "sshd"]


@pytest.fixture(params=KINDS)
def far(request, backend, make_sshd, make_ssh_server):
    """Each backend against each server, which runs any command and may be ended."""
    if request.param == "embedded":
        return FarEnd("embedded", backend, make_ssh_server(commands=lambda text: True))
    return FarEnd("sshd", backend, make_sshd("MaxSessions 100"))


@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_a_command(far, case):
    with remote(far) as link:
        case(link.open)


def test_it_keeps_every_promise_of_a_stream(far, tmp_path):
    with remote(far) as link, socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(WAIT)
        listener.bind(str(tmp_path / "far"))
        listener.listen()
        words = ("exec", *BRIDGE, str(tmp_path / "far"))  # no shell between, which would keep the output open
        check_stream(lambda: (link.open(*words, self_contained=True), listener.accept()[0]))


def test_who_only_closes_the_socket_leaves_nothing(far):
    with remote(far) as link:
        stream = link.open("cat", self_contained=True)
        idle = threading.Event()
        link.connection.when_idle(idle.set)
        user = stream.socket
        del stream
        assert not idle.is_set()
        user.close()
        assert idle.wait(WAIT)


def test_a_socket_of_connect_leaves_nothing(far):
    with relay.connect("exec:sh -c 'cat; echo end'", via=[far.url]) as user:
        user.settimeout(WAIT)
        user.sendall(b"word")
        user.shutdown(socket.SHUT_WR)
        assert receive_all(user) == b"wordend\n"


def test_what_was_sent_before_the_close_arrives(far, tmp_path):
    with remote(far) as link:
        stream = link.open("sh", "-c", 'cat >"$0.part" && mv "$0.part" "$0"', str(tmp_path / "taken"))
        sending = Thread(stream.socket.sendall, MUCH)
        sending.result()
        stream.close()
        wait_until((tmp_path / "taken").exists)
        assert (tmp_path / "taken").read_bytes() == MUCH


def test_what_waits_for_a_slow_command_when_the_stream_is_closed_arrives(far, tmp_path, monkeypatch):
    monkeypatch.setattr("relay.transports.ssh.openssh.sessions._MOMENT", 0.05)
    script = 'echo on; while ! test -e "$0.go"; do sleep 0.02; done; cat >"$0.part" && mv "$0.part" "$0"'
    with remote(far) as link:
        stream = link.open("sh", "-c", script, str(tmp_path / "taken"))
        assert receive_exactly(stream.socket, 3) == b"on\n"
        stream.socket.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += stream.socket.send(MUCH[sent : sent + 65536])
        stream.close()
        threading.Event().wait(0.3)  # several moments pass
        (tmp_path / "taken.go").touch()
        wait_until((tmp_path / "taken").exists)
        assert (tmp_path / "taken").read_bytes() == MUCH[:sent]


def test_a_command_that_heeds_no_end_does_not_hold_the_connection_for_ever(far, monkeypatch):
    for module in "paramiko.channel", "openssh.sessions":
        monkeypatch.setattr(f"relay.transports.ssh.{module}.LINGER", 0.3)
    with remote(far) as link:
        stream = link.open("sh", "-c", "echo on; exec sleep 1000")
        assert receive_exactly(stream.socket, 3) == b"on\n"
        idle = threading.Event()
        link.connection.when_idle(idle.set)
        stream.close()
        assert idle.wait(WAIT)


def test_one_that_closes_its_output_goes_on(far, tmp_path):
    with remote(far) as link:
        words = ("sh", "-c", 'echo first; exec >&-; cat >"$0"; exit 4', str(tmp_path / "taken"))
        with link.open(*words) as stream:
            assert receive_exactly(stream.socket, 6) == b"first\n"
            finish(stream, b"the rest")
            assert "ended with status 4" in str(failure(stream))
        assert (tmp_path / "taken").read_bytes() == b"the rest"


def test_the_failure_is_known_with_the_end_of_file(far):
    with remote(far) as link:
        for _ in range(10):
            with link.open("sh", "-c", "echo no >&2; exit 7") as stream:
                assert finish(stream) == b""
                assert str(failure(stream)) == "exec:sh …: ended with status 7 (no)"


def test_a_command_that_is_missing_fails_with_the_servers_words(far):
    with remote(far) as link, link.open("no-such-program") as stream:
        finish(stream)
        assert "exec:no-such-program: ended with status 127 (" in str(failure(stream))
        assert "not found" in str(failure(stream))


def test_its_standard_error_is_logged_and_no_part_of_the_stream(far, caplog):
    caplog.set_level(logging.INFO, "relay")
    with remote(far) as link, link.open("sh", "-c", "echo warning >&2; echo answer") as stream:
        assert finish(stream) == b"answer\n"
        assert failure(stream) is None
    assert "exec:sh …: warning" in said(caplog)


def test_standard_error_without_end_takes_neither_memory_nor_the_log(far, caplog):
    caplog.set_level(logging.INFO, "relay")
    with remote(far) as link:
        script = "yes 'said again and again' | head -c 5000000 >&2; echo >&2; echo end >&2; exit 1"
        with link.open("sh", "-c", script) as stream:
            assert finish(stream) == b""
            assert str(failure(stream)) == "exec:sh …: ended with status 1 (end)"
    assert len(said(caplog)) < 400


def test_there_is_neither_a_terminal_nor_an_agent(far, monkeypatch):
    monkeypatch.setenv("LC_RELAY", "ours")
    with remote(far) as link, link.open("sh", "-c", "test -t 0 || test -t 1 || echo none") as stream:
        assert finish(stream) == b"none\n"
    if far.kind == "sshd":
        with remote(far) as link, link.open("sh", "-c", 'echo "$SSH_AUTH_SOCK$LC_RELAY$TERM"') as stream:
            assert finish(stream).strip() in (b"", b"dumb")


# Not begun.


def test_a_server_that_runs_no_commands(backend, ssh_server):
    with remote(FarEnd("embedded", backend, ssh_server)) as link:
        for self_contained in False, True:
            with pytest.raises(ConnectError, match="^exec:cat: denied by ssh://.*MaxSessions") as failed:
                link.open("cat", self_contained=self_contained)
            assert failed.value.reason == "denied"


def test_a_server_that_has_enough_sessions(backend, make_sshd):
    with remote(FarEnd("sshd", backend, make_sshd("MaxSessions 1"))) as link, link.open("cat") as stream:
        with pytest.raises(ConnectError, match="^exec:true: denied by ssh://.*MaxSessions") as failed:
            link.open("true")
        assert failed.value.reason == "denied"
        assert finish(stream, b"still there") == b"still there"


@pytest.mark.parametrize("self_contained", [False, True])
def test_a_command_that_the_server_does_not_run(backend, make_ssh_server, self_contained):
    server = make_ssh_server(commands=["true"])
    with remote(FarEnd("embedded", backend, server)) as link:
        for _ in range(3):
            with pytest.raises(ConnectError, match="exec:cat: denied by ssh://.*does not run this command") as failed:
                link.open("cat", self_contained=self_contained)
            assert failed.value.reason == "denied"
        with link.open("true") as stream:
            finish(stream)
            assert failure(stream) is None
        idle = threading.Event()
        link.connection.when_idle(idle.set)
        assert idle.wait(WAIT)


def test_a_deadline(far):
    with remote(far) as link:
        link.open("true").close()
        far.freeze()
        try:
            with pytest.raises(ConnectError, match="^exec:cat: .*in time") as failed:
                link.open("cat", seconds=0.3)
            assert failed.value.reason == "connect_timeout"
        finally:
            far.rig.thaw()
        with link.open("cat") as stream:
            assert finish(stream, b"here") == b"here"


def test_giving_up(far):
    with remote(far) as link:
        link.open("true").close()
        far.freeze()
        try:
            asked = [link.begin("cat") for _ in range(40)]
            for _, give_up in asked:
                give_up()
                give_up()
        finally:
            far.rig.thaw()
        idle = threading.Event()
        with link.open("cat") as stream:
            assert finish(stream, b"here") == b"here", (failure(stream), link.lost, far.rig)
        link.connection.when_idle(idle.set)
        assert idle.wait(WAIT)
        assert all(answer._outcome is None for answer, _ in asked)


# The connection.


def test_a_connection_that_is_lost_is_the_failure_of_its_commands(far):
    with remote(far) as link:
        streams = [link.open("cat") for _ in range(3)]
        streams[0].socket.sendall(b"half")
        assert receive_exactly(streams[0].socket, 4) == b"half"
        far.down()
        for stream in streams:
            with stream:
                _receive_end(stream)
                assert isinstance(failure(stream), CarrierError), failure(stream)
        wait_until(lambda: link.lost)
        with pytest.raises(CarrierError):
            link.open("cat")
    far.up()


def _receive_end(stream):
    try:
        receive_all(stream.socket)
    except ConnectionResetError:
        pass


def test_a_connection_that_is_closed_ends_its_commands(far):
    with remote(far) as link:
        stream = link.open("cat")
        waiting = link.begin("cat", seconds=None)[0]
        begun = time.monotonic()
        link.connection.close()
        assert time.monotonic() - begun < PROMPT
        with stream:
            _receive_end(stream)
            assert isinstance(failure(stream), CarrierError)
        try:
            waiting.get(time.monotonic() + WAIT, None).close()
        except CarrierError:
            pass


def test_a_forked_child_disturbs_nothing(far):
    with remote(far) as link, link.open("cat") as stream:
        assert in_child(lambda: None) == 0
        assert finish(stream, b"still there") == b"still there"
        assert failure(stream) is None


def test_other_streams_go_on_beside_a_command_that_nobody_reads(far):
    with remote(far) as link, link.open("cat", "/dev/zero") as clogged, link.open("cat") as stream:
        assert receive_exactly(clogged.socket, 10) == bytes(10)
        assert finish(stream, MUCH) == MUCH


def test_a_reset_ends_the_command(make_sshd, make_ssh_server, tmp_path):
    """Over paramiko: ssh has no word for it at its control socket."""
    for kind in KINDS:
        rig = make_ssh_server(commands=lambda text: True) if kind == "embedded" else make_sshd()
        taken = tmp_path / kind
        with remote(FarEnd(kind, "paramiko", rig)) as link:
            stream = link.open("sh", "-c", 'echo $$; cat >"$0.part" && mv "$0.part" "$0"', str(taken))
            pid = int(receive_exactly(stream.socket, 1) + stream.socket.recv(20))
            stream.socket.sendall(b"half of it")
            stream.reset()
            wait_until(lambda pid=pid: not is_running(pid))
            # The one of OpenSSH sends signals only where it has separated privileges, which it has not for root.
            assert not taken.exists() or (kind == "sshd" and os.geteuid() == 0)
            with link.open("cat") as other:
                assert finish(other, b"still there") == b"still there"
