"""A queue of bytes in pieces: the same bytes as in one piece, whatever is done with them, and few pieces."""

import random

import pytest

from relay.transports.resume.pieces import Pieces


@pytest.mark.parametrize("seed", range(5))
def test_it_holds_what_a_bytearray_holds(seed):
    chance = random.Random(seed)
    pieces, other, model, moved = Pieces(), Pieces(), bytearray(), bytearray()
    for _ in range(2000):
        data = chance.randbytes(chance.choice([1, 60, 5000]))
        most = chance.randrange(1, 9000)
        action = chance.choice(["append", "append", "take", "drop", "move", "put back"])
        if action == "append":
            pieces.append(data)
            model += data
        elif action == "take" and pieces:
            taken = bytes(pieces.take(most))
            assert 0 < len(taken) <= most
            assert model.startswith(taken)
            del model[: len(taken)]
        elif action in ("drop", "move"):
            size = min(most, len(pieces))
            if action == "drop":
                pieces.drop(size)
            else:
                pieces.move(size, other)
                moved += model[:size]
            del model[:size]
        elif action == "put back":
            pieces.put_back(other)
            model, moved = moved + model, bytearray()
        assert (len(pieces), len(other)) == (len(model), len(moved))
    assert (bytes(pieces), bytes(other)) == (model, moved)


def test_what_is_kept_does_not_change_with_the_memory_that_it_came_in():
    memory = bytearray(b"x" * 10_000)
    pieces = Pieces()
    pieces.append(memoryview(memory)[:6000])
    pieces.append(memoryview(memory)[6000:])
    pieces.keep()
    memory[:] = b"y" * 10_000
    assert bytes(pieces) == b"x" * 10_000


def test_many_single_bytes_are_few_pieces():
    pieces = Pieces()
    for _ in range(100_000):
        pieces.append(b"x")
    assert len(list(pieces.first(1000))) < 50
    assert b"".join(pieces.first(1000)) == b"x" * 100_000


def test_the_first_pieces_are_no_more_than_asked_for():
    pieces = Pieces()
    for _ in range(3):
        pieces.append(bytes(5000))
    assert len(list(pieces.first(2))) == 2
