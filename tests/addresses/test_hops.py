"""``relay.addresses.hops``: hops as values, what may follow which, and whose an error is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import relay
from relay.addresses.hops import Command, Proxy, check_route, hop_of, is_slow, keeps_half_close, to_i2p, with_hop
from relay.addresses.https import HTTPSProxy
from relay.addresses.i2p import I2PRouter, I2PTarget
from relay.addresses.i2p_parser import parse_sam
from relay.addresses.options import inline_secrets
from relay.addresses.ssh import SSHServer
from relay.addresses.tor import TorProxy
from relay.addresses.values import TCPAddress, TLSTarget, UnixAddress

DB = TCPAddress("db", 5432)
NAME = TCPAddress("name.i2p", 80)
SSH, I2P = SSHServer("bastion"), I2PRouter()
SOCKS, HTTP, EXEC = Proxy("socks5", "p", 1), Proxy("http", "p", 1), Command("nc %h %p")
TOR = TorProxy()


def test_a_proxy_shows_no_secret():
    proxy = Proxy("socks5", "::1", 1080, "me@home", password="hunter2")
    assert str(proxy) == "socks5://me%40home@[::1]:1080"
    assert "hunter2" not in repr(proxy)
    assert proxy.place == TCPAddress("::1", 1080)
    assert inline_secrets(proxy) == ("password",)
    assert inline_secrets(Proxy("http", "h", 1, "me", password_env="X")) == ()
    assert inline_secrets(SSHServer("h", password="x")) == ("password",)
    assert inline_secrets(EXEC) == ()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("socks4", "h", 1), ValueError, "^protocol: must be socks5, http, https, ws or wss, got 'socks4'"),
        (("http", "h", 0), ValueError, "^port: 0"),
        (("http", "-h", 1), ValueError, "^host: "),
        (("http", "h", 1, "me"), ValueError, "^user: password missing"),
        (("http", "h", 1, None, "x"), ValueError, "^password: no user is given"),
        (("http", "h", 1, "a:b", "x"), ValueError, "^user: must not contain a colon; the password begins"),
        (("http", "h", 1, "a\nb", "x"), ValueError, "^user: it is empty, not printable"),
        (("socks5", "h", 1, "é" * 128, "x"), ValueError, "^user: .* or too long; 255 bytes"),
        (("socks5", "h", 1, 7, "x"), TypeError, "^user: expected a str, got int"),
        (("socks5", "h", 1, "me", 7), TypeError, "^password: expected a str or a callable"),
        (("socks5", "h", 1, "me", ""), ValueError, "^password: it is empty"),
        (("socks5", "h", 1, "me", "a", "f"), ValueError, "^password: it is given twice"),
    ],
)
def test_what_a_proxy_cannot_be(arguments, error, said):
    with pytest.raises(error, match=said):
        Proxy(*arguments[:4], **dict(zip(("password", "password_file"), arguments[4:], strict=False)))


def test_a_command_is_words_and_no_shell():
    command = Command("nc -X 5 -x 'my proxy:1' %h %p %%h a%%%hb $HOME ;")
    place = TCPAddress("2001:db8::1", 22)
    words = command.to(place).words
    assert words == ("nc", "-X", "5", "-x", "my proxy:1", "2001:db8::1", "22", "%h", "a%2001:db8::1b", "$HOME", ";")
    assert command.is_hop and not Command("cat 100%%").is_hop
    assert Command("cat 100%%").words == ("cat", "100%")
    assert str(command) == "exec:nc …" and str(Command("/bin/cat")) == "exec:cat"


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1), min_size=1))
def test_any_words_come_through(words):
    import shlex

    text = shlex.join(word.replace("%", "%%") for word in words)
    assert Command(text).words == tuple(words)
    assert Command(text).to(DB).words == tuple(words)


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "", "a\n"])
def test_a_place_cannot_be_taken_for_an_option(host):
    with pytest.raises(ValueError, match="^host: "):
        EXEC.to(TCPAddress(host, 1))


def test_a_command_may_lead_to_a_name_of_i2p():
    assert EXEC.to(NAME).words == ("nc", "name.i2p", "80")


@pytest.mark.parametrize("text", ["", " ", "''", "nc 'x", "nc %x", "nc %", "a\x00", "a\n", "x" * 5000])
def test_what_a_command_cannot_be(text):
    with pytest.raises(ValueError, match="^exec: "):
        Command(text)
    with pytest.raises(TypeError, match="^exec: "):
        Command(7)


SENSE = [
    ((), DB),
    ((SSH,), UnixAddress("/x")),
    ((SSH,), Command("cat")),
    ((EXEC, SSH, EXEC, SSH), DB),
    ((I2P, SSH), DB),  # an alias, perhaps
    ((I2P, SSHServer("x.b32.i2p")), DB),
    ((I2P, Proxy("http", "p.i2p", 1), SOCKS), DB),
    ((I2P, I2PRouter(parse_sam("bridge.i2p:7656"))), NAME),
    ((I2P,), I2PTarget("name.i2p")),
    ((I2P,), TLSTarget("name.i2p", 443)),
    ((SSH, I2P), NAME),
    ((SOCKS, HTTP, EXEC)[:2], DB),
]


@pytest.mark.parametrize(("route", "place"), SENSE, ids=range(len(SENSE)))
def test_a_way_that_makes_sense(route, place):
    check_route(route, place)


NONSENSE = [
    ((I2P,), DB, "^db:5432: what follows i2p: has a name in .i2p; the hop i2p:"),
    ((I2P, SSHServer("h.example")), DB, r"^hop 2 of 2 \(ssh://h.example\): what follows i2p:.*hop 1 of 2 \(i2p:"),
    ((I2P, SSHServer("::1")), DB, r"^hop 2 of 2 \(ssh://\[::1\]\): what follows i2p:"),
    ((I2P, SOCKS), DB, r"^hop 2 of 2 \(socks5://p:1\): what follows i2p:"),
    ((I2P, I2P), NAME, r"^hop 2 of 2 \(i2p:.*\): what follows i2p:"),
    ((I2P,), I2PTarget("name.i2p", None, I2PRouter(parse_sam("h:1"))), "^i2p://name.i2p: what follows i2p:"),
    ((I2P,), TLSTarget("h", 443), "^tls://h:443: what follows i2p:"),
    *(((hop,), UnixAddress("/x"), "^unix:///x: a Unix socket is on this machine") for hop in (I2P, SOCKS, HTTP, EXEC)),
    *(((hop,), Command("cat"), "^exec:cat: a command is on this machine") for hop in (I2P, SOCKS, HTTP, EXEC)),
    *(((hop, EXEC), DB, r"^hop 2 of 2 \(exec:nc …\): a command is on") for hop in (I2P, SOCKS, HTTP, EXEC)),
]


@pytest.mark.parametrize(("route", "place", "said"), NONSENSE, ids=range(len(NONSENSE)))
def test_a_way_that_makes_none_names_the_two_places(route, place, said):
    with pytest.raises(relay.AddressError, match=said):
        check_route(route, place)


def test_whose_an_error_is():
    route = (SSH, SOCKS)
    assert hop_of(relay.ConnectError("socks5://p:1: no answer"), route) == 2
    assert hop_of("ssh://bastion: refused", route) == 1
    assert hop_of(relay.ConnectError("db:5432: refused"), route) is None


def test_an_error_on_the_way_to_a_hop_is_that_hops():
    error = relay.ConnectError("p:1: connection refused", reason="refused")
    told = with_hop(error, SOCKS, (SSH,))
    assert str(told) == "socks5://p:1: p:1: connection refused" and told.reason == "refused"
    assert with_hop(told, SOCKS, (SSH,)) is told
    of_another = relay.ConnectError("ssh://bastion: refused")
    assert with_hop(of_another, SOCKS, (SSH,)) is of_another
    final = relay.HostKeyError("ssh://bastion: the key has changed")
    assert with_hop(final, SOCKS, ()) is final


@pytest.mark.parametrize(
    ("route", "place", "over", "to"),
    [
        ((), DB, False, False),
        ((SSH,), DB, False, False),
        ((), NAME, True, True),
        ((SSH,), NAME, True, True),
        ((I2P,), NAME, True, True),
        ((), I2PTarget("name.i2p"), True, True),
        ((I2P, SSH), DB, True, False),
        ((SSHServer("x.i2p"),), DB, True, False),
        ((SOCKS,), NAME, True, False),
        ((I2P,), TLSTarget("name.i2p", 443), True, False),
        ((TOR,), NAME, True, False),
    ],
    ids=range(11),
)
def test_what_leads_over_i2p_and_to_it(route, place, over, to):
    assert to_i2p(route, place) is to
    assert is_slow(route, place) is over


@pytest.mark.parametrize(
    ("route", "place", "keeps"),
    [
        ((), DB, True),
        ((SOCKS, SSH), DB, True),
        ((), NAME, False),
        ((), I2PTarget("name.i2p"), False),
        ((SSH, TOR), DB, False),
        ((TOR, SOCKS, HTTP), DB, False),
        ((TOR,), TLSTarget("db", 5432), True),
        ((TOR, SSH), DB, True),
        ((TOR, HTTPSProxy("https", "p", 1)), DB, True),
    ],
    ids=range(9),
)
def test_which_streams_end_in_one_direction_alone(route, place, keeps):
    assert keeps_half_close(route, place) is keeps


@pytest.mark.parametrize(("socks", "error"), [("9050", ValueError), ("socks5://h:1", ValueError), (9050, TypeError)])
def test_a_port_of_tor_that_is_none(socks, error):
    with pytest.raises(error, match=r"^socks: "):
        TorProxy(socks=socks)
