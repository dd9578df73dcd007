"""Streams to a program that listens, which is the command itself."""

import pytest
from warm_relay import RELAY

import relay
from relay.testing import check_factory


@pytest.mark.parametrize("place", ["{port}", "unix://{path}"])
def test_it_keeps_every_promise_of_a_factory(listener, place):
    """With relay itself as the program, which changes nothing of a stream."""
    host, port = listener.getsockname()
    check_factory(relay.target(f"port:{RELAY} forward {place} {host}:{port}"), listener)
