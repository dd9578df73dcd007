"""``relay.engine.ledger_keeper``: what a tunnel has banned and counted is there when it is opened again."""

import base64
import socket
import time

import pytest
from helpers import WAIT, receive_all, send_and_end, wait_until

import relay
from relay.access.ledger import LedgerEntry
from relay.access.limiter import Limiter
from relay.access.store import Store
from relay.engine import changes, ledger_keeper, ledgers
from relay.engine.ledger_keeper import LedgerKeeper
from relay.engine.ledgers import clear, entries_of
from relay.engine.managed_tunnel import ManagedTunnel
from relay.engine.outlets import Outlets
from relay.eventloop.loop import Timers

RATE = {"name": "few", "per": "ip", "rate": "1/1h", "ban": "10m"}
QUOTA = {"name": "much", "per": "tunnel", "quota": "1MB/month"}


class Kept:
    """A store that is a dictionary."""

    def __init__(self):
        self.rows = {}

    def entries(self, tunnel, limit):
        return [entry for (*where, _), entry in self.rows.items() if where == [tunnel, limit]]

    def put(self, tunnel, entries):
        self.rows |= {(tunnel, entry.limit, entry.key): entry for entry in entries}


class Changes:
    """A ledger with these changes."""

    def __init__(self, entries):
        self.left = list(entries)

    @property
    def has_changed(self):
        return bool(self.left)

    def snapshot(self, most):
        found, self.left = self.left[:most], self.left[most:]
        return found


@pytest.fixture
def kept():
    """A store of the process."""
    return Kept()


def opened(store, server, *limits, name="web"):
    outlets = Outlets(store=store)
    return ManagedTunnel(relay.listen(":0"), relay.tcp(*server.address), outlets=outlets, limit=limits, name=name)


def reply(tunnel, text=b"hello"):
    """Return what a client gets back; nothing if it is rejected."""
    try:
        with socket.create_connection(tunnel.address, WAIT) as client:
            send_and_end(client, text)
            return receive_all(client)
    except OSError:  # a reset may come before the shutdown
        return b""


def test_a_change_is_handed_over_once_and_soon(kept):
    timers = Timers()
    keeper = LedgerKeeper("web", kept, timers)
    entry = LedgerEntry("few", "a", 2e9, 0, 0.0)
    keeper.changed()
    keeper.write()  # without a ledger
    keeper.ledger = Changes([entry])
    keeper.changed()
    keeper.changed()
    keeper.changed()
    now = time.monotonic()
    timers.run(now + 0.5)
    assert not kept.rows
    timers.run(now + 2.0)
    assert kept.entries("web", "few") == keeper.entries("few") == [entry]
    assert keeper.entries("other") == []


def test_many_changes_are_handed_over_in_parts_between_which_the_loop_turns(kept):
    timers = Timers()
    keeper = LedgerKeeper("web", kept, timers)
    keeper.ledger = Changes(LedgerEntry("few", str(number), 2e9, 0, 0.0) for number in range(250))
    keeper.changed()
    handed_over = []
    now = time.monotonic() + 2.0
    for _ in range(5):
        timers.run(now)
        handed_over.append(len(kept.rows))
        now += 0.1
    assert handed_over == [100, 200, 250, 250, 250]
    keeper.ledger = Changes(LedgerEntry("few", str(number), 2e9, 0, 0.0) for number in range(1000))
    keeper.write()  # at the end of the tunnel
    assert len(kept.rows) == 1000


def test_a_ban_and_a_quota_outlive_their_tunnel(kept, echo_server):
    with opened(kept, echo_server, QUOTA, RATE) as tunnel:
        assert reply(tunnel) == b"hello"
        assert reply(tunnel) == b""
        seen = [(one.entry.limit, one.entry.key, one.entry.used, one.quota) for one in entries_of(tunnel)]
        assert seen == [("much", "*", 10, 1_000_000), ("few", "127.0.0.1", 0, None)]
    assert {key[1:] for key in kept.rows} == {("much", "*"), ("few", "127.0.0.1")}
    with opened(kept, echo_server, QUOTA, RATE) as tunnel:
        assert reply(tunnel) == b""
        assert tunnel.recent()[-1].rule == "ban few"
        assert [one.entry.used for one in entries_of(tunnel)] == [10, 0]
    with opened(kept, echo_server, QUOTA, RATE, name="another") as tunnel:
        assert reply(tunnel) == b"hello"


def test_a_limit_that_a_reload_adds_finds_its_bans(kept, echo_server):
    kept.put("web", [LedgerEntry("few", "127.0.0.1", time.time() + 60, 0, 0.0)])
    limits = {"nconnect": -1, "timeout": None, "connect_timeout": WAIT, "idle_timeout": None, "linger": 60.0}
    with opened(kept, echo_server) as tunnel:
        assert reply(tunnel) == b"hello"
        changes.update(tunnel, **limits, limit=[RATE])
        assert reply(tunnel) == b""


def test_a_ban_can_be_cleared_for_good(kept, echo_server):
    with opened(kept, echo_server, RATE) as tunnel:
        assert reply(tunnel) + reply(tunnel) == b"hello"
        assert clear(tunnel, "bans", "192.0.2.1") == clear(tunnel, "quotas", "127.0.0.1") == 0
        assert clear(tunnel, "bans", "127.0.0.1") == 1
        assert list(entries_of(tunnel)) == []
        assert reply(tunnel) == b"hello"
    with opened(kept, echo_server, RATE) as tunnel:
        assert reply(tunnel) == b"hello"


def test_a_client_that_a_rate_rejects_can_be_let_in(echo_server):
    with opened(None, echo_server, {"name": "few", "rate": "1/1h"}) as tunnel:
        assert reply(tunnel) + reply(tunnel) == b"hello"
        assert clear(tunnel, "quotas", "127.0.0.1") == 0
        assert clear(tunnel, "bans", "127.0.0.1") == 1
        assert reply(tunnel) == b"hello"


def test_changes_are_handed_over_while_the_tunnel_runs(kept, echo_server, monkeypatch):
    monkeypatch.setattr(ledger_keeper, "_PAUSE", 0.0)
    with opened(kept, echo_server, QUOTA) as tunnel, socket.create_connection(tunnel.address, WAIT) as client:
        client.sendall(b"hello")
        wait_until(lambda: any(entry.used == 10 for entry in kept.entries("web", "much")))


def test_password_guessing_stays_banned(kept, monkeypatch, echo_server):
    monkeypatch.setattr("relay.engine.relay_thread.RelayThread.is_exposed", True)
    wrong = base64.b64encode(b"me:wrong").decode()

    def answer():
        request = f"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nProxy-Authorization: Basic {wrong}\r\n\r\n"
        return reply(tunnel, request.encode())[:12]

    def proxy():
        receive = relay.http_listen("127.0.0.1", 0, user="me", password="right")
        return ManagedTunnel(receive, relay.dynamic(), outlets=Outlets(store=kept), name="proxy")

    with proxy() as tunnel:
        assert [answer() for _ in range(6)] == [b"HTTP/1.1 407"] * 5 + [b""]
    with proxy() as tunnel:
        assert answer() == b""


@pytest.mark.parametrize(("jump", "left"), [(-1e7, 600), (-3600, 600), (300, 300), (1e7, None)])
def test_a_clock_that_jumps_over_the_restart_lengthens_no_ban(kept, echo_server, jump, left):
    with opened(kept, echo_server, RATE) as tunnel:
        assert reply(tunnel) + reply(tunnel) == b"hello"
    (ban,) = kept.entries("web", "few")
    kept.put("web", [ban._replace(banned_until=ban.banned_until - jump)])
    with opened(kept, echo_server, RATE) as tunnel:
        found = [one.entry.banned_until - time.time() for one in entries_of(tunnel)]
        assert found == ([] if left is None else [pytest.approx(left, abs=60)])


def test_a_restart_keeps_them_in_a_file(tmp_path, echo_server):
    for expected in (b"hello", b""):
        store = Store(str(tmp_path / "state"))
        try:
            with opened(store, echo_server, RATE, QUOTA) as tunnel:
                assert reply(tunnel) == expected
                assert reply(tunnel) == b""
        finally:
            store.close()


def test_operators_get_a_large_table_in_parts(kept, echo_server, monkeypatch):
    monkeypatch.setattr(ledgers, "_PART", 2)
    until = time.time() + 60
    kept.put("web", [LedgerEntry("few", f"192.0.2.{number}", until, 0, 0.0) for number in range(5)])
    turns = []
    whole = Limiter.entries
    monkeypatch.setattr(Limiter, "entries", lambda *given: turns.append(len(whole(*given))) or whole(*given))
    with opened(kept, echo_server, RATE) as tunnel:
        assert sorted(one.entry.key for one in entries_of(tunnel)) == [f"192.0.2.{number}" for number in range(5)]
        assert turns == [2, 2, 1]
        found = entries_of(tunnel)
        assert next(found).entry.limit == "few"
        changes.in_thread(tunnel, lambda relay, now: relay.entrance.set_policy(None))
        assert len(list(found)) == 4
    assert list(entries_of(tunnel)) == []
