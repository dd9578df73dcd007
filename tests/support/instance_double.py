"""A double of a running relay, the app served for it, and the contract that doubles and real groups keep."""

import contextlib
import dataclasses
import threading
import time

import httpx
import pytest
from helpers import WAIT

from relay.carriers.listing import CarrierStatus
from relay.daemon.change.upgrade_channel import UpgradeError
from relay.daemon.failures import ConflictError, NotFoundError, ReloadError
from relay.daemon.recent_log import LogLine
from relay.daemon.sockets import open_control, open_status
from relay.daemon.status import (
    MOST_ROWS,
    BanStatus,
    ConnectionStatus,
    InstanceStatus,
    ProbeStatus,
    QuotaStatus,
    ReloadReport,
    TunnelStatus,
    TunnelVerdict,
    UpgradeReport,
)
from relay.daemon.waiting import Stop
from relay.engine.records import Stats
from relay.operations.server import serve


class Double:
    """An instance with two tunnels, ``a`` (required) and ``b``, which does what the test says."""

    def __init__(self):
        self.facts = InstanceStatus(
            version="1", pid=4711, started=1e9, config="/etc/relay.toml", draining=False, log_level="info"
        )
        stats = Stats(3, 1, 10, 20, {"refused": 2})
        self.all = {
            "a": TunnelStatus(
                name="a", state="listening", listen="127.0.0.1:1", target="t:2", required=True, figures=stats
            ),
            "b": TunnelStatus(name="b", state="listening", listen=":3", target="anywhere", via=("ssh://me@x",)),
        }
        self.open = {"c1": self.connection("c1", "a"), "c2": self.connection("c2", "b")}
        self.ended = [dataclasses.replace(self.connection("c0", "a"), state="closed", reason="done")]
        self.banned = [BanStatus(tunnel="a", limit="few", key="192.0.2.7", until=2e9)]
        self.lines = [LogLine(1e9, "warning", "relay.ssh", "ssh://me@x: no route")]
        self.done = []
        self.stuck = []
        self.rejection = None
        self.at_reload = self.at_check = lambda: None

    @staticmethod
    def connection(number, tunnel):
        return ConnectionStatus(
            id=number, tunnel=tunnel, peer="1.2.3.4:5", target=None, age=1.5, received=1, sent=2, engine="copy",
            state="open", started=1e9,
        )  # fmt: skip

    def change(self, name, **fields):
        self.all[name] = dataclasses.replace(self.all[name], **fields)

    def status(self, *, figures=False):
        return self.facts

    def tunnels(self, *, figures=True):
        return [*self.all.values()]

    def connections(self, tunnel=None, first=0, most=None):
        self._check(tunnel)
        return [each for each in self.open.values() if tunnel in (None, each.tunnel)][first:][:most]

    def recent(self, tunnel=None):
        self._check(tunnel)
        return [each for each in self.ended if tunnel in (None, each.tunnel)]

    def bans(self, tunnel=None, most=MOST_ROWS):
        self._check(tunnel)
        return [each for each in self.banned if tunnel in (None, each.tunnel)][:most]

    def quotas(self, tunnel=None):
        self._check(tunnel)
        return [QuotaStatus(tunnel="b", limit="much", key="*", used=5, quota=10, since=1e9)]

    def clear(self, kind, key, tunnel=None):
        self._check(tunnel)
        kept = [each for each in self.banned if kind != "bans" or each.key != key or tunnel not in (None, each.tunnel)]
        cleared, self.banned = len(self.banned) - len(kept), kept
        if not cleared:
            raise NotFoundError(f"{key}: there are no {kind} with this key")
        return cleared

    def carriers(self):
        return [CarrierStatus("ssh://me@x", "ssh", "backing off", time.time(), 2, 0, error="no route")]

    def log(self):
        return self.lines

    def stuck_loops(self, timeout):
        self.at_check()
        return self.stuck

    def time_loops(self, names, turned):
        return []

    def pause(self, name):
        self._act(name, "paused")

    def resume(self, name):
        self._act(name, "listening")

    def drain(self, name):
        self._act(name, "draining")

    def enable(self, name, target):
        self._set_target(name, target, "up")

    def disable(self, name, target):
        self._set_target(name, target, "disabled")

    def _set_target(self, name, target, state):
        self._check(name)
        if not self.all[name].targets:
            raise ConflictError(f"{name}: it has one target")
        if target not in [one.target for one in self.all[name].targets]:
            raise NotFoundError(f"{name}: there is no target {target}")
        changed = [one._replace(state=state) if one.target == target else one for one in self.all[name].targets]
        self.change(name, targets=tuple(changed))

    def kill(self, connection):
        if self.open.pop(connection, None) is None:
            raise NotFoundError(f"{connection}: there is no open connection with this id")

    def reload(self, *, dry_run=False):
        self.at_reload()
        if self.rejection is not None:
            raise ReloadError(self.rejection.split("; "))
        return ReloadReport((TunnelVerdict("a", "tuned", "nconnect"), TunnelVerdict("b", "same")), dry_run)

    def upgrade(self):
        if self.rejection is not None:
            raise UpgradeError(*self.rejection.split("; "))
        return UpgradeReport(4712, "2")

    def hand_over(self, connection, first):
        with connection:
            self.done.append(("hand_over", first))
            connection.sendall(b"yes")

    def set_log_level(self, level):
        self.facts = dataclasses.replace(self.facts, log_level=level)

    def reopen_logs(self):
        raise OSError(28, "No space left on device", "/var/log/relay")

    def stop(self):
        self.facts = dataclasses.replace(self.facts, draining=True)

    def _check(self, name):
        if name is not None and name not in self.all:
            raise NotFoundError(f"{name}: there is no such tunnel")

    def _act(self, name, state):
        self._check(name)
        if self.all[name].state not in ("listening", "paused"):
            raise ConflictError(f"{name}: it is {self.all[name].state}")
        self.change(name, state=state)


PROBED = ProbeStatus("connect", 30.0)


class Served:
    """An app that is served at a control socket and at a status address."""

    def __init__(self, stack, instance, folder, address="127.0.0.1:0", **options):
        self.control = open_control(str(folder / "c.sock"))
        self.status = open_status(address, **options)
        self.address = self.status.socket.getsockname()
        stop = Stop()
        thread = threading.Thread(target=serve, args=(instance, [self.control, self.status], stop))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        transport = httpx.HTTPTransport(uds=self.control.path)
        self.http = stack.enter_context(httpx.Client(transport=transport, base_url="http://relay", timeout=WAIT))
        self.tcp = stack.enter_context(
            httpx.Client(base_url="http://{}:{}".format(*self.address), timeout=WAIT, trust_env=False)
        )

    def get(self, path):
        return self.http.get(path)


@contextlib.contextmanager
def served(instance, folder, **options):
    with contextlib.ExitStack() as stack:
        yield Served(stack, instance, folder, **options)


def check_contract(instance):
    """Check what the app expects of every instance with the open tunnels ``a`` and ``b``."""
    assert [tunnel.name for tunnel in instance.tunnels()] == ["a", "b"]
    assert {tunnel.state for tunnel in instance.tunnels()} == {"listening"}
    for show in (instance.connections, instance.recent):
        assert [each.id for each in show() if each.tunnel == "a"] == [each.id for each in show("a")]
        with pytest.raises(NotFoundError, match="nope"):
            show("nope")
    everything = [each.id for each in instance.connections()]
    assert [each.id for each in instance.connections(most=1)] == everything[:1]
    assert [each.id for each in instance.connections(first=1, most=9)] == everything[1:]
    assert instance.connections(first=len(everything), most=9) == []
    assert [tunnel.name for tunnel in instance.tunnels(figures=False)] == ["a", "b"]
    assert instance.stuck_loops(WAIT) == []
    before = instance.tunnels()[0].since
    instance.pause("a")
    assert [tunnel.state for tunnel in instance.tunnels()] == ["paused", "listening"]
    assert instance.tunnels()[0].since >= before
    instance.resume("a")
    assert [tunnel.state for tunnel in instance.tunnels()] == ["listening", "listening"]
    for act in (instance.pause, instance.resume, instance.drain):
        with pytest.raises(NotFoundError, match="nope"):
            act("nope")
    instance.set_log_level("debug")
    assert instance.status().log_level == "debug"
    for each in instance.connections("a"):
        instance.kill(each.id)
    assert not instance.connections("a")
    with pytest.raises(NotFoundError, match="nope"):
        instance.kill("nope")
    instance.drain("b")
    assert instance.tunnels()[1].state in ("draining", "closed")
    with pytest.raises(ConflictError, match="b: "):
        instance.pause("b")
    assert not instance.status().draining
    instance.stop()
