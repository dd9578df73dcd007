"""Senders of headers: which of a listener's clients they are."""

import socket

import pytest

from relay.access.senders import Senders, parse_senders


@pytest.mark.parametrize(
    ("entries", "family", "peer", "is_sender"),
    [
        (["10.0.0.0/8"], socket.AF_INET, ("10.255.0.1", 1), True),
        (["10.0.0.0/8"], socket.AF_INET, ("11.0.0.1", 1), False),
        (["10.0.0.7"], socket.AF_INET6, ("::ffff:10.0.0.7", 1, 0, 0), True),
        (["fe80::/10"], socket.AF_INET6, ("fe80::1%lo", 1, 0, 1), True),
        (["2001:db8::/32"], socket.AF_INET6, ("2001:db9::1", 1, 0, 0), False),
        (["0.0.0.0/0"], socket.AF_INET6, ("2001:db8::1", 1, 0, 0), False),
        (["unix"], socket.AF_UNIX, "", True),
        (["unix"], socket.AF_INET, ("127.0.0.1", 1), False),
        (["0.0.0.0/0", "::/0"], socket.AF_UNIX, "", False),
        (["0.0.0.0/0"], socket.AF_INET, "no address", False),
    ],
)
def test_a_client_is_a_sender_or_not(entries, family, peer, is_sender):
    senders = parse_senders(entries)
    with socket.socket(family) as client:
        assert [senders.include(client, peer) for _ in range(2)] == [is_sender] * 2


@pytest.mark.parametrize(
    ("entries", "host", "is_right"),
    [
        (["fd00::/8"], "127.0.0.1", False),
        (["fd00::/8"], "0.0.0.0", False),
        (["fd00::/8", "10.0.0.0/8"], "127.0.0.1", True),
        (["::ffff:10.0.0.1"], "127.0.0.1", True),
        (["10.0.0.0/8"], "::1", False),
        (["10.0.0.0/8"], "::", True),
        (["fd00::/8"], "localhost", True),
        (["fd00::/8"], "", True),
    ],
)
def test_a_list_has_a_network_of_the_version_of_the_listener(entries, host, is_right):
    senders = Senders(entries)
    if is_right:
        senders.check(is_unix=False, host=host)
        return
    with pytest.raises(ValueError, match=r"^accept_proxy: no client could connect: its entries are for IPv[46], and"):
        senders.check(is_unix=False, host=host)


def test_equal_lists_are_equal_senders():
    assert parse_senders(["::1"]) == parse_senders(("::1",)) != parse_senders(["::2"])
    assert hash(parse_senders(["::1"])) == hash(parse_senders(["::1"]))
    assert repr(parse_senders(["::1"])) == "Senders(['::1'])"
    assert parse_senders(None) is None
