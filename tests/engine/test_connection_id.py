"""``relay.engine.connection_id``: UUIDs of version 7, made of a number and a time."""

import os
import time
import uuid

import pytest

from relay.engine import connection_id
from relay.engine.connection_id import epoch, id_of, next_number, number_of


@pytest.fixture
def set_base(monkeypatch):
    """Sets what is random in the ids of this process."""
    return lambda base: monkeypatch.setattr(connection_id, "_base", base)


def test_an_id_is_a_uuid_of_version_7_with_the_time_of_the_acceptance():
    now = time.monotonic()
    found = uuid.UUID(text := id_of(next_number(), now))
    assert (str(found), found.version, found.variant) == (text, 7, uuid.RFC_4122)
    assert found.int >> 80 == int(epoch(now) * 1000)
    assert abs(found.int / 2**80 / 1000 - time.time()) < 3600  # what was measured when the process started


def test_ids_sort_by_the_time_and_differ_at_the_same_time():
    ids = [id_of(next_number(), 1000.0 + second) for second in range(3) for _ in range(3)]
    assert len(set(ids)) == 9
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


@pytest.mark.parametrize("base", [0, 1, (1 << 62) - 1, (1 << 74) - 1, 1 << 73])
@pytest.mark.parametrize("number", [1, 2, 1 << 40])
def test_the_number_of_an_id_is_found(set_base, base, number):
    set_base(base)
    text = id_of(number, 5.0)
    assert uuid.UUID(text).version == 7
    assert number_of(text) == number_of(text.upper()) == number


def test_the_largest_number_is_found_and_none_beyond_it(set_base):
    set_base(5)
    assert number_of(id_of((1 << 62) - 1, 5.0)) == (1 << 62) - 1
    assert number_of(id_of(1 << 62, 5.0)) is None


@pytest.mark.parametrize(
    "text", ["1" * 31, "1" * 33, "1_" * 15 + "11", "+" + "1" * 31, " " + "1" * 31, "1" * 31 + "\n", "١" * 32]
)
def test_what_is_a_number_for_python_is_not_always_one_of_an_id(set_base, text):
    value = int(text, 16)
    set_base((value >> 64 & 0xFFF) << 62 | value & (1 << 62) - 1)
    assert number_of(f"{value & (1 << 128) - 1:032x}") == 0
    assert number_of(text) is None


@pytest.mark.parametrize("text", ["", "x", "1" * 31, "_" * 32, "g" * 32, "0x" + "1" * 30, "١" * 32, "\n" * 32])
def test_other_text_has_no_number(text):
    assert number_of(text) is None


def test_the_id_of_another_process_has_no_number_of_this_one(set_base):
    set_base(1 << 70)
    text = id_of(5, 0.0)
    set_base((1 << 70) + 1000)
    assert number_of(text) is None


def test_ids_begin_with_eighty_random_bits(monkeypatch, set_base):
    set_base(0)
    monkeypatch.setattr(os, "urandom", lambda size: bytes(range(1, size + 1)))
    connection_id._seed()
    assert connection_id._base == 0x0102030405060708090A


def test_a_forked_child_makes_ids_of_its_own():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, id_of(7, 3.0).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        os.close(writer)
        found = answer.read()
    assert uuid.UUID(found).version == 7
    assert found != id_of(7, 3.0)
