"""``relay.streams.names``: names that are looked up, also for connections from one address of this machine."""

from __future__ import annotations

import socket

import pytest

from relay import ConnectError
from relay.eventloop.sockets import Endpoint
from relay.streams.names import BoundName, resolved
from relay.streams.source import Source

FOUND = [Endpoint(socket.AF_INET6, ("::1", 80, 0, 0)), Endpoint(socket.AF_INET, ("127.0.0.1", 80))]


class Directory:
    """A name whose look-up returns or raises what the test sets."""

    host = "db.example"

    def __init__(self, answer):
        self.answer = answer

    def look_up(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def endpoints(self, found):
        if isinstance(found, BaseException):
            raise ConnectError("db.example: cannot be resolved") from found
        return found


def test_the_addresses_of_a_name():
    assert resolved(Directory(FOUND)) == FOUND


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), UnicodeError("no name")])
def test_a_failure_is_that_of_the_name(error):
    with pytest.raises(ConnectError, match="cannot be resolved"):
        resolved(Directory(error))


def test_a_bound_name_has_the_addresses_of_its_sources_family():
    name = BoundName("db.example:80", Directory(FOUND), Source(socket.AF_INET, "127.1.2.3"))
    assert name.host == "db.example"  # so that an engine looks it up once for all sources
    assert resolved(name) == [FOUND[1]._replace(source=("127.1.2.3", 0))]
    name = BoundName("db.example:80", Directory(FOUND), Source(socket.AF_INET, "192.0.2.1"))
    assert resolved(name) == [FOUND[1]._replace(source=("192.0.2.1", 0))]


def test_a_bound_name_keeps_the_error_of_the_look_up():
    with pytest.raises(ConnectError, match="cannot be resolved"):
        resolved(BoundName("db", Directory(OSError("x")), Source(socket.AF_INET, "127.1.2.3")))
