"""``relay.addresses.mptcp``: where a tunnel gets Multipath TCP."""

import pytest

from relay.addresses.mptcp import with_mptcp, without_mptcp
from relay.addresses.parse import parse_hops, parse_listen, parse_target
from relay.errors import AddressError


@pytest.mark.parametrize(
    ("listen", "target", "via", "expected"),
    [
        (":80", "db:1", [], ("tcp://127.0.0.1:80?mptcp=yes", "tcp://db:1?mptcp=yes")),
        ("tls://:80?cert=c", "tls://db:1", [], ("tls://127.0.0.1:80?cert=c&mptcp=yes", "tls://db:1?mptcp=yes")),
        (":80", "db:1", ["ssh://b"], ("tcp://127.0.0.1:80?mptcp=yes", "db:1")),
        ("unix:///x", "db:1", [], ("unix:///x", "tcp://db:1?mptcp=yes")),
        ("unix:///x", "tcp://db:1?mptcp=yes", [], ("unix:///x", "tcp://db:1?mptcp=yes")),
        (":80", "x.i2p:1", [], ("tcp://127.0.0.1:80?mptcp=yes", "i2p://x.i2p:1")),
    ],
)
def test_what_this_machine_does_over_tcp_gets_it(listen, target, via, expected):
    where, [(_, end)] = with_mptcp(parse_listen(listen), [(parse_hops(via), parse_target(target))])
    assert (str(where), str(end)) == expected
    assert parse_listen(str(where)) == where
    assert parse_target(str(end)) == end
    assert "mptcp" not in f"{without_mptcp(where)}{without_mptcp(end)}"


def test_a_tunnel_without_tcp_is_an_error():
    with pytest.raises(AddressError, match=r"^relay neither listens nor connects over TCP here; leave it out$"):
        with_mptcp(parse_listen("unix:///x"), [((), parse_target("unix:///y"))])


def test_a_server_does_not_listen_by_it():
    with pytest.raises(AddressError, match="mptcp= is for connections of this machine"):
        parse_listen("ssh://server?listen=tcp://127.0.0.1:80?mptcp=yes")
