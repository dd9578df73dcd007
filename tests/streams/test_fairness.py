"""``relay.streams.fairness``: what counts as one source, and which clients give way."""

import collections
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.streams.fairness import crowding, source_of


def of(family, peer):
    with socket.socket(family) as client:
        return source_of(client, peer)


def test_an_ipv4_address_is_a_source():
    assert of(socket.AF_INET, ("192.0.2.1", 5)) == of(socket.AF_INET, ("192.0.2.1", 6))
    assert of(socket.AF_INET, ("192.0.2.1", 5)) != of(socket.AF_INET, ("192.0.2.2", 5))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),  # a peer with a network has 2**64 addresses
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%lo", "fe80::2", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ],
)
def test_an_ipv6_network_is_a_source(one, other, same):
    assert (of(socket.AF_INET6, (one, 1, 0, 0)) == of(socket.AF_INET6, (other, 1, 0, 0))) is same


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_the_client_of_a_balancer_is_a_source_whatever_the_balancers_family(family):
    assert of(family, ("192.0.2.1", 5)) == "192.0.2.1"
    site = of(family, ("2001:db8:0:1::1", 5, 0, 0))
    assert site == of(family, ("2001:db8:0:1::2", 5, 0, 0)) != of(family, ("2001:db8:0:2::1", 5, 0, 0))
    assert of(family, (":no address\0", 5)) == ":no address\0"


def test_a_local_user_is_a_source():
    one, other = socket.socketpair()
    with one, other:
        assert source_of(one, "") == os.getuid()


def test_what_has_no_peer_is_one_source():
    assert of(socket.AF_UNIX, "") is None or of(socket.AF_UNIX, "") < 0
    assert of(socket.AF_INET, None) is None


def test_the_oldest_of_the_largest_source_gives_way():
    items = ["b1", "a1", "a2", "b2", "a3", "c1", "a4"]
    assert crowding(items, lambda item: item[0], 3) == ["a1", "a2", "b1"]
    assert crowding(items, lambda item: item[0], 100) != []
    assert crowding([], lambda item: item, 3) == []


@given(st.lists(st.integers(0, 5)), st.integers(0, 20))
def test_whoever_has_few_keeps_them(sources, count):
    items = list(enumerate(sources))
    chosen = crowding(items, lambda item: item[1], count)
    assert len(set(chosen)) == len(chosen) == min(count, len(items))
    left = collections.Counter(source for _, source in set(items) - set(chosen))
    taken = collections.Counter(source for _, source in chosen)
    for source in taken:  # no other source has clearly more than a source that had to give way
        assert left[source] + 1 >= max(left.values(), default=0)
    for source in taken:
        ages = [age for age, one in items if one == source]
        assert [age for age, one in chosen if one == source] == ages[: taken[source]]
