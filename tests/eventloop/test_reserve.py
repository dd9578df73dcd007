"""``relay.eventloop.reserve``: some descriptors that only operators use."""

import contextlib
import os
import resource

import pytest

from relay.eventloop import reserve


@pytest.fixture(autouse=True)
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def soft():
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize(("hard", "kept"), [(64, 56), (255, 224), (256, 224), (20_000, 19_968)])
def test_it_keeps_an_eighth_and_32_at_most(monkeypatch, hard, kept):
    made = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    reserve.keep()
    assert made == [(kept, hard)]


def test_a_system_that_says_unlimited_and_means_less_keeps_its_limit(monkeypatch):
    def refuse(*_):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    reserve.keep()
    with reserve.lent():
        pass


def test_it_is_lent_until_the_last_borrower_has_done_its_work(limits):
    reserve.keep()
    kept = soft()
    assert (kept < limits[1], reserve.is_lent) == (True, False)
    with reserve.lent():
        with reserve.lent():
            assert (soft(), reserve.is_lent) == (limits[1], True)
        assert (soft(), reserve.is_lent) == (limits[1], True)
    assert (soft(), reserve.is_lent) == (kept, False)


def test_an_error_of_a_borrower_gives_it_back():
    reserve.keep()
    kept = soft()
    with contextlib.suppress(OSError), reserve.lent():
        raise OSError
    assert (soft(), reserve.is_lent) == (kept, False)


def test_what_is_free_of_it_is_not_for_clients(limits):
    with contextlib.ExitStack() as held:
        number = os.open(os.devnull, os.O_RDONLY)
        held.callback(os.close, number)
        highest = max(map(int, os.listdir("/dev/fd")))  # of this process, some of which may be those of other tests
        while (above := os.dup(number)) < highest:  # fill the holes below
            held.callback(os.close, above)
        held.callback(os.close, above)
        resource.setrlimit(resource.RLIMIT_NOFILE, (above + 3, limits[1]))
        with reserve.lent():
            assert reserve.leaves(2)
            assert not reserve.leaves(3)
