"""Wrong input is an error at the call, in one line: what, where, and what is allowed or the remedy."""

import base64
import time

import command_rig
import pytest
from helpers import PROMPT, refusing
from i2p_world import SHORT

import relay
from relay.addresses.destinations import PrivateKey
from relay.testing import SAMBridge

KEY = PrivateKey.generate()
PUBLIC = base64.b64decode(KEY.destination, altchars=b"-~")


def base64_of(data):
    return base64.b64encode(data, altchars=b"-~").decode()


WRONG = {  # a destination → what is said of it
    "": "empty|destination",
    "nonsense": "destination|name",
    "example.com": r"\.i2p",
    "a b.i2p": "name|character|alphabet",
    ".i2p": "name|empty",
    "x" * 300 + ".i2p": "long|length|characters",
    "short.b32.i2p": "characters|length",
    "0" * 52 + ".b32.i2p": "alphabet|character",
    KEY.b32.replace(".b32.i2p", "a.b32.i2p"): "characters|length|checksum",
    "a" * 56 + ".b32.i2p": "checksum",
    KEY.destination[:-8]: "length|bytes|characters",
    base64_of(PUBLIC + b"one too many"): "length|bytes",
    KEY.destination + "AAAA": "alphabet|character",
    "!" + KEY.destination[1:]: "alphabet|character",
    KEY.destination.replace("=", "")[:-1]: "length|characters|bytes",
    base64_of(PUBLIC[:385] + b"\xff\xff" + PUBLIC[387:]): "certificate",
}


def calls(dest):
    """Each way to say where to, which opens nothing before it is checked."""
    nowhere = "127.0.0.1:1"
    return [lambda: relay.TunnelClient("", 0, dest, nowhere), lambda: relay.i2p(dest, sam=nowhere)]


@pytest.mark.parametrize("dest", WRONG, ids=lambda dest: f"{len(dest)} characters")
def test_a_destination_that_is_none(dest):
    for call in calls(dest):
        with pytest.raises(ValueError, match=WRONG[dest]) as failed:
            call()
        text = str(failed.value)
        assert text.isprintable() and len(text) < 300
        assert "dest" in text


def test_a_private_key_in_its_place_is_not_repeated():
    """They are easily mistaken for each other."""
    for call in calls(KEY.base64):
        with pytest.raises(ValueError, match="dest") as failed:
            call()
        assert KEY.base64[-100:] not in str(failed.value)
        assert len(str(failed.value)) < 300


def fails(make, sam, **options):
    """The error of a server and of a client, in one line, in time."""
    begin = time.monotonic()
    with pytest.raises(relay.RelayError) as failed:
        make(sam, **SHORT, **options)
    assert time.monotonic() - begin < PROMPT
    assert str(failed.value).isprintable()
    assert sam in str(failed.value)
    return failed.value


@pytest.fixture(params=["server", "client"])
def make(request):
    if request.param == "server":
        return lambda sam, **options: relay.TunnelServer("", 9, sam, **options)
    return lambda sam, **options: relay.TunnelClient("", 0, KEY.b32, sam, **options)


def test_no_bridge_there(make):
    with refusing() as (host, port):
        error = fails(make, f"{host}:{port}")
    assert isinstance(error, relay.ConnectError)
    assert error.reason == "refused"
    for advice in ("i2pd.conf", "enabled = true", "console"):
        assert advice in str(error)


def test_something_else_there(make, serve):
    server = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    error = fails(make, "{}:{}".format(*server.address))
    assert isinstance(error, relay.SAMError)
    assert "not a SAM bridge" in str(error)


def test_an_old_bridge(make):
    with SAMBridge(versions=("3.0", "3.0")) as bridge:
        error = fails(make, bridge.sam)
    assert isinstance(error, relay.SAMError)
    assert error.result == "NOVERSION"
    assert "3.1" in str(error)


@pytest.mark.parametrize("options", [{}, {"user": "me", "password": "wr0ng"}, {"user": "you", "password": "secret"}])
def test_a_wrong_password(make, options):
    with SAMBridge(personality="java", user="me", password="secret") as bridge:
        error = fails(make, bridge.sam, **options)
        assert isinstance(error, relay.AuthenticationError)
        assert "wr0ng" not in str(error)
        make(bridge.sam, user="me", password="secret", **SHORT).close()


def test_the_command_says_it_in_one_line():
    with refusing() as (host, port):
        for arguments in (
            ["expose", "127.0.0.1:9", "--on", f"i2p:?sam={host}:{port}", "--transient"],
            ["forward", "127.0.0.1:0", f"i2p://{KEY.b32}?sam={host}:{port}"],
        ):
            done = command_rig.run(*arguments, "--fail-fast")
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1, done.stderr
            assert "no SAM bridge there" in done.stderr
    done = command_rig.run("forward", "127.0.0.1:0", "i2p://short.b32.i2p")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
