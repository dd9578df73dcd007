"""``relay.access.networks``: the same answers as ``ipaddress`` of Python, for one network and for sets."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.access.networks import Network, NetworkSet, is_network, parse_network, version_at

V4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda one: ipaddress.IPv4Network(one, strict=False))
V6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
    lambda one: ipaddress.IPv6Network(one, strict=False)
)
NEAR = st.tuples(st.integers(0x0A000000, 0x0A0000FF), st.integers(22, 32)).map(
    lambda one: ipaddress.IPv4Network(one, strict=False)
)
ADDRESSES = st.one_of(st.ip_addresses(), st.integers(0x0A000000, 0x0A0001FF).map(ipaddress.IPv4Address))


def is_mapped(network):
    return network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None


@given(st.one_of(V4, V6))
def test_the_text_of_a_network_is_parsed_as_ipaddress_does(network):
    found = parse_network(str(network))
    if is_mapped(network):
        assert found == (4, network.prefixlen - 96, int(network.network_address.ipv4_mapped))
    else:
        assert found == (network.version, network.prefixlen, int(network.network_address))
        assert ipaddress.ip_network(str(found)) == network
        assert is_network(str(network))


@given(st.lists(st.one_of(V4, V6, NEAR), max_size=8), ADDRESSES)
def test_a_set_finds_the_widest_network_of_an_address(networks, address):
    plain = [network for network in networks if not is_mapped(network)]
    meant = getattr(address, "ipv4_mapped", None) or address
    having = [network for network in plain if meant in network]
    found = NetworkSet(parse_network(str(network)) for network in plain).find(str(address))
    if having:
        assert ipaddress.ip_network(found.removeprefix("cidr:")) == min(having, key=lambda network: network.prefixlen)
    else:
        assert found is None


@given(st.lists(NEAR, min_size=1, max_size=8, unique=True))
def test_a_set_knows_which_network_covers_another_one(networks):
    parsed = [parse_network(str(network)) for network in networks]
    found = NetworkSet(parsed)
    for network, one in zip(networks, parsed, strict=True):
        wider = [other for other in networks if other != network and network.subnet_of(other)]
        assert (found.find_wider(one) is not None) == bool(wider)
        assert found.find_covering(one) is not None


@given(st.text(max_size=40))
def test_no_other_text_is_a_network(text):
    try:
        parse_network(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        ipaddress.ip_network(text)
    assert NetworkSet([Network(4, 0, 0)]).find(text) in (None, "cidr:0.0.0.0/0")


@pytest.mark.parametrize(
    ("text", "network", "shown"),
    [
        ("10.1.2.3", (4, 32, 0x0A010203), "10.1.2.3/32"),
        ("fd00::1", (6, 128, 0xFD << 120 | 1), "fd00::1/128"),
        ("::ffff:10.1.2.3", (4, 32, 0x0A010203), "10.1.2.3/32"),
        ("::ffff:10.1.0.0/112", (4, 16, 0x0A010000), "10.1.0.0/16"),
        ("::ffff:0:0/96", (4, 0, 0), "0.0.0.0/0"),
        ("::fffe:0:0/95", (6, 95, 0xFFFE << 32), "::fffe:0:0/95"),
    ],
)
def test_an_address_is_a_network_of_its_own_and_a_mapped_one_is_of_ipv4(text, network, shown):
    found = parse_network(text)
    assert (found, str(found)) == (network, shown)
    assert NetworkSet([found]).find(shown.partition("/")[0]) == f"cidr:{shown}"


def test_a_set_is_true_if_it_has_a_member():
    assert not NetworkSet()
    assert NetworkSet([Network(4, 0, 0)]) and NetworkSet([Network(6, 0, 0)])


@pytest.mark.parametrize("text", ["10.0.0", "a.b.c.example", "h:80", "unix:/run/x", "10.0.0.0/8 ", "fe80::1%eth0", ""])
def test_what_does_not_look_like_a_network(text):
    assert not is_network(text)


@pytest.mark.parametrize(
    ("host", "version"),
    [("10.1.2.3", 4), ("0.0.0.0", 4), ("::1", 6), ("::ffff:10.1.2.3", 4), ("::", None), ("localhost", None)],
)
def test_which_clients_a_listener_has(host, version):
    assert version_at(host) == version


@pytest.mark.parametrize("host", ["10.1.2.3", "::ffff:10.1.2.3", "::ffff:a01:203"])
@pytest.mark.parametrize("network", ["10.1.0.0/16", "::ffff:10.1.0.0/112", "0.0.0.0/0", "::ffff:0:0/96"])
def test_a_mapped_address_is_the_address_that_it_maps(host, network):
    assert NetworkSet([parse_network(network)]).find(host) is not None
    assert NetworkSet([parse_network("::/0")]).find(host) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.1/8", "it has host bits set; write 10.0.0.0/8, or 10.0.0.1 for the address"),
        ("2001:db8::1/32", "it has host bits set; write 2001:db8::/32, or 2001:db8::1 for the address"),
        ("10.0.0.0/33", "/33 is out of range; a prefix of IPv4 has 0 to 32 bits"),
        ("::/129", "/129 is out of range"),
        ("10.0.0", "no IP address or network; write it as 10.0.0.0/8"),
        ("010.0.0.1", "no IP address"),
        ("10.0.0.0/255.0.0.0", "no IP address"),
        ("10.0.0.0/", "no IP address"),
        ("fe80::1%eth0", "has no zone; leave out the %"),
        ("", "no IP address"),
        ("1" * 10_000, "no IP address"),
    ],
)
def test_an_error_names_what_is_meant(text, problem):
    with pytest.raises(ValueError, match=problem.replace("/", r"\/")):
        parse_network(text)


def test_a_hundred_thousand_networks_cost_a_lookup_for_each_length_alone():
    networks = NetworkSet(Network(4, 16 + number % 8, (number * 2654435761) % 2**16 << 16) for number in range(100_000))
    lengths = [shift for shift, _ in networks._by_prefix[4]]
    assert len(lengths) == 8
    assert networks.find("203.0.113.300") is None
