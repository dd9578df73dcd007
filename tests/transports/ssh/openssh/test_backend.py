"""The OpenSSH client against a real server: streams, their ends and reasons, reverse forwards, the end of it all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import (
    SUPPORT,
    WAIT,
    Server,
    Thread,
    black_hole,
    exchange,
    is_gone,
    makes,
    receive_all,
    receive_exactly,
    refusing,
    wait_until,
)
from sshd import make_key

import relay
from relay.addresses.ssh import SSHServer
from relay.addresses.values import TCPAddress, UnixAddress
from relay.errors import AuthenticationError, CarrierError, ConnectError, ForwardError, HostKeyError, RelayError
from relay.streams.promise import Cancellation
from relay.streams.stream import Stream
from relay.transports.ssh.config.settings import resolve_settings
from relay.transports.ssh.connection import IncompatibleError
from relay.transports.ssh.openssh.backend import LocalForward, OpenSSH, connect
from relay.transports.ssh.openssh.opening import Opening


class Client:
    """One connection, and what was reported of it."""

    def __init__(self, server: SSHServer, stream: Stream | None = None, timeout: float = WAIT) -> None:
        self.lost: list[CarrierError] = []
        self.cancel = Cancellation()
        try:
            made = connect(resolve_settings(server), stream, time.monotonic() + timeout, self.cancel, self.lost.append)
        finally:
            self.cancel.close()
        assert isinstance(made, OpenSSH)
        self.connection = made

    def open(self, place: Any, **options: Any) -> Stream:
        outcome = self.outcome(place, **options)
        if isinstance(outcome, OSError):
            raise outcome
        outcome.socket.settimeout(WAIT)
        return outcome

    def outcome(self, place: Any, **options: Any) -> Any:
        told = threading.Event()
        outcomes: list[Any] = []

        def done(outcome: Any) -> None:
            outcomes.append(outcome)
            told.set()

        self.connection.open(place, time.monotonic() + WAIT, done, **options)
        assert told.wait(WAIT)
        assert len(outcomes) == 1
        return outcomes[0]

    def pass_deadlines(self) -> None:
        """Let the connection do now what it does after every deadline, once a stream waits for its answer."""
        wait_until(lambda: self.connection._unanswered)
        self.connection.loop.call(lambda: self.connection._expire_due(time.monotonic() + 2 * WAIT))

    @property
    def process(self) -> Any:
        return self.connection._master._process


@pytest.fixture
def client(sshd: Any) -> Iterator[Client]:
    """A connection to the server of the session."""
    made = Client(sshd.server)
    yield made
    made.connection.close()


@pytest.fixture
def make_client() -> Iterator[Callable[..., Client]]:
    """Makes connections that end with the test."""
    yield from makes(Client, lambda one: one.connection.close())


def place_of(server: Server) -> TCPAddress:
    return TCPAddress(*server.address)


# Streams.


@pytest.mark.parametrize("name", ["a b", "ö", "back\\slash", "x" * 60])
def test_odd_names_are_told_apart(
    client: Client, tmp_path_factory: Any, serve: Callable[..., Server], name: str
) -> None:
    folder = Path(os.path.realpath(f"/tmp/relay-test-{os.getpid()}"))
    folder.mkdir()
    try:
        far = serve(lambda end: end.sendall(b"far"), str(folder / name))
        with client.open(UnixAddress(far.address)) as stream, client.open(UnixAddress(f"{folder}/none")) as other:
            assert receive_all(stream.socket) == b"far"
            assert stream.failure is not None
            assert other.failure is not None
            assert stream.failure() is None
            with contextlib.suppress(ConnectionResetError):
                receive_all(other.socket)
            assert isinstance(other.failure(), ConnectError)
    finally:
        far.close()
        (folder / name).unlink()
        folder.rmdir()


# Refusals.


def test_refused_empty_and_good_targets_are_told_apart_on_many_threads(
    client: Client, serve: Callable[..., Server]
) -> None:
    good = serve(lambda end: end.sendall(end.recv(100)))
    empty = serve(lambda end: end.recv(100))
    with refusing() as nobody:
        places = {"refused": TCPAddress(*nobody), "empty": place_of(empty), "good": place_of(good)}

        def work(kinds: list[str]) -> list[str]:
            streams = [client.open(places[kind]) for kind in kinds]
            for stream in streams:
                with contextlib.suppress(OSError):
                    stream.socket.sendall(b"ping")
            return [told(stream) for stream in streams]

        wanted = [random.Random(seed).choices([*places], k=35) for seed in range(6)]
        threads = [Thread(work, kinds) for kinds in wanted]
        assert [thread.result() for thread in threads] == wanted


def told(stream: Stream) -> str:
    """Return what a stream has come to."""
    assert stream.failure is not None
    data = b""
    with stream, contextlib.suppress(ConnectionResetError):
        data = receive_all(stream.socket)
    error = stream.failure()
    return getattr(error, "reason", str(error)) if error is not None else "good" if data == b"ping" else "empty"


@pytest.mark.parametrize("is_killed", [False, True], ids=["it goes on", "it is killed"])
def test_a_backlog_that_is_full_is_waited_for(client: Client, serve: Callable[..., Server], is_killed: bool) -> None:
    held = threading.Event()
    server = serve(lambda end: (held.wait(WAIT), end.sendall(end.recv(100))))
    client.open(place_of(server)).close()
    os.kill(client.process.pid, signal.SIGSTOP)
    opened: list[Any] = []
    news = threading.Condition()

    def done(outcome: Any) -> None:
        with news:
            opened.append(outcome)
            news.notify_all()

    try:
        for _ in range(300):  # the backlog of ssh is 128
            client.connection.open(place_of(server), time.monotonic() + WAIT, done)
        assert 100 < len(opened) < 200
    finally:
        os.kill(client.process.pid, signal.SIGKILL if is_killed else signal.SIGCONT)
    with news:
        assert news.wait_for(lambda: len(opened) == 300, WAIT)
    held.set()
    if is_killed:
        assert {type(one) for one in opened if not isinstance(one, Stream)} == {CarrierError}
        for one in opened:
            if isinstance(one, Stream):
                assert told(one) == "carrier_lost"
        return
    assert all(isinstance(one, Stream) for one in opened)
    for stream in opened:
        stream.socket.settimeout(WAIT)
        stream.socket.sendall(b"ping")
    assert [told(stream) for stream in opened] == ["good"] * 300


def test_a_stream_whose_target_does_not_answer_is_cut_at_its_deadline(client: Client) -> None:
    with black_hole() as listening, client.open(TCPAddress(*listening.getsockname())) as stream:
        client.pass_deadlines()
        assert receive_all(stream.socket) == b""
        assert stream.failure is not None
        assert getattr(stream.failure(), "reason", None) == "connect_timeout"


def test_an_answer_in_time_ends_the_deadline(client: Client, echo_server: Server) -> None:
    with black_hole() as listening, client.open(place_of(echo_server)) as stream:
        stream.socket.sendall(b"there")
        assert receive_exactly(stream.socket, 5) == b"there"
        with client.open(TCPAddress(*listening.getsockname())) as other:
            client.pass_deadlines()
            assert receive_all(other.socket) == b""
        stream.socket.sendall(b"still there")
        assert receive_exactly(stream.socket, 11) == b"still there"
        stream.socket.shutdown(socket.SHUT_WR)
        assert told(stream) == "empty"


def test_what_is_given_up_is_not_told(client: Client) -> None:
    outcomes: list[Any] = []
    stopped, go = threading.Event(), threading.Event()
    client.connection.loop.call(lambda: stopped.set() or go.wait(WAIT))  # so that the deadline does not come first
    assert stopped.wait(WAIT)
    with black_hole() as listening:
        place = TCPAddress(*listening.getsockname())
        give_up = client.connection.open(place, time.monotonic() + 0.2, outcomes.append, self_contained=True)
        give_up()
        give_up()
        go.set()
        opening = Thread(lambda: client.open(place, self_contained=True))
        client.pass_deadlines()
        with pytest.raises(ConnectError):
            opening.result()
    assert outcomes == []


def test_listeners_that_were_not_used_for_longest_are_taken_back(client: Client, serve: Callable[..., Server]) -> None:
    target = serve(lambda end: end.sendall(b"here"))
    folder = Path(client.connection._master.folder)
    port = target.address[1]
    for number in range(1, 101):
        with client.open(TCPAddress(f"127.0.0.{number}", port)) as stream:
            assert told(stream) == ("empty" if number == 1 else "refused")
    wait_until(lambda: sum(one.is_socket() for one in folder.iterdir()) <= 66)  # and those of control and askpass
    with client.open(TCPAddress("127.0.0.1", port)) as stream:
        assert receive_all(stream.socket) == b"here"


def test_a_listener_that_is_gone_is_a_lost_connection(client: Client, echo_server: Server) -> None:
    client.open(place_of(echo_server)).close()
    for path in Path(client.connection._master.folder).glob("[0-9]*"):
        path.unlink()
    error = client.outcome(place_of(echo_server))
    assert isinstance(error, CarrierError)
    assert "ssh accepts no stream: No such file" in str(error)


def test_a_stream_that_waits_for_a_listener_fails_with_the_connection(client: Client) -> None:
    """And not as if its target had refused it: then it would not be tried over the next connection."""
    os.kill(client.process.pid, signal.SIGSTOP)
    opening = Thread(client.outcome, TCPAddress("127.0.0.1", 9))
    wait_until(lambda: client.connection.streams)
    os.kill(client.process.pid, signal.SIGKILL)
    error = opening.result()
    wait_until(lambda: client.lost == [error])


def test_a_waiting_stream_that_was_not_connected_is_not_expected(tmp_path: Path) -> None:
    """Ssh's log names streams by the order of their connects only."""
    outcomes: list[Any] = []
    owner: Any = SimpleNamespace(
        server="ssh://server", answered=lambda _: None, over=lambda _: None, soon=lambda call: call()
    )
    forward = LocalForward(TCPAddress("db", 1), str(tmp_path / "none"))
    forward.is_ready = True
    first, second = (Opening(owner, "db:1", outcomes.append) for _ in range(2))
    forward.waiting.extend([first, second])
    assert forward.next_waiting() is first and list(forward.expected) == [first]
    forward.not_connected(first, OSError(24, "Too many open files"))
    assert not forward.expected
    assert [str(one) for one in outcomes] == ["db:1: ssh accepts no stream: Too many open files"]
    assert forward.next_waiting() is second and list(forward.expected) == [second]


def test_names_that_could_be_lines_are_refused(client: Client) -> None:
    with pytest.raises(ConnectError, match="control characters"):
        client.open(TCPAddress("a\ndebug1: channel 3: free", 80))
    with pytest.raises(ForwardError, match="control characters"):
        client.connection.listen(UnixAddress("/a\nb"), print, time.monotonic() + WAIT)


def test_names_that_look_the_same_to_ssh_are_not_mixed_up(client: Client) -> None:
    first = client.open(UnixAddress("/" + "x" * 104 + "a"))
    with pytest.raises(ConnectError, match="same 100"):
        client.open(UnixAddress("/" + "x" * 104 + "b"))
    assert told(first) == "unreachable"


def test_what_ssh_receives_is_acknowledged_at_once(
    client: Client, sshd: Any, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH's server leaves Nagle's algorithm on: each delayed acknowledgement costs a stream 40 ms."""
    quick_ack = client.connection._master._quick_ack
    made, acknowledged = quick_ack._socket, threading.Event()
    assert made is not None
    assert made.getpeername()[1] == sshd.server.port
    monkeypatch.setattr(quick_ack, "_acknowledge", lambda connection: acknowledged.set())
    with client.open(place_of(serve(lambda end: end.sendall(b"220 hello")))) as stream:
        assert receive_all(stream.socket) == b"220 hello"
    assert acknowledged.wait(WAIT)


# The end of the connection.


def test_a_control_socket_that_breaks_is_a_lost_connection(client: Client) -> None:
    control = client.connection._controls[0]
    client.connection.loop.call(lambda: control._on_event(0, 0.0))  # nothing has happened
    client.connection.loop.call(lambda: control._socket.shutdown(socket.SHUT_RDWR))
    wait_until(lambda: client.lost)


def test_a_request_without_an_answer_has_the_reason_why_ssh_ends(
    make_sshd: Any, make_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control socket breaks before ssh is gone."""
    sshd = make_sshd()
    client = make_client(sshd.server)
    sshd.freeze()
    control = client.connection._controls[1]
    send = control.request

    def break_off(*request: Any) -> None:
        send(*request)
        control._socket.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(control, "request", break_off)
    with pytest.raises(CarrierError) as failed:
        client.connection.listen(TCPAddress("127.0.0.1", 0), print, time.monotonic() + WAIT)
    wait_until(lambda: client.lost == [failed.value])
    assert "the connection was lost" in str(failed.value)


def test_a_proxy_command_ends_with_the_connection(sshd: Any, tmp_path: Path) -> None:
    config = tmp_path / "config"
    script = tmp_path / "proxy.py"
    script.write_text(
        "import os, select, signal, socket\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        f"far = socket.create_connection(('127.0.0.1', {sshd.port}))\n"
        "while True:\n"
        "    for ready in select.select([0, far], [], [])[0]:\n"
        "        data = os.read(0, 65536) if ready == 0 else far.recv(65536)\n"
        "        if not data: signal.pause()\n"  # it does not end by itself
        "        far.sendall(data) if ready == 0 else os.write(1, data)\n"
    )
    config.write_text(f"Host *\n  ProxyCommand {sys.executable} -S {script}\n")
    for end in ("close", "kill"):
        client = Client(dataclasses.replace(sshd.server, config=str(config)))
        pid = int((tmp_path / "pid").read_text())
        if end == "kill":
            client.process.kill()
            wait_until(lambda client=client: client.lost)
        client.connection.close()
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists())


def test_a_program_that_does_not_close_leaves_nothing(sshd: Any, tmp_path: Path) -> None:
    """Nor does a child of it end anything."""
    program = (
        "import os, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {SUPPORT!r}]\n"
        "from test_backend import Client, SSHServer\n"
        f"client = Client({sshd.server!r})\n"
        "folder = client.connection._master.folder\n"
        "print(client.process.pid, folder, flush=True)\n"
        "if not os.fork(): sys.exit()\nos.wait()\nassert os.path.exists(folder), 'a child has removed it'"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=WAIT, check=True)
    pid, folder = done.stdout.split()
    wait_until(lambda: not Path(f"/proc/{int(pid)}").exists())
    assert not Path(os.fsdecode(folder)).exists()


# Reverse forwards.


def test_a_port_is_asked_for_again_before_the_first_answer(
    make_sshd: Any, make_client: Callable[..., Client], reserved: int
) -> None:
    sshd = make_sshd()
    client = make_client(sshd.server)
    place = TCPAddress("127.0.0.1", reserved)
    sshd.freeze()
    try:
        with pytest.raises(ForwardError, match="in time"):
            client.connection.listen(place, print, time.monotonic() + 0.1)
        came: queue.SimpleQueue[Stream] = queue.SimpleQueue()
        asking = Thread(client.connection.listen, place, lambda stream, peer: came.put(stream), time.monotonic() + WAIT)
        listening = client.connection._remote_forwards
        wait_until(lambda: place in listening._forwards and not listening._forwards[place].answer.cancelled())
    finally:
        sshd.thaw()
    assert asking.result() == place
    with socket.create_connection(("127.0.0.1", reserved), WAIT) as caller, came.get(timeout=WAIT) as stream:
        stream.socket.settimeout(WAIT)
        exchange(caller, stream.socket)
    client.connection.stop_listening(place)
    wait_until(lambda: is_gone((place.host, place.port)))
    assert [name for name in os.listdir(client.connection._master.folder) if name.startswith("r")] == []


# The login.


@pytest.mark.parametrize("name", ["/proc/kh", "missing/known_hosts", "."])
def test_no_new_key_is_trusted_that_cannot_be_written_down(sshd: Any, tmp_path: Path, name: str) -> None:
    server = dataclasses.replace(sshd.server, known_hosts=str(tmp_path / name), accept_new=True)
    with pytest.raises(HostKeyError, match="accept_new needs a writable file") as caught:
        Client(server)
    assert str(tmp_path / name) in str(caught.value)


def test_a_key_that_ssh_did_not_write_down_is_not_trusted(sshd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.transports.ssh.openssh.backend.check_writable", lambda settings: None)
    server = dataclasses.replace(sshd.server, known_hosts="/proc/kh", accept_new=True)
    for _ in range(2):
        with pytest.raises(HostKeyError, match="cannot be written to /proc/kh"):
            Client(server)


def test_a_known_host_needs_no_file_that_can_be_written(sshd: Any, tmp_path: Path) -> None:
    Client(dataclasses.replace(sshd.server, accept_new=True)).connection.close()
    pin = fingerprint(Path(f"{sshd.folder}/host_key.pub"))
    server = dataclasses.replace(sshd.server, known_hosts="/proc/kh", hostkey=pin, accept_new=True)
    Client(server).connection.close()


def fingerprint(path: Path) -> str:
    return subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout.split()[1]


def test_a_passphrase_is_asked_for(sshd: Any, tmp_path: Path) -> None:
    line = make_key(tmp_path / "locked", "open sesame")
    keys = Path(f"{sshd.folder}/authorized_keys")
    before = keys.read_text()
    keys.write_text(before + line + "\n")
    try:
        locked = dataclasses.replace(sshd.server, keyfile=str(tmp_path / "locked"))
        Client(dataclasses.replace(locked, passphrase=lambda: "open sesame")).connection.close()
        with pytest.raises(AuthenticationError, match="locked is encrypted with another passphrase"):
            Client(dataclasses.replace(locked, passphrase="wrong"))
        with pytest.raises(AuthenticationError, match="locked is encrypted and there is no passphrase"):
            Client(locked)
        public = Path(f"{locked.keyfile}.pub")
        with pytest.raises(AuthenticationError, match="not in the agent"):
            Client(dataclasses.replace(locked, keyfile=str(public)))
    finally:
        keys.write_text(before)


def test_an_agent_that_hangs_is_named(sshd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        with pytest.raises(ConnectError, match="the login was not finished in time: ssh was asking the agent"):
            Client(sshd.server, timeout=1.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("Ciphers", "chacha20-poly1305@openssh.com"), ("KexAlgorithms", "curve25519-sha256"), ("MACs", "hmac-sha2-512")],
)
def test_no_algorithm_in_common_is_final(make_sshd: Any, tmp_path: Path, option: str, value: str) -> None:
    other = {
        "Ciphers": "aes128-ctr",
        "KexAlgorithms": "ecdh-sha2-nistp256",
        "MACs": "hmac-sha2-256\nCiphers aes128-ctr",
    }[option]
    ours, theirs = tmp_path / "config", [f"{option} {value}", "Ciphers aes128-ctr"]
    ours.write_text(f"{option} {other}\n")
    sshd = make_sshd(*theirs[: 2 if option == "MACs" else 1])
    with pytest.raises(RelayError, match=f"in common; the server offers {value}.*{option}") as caught:
        Client(dataclasses.replace(sshd.server, config=str(ours)))
    assert isinstance(caught.value, IncompatibleError)


def test_a_proxy_command_that_fails_says_why(sshd: Any, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("ProxyCommand sh -c 'echo no way there >&2; exit 3'\n")
    with pytest.raises(ConnectError, match=r"its ProxyCommand \(sh\) reaches no SSH server: no way there"):
        Client(dataclasses.replace(sshd.server, config=str(path)))


def test_the_users_configuration_does_no_harm(sshd: Any, tmp_path: Path, echo_server: Server) -> None:
    path = tmp_path / "config"
    with refusing() as taken:
        path.write_text(
            "Host odd\n"
            f"  HostName 127.0.0.1\n  Port {sshd.port}\n  HostKeyAlias [127.0.0.1]:{sshd.port}\n"
            f"  ControlMaster auto\n  ControlPath {tmp_path}/master\n  ControlPersist 60\n"
            f"  LocalForward {taken[1]} 127.0.0.1:1\n  RemoteForward {sshd.port} 127.0.0.1:1\n"
            "  RemoteCommand echo no\n  RequestTTY force\n  ForkAfterAuthentication yes\n  LogLevel QUIET\n"
            "  PermitLocalCommand yes\n"
            f"  LocalCommand touch {tmp_path}/ran\n  StrictHostKeyChecking no\n"
        )
        client = Client(dataclasses.replace(sshd.server, host="odd", port=None, config=str(path)))
        with client.open(place_of(echo_server)) as stream:
            stream.socket.sendall(b"x")
            assert receive_exactly(stream.socket, 1) == b"x"
        client.connection.close()
    assert not (tmp_path / "master").exists()
    assert not (tmp_path / "ran").exists()


def test_no_ssh_says_what_to_do(sshd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolve_settings(sshd.server)
    monkeypatch.setenv("PATH", "/nonexistent")
    cancel = Cancellation()
    with pytest.raises(relay.RelayError, match="install"):
        connect(settings, None, time.monotonic() + WAIT, cancel, print)
    cancel.close()
