"""No two tunnels of a file listen at one address."""

from __future__ import annotations

import pytest
from config_rig import only, problems_of


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
