"""Every kind of hop over every kind of hop, to every kind of target: all bytes arrive both ways, or it is refused."""

import contextlib
import itertools
import time

import chain_world
import pytest
from chain_world import HOPS, TARGETS, end_and_hear, exchange, fits, keeps_half_close, leads_to
from helpers import WAIT

import relay

ONE_AND_TWO = [*((kind,) for kind in HOPS), *itertools.product(HOPS, repeat=2)]
TWO = [(), *filter(fits, ONE_AND_TWO)]
THREE = [way for number, way in enumerate(filter(fits, itertools.product(HOPS, repeat=3))) if number % 7 == 0]
SIX = ("openssh", "exec", "paramiko", "socks5", "i2p", "http")


def shown(value):
    return value if isinstance(value, str) else "-".join(value) or "nothing"


@pytest.fixture(scope="module")
def world(tmp_path_factory, spawner_thread):
    with chain_world.running(tmp_path_factory.mktemp("world")) as world:
        yield world


@contextlib.contextmanager
def held(world, way, target):
    """A factory, which holds what is on its way."""
    factory = relay.target(world.target(target, way), world.via(way))
    try:
        yield factory
    finally:
        if way:
            factory.close()


def check(world, way, target):
    """A stream from a factory, and a socket that alone keeps what is under it."""
    with held(world, way, target) as factory, factory(deadline=time.monotonic() + WAIT) as stream:
        for end in (stream.socket, relay.connect(world.target(target, way), world.via(way), WAIT)):
            with end:
                end.settimeout(WAIT)
                exchange(end)
                if keeps_half_close(way, target):
                    end_and_hear(end)


@pytest.mark.parametrize("way", TWO, ids=shown)
def test_to_each_target(world, way):
    targets = [target for target in TARGETS if leads_to(way, target)]
    if len(way) == 2:  # each target still comes after each last hop
        place = HOPS.index(way[0]) % len(targets)
        targets = (targets * 2)[place : place + 2]
    with held(world, way, targets[0]) as factory:
        factory(deadline=time.monotonic() + WAIT).close()
        for target in targets:
            check(world, way, target)


@pytest.mark.parametrize("way", THREE, ids=shown)
def test_over_three(world, way):
    check(world, way, "tls")


def test_over_six(world):
    check(world, SIX, "tls")


# Addresses at which there is nothing: what makes no sense is refused before anything is opened.
NOWHERE = {
    "paramiko": "ssh://a@127.0.0.1:1",
    "openssh": "ssh://b@127.0.0.1:1?backend=openssh",
    "i2p": "i2p:?sam=127.0.0.1:1",
    "socks5": "socks5://127.0.0.1:1",
    "http": "http://127.0.0.1:1",
    "exec": "exec:nc %h %p",
    "tcp": "127.0.0.1:1",
    "unix": "unix:///run/nothing",
    "tls": "tls://localhost:1",
}
NAMES = {**NOWHERE, "openssh": "ssh://b@127.0.0.1:1", "exec": "exec:nc …", "program": "exec:cat"}
SENSELESS = [
    *((way, "tcp") for way in ONE_AND_TWO if not fits(way)),
    *((way, target) for way in TWO for target in TARGETS if fits(way) and not leads_to(way, target)),
    *((("paramiko", "i2p", kind), "tcp") for kind in HOPS if kind != "exec"),  # none of these is a place at I2P
    *((("openssh", "i2p"), target) for target in ("tcp", "tls")),
]


@pytest.mark.parametrize(("way", "target"), SENSELESS, ids=shown)
def test_what_makes_no_sense_names_the_two_places(way, target):
    hops = [NOWHERE[kind] for kind in way]
    wrong = next((place for place in range(1, len(way)) if _is_senseless(way[place - 1], way[place])), len(way))
    with pytest.raises(relay.AddressError) as refused:
        relay.target("exec:cat" if target == "exec" else NOWHERE[target], hops)
    after = NAMES[way[wrong]] if wrong < len(way) else NAMES["program" if target == "exec" else target]
    for place in (NAMES[way[wrong - 1]], after.partition("://")[2] if after.startswith("tls") else after):
        assert place in str(refused.value)
    assert f"hop {wrong} of {len(way)}" in str(refused.value) or len(way) == 1


def _is_senseless(before, after):
    return (after == "exec" and before not in chain_world.SSH) or before == "i2p"
