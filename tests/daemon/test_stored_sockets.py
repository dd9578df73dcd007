"""Listening sockets that systemd keeps over a restart, in this process."""

from __future__ import annotations

import contextlib
import socket
from types import SimpleNamespace

import pytest
from group_rig import Group, letter, running
from helpers import WAIT, wait_until
from service_manager_double import ServiceManager

from relay.addresses.values import TCPAddress
from relay.daemon.member import MemberState
from relay.daemon.systemd_supervisor import StoredSockets, SystemdSupervisor
from relay.streams.listener import SocketListener
from relay.transports import activated


@pytest.fixture
def target(serve):
    return "{}:{}".format(*serve(letter(b"a")).address)


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


def toml(name, target, *more, listen=":0"):
    return "\n".join([f"[tunnels.{name}]", f'listen = "{listen}"', f'target = "{target}"', *more, ""])


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
        name="a",
        state=MemberState.LISTENING,
        plan=SimpleNamespace(routes=routes),
        receive=SocketListener(receive),
    )
    manager = ServiceManager(stores=8)
    stored = StoredSockets(SimpleNamespace(members=[member], is_ending=False), manager)
    with receive:
        for _ in range(2):
            stored.on_turn()
    stored.release("a")
    assert not manager.kept
