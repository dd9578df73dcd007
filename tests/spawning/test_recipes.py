"""``relay.spawning.recipes``: listeners and factories from values that fit into a message."""

import contextlib
import os
import socket

import pytest
from helpers import WAIT, Thread

import relay
from relay.access.limit import check_limits
from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.spawning.recipes import Recipe, bind, listen_at, why_one_process

BY_ADDRESS = "relay.spawning.recipes:by_address"


LIMITS = check_limits(["per=ip,concurrent=4"])


@pytest.mark.parametrize(
    ("listen", "ways", "limits", "why"),
    [
        (":0", [("127.0.0.1:1", [])], (), ""),
        ("unix:///run/a", [("tls://a:1", ["socks5://proxy:1"])], (), ""),
        (
            ":0",
            [("127.0.0.1:1", ["ssh://me@a", "ssh://b"])],
            (),
            "share a connection to ssh://me@a; see carrier_sharing",
        ),
        (
            ":0",
            [("127.0.0.1:1", ["socks5://proxy:1", "ssh://b"])],
            (),
            "share a connection to ssh://b; see carrier_sharing",
        ),
        (":0", [("port:nc -lk {port}", [])], (), "share a connection to port:nc …; see carrier_sharing"),
        (None, [("i2p://name.i2p", [])], (), "share a connection to i2p://name.i2p; see carrier_sharing"),
        ("ssh://me@a?listen=:1", [("127.0.0.1:1", [])], (), "only one can listen at ssh://me@a?listen="),
        ("i2p:?keys=/a", [("127.0.0.1:1", [])], (), "only one can listen at i2p:"),
        ("socks5://:0", [("127.0.0.1:1", [])], (), ""),
        ("socks5://alice@:0?password=secret", [("127.0.0.1:1", [])], (), "so that each wrong password counts"),
        (":0", [("127.0.0.1:1", [])], LIMITS, "so that the limits of its clients are exact"),
        (":0", [("127.0.0.1:1", []), ("127.0.0.1:2", [])], (), "it has several targets, whose state it knows"),
    ],
)
def test_why_one_process_relays_a_tunnel(listen, ways, limits, why):
    where = None if listen is None else parse_listen(listen)
    parsed = []
    for target, via in ways:
        hops = parse_hops(via, target)
        parsed.append((hops, parse_target(target, hops[-1] if hops else None)))
    found = why_one_process(where, parsed, limits, per_worker=False)
    assert why in found and bool(why) == bool(found)
    makes_its_own = "share a connection" in why
    assert why_one_process(where, parsed, limits, per_worker=True) == ("" if makes_its_own else found)


@pytest.mark.parametrize("listen", ["ssh://me@a?listen=:1", "i2p:"])
def test_nobody_shares_a_listener_that_is_no_socket(listen):
    assert bind(parse_listen(listen)) is None


def test_the_workers_listen_at_the_socket(tmp_path, certificates):
    for listen in (":0", f"unix://{tmp_path}/socket"):
        with bind(parse_listen(listen)) as shared:
            assert listen_at(parse_listen(listen), shared) is shared


@pytest.mark.parametrize("kind", ["tls", "socks5", "http"])
def test_a_listener_that_does_more_takes_the_socket_over(kind, certificates):
    query = f"?cert={certificates.cert}&key={certificates.key}" if kind == "tls" else ""
    address = parse_listen(f"{kind}://localhost:0{query}")
    with bind(address) as shared:
        where = shared.getsockname()
        copies = [shared.dup() for _ in range(2)]
        listeners = [listen_at(address, copy) for copy in copies]
        assert [listener.getsockname() for listener in listeners] == [where] * 2
        assert all(copy.fileno() == -1 for copy in copies)
        for listener in listeners:
            listener.close()


def test_one_socket_and_two_makers():
    with bind(parse_listen(":0")) as shared, socket.create_server(("127.0.0.1", 0)) as target:
        arguments = {"listen": ":0", "target": f"127.0.0.1:{target.getsockname()[1]}", "via": []}
        make_send, listen = Recipe(BY_ADDRESS, arguments).make(shared)
        assert listen(contextlib.ExitStack()) is shared
        accepting = Thread(target.accept)
        stream = make_send()
        stream.close()
        accepting.result(WAIT)[0].close()
        make_send.close()


def made(arguments, receive=None):
    """Make the listener and the factory, and close both."""
    make_send, listen = Recipe(BY_ADDRESS, {"target": "127.0.0.1:1", "via": [], **arguments}).make(receive)
    with contextlib.closing(make_send), contextlib.ExitStack() as at_end, listen(at_end) as listener:
        return listener.getsockname()


def test_a_recipe_without_a_socket_listens_itself():
    assert made({"listen": ":0"})[1]


def test_without_an_address_it_listens_privately_until_the_end():
    path = made({"listen": None})
    assert os.path.isabs(path)
    assert not os.path.exists(os.path.dirname(path))


@pytest.mark.parametrize("wrong", [{"listen": ":0", "target": "no port"}, {"listen": "?"}])
def test_the_socket_stays_with_the_caller_if_it_fails(wrong):
    with bind(parse_listen(":0")) as shared:
        with pytest.raises(relay.AddressError):
            made(wrong, shared)
        assert shared.fileno() != -1
