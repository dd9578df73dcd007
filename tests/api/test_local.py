"""``relay.local``: a private Unix socket that leads anywhere."""

import os
import socket
import stat

import pytest
from helpers import WAIT, receive_all, send_and_end

import relay


def test_it_leads_there(echo_server):
    with relay.local("{}:{}".format(*echo_server.address)) as path, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(path)
        send_and_end(client, b"hello")
        assert receive_all(client) == b"hello"


def test_i2p_is_given_more_time(monkeypatch):
    made = []

    class Tunnel(relay.Tunnel):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append((self._relay.limits.connect, self._relay.limits.linger, self._relay.limits.lifetime))

    monkeypatch.setattr("relay.api.local.Tunnel", Tunnel)
    chains = [("127.0.0.1:1",), ("name.i2p",), ("127.0.0.1:1", ["i2p:", "ssh://me@name.i2p"])]
    for chain in chains:
        with relay.local(*chain):
            pass
    assert made == [(30.0, 60.0, None), (90.0, 5.0, None), (90.0, 60.0, None)]


def test_it_is_nobody_elses(echo_server):
    with relay.local("{}:{}".format(*echo_server.address)) as path:
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert not os.path.exists(os.path.dirname(path))


def test_leaving_it_ends_what_uses_it(echo_server):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        with relay.local("{}:{}".format(*echo_server.address)) as path:
            client.connect(path)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def fail_inside(url, paths):
    with relay.local(url) as path:
        paths.append(path)
        raise KeyError


def test_it_is_removed_when_its_user_fails(echo_server):
    paths = []
    with pytest.raises(KeyError):
        fail_inside("{}:{}".format(*echo_server.address), paths)
    assert not os.path.exists(os.path.dirname(paths[0]))


def test_a_bad_address_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError, match="port 0"), relay.local("h:0"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_has_the_name_that_is_wanted(echo_server):
    with relay.local("{}:{}".format(*echo_server.address), name=".s.PGSQL.5432") as path:
        assert os.path.basename(path) == ".s.PGSQL.5432"
        assert os.listdir(os.path.dirname(path)) == [".s.PGSQL.5432"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", ValueError),
        (".", ValueError),
        ("..", ValueError),
        ("../x", ValueError),
        ("/x", ValueError),
        ("a\nb", ValueError),
        ("x" * 120, ValueError),
        (b"x", TypeError),
        (None, TypeError),
    ],
)
def test_another_name_is_refused(name, error, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(error), relay.local("127.0.0.1:1", name=name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_tunnel_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no descriptor is left")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("relay.api.local.Tunnel", fail)
    with pytest.raises(OSError, match="no descriptor"), relay.local("127.0.0.1:1"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "via", "error"),
    [
        ("h:0", [], ValueError),
        ("h:1", ["tls://x:1"], ValueError),
        ("h:1", "ssh://a", TypeError),
        ("h:1", [None], TypeError),
    ],
)
def test_what_cannot_be_right_is_told_at_the_call(url, via, error):
    with pytest.raises(error):
        relay.local(url, via)
