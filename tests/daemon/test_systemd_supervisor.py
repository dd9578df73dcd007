"""The notifications to systemd about a group of tunnels, and the sockets that it keeps, in this process."""

import contextlib
import math
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from group_rig import Group, letter, running
from helpers import WAIT, wait_until
from service_manager_double import ServiceManager

from relay.addresses.values import TCPAddress
from relay.cli.run import load_server
from relay.daemon import systemd_supervisor
from relay.daemon.failures import ReloadError
from relay.daemon.member import MemberState
from relay.daemon.operator_sockets import operated
from relay.daemon.options import EndpointPlan
from relay.daemon.systemd_supervisor import StoredSockets, SystemdSupervisor, _Extension
from relay.streams.listener import SocketListener
from relay.transports import activated


@pytest.fixture
def target(serve):
    return "{}:{}".format(*serve(letter(b"a")).address)


@pytest.fixture
def up(tmp_path):
    """Runs the tunnels of a text under a manager."""
    with contextlib.ExitStack() as stack:

        def start(text, watchdog=None):
            group, manager = stack.enter_context(running(tmp_path / "relay.toml", text)), ServiceManager(watchdog)
            group.call(lambda: setattr(group, "supervisor", SystemdSupervisor(group, manager)))
            group.call(lambda: None)
            return group, manager

        yield start


def toml(name, target, *more, listen=":0"):
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', f'target = "{target}"', *more, ""])


def test_ready_is_told_once_and_the_status_when_it_changes(up, target):
    text = toml("a", target) + toml("b", target)
    group, manager = up(text)
    wait_until(lambda: manager.heard == [("ready", "2 of 2 tunnels listen")])
    group.drain("b", 0)
    wait_until(lambda: manager.heard[1:] == [("status", "1 of 2 tunnels listen")])
    group.pause("a")
    assert manager.heard[2:] == []


def test_a_tunnel_that_is_not_required_does_not_delay_the_start(up, target):
    waiting = "ssh://nobody@127.0.0.1:1?listen=:0&hostkey=SHA256:" + "A" * 43
    _, manager = up(toml("a", target) + toml("b", target, listen=waiting))
    wait_until(lambda: manager.heard[:1] == [("ready", "1 of 2 tunnels listen")])
    _, manager = up(toml("a", target) + toml("b", target, "required = true", listen=waiting))
    wait_until(lambda: manager.heard)
    assert manager.heard[0] == ("status", "1 of 2 tunnels listen") and "ready" not in manager.names()


def test_a_reload_is_told_from_its_begin_to_its_end(up, target):
    group, manager = up(toml("a", target))
    wait_until(lambda: manager.heard)
    group.rewrite(toml("a", target) + toml("b", target))
    assert manager.heard[1:3] == [("reloading",), ("ready", manager.heard[2][1])]
    wait_until(lambda: manager.heard[-1][1] == "2 of 2 tunnels listen")
    with pytest.raises(ReloadError):
        group.rewrite("nonsense")
    assert manager.names()[-2:] == ["reloading", "ready"]
    assert manager.heard[-1][1] == "2 of 2 tunnels listen; the last reload failed"


def test_the_end_asks_for_time_again_and_again_while_connections_finish(up, target, monkeypatch):
    monkeypatch.setattr(systemd_supervisor, "_AGAIN", 0.01)
    group, manager = up(toml("a", target, "drain = 200"))
    with group.connect("a") as client:
        assert client.recv(1) == b"a"
        group.stop()
        wait_until(lambda: manager.names().count("extend") >= 3)
        assert manager.heard[1] == ("stopping", "closing; 1 open, 200 s to finish; again to end at once")
        assert set(manager.heard[2:]) == {("extend", 30.0)}


def test_a_shutdown_delay_is_the_first_step_of_the_end_and_gets_time(up, target, monkeypatch):
    asked = []
    monkeypatch.setattr(
        systemd_supervisor, "_Extension", lambda manager, seconds: asked.append(seconds) or _Extension(manager, seconds)
    )
    group, manager = up("shutdown_delay = 1000\n" + toml("a", target, "drain = 200"))
    wait_until(lambda: manager.heard)
    with group.connect("a") as client:
        assert client.recv(1) == b"a"
        group.stop()
        wait_until(lambda: "extend" in manager.names())
        assert manager.heard[1] == ("stopping", "not ready; closing in 1000 s; again to close now")
        assert 1100 < asked[0] <= 1205
        group.stop()
        wait_until(lambda: manager.heard[-1] == ("status", "closing; 1 open, 200 s to finish; again to end at once"))


def test_no_time_is_asked_for_beyond_the_drain(monkeypatch):
    now = 100.0
    monkeypatch.setattr(systemd_supervisor, "time", SimpleNamespace(monotonic=lambda: now))
    manager = ServiceManager()
    extension, due = systemd_supervisor._Extension(manager, 45.0), []
    for _ in range(3):
        extension.on_turn()
        due.append(extension.due)
        now = extension.due
        extension.on_turn() if now < math.inf else None
    assert due[:1] == [110.0] and extension.due == math.inf
    assert manager.heard == [("extend", 30.0), ("extend", 30.0), ("extend", 25.0)]


def test_the_watchdog_is_fed_at_half_its_time(up, target):
    _, manager = up(toml("a", target), watchdog=0.02)
    wait_until(lambda: manager.names().count("alive") >= 3)


def test_the_watchdog_starves_while_a_loop_does_not_turn(up, target, caplog):
    group, manager = up(toml("a", target), watchdog=0.02)
    wait_until(lambda: "alive" in manager.names())
    goes_on, stuck = threading.Event(), threading.Event()
    group.tunnel("a").ping(lambda: (stuck.set(), goes_on.wait(WAIT)))
    assert stuck.wait(WAIT)
    try:
        wait_until(lambda: "a: its loop does not turn" in caplog.text)
        fed = manager.names().count("alive")
        before = time.monotonic()
        wait_until(lambda: time.monotonic() - before > 0.1)
        assert manager.names().count("alive") == fed
    finally:
        goes_on.set()
    wait_until(lambda: manager.names().count("alive") > fed)


def test_without_a_service_manager_nothing_is_supervised(up, target, monkeypatch):
    group, _ = up(toml("a", target))
    before = group.supervisor
    for address in (None, "vsock:2:1234"):
        if address is not None:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        with operated(group, group._signals, EndpointPlan("none"), load_server):
            assert group.supervisor is before


@pytest.fixture
def restarted(tmp_path, monkeypatch):
    """Runs the tunnels of a text once more, with the sockets that systemd has kept."""
    manager = ServiceManager(stores=8)

    @contextlib.contextmanager
    def start(text):
        original = Group.run

        def run(group, **options):
            group.supervisor = SystemdSupervisor(group, manager)
            original(group, **options)
            group.supervisor.close()

        with monkeypatch.context() as patch:
            patch.setattr(activated._received, "outcome", manager.passed())
            patch.setattr(Group, "run", run)
            with running(tmp_path / "relay.toml", text) as group:
                yield group, manager

    yield start
    for name in [*manager.kept]:
        manager.forget(name)


def test_listening_sockets_outlive_a_restart_and_clients_wait(restarted, target, reserved, tmp_path):
    text = toml("a", target, listen=f"127.0.0.1:{reserved}")
    unix = toml("u", target, listen=f"unix://{tmp_path}/u")
    with restarted(text + toml("b", target) + unix) as (group, manager):
        wait_until(lambda: manager.kept.keys() == {"relay-listen-a", "relay-listen-b"})
        gone = group.tunnel("b").address
    with socket.create_connection(("127.0.0.1", reserved), WAIT) as waiting:
        with restarted(text) as (group, manager):
            assert waiting.recv(1) == b"a"
            wait_until(lambda: manager.kept.keys() == {"relay-listen-a"})
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(gone)


def test_a_reload_changes_what_is_kept(restarted, target):
    with restarted(toml("a", target) + toml("b", target)) as (group, manager):
        wait_until(lambda: len(manager.kept) == 2)
        before = group.tunnel("a").address
        group.rewrite(toml("a", target, listen="localhost:0") + toml("c", target))
        wait_until(lambda: manager.kept.keys() == {"relay-listen-a", "relay-listen-c"})
        (kept,) = manager.kept["relay-listen-a"]
        assert kept.getsockname() == group.tunnel("a").address != before


def test_an_address_that_overlaps_with_a_kept_one_can_be_opened(restarted, target, reserved):
    """The kept socket would exclude it; by a reload, and by a restart."""
    one = toml("a", target, listen=f"127.0.0.1:{reserved}")
    every = toml("a", target, listen=f"0.0.0.0:{reserved}")
    with restarted(one) as (group, manager):
        wait_until(lambda: manager.kept)
        assert group.rewrite(every) == {"a": "moved"}
        assert "barrier" in manager.names()
        wait_until(lambda: [kept.getsockname()[0] for kept in manager.kept.get("relay-listen-a", ())] == ["0.0.0.0"])
    with restarted(one) as (group, manager):
        wait_until(lambda: [kept.getsockname()[0] for kept in manager.kept.get("relay-listen-a", ())] == ["127.0.0.1"])
        assert group.tunnel("a").address == ("127.0.0.1", reserved)


def test_a_store_that_is_too_small_is_logged_once(restarted, target, caplog):
    with restarted("".join(toml(f"t{number}", target) for number in range(9))) as (group, manager):
        wait_until(lambda: len(manager.kept) == 8)
        group.pause("t0")
        group.resume("t0")
    assert caplog.text.count("9 listening sockets for 8 places in systemd's store; raise FileDescriptorStoreMax") == 1


class ClosedMeanwhile(socket.socket):
    """A listening socket that another thread closes after this one has looked for some time."""

    looks = 0

    def look(self):
        self.looks -= 1
        if self.looks < 0:
            self.close()

    def fileno(self):
        self.look()
        return super().fileno()

    def getsockname(self):
        self.look()
        return super().getsockname()

    def dup(self):
        self.look()
        return super().dup()


@pytest.mark.parametrize("looks", range(4))
def test_a_listener_that_closes_meanwhile_is_not_kept(looks):
    """A reload closes the listener whose address another one needs, on a thread of its own."""
    receive = ClosedMeanwhile()
    receive.bind(("127.0.0.1", 0))
    receive.listen()
    receive.looks = looks
    routes = SimpleNamespace(where=TCPAddress("127.0.0.1", 0))
    member = SimpleNamespace(
        name="a", state=MemberState.LISTENING, plan=SimpleNamespace(routes=routes), receive=SocketListener(receive)
    )
    manager = ServiceManager(stores=8)
    stored = StoredSockets(SimpleNamespace(members=[member], is_ending=False), manager)
    with receive:
        for _ in range(2):
            stored.on_turn()
    stored.release("a")
    assert not manager.kept
