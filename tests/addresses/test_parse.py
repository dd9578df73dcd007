"""Addresses as text: what is understood, and what is said of the rest."""

import base64
import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.addresses.address_parser import LONGEST_ADDRESS
from relay.addresses.hops import Command, Proxy, ProxyListen
from relay.addresses.https import HTTPSListen, HTTPSProxy
from relay.addresses.i2p import I2PListen, I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.parse import parse_elsewhere, parse_hop, parse_hops, parse_listen, parse_ssh_server, parse_target
from relay.addresses.redact import redact
from relay.addresses.ssh import SSHListen, SSHServer
from relay.addresses.tor import TorListen, TorProxy
from relay.addresses.values import SystemdListen, TCPAddress, TLSListen, TLSTarget, UnixAddress, UnixListen
from relay.addresses.websocket import WSListen, WSProxy, WSSListen, WSSProxy, WSSTarget, WSTarget
from relay.errors import AddressError

BASTION = SSHServer("bastion")
B32 = "a" * 52 + ".b32.i2p"
# As long as an Ed25519 one, with every character that only I2P's base64 has.
DESTINATION = base64.b64encode(b"\xff\xef" + b"\x00" * 382 + bytes([5, 0, 4, 0, 7, 0, 0]), b"-~").decode()
ELSEWHERE = I2PRouter(parse_sam("router:7656"))

TARGETS = {
    "ws://h": WSTarget("h", 80),
    "wss://H.example/a/b?ca=c&header_file=f&subprotocol=binary": WSSTarget(
        "h.example", 443, "/a/b", ca="c", header_file="f", subprotocol="binary"
    ),
    "wss://[::1]:1/?servername=s&cert=c&key=k": WSSTarget("::1", 1, servername="s", cert="c", key="k"),
    "8080": TCPAddress("127.0.0.1", 8080),
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
    "tls://h:1?groups=X25519,P-256": TLSTarget("h", 1, groups="X25519,P-256"),
    "tls://h:1?ca=/etc/a%26b&cert=c&key=k": TLSTarget("h", 1, ca="/etc/a&b", cert="c", key="k"),
    "i2p://name.i2p": I2PTarget("name.i2p"),
    "name.i2p": I2PTarget("name.i2p"),
    "Name.I2P:80": I2PTarget("name.i2p", 80),
    "tcp://name.i2p:80": I2PTarget("name.i2p", 80),
    "name.i2p?sam=router:7656": I2PTarget("name.i2p", None, ELSEWHERE),
    "name.i2p.:80": I2PTarget("name.i2p", 80),
    "i2p://name.I2P.": I2PTarget("name.i2p"),
    f"I2P://{B32.upper()}:80": I2PTarget(B32, 80),
    f"{B32}:80?sam=router:7656": I2PTarget(B32, 80, ELSEWHERE),
    f"i2p://{DESTINATION}": I2PTarget(DESTINATION),
    f"i2p://{DESTINATION}:81": I2PTarget(DESTINATION, 81),
    f"i2p://{DESTINATION.rstrip('=')}?sam=router:7656": I2PTarget(DESTINATION, None, ELSEWHERE),
    "i2p://name.i2p?sam=tcp://Router:7656": I2PTarget("name.i2p", None, ELSEWHERE),
    "i2p://name.i2p?sam=[::1]:1": I2PTarget("name.i2p", None, I2PRouter(parse_sam("[::1]:1"))),
    "i2p://name.i2p?sam=tls://h:1?ca=/a%2526b%26cert=c": I2PTarget(
        "name.i2p", None, I2PRouter(parse_sam("tls://h:1?ca=/a%26b&cert=c"))
    ),
    "i2p://n.i2p?session=a%26b&keys=~/me.dat&in_depth=0&out_depth=7&user=me&password_file=f": I2PTarget(
        "n.i2p", None, I2PRouter(session="a&b", keys="~/me.dat", in_depth=0, out_depth=7, user="me", password_file="f")
    ),
    "i2p://n.i2p?user=me&password=p%26+w": I2PTarget("n.i2p", None, I2PRouter(user="me", password="p&+w")),
    "i2p://n.i2p?user=me&password_env=PW": I2PTarget("n.i2p", None, I2PRouter(user="me", password_env="PW")),
    "i2p://n.i2p?outbound.quantity=2&i2cp.leaseSetEncType=4,0": I2PTarget(
        "n.i2p", None, I2PRouter(options=(("i2cp.leaseSetEncType", "4,0"), ("outbound.quantity", "2")))
    ),
}

LISTENS = {
    "0": TCPAddress("127.0.0.1", 0),
    "8080": TCPAddress("127.0.0.1", 8080),
    ":0": TCPAddress("127.0.0.1", 0),
    "tcp://:8080": TCPAddress("127.0.0.1", 8080),
    "0.0.0.0:8080": TCPAddress("0.0.0.0", 8080),
    "[::1]:0": TCPAddress("::1", 0),
    "localhost:0": TCPAddress("localhost", 0),
    "unix:///run/app.sock": UnixListen("/run/app.sock"),
    "unix:///run/a%3F?mode=660": UnixListen("/run/a?", "0660"),
    "unix:///run/app.sock?mode=0606&group=www-data": UnixListen("/run/app.sock", "0606", "www-data"),
    "unix:///run/app.sock?group=33": UnixListen("/run/app.sock", None, "33"),
    "tls://:8443?cert=c&groups=X25519MLKEM768": TLSListen("127.0.0.1", 8443, "c", groups="X25519MLKEM768"),
    "tls://:8443?cert=c.pem": TLSListen("127.0.0.1", 8443, "c.pem"),
    "tls://[fe80::1%25eth0]:8443?cert=c": TLSListen("fe80::1%eth0", 8443, "c"),
    "tls://[::]:8443?cert=c&key=k&client_ca=ca": TLSListen("::", 8443, "c", "k", "ca"),
    "ssh://bastion": SSHListen(BASTION, TCPAddress("127.0.0.1", 0)),
    "ssh://bastion?listen=8080": SSHListen(BASTION, TCPAddress("127.0.0.1", 8080)),
    "ssh://bastion?listen=:8080": SSHListen(BASTION, TCPAddress("127.0.0.1", 8080)),
    "ssh://bastion?listen=0.0.0.0:8080": SSHListen(BASTION, TCPAddress("0.0.0.0", 8080)),
    "ssh://bastion?listen=localhost:0": SSHListen(BASTION, TCPAddress("localhost", 0)),
    "ssh://bastion?listen=[::1]:0": SSHListen(BASTION, TCPAddress("::1", 0)),
    "ssh://bastion?listen=/run/app%3F": SSHListen(BASTION, UnixAddress("/run/app?")),
    "ssh://bastion?listen=unix:///run/app": SSHListen(BASTION, UnixAddress("/run/app")),
    "ssh://me@[::1]:22?listen=:1": SSHListen(SSHServer("::1", "me", 22), TCPAddress("127.0.0.1", 1)),
    ":8080?mptcp=yes": TCPAddress("127.0.0.1", 8080, mptcp=True),
    "socks5://:1080": ProxyListen("socks5", "127.0.0.1", 1080),
    "sni://0.0.0.0:443": ProxyListen("sni", "0.0.0.0", 443),
    "Redirect://[::1]:1081": ProxyListen("redirect", "::1", 1081),
    "HTTP://me@[::1]:0?password_env=PW": ProxyListen("http", "::1", 0, "me", password_env="PW"),
    "https://:8443?cert=c&client_ca=a": HTTPSListen("https", "127.0.0.1", 8443, cert="c", client_ca="a"),
    "ws://:8080": WSListen("127.0.0.1", 8080),
    "WS://[::1]:0/a/%2F?hosts=h,h:1&trusted_proxies=10.0.0.0/8,::1&origin=http://a,null&subprotocol=b": WSListen(
        "::1",
        0,
        "/a/%2F",
        hosts="h,h:1",
        trusted_proxies="10.0.0.0/8,::1",
        origin="http://a,null",
        subprotocol="b",
    ),
    "wss://0.0.0.0:443/p?cert=c&key=k&client_ca=a": WSSListen("0.0.0.0", 443, "/p", cert="c", key="k", client_ca="a"),
    "systemd:web": SystemdListen("web"),
    f"SystemD:{'x' * 255}": SystemdListen("x" * 255),
    **dict.fromkeys(["i2p", "i2p:", "I2P:", "i2p://", "i2p?", "i2p:?", "i2p://?"], I2PListen()),
    **dict.fromkeys(["i2p:?keys=me.dat", "i2p://?keys=me.dat"], I2PListen(I2PRouter(keys="me.dat"))),
    "i2p:?sam=router:7656&accept=forward": I2PListen(ELSEWHERE, "forward"),
    f"i2p:?allow={B32}&deny=a,b&allow=friends&accept=accept": I2PListen(
        I2PRouter(), "accept", (B32, "friends"), ("a,b",)
    ),
    **dict.fromkeys(["tor", "tor:", "TOR:", "tor:?port=80"], TorListen()),
    "tor:?control=/run/tor/c&keys=k&port=8080&session=web": TorListen(
        control="/run/tor/c", keys="k", port=8080, session="web"
    ),
    "tor:?control=localhost:9051&password_env=PW": TorListen(control="localhost:9051", password_env="PW"),
    "i2p:?inbound.quantity=5&session=web": I2PListen(I2PRouter(session="web", options=(("inbound.quantity", "5"),))),
}

FINGERPRINT = "SHA256:" + "+/0aZ9" * 7 + "A"

HOPS = {
    "ssh://bastion": BASTION,
    "SSH://Bastion.Corp_1": SSHServer("Bastion.Corp_1"),  # an alias keeps its case
    "ssh://me@bastion:2222": SSHServer("bastion", "me", 2222),
    "ssh://[::1]": SSHServer("::1"),
    "ssh://me@[0:0::1]:22": SSHServer("::1", "me", 22),
    "ssh://bücher.example": SSHServer("xn--bcher-kva.example"),
    "ssh://me%40corp@bastion": SSHServer("bastion", "me@corp"),
    "ssh://me@corp@bastion": SSHServer("bastion", "me@corp"),
    r"ssh://CORP\me@bastion": SSHServer("bastion", r"CORP\me"),
    "ssh://me:p%40ss%2Fw%3Fo+rd:@bastion": SSHServer("bastion", "me", password="p@ss/w?o+rd:"),
    "ssh://me@bastion?password=a%20b%26": SSHServer("bastion", "me", password="a b&"),
    "ssh://bastion?passphrase=x&keyfile=~/.ssh/id": SSHServer("bastion", keyfile="~/.ssh/id", passphrase="x"),
    "ssh://bastion?keyfile=/a+b@c": SSHServer("bastion", keyfile="/a+b@c"),
    "ssh://bastion?password_file=/run/p&passphrase_env=PP": SSHServer(
        "bastion", password_file="/run/p", passphrase_env="PP"
    ),
    "ssh://bastion?passphrase_file=/run/p&password_env=PW": SSHServer(
        "bastion", passphrase_file="/run/p", password_env="PW"
    ),
    "ssh://bastion?known_hosts=/k&config=/dev/null": SSHServer("bastion", known_hosts="/k", config="/dev/null"),
    f"ssh://bastion?hostkey={FINGERPRINT}": SSHServer("bastion", hostkey=FINGERPRINT),
    "ssh://bastion?accept_new=yes&compress=no": SSHServer("bastion", accept_new=True, compress=False),
    "ssh://bastion?accept_new=no&compress=yes": SSHServer("bastion", compress=True),
    "ssh://bastion?keyfile=/k&identities_only=no": SSHServer("bastion", keyfile="/k", identities_only=False),
    "ssh://bastion?keepalive=0.5&backend=openssh": SSHServer("bastion", keepalive=0.5, backend="openssh"),
    "ssh://bastion?keepalive=none&backend=paramiko": SSHServer("bastion", keepalive=None, backend="paramiko"),
}

SERVERS = {
    "bastion": BASTION,
    "Bastion": SSHServer("Bastion"),
    "10": SSHServer("10"),
    "ssh": SSHServer("ssh"),
    "me@bastion": SSHServer("bastion", "me"),
    "me@bastion:2222": SSHServer("bastion", "me", 2222),
    "me@corp@bastion": SSHServer("bastion", "me@corp"),
    "[::1]": SSHServer("::1"),
    "me@[::1]:22": SSHServer("::1", "me", 22),
    "ssh://me@bastion?keepalive=1": SSHServer("bastion", "me", keepalive=1.0),
}


@pytest.mark.parametrize(("text", "value"), TARGETS.items())
def test_targets(text, value):
    assert parse_target(text) == value
    assert parse_target(str(value)) == without_parameters(value)


@pytest.mark.parametrize(("text", "value"), LISTENS.items())
def test_listen_addresses(text, value):
    assert parse_listen(text) == value
    assert parse_listen(str(value)) == without_parameters(value)


@pytest.mark.parametrize(("text", "value"), HOPS.items())
def test_hops(text, value):
    assert parse_hop(text) == parse_ssh_server(text) == value


@pytest.mark.parametrize(("text", "value"), SERVERS.items())
def test_servers(text, value):
    assert parse_ssh_server(text) == value


def test_a_chain_of_hops():
    assert parse_hops([]) == parse_hops(()) == ()
    assert parse_hops(["ssh://bastion", "ssh://me@inner"]) == (BASTION, SSHServer("inner", "me"))
    assert parse_hops(["office", "ssh://bastion"], named={"office": I2PRouter()}) == (I2PRouter(), BASTION)
    assert parse_hop("ssh://bastion", {"keyfile": "k"}) == SSHServer("bastion", keyfile="k")


BAD_TARGETS = {
    "ws://h/p?ca=x": "unknown parameter 'ca'; ws:// takes header_file=, subprotocol=",
    "wss://me@h/p": "wss:// takes no user or password",
    "wss://h/p#x": "path: '/p#x' is not the path of a URL",
    "wss://h/%zz": "path: '/%zz' is not",
    "wss://h/p?subprotocol=a%20b": "subprotocol=a b; the name of a subprotocol is allowed",
    "wss://h:0/p": "port 0",
    "": "it is empty",
    "localhost": "no port; write it after a colon: localhost:8080",
    "tls://db": "no port; write it after a colon: db:443",
    "tls://[::1]": "an IPv6 address is written [::1]:443",
    "tls://::1": "an IPv6 address is written in brackets: [::1]:443",
    "0": "port 0; a port is a number from 1 to 65535",
    "80 ": "a space at its beginning or end; leave it out",
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
    "tcp://h:80?x=1": "unknown parameter 'x'; tcp:// takes mptcp=",
    "tcp://h:80?mptcp=1": "mptcp=1; yes and no are allowed",
    "tpc://h:80": "unknown scheme tpc:// (did you mean tcp://?)",
    "gopher://h:80": "unknown scheme gopher://; allowed are",
    "ssh://bastion": "ssh:// is a hop, not a target; it leads to one: give it as --via ssh://host",
    "ssh:bastion": "ssh: without //",
    "shh://h": "unknown scheme shh://; allowed are",
    "i2p://": "no name is given",
    "i2p://?sam=h:1": "no name is given; write one: i2p://NAME.i2p; i2p: alone is a place to listen at",
    "i2p:": "i2p: without //; allowed are",
    "i2p:?sam=h:1": "i2p: without //; allowed are",
    "i2p://name": "this has 4 characters and does not end in .i2p; a destination is base64 of 516",
    "i2p://example.com": "does not end in .i2p",
    "i2p://:80": "no name is given",
    "i2p://a.b32.i2p": "before .b32.i2p stand 1 characters; they are 52, or 56 and more",
    f"i2p://{'1' * 52}.b32.i2p": "before .b32.i2p stands a character that is not of base32",
    f"i2p://{'b' * 52}.b32.i2p": "the 52 characters before .b32.i2p end in a or q",
    f"i2p://{'a' * 56}.b32.i2p": "the checksum of the 56 characters before .b32.i2p is wrong",
    f"i2p://-{'a' * 30}.i2p": "this is not a host name",
    f"i2p://{'a' * 70}.i2p": "a name in .i2p has at most 67",
    f"i2p://{DESTINATION[:512]}": "these are 384 bytes; a destination has at least 387",
    f"i2p://{DESTINATION[:516]}": "its certificate has 4 bytes, and 0 are there; something is missing at its end",
    f"i2p://{DESTINATION[:-5]}!====": "there is a character that is not of I2P's base64",
    f"i2p://{DESTINATION[:512]}~~~~": "its certificate is of type 255",
    f"i2p://{DESTINATION[:-2]}AAAA": "the destination ends after 391; the rest may be a private key",
    "i2p://name.i2p:0": "port 0; a port is a number from 1 to 65535",
    "i2p://name.i2p:": "port (empty)",
    "name.i2p:x": "port x",
    "name.i2p:80:81": "port 80:81",
    "i2p://name.i2p/": "something follows the name; parameters begin with a question mark: i2p://NAME.i2p?sam=HOST:PORT",
    "i2p://name.i2p#top": "something follows the name",
    "i2p://name.i2p:80/index.html": "something follows the name",
    "i2p://me@name.i2p": "i2p:// takes no user before the name; user= and password_file= log in",
    "i2p://name.i2p?sma=x": "unknown parameter 'sma' (did you mean sam=?); i2p:// takes sam=, session=, keys=",
    "i2p://name.i2p?accept=forward": "unknown parameter 'accept'",
    "i2p://name.i2p?sam=h": "sam 'h': no port",
    "i2p://name.i2p?sam=ssh://h:1": "sam 'ssh://h:1': unknown scheme ssh://; allowed are host:port, as in",
    "i2p://name.i2p?sam=h:1&sam=h:1": "sam: h:1 is written twice; once is enough",
    "i2p://name.i2p?keys=": "keys= is empty",
    "i2p://name.i2p?in_depth=8": "in_depth: 8 is out of range; 0 to 7 hops",
    "i2p://name.i2p?out_depth=-1": "out_depth=-1; a number of hops is allowed, from 0 to 7",
    "i2p://name.i2p?out_depth=x": "out_depth=x; a number of hops",
    "i2p://name.i2p?password_file=f": "password: no user is given; SAM needs both",
    "i2p://name.i2p?user=me&password=a&password_env=B": "password: it is given twice",
    "i2p://name.i2p?user=me&password_env=-": "password_env: that is not the name of a variable",
    "i2p://name.i2p?inbound.=1": "unknown parameter 'inbound.'",
    "i2p://name.i2p?inbound.quantity=": "inbound.quantity= is empty",
    "i2p://name.i2p?inbound.quantity=%80": "inbound.quantity: its value is empty, not printable",
    f"i2p://name.i2p?session={'x' * 201}": "session: 'xxx",
    "socks5://h:1": "socks5:// is a hop, not a target; it leads to one: give it as --via socks5://host",
    "http://h:1": "http:// is a hop, not a target",
    "exec:nc %h %p": "%h and %p have no meaning in a target",
    "tor://x.onion:80": "tor:// is a hop, not a target; it leads to one: give it as --via tor: (via=[…] in Python)",
    "exec:": "no command is given",
    "unix:/run/x": "unix:/ without //",
    "unix://run/x": "three slashes begin it",
    "unix:///run/": "the path ends with a slash",
    "unix:///" + "x" * 200: "the path is 201 bytes long",
    "unix:///a%00b": "a control character",
    "unix:///a%0ab": "a control character",
    "unix:///a%2": "a broken percent-encoding",
    "unix:///a?b=c": "a ? that belongs to the path is written %3F",
    "tls://h:1?cer=x": "unknown parameter 'cer' (did you mean cert=?); tls:// takes servername=, ca=, cert=",
    "tls://h:1?ca=x&ca=y": "ca= is written twice",
    "tls://h:1?ca=": "ca= is empty",
    "tls://h:1?ca": "ca= is empty",
    "tls://h:1?key=k": "key= without cert=",
    "tls://h:1?groups=X25519:P-256": "names of groups with commas between them are allowed, such as X25519",
    "tls://h:1?groups=X25519,": "names of groups with commas between them are allowed, such as X25519",
    "tls://h:1?servername=-x": "is not a host name",
    "tls://h:1?&": "unknown parameter ''",
    "h:1" + " " * LONGEST_ADDRESS: f"at most {LONGEST_ADDRESS} are allowed",
}

BAD_LISTENS = {
    "sni://h": "no port; write it after a colon: h:443",
    "redirect://h": "no port; write it after a colon: h:1081",
    "wss://:443/p": "no certificate; it needs wss://host:port/path?cert=FILE",
    "ws://h/p": "no port",
    "ws://:1/p?origin=app.example": "origin=app.example; origins with commas between them are allowed",
    "ws://:1/p?trusted_proxies=10.0.0.1/8": "trusted_proxies=10.0.0.1/8; networks with commas",
    "ws://:1/p?hosts=A": "hosts=A; names in lower case",
    "": "it is empty",
    "localhost": "no port",
    "65536": "port 65536; a port is a number from 0 to 65535",
    ":x": "port x",
    "*:80": "0.0.0.0 is every IPv4 interface and [::] every one",
    "tls://:8443": "no certificate",
    "unix:///a?mode=0888": "mode=0888; the rights of the owner, the group and others are allowed, as chmod takes them",
    "unix:///a?mode=4755": "mode=4755; the rights",
    "unix:///a?mode=u+rw": "mode=u+rw; the rights",
    "unix:///a?moed=0660": "unknown parameter 'moed' (did you mean mode=?); unix:// takes mode=, group=",
    "unix:///a?group=": "group= is empty",
    "unix://a?mode=0660": "three slashes begin it",
    "tls://:8443?cert=c&servername=x": "unknown parameter 'servername'; tls:// takes cert=, key=, client_ca=",
    ":80?x=1": "unknown parameter 'x'; tcp:// takes mptcp=",
    "socks5://me@h:1": "user: password missing; set password_file= or password_env=",
    "systemd://web": "not a name of a socket; systemd:NAME has the FileDescriptorName of a socket unit",
    "SYSTEMD:a:b": "not a name of a socket",
    f"systemd:{'x' * 256}": "not a name of a socket",
    "i2p://name.i2p": "something follows i2p:; the keys give the destination: i2p: or i2p:?keys=FILE",
    "i2p:name.i2p": "i2p: without //; allowed are :port",
    "i2p:80": "'i2p' is a name of I2P; relay listens only on destinations of its own; use i2p: for that",
    "name.i2p:80": "'name.i2p' is a name of I2P",
    "i2p:?key=x": "unknown parameter 'key' (did you mean keys=?); i2p: takes sam=, session=, keys=",
    "i2p:?accept=both": "accept=both; accept and forward are allowed",
    "i2p:?keys=a&keys=b": "keys= is written twice",
    "i2p:?allow=": "allow= is empty",
    "i2p:?in_depth=8": "in_depth: 8 is out of range; 0 to 7 hops",
    "i2p:?carriers=2": "carriers: this is for hops only; leave it out of a listener",
    "i2p:?in_depth=11": "in_depth=11; a number of hops is allowed, from 0 to 7",
    "tls://name.i2p:1?cert=c": "'name.i2p' is a name of I2P",
    "sssh://h": "unknown scheme sssh:// (did you mean ssh://?)",
    "ssh://h?listn=:1": "unknown parameter 'listn' (did you mean listen=?)",
    "ssh://h?listen=:1&listen=:2": "listen= is written twice",
    "ssh://?listen=:1": "the host is empty",
}

BAD_PLACES = {
    "h:99999": "port 99999; a port is a number from 0 to 65535",
    "h": "no port",
    "*:80": "0.0.0.0 is every IPv4 interface",
    "tls://h:1": "unknown scheme tls://; allowed are host:port, port, /path and unix:///path",
    "unix:///run/app?mode=0660": "mode= and group= are for sockets of this machine; the server chooses those",
    "ssh://h": "unknown scheme ssh://",
    "i2p:": "i2p: without //; allowed are host:port, port, /path and unix:///path",
    "/run/x/": "the path ends with a slash",
    "/" + "x" * 200: "the path is 201 bytes long",
    "unix://run/x": "three slashes begin it",
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


@pytest.mark.parametrize(("place", "said"), BAD_PLACES.items())
def test_bad_places_on_a_server_get_one_clear_line(place, said):
    with pytest.raises(AddressError) as failure:
        parse_listen(f"ssh://me:hunter2@h?listen={place}")
    assert said in str(failure.value)
    assert str(failure.value).startswith("listen= '")
    assert "hunter2" not in str(failure.value)


# What stands between ssh:// and the end; much of it is bad without the scheme, too.
BAD_SERVERS = {
    "": "the host is empty",
    ":22": "the host is empty",
    "me@": "the host is empty",
    "@h": "the user is empty",
    "h:0": "port 0; a port is a number from 1 to 65535",
    "h:": "port (empty)",
    "h:x": "port x",
    "h:22:23": "an IPv6 address is written in brackets: [::1]:22",
    "::1": "an IPv6 address is written in brackets: [::1]:22",
    "[::1": "a broken IPv6 address",
    "[::1]x": "a broken IPv6 address",
    "[::1]]": "a broken IPv6 address",
    "[]": "a broken IPv6 address",
    "[h]": "[h] is not an IPv6 address",
    "[fe80::1%eth0]": "an IPv6 address without a zone",
    "[fe80::1%25eth0]": "an IPv6 address without a zone",
    "-oProxyCommand=x": "is not a host or an alias",
    "-F": "is not a host or an alias",
    "a b": "is not a host or an alias",
    "h%h": "is not a host or an alias",
    "%h": "is not a host or an alias",
    "h;id": "is not a host or an alias",
    "$(id)": "is not a host or an alias",
    "`id`": "is not a host or an alias",
    "a'b": "is not a host or an alias",
    "a|b": "is not a host or an alias",
    "a&b": "is not a host or an alias",
    "a>b": "is not a host or an alias",
    "*": "is not a host or an alias",
    "!h": "is not a host or an alias",
    "x" * 256: "is not a host or an alias",
    "é" * 80: "follows RFC 3490",
    "h\n": "a control character",
    "h\x00": "a control character",
    "h/": "something follows the host",
    "h/path": "something follows the host",
    "h#x": "something follows the host",
    "-me@h": "is not a user's name",
    "a b@h": "is not a user's name",
    "a;b@h": "is not a user's name",
    "$USER@h": "is not a user's name",
    "a`b@h": "is not a user's name",
    "me\\@h": "is not a user's name",
    "x" * 256 + "@h": "is not a user's name",
}

OTHER_HOPS = {
    **dict.fromkeys(["i2p", "i2p:", "I2P:", "i2p://", "i2p:?", "i2p://?"], I2PRouter()),
    "i2p:?sam=router:7656&in_depth=1": I2PRouter(parse_sam("router:7656"), in_depth=1),
    "i2p://?inbound.quantity=2": I2PRouter(options=(("inbound.quantity", "2"),)),
    "i2p:?sam=bridge.i2p:7656": I2PRouter(parse_sam("bridge.i2p:7656")),
    "socks5://h:1080": Proxy("socks5", "h", 1080),
    "SOCKS5://H:1080/": Proxy("socks5", "h", 1080),
    "http://[::1]:3128": Proxy("http", "::1", 3128),
    "https://proxy.example": HTTPSProxy("https", "proxy.example", 443),
    "https://me@[::1]?password_env=PW&ca=c&servername=s": HTTPSProxy(
        "https", "::1", 443, "me", password_env="PW", ca="c", servername="s"
    ),
    "https://h:1?cert=c&key=k&groups=X25519": HTTPSProxy("https", "h", 1, cert="c", key="k", groups="X25519"),
    "wss://h": WSSProxy("wss", "h", 443),
    "ws://me@[::1]/p?password_env=PW&header_file=f": WSProxy(
        "ws", "::1", 80, "me", password_env="PW", path="/p", header_file="f"
    ),
    "wss://h:1/?ca=c&cert=d&key=k&servername=s": WSSProxy("wss", "h", 1, ca="c", cert="d", key="k", servername="s"),
    "socks5://[fe80::1%25eth0]:1": Proxy("socks5", "fe80::1%eth0", 1),
    "socks5://name.i2p:1": Proxy("socks5", "name.i2p", 1),
    "socks5://me:p%40ss@h:1": Proxy("socks5", "h", 1, "me", password="p@ss"),
    "http://m%C3%A9@h:1?password_env=PW": Proxy("http", "h", 1, "m\u00e9", password_env="PW"),
    "socks5://me@h:1?password_file=~/pw": Proxy("socks5", "h", 1, "me", password_file="~/pw"),
    "socks5://me@h:1?password=a+b": Proxy("socks5", "h", 1, "me", password="a+b"),
    **dict.fromkeys(["tor", "tor:", "TOR:", "tor://", "tor:?socks=127.0.0.1:9050"], TorProxy()),
    "tor:?socks=[::1]:9150": TorProxy(socks="[::1]:9150"),
    "tor:?socks=Gate.internal:9050": TorProxy(socks="gate.internal:9050"),
    "exec:nc %h %p": Command("nc %h %p"),
    "EXEC:nc %h %p": Command("nc %h %p"),
    "exec:'a b' %%": Command("'a b' %%"),
    "ssh://x.b32.i2p": SSHServer("x.b32.i2p"),
}


@pytest.mark.parametrize(("text", "value"), OTHER_HOPS.items())
def test_hops_that_are_no_ssh_servers(text, value):
    assert parse_hop(text) == value
    assert "p@ss" not in repr(parse_hop(text))


@pytest.mark.parametrize("hop", ["socks5://p:1", "http://p:1", "tor:", "exec:nc %h %p"])
def test_a_name_of_i2p_behind_a_proxy_or_a_command_is_its_business(hop):
    before = parse_hop(hop)
    assert parse_target("name.i2p:80", before) == TCPAddress("name.i2p", 80)
    assert parse_target("tcp://name.i2p:80", before) == TCPAddress("name.i2p", 80)
    assert parse_target("i2p://name.i2p:80", before) == I2PTarget("name.i2p", 80)
    with pytest.raises(AddressError, match="no port"):
        parse_target("name.i2p", before)


def test_a_target_among_the_hops_tells_what_follows():
    with pytest.raises(
        AddressError, match=r"^hop 1 of 2 \(tls://h:1\): tls:// is a target.* ssh://me:\*\*\*@b follows"
    ):
        parse_hops(["tls://h:1", "ssh://me:x@b"], "db:1")
    with pytest.raises(AddressError, match=r"^hop 'tcp://h:1': tcp:// is a target.* and db:1 follows"):
        parse_hops(["tcp://h:1"], "db:1")
    with pytest.raises(AddressError, match="only the last address of a route is one; a hop is ssh://"):
        parse_hops(["tcp://h:1"])


BAD_HOPS = {
    "bastion": "it has no scheme; a hop is ssh://[user@]host[:port]",
    "me@bastion:22": "it has no scheme",
    "tcp://h:80": "tcp:// is a target, not a hop; only the last address of a route is one; a hop is ssh://",
    "unix:///run/x": "unix:// is a target, not a hop",
    "tls://h:443": "tls:// is a target, not a hop",
    "ssh:h": "ssh: without //",
    "ssh:/me@h": "hop 'ssh:***@h': ssh:/ without //; a hop is",
    "shh://h": "unknown scheme shh:// (did you mean ssh://?)",
    "gopher://h": "unknown scheme gopher://; a hop is ssh://",
    "i2p://x": "i2p://NAME is a target, not a hop; i2p: alone is the hop to it, i2p:?sam=HOST:PORT another one",
    "i2p:?sma=x": "unknown parameter 'sma' (did you mean sam=?); i2p: takes sam=, session=, keys=",
    **{
        f"i2p:?{name}=forward": f"{name}= makes it a place to listen at, not a hop; listen there, or"
        for name in ("accept", "allow", "deny")
    },
    "i2p:?keys=": "keys= is empty",
    "i2p:?sam=h": "sam 'h': no port",
    "socks5:h:1": "socks5: without //",
    "socks5://h": "no port; write it after a colon: h:1080",
    "socks5://:1": "the host is empty",
    "socks5://h:1/x": "something follows the port",
    "socks5://@h:1": "the user is empty; write it before the @, or leave both out",
    "socks5://me@h:1": "user: password missing; set password_file= or password_env=",
    "socks5://h:1?password_env=X": "password: no user is given",
    "socks5://me:@h:1": "a password that is empty or given twice; give one, or leave the colon out",
    "socks5://me:a@h:1?password=b": "a password that is empty or given twice",
    "socks5://me:a@h:1?password_env=b": "password: it is given twice",
    "socks5://me@h:1?user=x": "unknown parameter 'user'; socks5:// takes password=, password_file=",
    "http://a%3Ab@h:1?password_env=X": "user: must not contain a colon",
    "wss://h/p?user=x": "unknown parameter 'user'; wss:// takes password=, password_file=",
    "ws://h/p?ca=x": "unknown parameter 'ca'; ws:// takes password=, password_file=",
    "wss://h/a b": "path: '/a b' is not the path of a URL",
    "https://h:1?user=x": "unknown parameter 'user'; https:// takes password=, password_file=",
    "https://h:": "port (empty)",
    "tor:?sock=x": "unknown parameter 'sock' (did you mean socks=?); tor: takes socks=",
    "tor:?socks=9050": "socks=9050; host:port is allowed, as in 127.0.0.1:9050",
    "tor:?socks=h:1?x": "socks=h:1?x; host:port is allowed",
    "tor:?socks=socks5://h:1": "socks=socks5://h:1; host:port is allowed",
    "tor://x.onion": "tor: names no host; it leads to the target: tor: alone, or tor:?socks=HOST:PORT",
    "tor:x": "tor: without //",
    "exec:": "no command is given",
    "exec:  ": "a space at its beginning or end",
    "exec:nc %h %r": "%r is unknown; %h is the host, %p the port",
    "exec:nc 'a": "no closing quotation; words are quoted as in a shell",
    "ssh://%2DoProxyCommand": "is not a host or an alias",
    "ssh://h%0a": "is not a host or an alias",
    "ssh://h%zz": "is not a host or an alias",
    "ssh://%2Dme@h": "is not a user's name",
    "ssh://%25r@h": "is not a user's name",
    "ssh://a%20b@h": "is not a user's name",
    "ssh://a%0Ab@h": "a control character",
    "ssh://a%ffb@h": "is not a user's name",
    "ssh://a%2@h": "a broken percent-encoding",
    "ssh://me:@h": "a password that is empty or given twice",
    "ssh://me:a@h?password=b": "a password that is empty or given twice",
    "ssh://me:a@h?password_file=b": "password: it is given twice",
    "ssh://h?password_env=A&password_file=b": "password: it is given twice",
    "ssh://h?passphrase=A&passphrase_env=b": "passphrase: it is given twice",
    "ssh://h?keyfil=x": "unknown parameter 'keyfil' (did you mean keyfile=?)",
    "ssh://h?keyfile=": "keyfile= is empty",
    "ssh://h?keyfile=a&keyfile=b": "keyfile= is written twice",
    "ssh://h?keyfile=a%00": "a control character",
    "ssh://h?listen=:1": "listen= makes it a place to listen at, not a hop",
    "ssh://h?backend=putty": "backend=putty; paramiko and openssh are allowed",
    "ssh://h?accept_new=1": "accept_new=1; yes and no are allowed",
    "ssh://h?identities_only=1": "identities_only=1; yes and no are allowed",
    "ssh://h?compress=true": "compress=true; yes and no are allowed",
    "ssh://h?keepalive=0": "keepalive=0; a number of seconds above 0 is allowed, such as 90, 10m or 2h, or none",
    "ssh://h?keepalive=0.0": "keepalive=0.0",
    "ssh://h?keepalive=-1": "keepalive=-1",
    "ssh://h?keepalive=inf": "keepalive=inf",
    "ssh://h?keepalive=1e3": "keepalive=1e3",
    "ssh://h?hostkey=MD5:aa": "hostkey: that is not a fingerprint; SHA256:",
    f"ssh://h?hostkey={FINGERPRINT}=": "hostkey: that is not a fingerprint",
    f"ssh://h?hostkey={FINGERPRINT[:-1]}": "hostkey: that is not a fingerprint",
    f"ssh://h?hostkey={FINGERPRINT[:-1]}B": "hostkey: that is not a fingerprint",  # its last two bits are no bits
    "ssh://h?password_env=A-B": "password_env: that is not the name of a variable",
}


@pytest.mark.parametrize(("text", "said"), [*BAD_HOPS.items(), *((f"ssh://{t}", s) for t, s in BAD_SERVERS.items())])
def test_bad_hops_get_one_clear_line(text, said):
    with pytest.raises(AddressError) as failure:
        parse_hop(text)
    assert said in str(failure.value)
    assert str(failure.value).startswith("hop '")
    assert str(failure.value).isprintable()
    assert not str(failure.value).endswith("; ")  # what is allowed stands there


# The error names what is wrong, whatever else there is in the address.
SHOWN = {
    "ssh://me@h?keepalive=0": "hop 'ssh://me@h?keepalive=0': keepalive=0; a number",
    "ssh://me@h?accept_new=maybe": "hop 'ssh://me@h?accept_new=maybe': accept_new=maybe; yes",
    "ssh://me@h?backend=putty&keyfile=a@b": "backend=putty; paramiko",
    "ssh://me@h:99999": "hop 'ssh://me@h:99999': port 99999; a port is",
    "ssh://me@corp@h:0": "port 0; a port is",
    "ssh://me:hunter2@h:99999": "hop 'ssh://me:***@h:99999': port 99999; a port is",
    "ssh://me:hunt@er2@h:0": "hop 'ssh://me:***@h:0': port 0; a port is",
    "ssh://me@h?bogus=hunter2": "hop 'ssh://me@h?bogus=***': unknown parameter 'bogus'; ssh:// takes",
    "ssh://me@h?keyfil=hunter2": "unknown parameter 'keyfil' (did you mean keyfile=?)",
    "ssh://me@h?password=hunter2@&keepalive=0": "hop 'ssh://me@h?password=***&keepalive=0': keepalive=0; a number",
    "ssh://me@[h]": "[h] is not an IPv6 address",
    "exec:": "hop 'exec:': no command is given; for example",
    # What looks like the host or the user may be a part of a password that has an @ in it.
    "ssh://me:x@$hunter2:22?config=x@h": "hop 'ssh://me***': host: that cannot be one; one is letters",
    "ssh://a%3Ab:x@h:22?config=hunter2@h": "hop 'ssh://a%3Ab***': user: that cannot be one; one has no spaces",
}


@pytest.mark.parametrize(("text", "said"), SHOWN.items())
def test_what_is_wrong_is_shown_unless_it_is_a_secret(text, said):
    with pytest.raises(AddressError) as failure:
        parse_hop(text)
    assert said in str(failure.value)
    assert str(failure.value).count("hop '") == 1
    assert "hunter2" not in str(failure.value)


BAD_ONS = {
    "h": "it has no scheme; allowed are i2p:, tor: and ssh://[user@]host[:port], with ?listen=HOST:PORT",
    "me@h:22": "it has no scheme",
    ":80": "it has no scheme",
    "ssh:h": "ssh: without //; allowed are i2p:, tor: and ssh://[user@]host[:port], with",
    "tcp://h:1": "tcp:// is on this machine, where relay forward listens; allowed are i2p:, tor: and ssh://",
    "unix:///run/x": "unix:// is on this machine",
    "sshh://h": "did you mean ssh://?",
    "i2p://name.i2p": "something follows i2p:",
    "ssh://h:0": "port 0; a port is a number from 1",
}


@pytest.mark.parametrize(("text", "said"), BAD_ONS.items())
def test_elsewhere_is_an_ssh_server_or_i2p(text, said):
    with pytest.raises(AddressError) as failure:
        parse_elsewhere(text, "--on")
    assert said in str(failure.value)
    assert str(failure.value).startswith("--on '")
    for good in ("ssh://h?listen=:1", "i2p", "i2p:?keys=x"):
        assert parse_elsewhere(good, "--on") == parse_listen(good)


@pytest.mark.parametrize("text", BAD_SERVERS)
def test_bad_servers_get_one_clear_line(text):
    with pytest.raises(AddressError) as failure:
        parse_ssh_server(text)
    assert str(failure.value).startswith("server '")
    assert str(failure.value).isprintable()


@pytest.mark.parametrize("text", ["me:hunter2@h", "h?password=hunter2", "me@h?password=hunter2@"])
def test_only_a_url_has_parameters_and_a_password(text):
    with pytest.raises(AddressError, match="only the form with ssh:// has them") as failure:
        parse_ssh_server(text)
    assert "hunter2" not in str(failure.value)


def test_an_error_in_a_chain_tells_which_hop():
    with pytest.raises(AddressError) as failure:
        parse_hops(["ssh://a", "sssh://me:hunter2@b", "ssh://c"])
    expected = "hop 2 of 3 (sssh://me:***@b): unknown scheme sssh:// (did you mean ssh://?); a hop is ssh://"
    assert str(failure.value).startswith(expected)


@pytest.mark.parametrize("via", ["ssh://h", None, BASTION, iter(["ssh://h"]), {"ssh://h"}])
def test_a_chain_is_a_list(via):
    with pytest.raises(TypeError, match="^via: expected a list of addresses"):
        parse_hops(via)


@pytest.mark.parametrize("hop", [None, BASTION, b"ssh://h"])
def test_a_chain_is_a_list_of_text(hop):
    with pytest.raises(TypeError, match="^hop 2 of 2: expected a str such as 'ssh://bastion'"):
        parse_hops(["ssh://h", hop])


@pytest.mark.parametrize("parse", [parse_target, parse_listen])
@pytest.mark.parametrize("value", [None, 80, b"h:80", ("h", 80)])
def test_other_types_are_a_type_error(parse, value):
    with pytest.raises(TypeError, match="expected a str such as 'localhost:8080'"):
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
    "ssh://me:hunter2@h?listn=:1",
    "ssh://me:hun/hunter2@h:x",
    "ssh://me:hun?hunter2@h",
    "ssh://me:22?hunter2@h",
    "ssh://me?hunter2@h",
    "ssh://me:22?backend=hunter2@h",
    "ssh://me:22?keepalive=hunter2@h",
    "ssh://me:22?listen=hunter2@h",
    "ssh://me:22?listen=:hunter2@h",
    "tls://me:22?servername=-hunter2@h",
    ":hunter2?@h",
    "ssh://:hunter2?@h",
    "ssh://me@h?password=x&hunter2",
    "ssh://me@h?password=x@y&hunter2=1",
    "ssh://me@h?password=x&h&hunter2:x@y",
    "ssh://me:x&y=hunter2@h:0",
    "ssh://me@corp:hunter2@h:0",
    "ssh://h:0?password=hunter2",
    "ssh://h:0?password=hunter2@x",
    "ssh://h?passphrase=hunter2@x&listn=1",
    "ssh://me:hunt%6?er2@h?password=hunter2",
    "me:hun://hunter2@h",
    "socks5://me:hunter2@h:x",
    "http://me:hunter2@h:1080/x",
    "socks5://me@h:1?password=hunter2&in=x",
    "exec:curl -u me:hunter2 %x",
    "sssh://me:hunter2@h",
    "i2p://me:hunter2@name.i2p",
    "i2p://name.i2p?password=hunter2",
    "i2p://name.i2p?user=me&password=x&hunter2",
    "i2p://name.i2p?user=me&password=hunter2&in_depth=9",
    "i2p://name.i2p?i2cp.leaseSetSecret=hunter2&in_depth=9",
    "i2p://name.i2p?sam=me:hunter2@h:1",
    "i2p:?user=me&password=hunter2&accept=x",
    "i2p:?user=me&pasword=hunter2",
    "me:hunter2@name.i2p:80",
]


@pytest.mark.parametrize("text", SECRETS)
@pytest.mark.parametrize("parse", [parse_target, parse_listen, parse_hop, parse_ssh_server])
def test_no_error_shows_a_secret(parse, text):
    with pytest.raises(AddressError) as failure:
        parse(text)
    assert "hunter2" not in str(failure.value)


# A password as people write it, not encoded: pieces of it must not show, wherever a reader would split it.
TAKEN_APART = st.lists(st.sampled_from([*"@:/?&=#[]", "hunter2", "keepalive=", "backend=", "listen="]), max_size=8)


@given(TAKEN_APART.map("".join), st.sampled_from(["@h", "@h:0", "@h:22?keepalive=0", "@[x]"]))
def test_no_error_shows_a_secret_however_it_is_split(secret, rest):
    unknown = re.sub("[a-z]+=", "x=", secret)  # a parameter that is known would be one
    for text in (f"ssh://me:hunter2{secret}hunter2{rest}", f"ssh://me@h?password=hunter2{unknown}hunter2"):
        assert "hunter2" not in redact(text)
        for parse in (parse_target, parse_listen, parse_hop, parse_ssh_server):
            try:
                parse(text)
            except AddressError as error:
                assert "hunter2" not in str(error)


SCHEMES = ["tcp://", "tls://", "unix://", "ssh://", "i2p://", "i2p:"]
MARKS = ["/", ":", "?", "&", "=", "@", "%", "%25", "[", "]", "-", "\n", "\udcff", " "]
WORDS = [
    "listen=", "keepalive=", "password=", "compress=yes", "h", "é", "127.0.0.1", "::1", "fe80::1", "80", "99999", "ca=",
    "cert=c", "key=", "servername=", "client_ca=x", "alpn=h2,http/1.1", "groups=X25519,P-256", "name.i2p", "a.b32.i2p",
    "sam=h:1", "user=me", "in_depth=1", "allow=",
]  # fmt: skip
PIECES = st.sampled_from([*SCHEMES, *MARKS, *WORDS])
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=10).map("".join))


@given(TEXTS)
def test_whatever_the_text_it_is_an_address_or_an_address_error(text):
    for parse in (parse_target, parse_listen, parse_hop, parse_ssh_server):
        try:
            value = parse(text)
        except AddressError as error:
            assert str(error).isprintable()
        else:
            assert str(value).isprintable()
            if not isinstance(
                value, Command
            ):  # whose words are hidden; "exec: 5432" would be read as a host and a port
                assert parse(str(value)) == without_parameters(value)


def without_parameters(value):
    """An address as its text shows it: parameters of an SSH server may be secrets."""
    if isinstance(value, SSHServer):
        return SSHServer(value.host, value.user, value.port)
    if isinstance(value, ProxyListen) and not isinstance(value, HTTPSListen):
        return ProxyListen(value.protocol, value.host, value.port)
    if isinstance(value, I2PTarget):
        return I2PTarget(value.dest, value.port)
    if isinstance(value, TorListen):
        return TorListen(control=value.control)
    if isinstance(value, I2PListen):
        return I2PListen(I2PRouter(parse_sam([str(one).partition("?")[0] for one in value.router.sam])))
    return SSHListen(without_parameters(value.server), value.place) if isinstance(value, SSHListen) else value


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


USERS = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="%:'\"`$;&<>|(){}[]*?!#\\"), min_size=1)
USERS = USERS.filter(lambda user: not user.startswith("-") and len(user) <= 255)
SECRET_TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)


@given(HOSTS, USERS, st.integers(1, 65535))
def test_every_user_round_trips(host, user, port):
    value = SSHServer(parse_ssh_server(host).host, user, port)
    assert parse_hop(str(value)) == value
    assert parse_ssh_server(f"{user}@{host}:{port}") == value


@given(SECRET_TEXTS, FILES)
def test_every_secret_and_every_file_round_trips_and_no_secret_is_shown(secret, file):
    secret = f"hunter2{secret}"
    value = SSHServer("h", "me", password=secret, keyfile=file, passphrase=secret)
    password, path = quote(secret, safe=""), quote(file, safe="+@/")
    for text in (
        f"ssh://me:{password}@h?passphrase={password}&keyfile={path}",
        f"ssh://me@h?password={password}&passphrase={password}&keyfile={path}",
    ):
        assert parse_hop(text) == value
        for shown in (str(value), repr(value), redact(text)):
            assert "hunter2" not in shown
