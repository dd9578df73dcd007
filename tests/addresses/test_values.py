"""Addresses as values: what they hold, how they are shown, and what none of them can be."""

import pytest
from helpers import steady

from relay.addresses.options import inline_secrets
from relay.addresses.redact import redact
from relay.addresses.ssh import SSHListen, SSHServer
from relay.addresses.values import TCPAddress, UnixAddress, check_host_port, is_ip_address, is_loopback, unix_path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tcp://h:80", "tcp://h:80"),
        ("ssh://me@h", "ssh://me@h"),
        ("ssh://me:pw@h:22?password_env=PW", "ssh://me:***@h:22?password_env=PW"),
        ("tls://h:1?ca=x&password=pw", "tls://h:1?ca=x&password=***"),
        ("unix:///run/a\nb", "unix:///run/a\\nb"),
        ("h" * 500, "h" * 120 + "…"),
        ("ssh://h?keyfile=~/id&hostkey=SHA256:x&listen=:1", "ssh://h?keyfile=~/id&hostkey=SHA256:x&listen=:1"),
        ("ssh://h?passphrase=pw&password_file=f", "ssh://h?passphrase=***&password_file=f"),
        ("ssh://h:22?password=p@w", "ssh://h***"),
        ("ssh://me?p@h", "ssh://me?***"),
        ("ssh://me:22?keepalive=p@h", "ssh://me***"),
        ("ssh://me@h:22?hostkey=SHA256:x&keyfile=a@b", "ssh://me@h***"),
        ("ssh://me@h?keyfile=/a@b&keepalive=0", "ssh://me@h?keyfile=/a@b&keepalive=0"),
        ("ssh://me@h?password=p@w&keepalive=0", "ssh://me@h?password=***&keepalive=0"),
        ("ssh://me@h?password=p&w&w=w&keepalive=0", "ssh://me@h?password=***&***&***&keepalive=0"),
        ("ssh://h?pasword=p&w", "ssh://h?pasword=***&***"),
        ("ssh://h?x&password=p", "ssh://h?x&password=***"),
        ("tls://h:1?verify=no&verify=now", "tls://h:1?verify=no&verify=***"),  # a switch is no secret
        ("ssh://h?password=no&verify=no", "ssh://h?password=***&***"),
        ("me:p://w@h", "me:***@h"),
        ("i2p:?sam=h:1&keys=f&in_depth=1&allow=a", "i2p:?sam=h:1&keys=f&in_depth=1&allow=a"),
        ("i2p://x.i2p:80?user=me&password=pw&session=s", "i2p://x.i2p:80?user=me&password=***&session=s"),
        ("i2p:?inbound.quantity=2&i2cp.leaseSetSecret=pw", "i2p:?inbound.quantity=2&i2cp.leaseSetSecret=***"),
        ("i2p:?password=p&inboundXquantity=w", "i2p:?password=***&***"),
    ],
)
def test_masked(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "fe80::1%eth0", "a_b", "bücher.example"])
def test_a_host_and_a_port_are_checked_and_taken(host):
    check_host_port(host, 1)
    check_host_port(host, 0, least=0)


@pytest.mark.parametrize("host", ["", "-x", "a b", "a\nb", "[::1]", "h/p", "me@h", "\udcff"])
def test_a_host_that_cannot_be_right_is_a_value_error(host):
    with pytest.raises(ValueError, match="^host: "):
        check_host_port(host, 80)


@pytest.mark.parametrize("host", ["name.i2p", "X.B32.I2P."])
def test_a_name_of_i2p_is_no_place(host):
    with pytest.raises(ValueError, match="is a name of I2P, which is not looked up in the DNS; relay.i2p leads there"):
        check_host_port(host, 80)
    check_host_port("i2p.example", 80)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_a_value_error(port):
    with pytest.raises(ValueError, match=f"^port: {port} is out of range; a port is a number from 1 to 65535"):
        check_host_port("h", port)


@pytest.mark.parametrize(("host", "port", "named"), [(None, 80, "host"), ("h", "80", "port"), ("h", True, "port")])
def test_a_place_of_the_wrong_type_is_a_type_error(host, port, named):
    with pytest.raises(TypeError, match=f"^{named}: "):
        check_host_port(host, port)


def test_a_relative_unix_path_is_taken_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unix_path("a") == str(tmp_path / "a")
    assert unix_path(tmp_path / "a") == str(tmp_path / "a")


@pytest.mark.parametrize("path", ["", "a\x00b", "/" + "x" * 120])
def test_a_unix_path_that_cannot_be_right_is_a_value_error(path):
    with pytest.raises(ValueError, match="^path: "):
        unix_path(path)


@pytest.mark.parametrize("path", [None, 3, b"/x"])
def test_a_unix_path_of_the_wrong_type_is_a_type_error(path):
    with pytest.raises(TypeError, match="^path: "):
        unix_path(path)


GOOD_SSH = [
    {"host": "::1"},
    {"user": "me@corp"},
    {"port": 1},
    {"backend": "openssh"},
    {"password": "x"},
    {"password": lambda prompt: "x"},
    {"keepalive": 1},
    {"keepalive": None},
    {"compress": True},
]


@pytest.mark.parametrize("options", GOOD_SSH, ids=steady)
def test_an_ssh_server_is_a_value(options):
    options = {"host": "h", **options}
    value = SSHServer(**options)
    assert value == SSHServer(**options)
    assert hash(value) == hash(SSHServer(**options))


def test_callables_are_told_apart():
    assert SSHServer("h", password=lambda: "x") != SSHServer("h", password=lambda: "x")


BAD_SSH = [
    ({"host": ""}, ValueError),
    ({"host": "-h"}, ValueError),
    ({"host": "a b"}, ValueError),
    ({"host": "a\n"}, ValueError),
    ({"host": "a%b"}, ValueError),
    ({"host": "bücher"}, ValueError),
    ({"host": "fe80::1%eth0"}, ValueError),
    ({"host": "a:b"}, ValueError),
    ({"host": None}, TypeError),
    ({"host": b"h"}, TypeError),
    ({"user": ""}, ValueError),
    ({"user": "-x"}, ValueError),
    ({"user": "a b"}, ValueError),
    ({"user": "a\n"}, ValueError),
    ({"user": "%r"}, ValueError),
    ({"user": "a:b"}, ValueError),
    ({"user": 3}, TypeError),
    ({"port": 0}, ValueError),
    ({"port": 65536}, ValueError),
    ({"port": "22"}, TypeError),
    ({"port": True}, TypeError),
    ({"backend": "putty"}, ValueError),
    ({"keyfile": ""}, ValueError),
    ({"keyfile": b"x"}, TypeError),
    ({"known_hosts": "a\0"}, ValueError),
    ({"config": 3}, TypeError),
    ({"password": b"hunter2"}, TypeError),
    ({"password": ""}, ValueError),
    ({"password_env": "A=B"}, ValueError),
    ({"password_env": 3}, TypeError),
    ({"hostkey": "hunter2"}, ValueError),
    ({"hostkey": 3}, TypeError),
    ({"accept_new": "yes"}, TypeError),
    ({"keepalive": 0}, ValueError),
    ({"keepalive": -1.0}, ValueError),
    ({"keepalive": float("nan")}, ValueError),
    ({"keepalive": float("inf")}, ValueError),
    ({"keepalive": "15"}, TypeError),
    ({"keepalive": True}, TypeError),
    ({"compress": 1}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD_SSH, ids=str)
def test_what_no_ssh_server_has_is_refused_and_the_argument_is_named(options, error):
    (name,) = options
    with pytest.raises(error, match=f"^{name}: ") as failure:
        SSHServer(**{"host": "h", **options})
    assert "hunter2" not in str(failure.value)
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("name", ["password", "passphrase"])
def test_a_secret_has_one_source(name):
    for second in (f"{name}_file", f"{name}_env"):
        with pytest.raises(ValueError, match=f"^{name}: it is given twice"):
            SSHServer("h", **{name: lambda: "x", second: "X"})


def test_text_is_told_from_where_a_secret_is():
    assert inline_secrets(SSHServer("h", password="x", passphrase="y")) == ("passphrase", "password")
    assert inline_secrets(SSHServer("h", password=lambda: "x", passphrase_env="Y")) == ()


def test_an_ssh_server_shows_its_name_alone():
    server = SSHServer("::1", "me@corp", 22, password="hunter2", keyfile="/id")
    assert str(server) == "ssh://me%40corp@[::1]:22"
    assert "hunter2" not in repr(server)
    assert str(SSHServer("h")) == "ssh://h"


def test_where_a_server_listens_is_shown():
    assert str(SSHListen(SSHServer("h"))) == "ssh://h?listen=127.0.0.1:0"
    assert str(SSHListen(SSHServer("h", password="pw"), UnixAddress("/a b"))) == "ssh://h?listen=/a%20b"
    assert str(SSHListen(SSHServer("h"), TCPAddress("::1", 1))) == "ssh://h?listen=%5B::1%5D:1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.1", True), ("::", True), ("fe80::1%eth0", True), ("localhost", False), ("10.0.0", False), ("", False),
        ("10.0.0.1%eth0", False), ("[::1]", False),
    ],
)  # fmt: skip
def test_addresses_and_names(host, expected):
    assert is_ip_address(host) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True), ("LocalHost", True),
        ("fe80::1%lo", False), ("0.0.0.0", False), ("::", False), ("::ffff:10.0.0.1", False), ("db", False),
    ],
)  # fmt: skip
def test_the_loopback(host, expected):
    assert is_loopback(host) is expected
