"""No two tunnels of a file listen at one address."""

import itertools

import pytest
from config_rig import only, problems_of, read_text

from relay.addresses.values import TCPAddress
from relay.config import listen_conflicts
from relay.config.listen_conflicts import ListenTable, exclude_each_other, group_of, overlap
from relay.config.models import Tunnel


def two(one, other):
    return f"[tunnels.a]\n{one}\ntarget = 'localhost:1'\n[tunnels.b]\n{other}\ntarget = 'localhost:1'\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("listen = 8080", "listen = ':8080'"),
        ("listen = 8080", "listen = 'tls://127.0.0.1:8080?cert=x'"),
        ("listen = 'localhost:80'", "listen = 'LOCALHOST:80'"),
        ("listen = '0.0.0.0:80'", "listen = '127.0.0.1:80'"),
        ("listen = 80", "listen = '0.0.0.0:80'"),
        ("listen = '[::]:80'", "listen = '127.0.0.1:80'"),
        ("listen = '[::1]:80'", "listen = '[::]:80'"),
        ("listen = 'unix:///a/b'", "listen = 'unix:///a/b'"),
        ("listen = 'ssh://me@a?listen=:80'", "listen = 'ssh://me@a?listen=127.0.0.1:80&compress=yes'"),
        ("listen = 'ssh://a?listen=/x'", "listen = 'ssh://a?listen=/x'"),
        ("listen = 'i2p:?keys=x'", "listen = 'i2p:'\nkeys = 'x'"),
        ("listen = 'i2p:'", "listen = 'i2p:'"),  # both are kept under the name of their target
        ("listen = 'i2p:?session=x'", "listen = 'i2p:'\nsession = 'x'"),
    ],
)
def test_two_tunnels_at_one_address(tmp_path, one, other):
    line = 5 + one.count("\n")
    assert only(problems_of(tmp_path, two(one, other))) == f"{line}: tunnels.b.listen: a listens there already, line 2"


def test_only_addresses_of_one_group_can_exclude_each_other(tmp_path):
    """A reload compares new addresses with old ones of their group alone."""
    texts = ["8080", "'0.0.0.0:8080'", "'[::]:8080'", "'tls://:8080?cert=x'", "'socks5://:8080'", "8081", "0", "':0'"]
    texts += ["'unix:///a'", "'unix:///b'", "'ssh://a?listen=:80'", "'ssh://b?listen=:80'", "'i2p:'", "'i2p:?keys=x'"]
    entries = []
    for text in texts:
        target = "" if "socks5" in text else "target = 'localhost:1'"
        found = read_text(tmp_path, f"[tunnels.a]\nlisten = {text}\n{target}\n")
        assert found.problems.in_order() == []
        entries += found.entries
    for one, other in itertools.product(entries, repeat=2):
        if exclude_each_other(one.listen, one.tunnel, other.listen, other.tunnel):
            assert group_of(one.listen, one.tunnel) == group_of(other.listen, other.tunnel) is not None
    assert len({group_of(entry.listen, entry.tunnel) for entry in entries}) == 9


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("listen = 0", "listen = ':0'"),
        ("listen = 80", "listen = 81"),
        ("listen = 80", "listen = '[::1]:80'"),
        ("listen = '127.0.0.1:80'", "listen = '127.0.0.2:80'"),
        ("listen = '0.0.0.0:80'", "listen = '[::1]:80'"),
        ("listen = 'ssh://a'", "listen = 'ssh://a'"),
        ("listen = 'ssh://a?listen=:80'", "listen = 'ssh://b?listen=:80'"),
        ("listen = 80", "listen = 'ssh://b?listen=:80'"),
        ("listen = 'i2p:'\ntransient = true", "listen = 'i2p:'\ntransient = true"),
        ("listen = 'i2p:?keys=x'", "listen = 'i2p:?keys=y'"),
        ("listen = 'unix:///a/b'", "listen = 'unix:///a/c'"),
    ],
)
def test_two_tunnels_at_two_addresses(tmp_path, one, other):
    assert problems_of(tmp_path, two(one, other)) == []


def test_thousands_of_tunnels_at_one_port_are_not_compared_with_each_other(monkeypatch):
    compared = []
    monkeypatch.setattr(listen_conflicts, "overlap", lambda one, other: compared.append(other) or overlap(one, other))
    table, tunnel = ListenTable(), Tunnel(listen=80)
    places = [f"127.0.{number // 250}.{number % 250}" for number in range(1000)]
    assert not any(table.claim(TCPAddress(place, 80), place, tunnel) for place in places)
    assert compared == []
    assert table.claim(TCPAddress(places[500], 80), "again", tunnel) == places[500]
    assert table.claim(TCPAddress("0.0.0.0", 80), "every", tunnel) == places[0]
    assert table.claim(TCPAddress("::1", 80), "other", tunnel) is None
    assert table.claim(TCPAddress("::", 80), "every", tunnel) == places[0]
