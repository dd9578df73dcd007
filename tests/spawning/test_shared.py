"""``relay.spawning.shared``: the descriptors that outlive the workers."""

from __future__ import annotations

import errno
import os
import socket

import pytest

import relay
from relay.spawning.shared import SharedDescriptors


def test_each_worker_gets_its_own_end_and_those_to_all():
    with relay.listen(":0") as listening:
        shared = SharedDescriptors(listening, 3)
        lists = [shared.of_worker(index) for index in range(3)]
        assert {tuple(found[2:]) for found in lists} == {tuple(lists[0][2:])}
        assert len({found[1] for found in lists}) == 3
        assert all(len(found) == 6 for found in lists)
        for number, found in enumerate(lists):
            with socket.socket(fileno=os.dup(found[2 + number])) as to_it, socket.socket(fileno=os.dup(found[1])) as it:
                to_it.send(b"client")
                assert it.recv(10) == b"client"
        shared.close()
        assert listening.fileno() == -1
        shared.close()


def test_a_listener_that_is_released_stays_open():
    with relay.listen(":0") as listening:
        shared = SharedDescriptors(listening, 1)
        assert not os.get_blocking(listening.fileno())
        shared.release_listener()
        shared.close()
        assert listening.fileno() != -1
        assert os.get_blocking(listening.fileno())


def test_the_counts_stay_after_the_end():
    shared = SharedDescriptors(None, 2)
    shared._table.admit(0, 1)
    shared._table.admit(1, 1)
    assert (shared.loads(), shared.accepted(), shared.bury(0)) == ([1, 1], 2, 1)
    shared.close()
    assert (shared.loads(), shared.accepted(), shared.bury(1)) == ([], 2, 0)


def test_without_descriptors_nothing_is_left_open(monkeypatch):
    made = []

    def exhausted(*_):
        if len(made) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append((socket.socket(), socket.socket()))
        return made[-1]

    monkeypatch.setattr(socket, "socketpair", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        SharedDescriptors(None, 3)
    assert [sock.fileno() for pair in made for sock in pair] == [-1] * 4
