"""``relay.transports.proxies.socks_client``: what is said to a SOCKS5 proxy, and what is made of its answers."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from proxy_world import ASKED, GRANTED, HELLO, HELLO_LOGIN, PASSWORD, PLACE, SOCKS, SOCKS_LOGIN, USER, WELCOME, converse

import relay
from relay.addresses.tor import TorProxy
from relay.addresses.values import TCPAddress
from relay.errors import AuthenticationError, ConnectError
from relay.transports.proxies.socks_client import connect, log_in

LOGIN = (USER.encode(), PASSWORD.encode())
WELCOME_LOGIN = b"\x05\x02"
SHOWN = b"\x01\x02me" + bytes([len(LOGIN[1])]) + LOGIN[1]
TAKEN = b"\x01\x00"


def through(data, login=None, place=PLACE, step=1):
    """Ask for a place; see :func:`converse`."""
    return converse(connect(SOCKS_LOGIN if login else SOCKS, place, login), data, step)


def error_of(data, login=None, place=PLACE):
    """Return what a proxy's answer comes to."""
    with pytest.raises(relay.RelayError) as failed:
        through(data, login, place, step=1000)
    text = str(failed.value)
    assert text.isprintable() and len(text) < 300 and PASSWORD not in text
    return failed.value


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_without_a_login(step):
    assert through(WELCOME + GRANTED + b"early", step=step) == (HELLO + ASKED, b"early")


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_with_a_login(step):
    said, rest = through(WELCOME_LOGIN + TAKEN + GRANTED, LOGIN, step=step)
    assert said == HELLO_LOGIN + SHOWN + ASKED and rest == b""


def test_a_login_that_the_proxy_does_not_want_is_not_sent():
    assert through(WELCOME + GRANTED, LOGIN)[0] == HELLO_LOGIN + ASKED


def test_any_version_in_the_answer_to_a_login():
    """RFC 1929 says 1, and some say 5."""
    assert through(WELCOME_LOGIN + b"\x05\x00" + GRANTED, LOGIN)[1] == b""


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", b"\x01\x7f\x00\x00\x01"),
        ("::1", b"\x04" + ipaddress.ip_address("::1").packed),
        ("2001:db8::10.0.0.1", b"\x04" + ipaddress.ip_address("2001:db8::a00:1").packed),
        ("x.i2p", b"\x03\x05x.i2p"),
        ("127.1", b"\x03\x05127.1"),
        ("n" * 255, b"\x03\xff" + b"n" * 255),
    ],
)
def test_how_a_place_is_said(host, asked):
    assert through(WELCOME + GRANTED, place=TCPAddress(host, 80))[0] == HELLO + b"\x05\x01\x00" + asked + b"\x00\x50"


@pytest.mark.parametrize(
    "address", [b"\x01" + b"a" * 4, b"\x04" + b"a" * 16, b"\x03\x00", b"\x03\x07exact.y", b"\x03\xff" + b"\xff" * 255]
)
@pytest.mark.parametrize("step", [1, 1000])
def test_every_kind_of_bound_address_is_read_to_its_end(address, step):
    assert through(WELCOME + b"\x05\x00\x00" + address + b"\x04\x38" + b"early", step=step)[1] == b"early"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (1, "unreachable", "could not connect to it"),
        (2, "denied", "does not allow it"),
        (3, "unreachable", "network is unreachable"),
        (4, "unreachable", "it is unreachable"),
        (5, "refused", "it refused the connection"),
        (6, "connect_timeout", "does not answer in time"),
    ],
)
def test_what_a_proxy_says_of_the_place(code, reason, words):
    error = error_of(WELCOME + bytes([5, code]) + GRANTED[2:])
    assert isinstance(error, ConnectError) and error.reason == reason
    assert str(error).startswith("db.internal:5432: socks5://proxy:1080 ") and words in str(error)


@pytest.mark.parametrize(
    ("code", "words"),
    [(7, "it does not know CONNECT"), (8, "it does not take such an address"), (240, "the unknown error 240")],
)
def test_what_a_proxy_says_of_itself(code, words):
    error = error_of(WELCOME + bytes([5, code]) + GRANTED[2:])
    assert isinstance(error, ConnectError) and error.reason == "unreachable"
    assert str(error).startswith("socks5://proxy:1080: ") and words in str(error)
    assert str(error).endswith("asked for db.internal:5432")


def test_a_refusal_needs_no_address():
    """Some proxies leave it out."""
    assert error_of(WELCOME + b"\x05\x05").reason == "refused"


@pytest.mark.parametrize(
    ("data", "login", "words"),
    [
        (b"\x05\xff", None, "socks5://proxy:1080: it requires a user and a password; set user@"),
        (b"\x05\xff", LOGIN, "socks5://me@proxy:1080: it accepts neither a user and a password (RFC 1929)"),
        (WELCOME_LOGIN + b"\x01\x01", LOGIN, "socks5://me@proxy:1080: it does not accept the user and the password"),
        (WELCOME_LOGIN + b"\x01\xff", LOGIN, "socks5://me@proxy:1080: it does not accept the user and the password"),
    ],
)
def test_a_login_that_fails(data, login, words):
    error = error_of(data, login)
    assert isinstance(error, AuthenticationError) and str(error).startswith(words)


@pytest.mark.parametrize("password", [b"", b"x" * 256])
def test_a_password_that_cannot_be_said(password):
    error = error_of(WELCOME_LOGIN, (b"me", password))
    assert isinstance(error, AuthenticationError)
    assert str(error) == "socks5://me@proxy:1080: the password is empty or too long; SOCKS5 allows 255 bytes"


def test_the_shortest_and_the_longest_login():
    assert through(WELCOME_LOGIN + TAKEN + GRANTED, (b"m", b"p"))[0] == HELLO_LOGIN + b"\x01\x01m\x01p" + ASKED
    login = ("ü" * 127 + "u").encode(), b"p" * 255
    assert through(WELCOME_LOGIN + TAKEN + GRANTED, login)[0].startswith(HELLO_LOGIN + b"\x01\xff" + login[0] + b"\xff")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "does not speak SOCKS5 (it says 48 54); it may be an HTTP proxy, http://"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak SOCKS5 (it says 53 53)"),
        (b"\x00\x5b\x00\x00", "does not speak SOCKS5 (it says 00 5b)"),
        (b"\x05\x01", "it chose a login that was not offered (method 1); check that it is a SOCKS5 proxy"),
        (b"\x05\x02", "it chose a login that was not offered (method 2); check that it is a SOCKS5 proxy"),
        (WELCOME + b"HTTP/1.1 400", "does not speak SOCKS5 (it says 48 54 54 50 2f 31 2e 31)"),
        (WELCOME + b"\x05\x00\x00\x02\x00", "does not speak SOCKS5 (it says 05 00 00 02 00)"),
    ],
)
def test_who_does_not_speak_it(data, words):
    error = error_of(data)
    assert type(error) is ConnectError and error.reason == "unreachable"
    assert str(error).startswith("socks5://proxy:1080: ") and str(error).endswith(words)


@given(st.binary(max_size=600), st.integers(1, 300), st.booleans())
@example(WELCOME + b"\x05\x00\x00\x03", 1, False)
@example(WELCOME + GRANTED, 300, False)
def test_whatever_a_proxy_says(data, step, has_login):
    """It is an error of relay, or a stream; nothing is read beyond the longest reply that there may be."""
    for start in (b"", WELCOME, WELCOME + b"\x05\x00\x00"):
        try:
            _, rest = through(start + data, LOGIN if has_login else None, step=step)
        except (AuthenticationError, ConnectError) as error:
            assert str(error).isprintable() and len(str(error)) < 300
        except EOFError:
            assert len(start + data) < 2 + 2 + 4 + 1 + 255 + 2
        else:
            assert len(start + data) - len(rest) <= 2 + 2 + 4 + 1 + 255 + 2


@pytest.mark.parametrize(("data", "login", "said"), [(WELCOME, None, HELLO), (b"\x05\x02\x01\x00", LOGIN, HELLO_LOGIN)])
def test_logging_in_alone(data, login, said):
    assert converse(log_in(SOCKS, login), data + b"rest") == (said + (SHOWN if login else b""), b"rest")


def test_silence_belongs_to_the_proxy_and_then_to_the_place():
    for data, login, late in (
        (b"", None, "socks5://proxy:1080: no answer in time; check that it speaks SOCKS5"),
        (WELCOME_LOGIN, LOGIN, "socks5://me@proxy:1080: no answer in time; check that it speaks SOCKS5"),
        (WELCOME, None, "db.internal:5432: socks5://proxy:1080 has not reached it in time"),
    ):
        with pytest.raises(EOFError) as ended:
            through(data, login)
        assert str(ended.value) == late


def of_tor(data, step=1):
    return converse(connect(TorProxy(), TCPAddress("site.onion", 80), (b"relay", b"one")), data, step)


@pytest.mark.parametrize("step", [1, 1000])
def test_tor_gets_a_login_which_isolates_its_streams(step):
    said, rest = of_tor(WELCOME_LOGIN + TAKEN + GRANTED + b"early", step)
    assert said == b"\x05\x01\x02" + b"\x01\x05relay\x03one" + b"\x05\x01\x00\x03\x0asite.onion\x00\x50"
    assert rest == b"early"


@pytest.mark.parametrize("answer", [b"\x05\xff", b"\x05\x00"])
def test_a_proxy_without_logins_is_no_tor(answer):
    with pytest.raises(ConnectError, match=r"^tor:\?socks=127.0.0.1:9050: .*(takes no login|that was not offered)"):
        of_tor(answer)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (0xF0, "unreachable", "finds no such onion service"),
        (0xF1, "unreachable", "a descriptor of it that is not valid"),
        (0xF2, "unreachable", "could not introduce itself"),
        (0xF3, "unreachable", "at a rendezvous in vain"),
        (0xF4, "denied", "it wants one"),
        (0xF5, "denied", "a wrong key"),
        (0xF6, "unreachable", "check its 56 characters"),
        (0xF7, "connect_timeout", "introduction points in time"),
    ],
)
def test_what_tor_says_of_an_onion_service(code, reason, words):
    with pytest.raises(ConnectError, match=f"^site.onion:80: tor:.*{words}") as failed:
        of_tor(WELCOME_LOGIN + TAKEN + bytes([5, code]) + GRANTED[2:])
    assert failed.value.reason == reason
