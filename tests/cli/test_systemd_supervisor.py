"""What systemd is told about a group of tunnels, in this process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from group_rig import Group, letter, running
from helpers import WAIT, wait_until

from relay.cli.reload import ReloadError
from relay.cli.systemd_supervisor import SystemdSupervisor, supervised


class Manager:
    """Notes what it is told."""

    stores = 0

    def __init__(self, watchdog=None):
        self.watchdog = watchdog
        self.heard = []

    def __getattr__(self, name):
        return lambda *values: self.heard.append((name, *values))

    def names(self):
        return [name for name, *_ in self.heard]


@pytest.fixture
def target(serve):
    return "{}:{}".format(*serve(letter(b"a")).address)


@pytest.fixture
def up(tmp_path):
    """Runs the tunnels of a text under a manager."""
    with contextlib.ExitStack() as stack:

        def start(text, watchdog=None):
            group, manager = stack.enter_context(running(tmp_path / "relay.toml", text)), Manager(watchdog)
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


def test_the_end_has_the_time_that_the_drain_may_take(up, target):
    group, manager = up(toml("a", target, "drain = 20"))
    with group.connect("a") as client:
        assert client.recv(1) == b"a"
        group.stop()
        wait_until(lambda: "stopping" in manager.names())
        assert manager.heard[-1] == ("stopping", "closing; 1 live, 20 s to finish; again to end at once", 25.0)


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


class Stored(Manager):
    """Keeps sockets, as systemd does, and passes them to the next relay."""

    stores = 8

    def __init__(self):
        super().__init__()
        self.kept = {}

    def store(self, name, listening):
        self.kept.setdefault(name, []).append(listening.dup())

    def forget(self, name):
        for one in self.kept.pop(name):
            one.close()


@pytest.fixture
def restarted(tmp_path, monkeypatch):
    """Runs the tunnels of a text once more, with the sockets that systemd has kept."""
    manager = Stored()

    @contextlib.contextmanager
    def start(text):
        with contextlib.ExitStack() as stack:
            passed = {name: [one.dup() for one in sockets] for name, sockets in manager.kept.items()}
            monkeypatch.setattr("relay.cli.systemd_supervisor.received", lambda: passed)
            original = Group.run

            def run(group, **options):
                group.supervisor = SystemdSupervisor(group, manager)
                original(group, **options)
                group.supervisor.close()

            monkeypatch.setattr(Group, "run", run)
            try:
                yield stack.enter_context(running(tmp_path / "relay.toml", text)), manager
            finally:
                monkeypatch.setattr(Group, "run", original)

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


def test_without_a_service_manager_nothing_is_supervised(up, target, monkeypatch):
    group, _ = up(toml("a", target))
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    before = group.supervisor
    with supervised(group):
        assert group.supervisor is before
