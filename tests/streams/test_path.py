"""``relay.streams.path``: the parts of a connect, by the number and the kind of what was reached."""

from __future__ import annotations

import pytest

from relay.addresses.parse import parse_hops
from relay.streams.path import HANDSHAKE, StreamPath, hop_times


def route(*hops):
    return parse_hops(list(hops), "db:5432")


@pytest.mark.parametrize(
    ("hops", "steps", "labels"),
    [
        ([], [1], ["1:target"]),
        ([], [1, HANDSHAKE], ["1:target", "1:tls"]),
        (["ssh://a"], [2], ["2:target"]),
        (["ssh://a"], [1, 2, HANDSHAKE], ["1:ssh", "2:target", "2:tls"]),
        (["ssh://a", "socks5://b:1", "http://c:1"], [1, 2, 3, 4], ["1:ssh", "2:socks5", "3:http", "4:target"]),
        (["i2p:", "exec:nc %h %p"], [1, 2, 3], ["1:i2p", "2:exec", "3:target"]),
        ([f"socks5://h{number}:1" for number in range(12)], [9, 10, 12, 13], ["9:socks5", "10:socks5", "10:target"]),
    ],
)
def test_each_step_has_a_label(hops, steps, labels):
    path = StreamPath(tuple((number, 0.5) for number in steps))
    assert [label for label, _ in hop_times(path, route(*hops))] == labels


def test_steps_to_the_same_are_added_up():
    """A session that the address of the target stands for is no hop of the route."""
    path = StreamPath(((1, 0.5),), "i2p:").extended(1, 0.25)
    assert hop_times(path, ()) == (("1:target", 0.75),)
    assert path.carrier == "i2p:"
