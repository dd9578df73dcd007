"""Addresses: what is understood, and what is said of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.address import (
    LONGEST_ADDRESS,
    TCPAddress,
    TLSListen,
    TLSTarget,
    UnixAddress,
    check_place,
    masked,
    parse_listen,
    parse_target,
    unix_path,
)
from relay.errors import AddressError

TARGETS = {
    "localhost:80": TCPAddress("localhost", 80),
    "LocalHost:0080": TCPAddress("localhost", 80),
    "127.0.0.1:65535": TCPAddress("127.0.0.1", 65535),
    "tcp://db.internal:5432": TCPAddress("db.internal", 5432),
    "TCP://db.internal.:1": TCPAddress("db.internal.", 1),
    "my_service:1": TCPAddress("my_service", 1),
    "ssh:22": TCPAddress("ssh", 22),
    "[::1]:80": TCPAddress("::1", 80),
    "tcp://[0:0::1]:80": TCPAddress("::1", 80),
    "[fe80::1%eth0]:80": TCPAddress("fe80::1%eth0", 80),
    "tcp://[fe80::1%25eth0]:80": TCPAddress("fe80::1%eth0", 80),
    "bücher.example:80": TCPAddress("xn--bcher-kva.example", 80),
    "unix:///run/app.sock": UnixAddress("/run/app.sock"),
    "unix:///run/a%20b%3F": UnixAddress("/run/a b?"),
    "unix:///run/%ff": UnixAddress("/run/\udcff"),
    "tls://db.internal:5432": TLSTarget("db.internal", 5432),
    "tls://[::1]:443?servername=db.internal": TLSTarget("::1", 443, servername="db.internal"),
    "tls://h:1?ca=/etc/a%26b&cert=c&key=k": TLSTarget("h", 1, ca="/etc/a&b", cert="c", key="k"),
}

LISTENS = {
    "0": TCPAddress("127.0.0.1", 0),
    "8080": TCPAddress("127.0.0.1", 8080),
    ":0": TCPAddress("127.0.0.1", 0),
    "tcp://:8080": TCPAddress("127.0.0.1", 8080),
    "0.0.0.0:8080": TCPAddress("0.0.0.0", 8080),
    "[::1]:0": TCPAddress("::1", 0),
    "localhost:0": TCPAddress("localhost", 0),
    "unix:///run/app.sock": UnixAddress("/run/app.sock"),
    "tls://:8443?cert=c.pem": TLSListen("127.0.0.1", 8443, "c.pem"),
    "tls://[::]:8443?cert=c&key=k&client_ca=ca": TLSListen("::", 8443, "c", "k", "ca"),
}


@pytest.mark.parametrize(("text", "value"), TARGETS.items())
def test_targets(text, value):
    assert parse_target(text) == value
    assert parse_target(str(value)) == value


@pytest.mark.parametrize(("text", "value"), LISTENS.items())
def test_listen_addresses(text, value):
    assert parse_listen(text) == value
    assert parse_listen(str(value)) == value


BAD_TARGETS = {
    "": "it is empty",
    "localhost": "no port; write it after a colon: host:8080",
    "8080": "write it after a colon: 127.0.0.1:8080",
    ":80": "the host is empty; write it out: 127.0.0.1:80",
    "h:0": "port 0; a port is a number from 1 to 65535",
    "h:99999": "port 99999; a port is a number from 1 to 65535",
    "h:-1": "port -1",
    "h:8o": "port 8o",
    "h:": "port (empty)",
    "h:٨٠": "port ٨٠",
    "h: 80": "port",
    "::1:80": "an IPv6 address is written in brackets: [::1]:8080",
    "[::1]": "an IPv6 address is written [::1]:8080",
    "[]:80": "an IPv6 address is written [::1]:8080",
    "[localhost]:80": "[localhost] is not an IPv6 address",
    "[::1%]:80": "a broken zone",
    "tcp://[fe80::1%eth0]:80": "in a URL [fe80::1%25eth0]:80",
    "127.1:80": "'127.1' is not an IPv4 address",
    "256.0.0.1:80": "four numbers from 0 to 255",
    "0x7f000001:80": "is not an IPv4 address",
    "-oProxyCommand:80": "is not a host name",
    "a b:80": "is not a host name",
    "a..b:80": "is not a host name",
    "a" * 64 + ":80": "at most 63 in a row",
    "é." * 60 + "com:80": "is not a host name",
    "x" * 300 + ":80": "a host of 300 characters",
    "*:80": "0.0.0.0 is every IPv4 interface",
    "h\n:80": "a control character",
    "h\x00:80": "a control character",
    "h\udcff:80": "a control character or unprintable byte",
    "\u202eh:80": "a control character or unprintable byte",
    "h:80/path": "something follows the port",
    "tcp://h:80?x=1": "unknown parameter 'x'; tcp:// takes none",
    "tpc://h:80": "unknown scheme tpc:// (did you mean tcp://?)",
    "gopher://h:80": "unknown scheme gopher://; allowed are",
    "ssh://bastion": "ssh is not available in this version",
    "i2p://name.i2p": "i2p is not available in this version",
    "name.i2p:80": "i2p is not available in this version",
    "socks5://h:1": "socks5 is not available in this version",
    "http://h:1": "http is not available in this version",
    "exec:nc %h %p": "exec is not available in this version",
    "unix:/run/x": "unix: without //",
    "unix://run/x": "three slashes begin it",
    "unix:///run/": "the path ends with a slash",
    "unix:///" + "x" * 200: "the path is 201 bytes long",
    "unix:///a%00b": "a control character",
    "unix:///a%0ab": "a control character",
    "unix:///a%2": "a broken percent-encoding",
    "unix:///a?b=c": "a ? that belongs to the path is written %3F",
    "tls://h:1?cer=x": "unknown parameter 'cer' (did you mean cert=?)",
    "tls://h:1?ca=x&ca=y": "ca= is written twice",
    "tls://h:1?ca=": "ca= is empty",
    "tls://h:1?ca": "ca= is empty",
    "tls://h:1?key=k": "key= without cert=",
    "tls://h:1?servername=-x": "is not a host name",
    "tls://h:1?&": "unknown parameter ''",
    "h:1" + " " * LONGEST_ADDRESS: f"at most {LONGEST_ADDRESS} are allowed",
}

BAD_LISTENS = {
    "": "it is empty",
    "localhost": "no port",
    "65536": "port 65536; a port is a number from 0 to 65535",
    ":x": "port x",
    "*:80": "0.0.0.0 is every IPv4 interface and [::] every one",
    "tls://:8443": "no certificate",
    "tls://:8443?cert=c&servername=x": "unknown parameter 'servername'",
    "ssh://h?listen=:1": "ssh is not available in this version",
}


@pytest.mark.parametrize(("text", "said"), BAD_TARGETS.items())
def test_bad_targets_get_one_clear_line(text, said):
    with pytest.raises(AddressError) as failure:
        parse_target(text)
    line = str(failure.value)
    assert said in line
    assert line.startswith("target '")
    assert line.isprintable()


@pytest.mark.parametrize(("text", "said"), BAD_LISTENS.items())
def test_bad_listen_addresses_get_one_clear_line(text, said):
    with pytest.raises(AddressError) as failure:
        parse_listen(text)
    assert said in str(failure.value)
    assert str(failure.value).startswith("listen address '")


@pytest.mark.parametrize("parse", [parse_target, parse_listen])
@pytest.mark.parametrize("value", [None, 80, b"h:80", ("h", 80)])
def test_other_types_are_a_type_error(parse, value):
    with pytest.raises(TypeError, match="a str such as 'localhost:8080' is wanted"):
        parse(value)


def test_an_address_error_is_a_value_error_and_an_os_error():
    with pytest.raises(ValueError, match="port 0"):
        parse_target("h:0")
    with pytest.raises(OSError, match="port 0"):
        parse_target("h:0")


SECRETS = [
    "tcp://me:hunter2@h:80",
    "me:hunter2@h:80",
    "tls://me:hun?hunter2@h:80",
    "tls://me:80?hunter2@h",
    "tls://me:hunter2:@[::1]:80?ca=x",
    "tls://h:80?password=hunter2",
    "tls://h:80?pasword=hunter2&ca=x",
    "tls://h:80?ca=x&p%61ssword=hunter2",
    "ssh://me:hunter2@h",
    "ssh://me:hun/hunter2@h",
    "socks5://me:hunter2@h:1080",
    "sssh://me:hunter2@h",
]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("parse", [parse_target, parse_listen])
def test_no_error_shows_a_secret(parse, text):
    with pytest.raises(AddressError) as failure:
        parse(text)
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tcp://h:80", "tcp://h:80"),
        ("ssh://me@h", "ssh://me@h"),
        ("ssh://me:pw@h:22?password_env=PW", "ssh://me:***@h:22?password_env=PW"),
        ("tls://h:1?ca=x&password=pw", "tls://h:1?ca=x&password=***"),
        ("unix:///run/a\nb", "unix:///run/a\\nb"),
        ("h" * 500, "h" * 120 + "…"),
    ],
)
def test_masked(text, shown):
    assert masked(text) == shown


SCHEMES = ["tcp://", "tls://", "unix://", "ssh://"]
MARKS = ["/", ":", "?", "&", "=", "@", "%", "%25", "[", "]", "-", "\n", "\udcff", " "]
WORDS = ["h", "é", "127.0.0.1", "::1", "fe80::1", "80", "99999", "ca=", "cert=c", "key=", "servername=", "client_ca=x"]
PIECES = st.sampled_from([*SCHEMES, *MARKS, *WORDS])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=10).map("".join))


@given(TEXTS)
def test_whatever_the_text_it_is_an_address_or_an_address_error(text):
    for parse in (parse_target, parse_listen):
        try:
            value = parse(text)
        except AddressError as error:
            assert str(error).isprintable()
        else:
            assert parse(str(value)) == value
            assert str(value).isprintable()


HOSTS = st.one_of(
    st.ip_addresses().map(lambda address: f"[{address}]" if address.version == 6 else str(address)),
    st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z])?(\.[a-z]([a-z0-9-]{0,20}[a-z])?)?", fullmatch=True).filter(
        lambda host: not host.endswith("i2p")
    ),
)
FILES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)


@given(HOSTS, st.integers(1, 65535))
def test_every_host_and_port_round_trips(host, port):
    value = parse_target(f"{host}:{port}")
    assert value == parse_target(f"tcp://{host}:{port}") == parse_target(str(value))
    assert value.port == port


@given(HOSTS, st.integers(1, 65535), FILES, FILES)
def test_every_file_name_round_trips(host, port, ca, cert):
    place = parse_target(f"{host}:{port}")
    value = TLSTarget(place.host, place.port, ca=ca, cert=cert)
    assert parse_target(str(value)) == value


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "fe80::1%eth0", "a_b", "bücher.example"])
def test_a_host_and_a_port_are_checked_and_taken(host):
    check_place(host, 1)
    check_place(host, 0, least=0)


@pytest.mark.parametrize("host", ["", "-x", "a b", "a\nb", "[::1]", "h/p", "me@h", "\udcff"])
def test_a_host_that_cannot_be_right_is_a_value_error(host):
    with pytest.raises(ValueError, match="^host: "):
        check_place(host, 80)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_out_of_range_is_a_value_error(port):
    with pytest.raises(ValueError, match=f"^port: {port} is out of range; a port is a number from 1 to 65535"):
        check_place("h", port)


@pytest.mark.parametrize(("host", "port", "named"), [(None, 80, "host"), ("h", "80", "port"), ("h", True, "port")])
def test_a_place_of_the_wrong_type_is_a_type_error(host, port, named):
    with pytest.raises(TypeError, match=f"^{named}: "):
        check_place(host, port)


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
