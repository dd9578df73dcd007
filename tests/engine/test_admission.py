"""``relay.engine.admission``: which connections count, and the spare descriptor."""

import errno
import os

import pytest

from relay.engine.admission import Slots, SpareDescriptor


@pytest.fixture
def slots():
    """Two slots, and four connections: one counts, two are queued, one is half-open."""
    made = Slots(2)
    made.connections.update(dict.fromkeys(["counts", "first", "second", "half-open"]))
    made.queued.update(dict.fromkeys(["first", "second"]))
    made.half_open["half-open"] = None
    return made


def test_half_open_and_queued_connections_do_not_count(slots):
    assert slots.used() == 1


def test_the_oldest_queued_connection_is_next(slots):
    assert slots.next_queued() == "first" and slots.used() == 2
    assert slots.next_queued() is None
    slots.remove("counts")
    assert slots.next_queued() == "second"
    assert slots.next_queued() is None


def test_queued_connections_leave_no_room(slots):
    assert not slots.has_room()
    slots.remove("first")
    assert not slots.has_room()
    slots.remove("second")
    assert slots.has_room()
    slots.remove("half-open")
    assert slots.has_room() and not slots.half_open


@pytest.mark.parametrize("name", ["half_open", "queued", "tarpit"])
def test_a_connection_that_has_ended_is_forgotten_wherever_it_was(name):
    slots = Slots(1)
    table = getattr(slots, name)
    slots.connections["one"] = table["one"] = None
    assert slots.used() == 0
    slots.remove("one")
    assert not table and slots.used() == 0 and slots.has_room()


def test_clients_in_the_tarpit_take_no_slot():
    slots = Slots(1)
    for client in ("denied", "denied, too"):
        slots.connections[client] = slots.tarpit[client] = None
    assert slots.used() == 0 and slots.has_room()
    slots.connections["queued"] = slots.queued["queued"] = None
    assert not slots.has_room()
    assert slots.next_queued() == "queued" and slots.used() == 1


def test_a_limit_of_no_connections_leaves_no_room():
    slots = Slots(0)
    assert not slots.has_room()
    slots.connections["queued"] = slots.queued["queued"] = None
    assert slots.next_queued() is None


def test_without_a_limit_there_is_room():
    slots = Slots(-1)
    slots.connections.update(dict.fromkeys(range(10_000)))
    assert slots.has_room()
    slots.queued[0] = None
    assert slots.next_queued() == 0


def test_the_spare_descriptor_is_released_once_and_opened_again():
    spare = SpareDescriptor()
    assert not spare.release()
    spare.open()
    spare.open()
    assert spare.is_available()
    assert spare.release() and not spare.release()
    assert spare.is_available() and spare.release()


def test_without_a_descriptor_there_is_no_spare_one(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    spare = SpareDescriptor()
    monkeypatch.setattr(os, "open", refuse)
    assert not spare.is_available()
    with pytest.raises(OSError, match="Too many open files"):
        spare.open()
